"""Meta-losses for torch's autograd, whose derivative is known: once, since it is one itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function

from innerloop._derivatives import check_same_losses, is_batched, wants_grad
from innerloop._params import InnerLr, Params
from innerloop.reference import ReferenceMetaGrad

_TWICE = (
    "meta_loss (which MAML and JointTraining call): only first derivatives in params and inner_lr "
    'are provided by the batched operations; use backend="torch" for higher ones'
)
_CONSTANT = (
    "{op}: the batched operation cannot be differentiated; use meta_loss for meta-gradients, "
    'or backend="torch"'
)


class Problem(NamedTuple):
    """A meta-loss as a function of parameters and rates.

    Members:
        value: (params, inner_lr) -> losses [T].
        gradient: (params, inner_lr, task_weight) -> losses and gradients.
        params, inner_lr: where it is asked for.
        names: of the parameters that have gradients.
        data: tensors that are read again by `gradient`.
    """

    value: Callable[[Params, InnerLr], Tensor]
    gradient: Callable[[Params, InnerLr, Tensor | None], ReferenceMetaGrad]
    params: dict[str, Tensor]
    inner_lr: InnerLr
    names: tuple[str, ...]
    data: list[Tensor]

    def variables(self) -> list[Tensor]:
        """Returns the tensors in which there is a derivative."""
        rates = self._rates().values()
        own = [self.params[name] for name in self.names]
        return [*own, *(value for value in rates if isinstance(value, Tensor))]

    def at(self, variables: Sequence[Tensor]) -> tuple[Params, InnerLr]:
        """Returns parameters and rates made of the like of `variables()`."""
        size = len(self.names)
        params = {**self.params, **dict(zip(self.names, variables[:size], strict=True))}
        rest = iter(variables[size:])
        rates = {k: next(rest) if isinstance(v, Tensor) else v for k, v in self._rates().items()}
        return params, rates if isinstance(self.inner_lr, Mapping) else rates[""]

    def gradients(self, found: ReferenceMetaGrad) -> list[Tensor]:
        """Returns the gradients in `variables()`."""
        rates = found.inner_lr_grad
        by_key = rates if isinstance(rates, Mapping) else {"": rates}
        asked = [k for k, v in self._rates().items() if isinstance(v, Tensor)]
        return [*(found.grad[name] for name in self.names), *(by_key[k] for k in asked)]

    def _rates(self) -> Mapping[str, float | Tensor]:
        """Returns the rates by name; "" for all parameters."""
        return self.inner_lr if isinstance(self.inner_lr, Mapping) else {"": self.inner_lr}


def task_losses(problem: Problem) -> Tensor:
    """Returns the losses [T]."""
    variables = problem.variables()
    if wants_grad(variables):
        losses: Tensor = _TaskLosses.apply(problem, *variables)  # type: ignore[no-untyped-call]
        return losses
    with torch.no_grad():
        return problem.value(problem.params, problem.inner_lr)


def mean_loss(problem: Problem, weight: Tensor | None) -> Tensor:
    """Returns sum_t weight_t loss_t, with the gradient in the variables from the same pass."""
    variables = problem.variables()
    if wants_grad([*variables, weight]):
        total: Tensor = _MeanLoss.apply(problem, weight, *variables)  # type: ignore[no-untyped-call]
        return total
    return _weighted(task_losses(problem), weight)


def _weighted(losses: Tensor, weight: Tensor | None) -> Tensor:
    """Returns sum_t weight_t loss_t."""
    return losses.mean() if weight is None else (weight * losses).sum()


def as_constants(op: str, results: Sequence[Tensor], inputs: Iterable[Tensor]) -> list[Tensor]:
    """Returns results that raise where somebody differentiates them."""
    wanted = [value for value in inputs if value.requires_grad]
    if not wanted or not torch.is_grad_enabled():
        return list(results)
    constants = _Constants.apply(op, len(results), *results, *wanted)  # type: ignore[no-untyped-call]
    return list(constants)


class _TaskLosses(Function):
    """The losses [T]; the derivative is one meta-gradient weighted by the cotangent. It runs the
    inner loops again, so everything must be as it was: tensors by their versions, what a loss sees
    besides by its values."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, *variables: Tensor) -> Tensor:
        """Computes the losses alone."""
        losses = problem.value(*problem.at(variables))
        ctx.problem, ctx.count = problem, len(variables)
        ctx.save_for_backward(*variables, losses, *problem.data)
        return losses

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        """Computes the gradients: of many cotangents at once from those of each task."""
        saved = ctx.saved_tensors  # once, as activation checkpointing wants it
        variables, losses = saved[: ctx.count], saved[ctx.count]
        problem: Problem = ctx.problem

        def gradients(weight: Tensor) -> list[Tensor]:
            with torch.no_grad(), torch.autocast(losses.device.type, enabled=False):
                found = problem.gradient(*problem.at(variables), weight)
                check_same_losses(losses, found.loss)
            return problem.gradients(found)

        if is_batched(cotangent):
            each = [gradients(one) for one in torch.eye(len(losses)).to(losses)]
            stacked = [torch.stack(parts) for parts in zip(*each, strict=True)]
            grads = [torch.tensordot(cotangent, parts, 1) for parts in stacked]
        else:
            grads = [_known(grad, [cotangent, *variables]) for grad in gradients(cotangent)]
        return (None, *grads)


class _MeanLoss(Function):
    """The weighted sum with its gradient from the same pass."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, weight: Tensor | None, *variables: Tensor) -> Tensor:
        """Computes losses and gradients."""
        found = problem.gradient(*problem.at(variables), weight)
        ctx.count = len(variables)
        ctx.save_for_backward(weight, found.loss, *problem.gradients(found), *variables)
        return _weighted(found.loss, weight)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        """Scales the gradients."""
        weight, loss, *rest = ctx.saved_tensors
        grads, variables = rest[: ctx.count], rest[ctx.count :]
        if weight is not None:
            variables = [*variables, weight]
        needed = ctx.needs_input_grad
        scaled = [
            _known(grad, variables) * cotangent if needs else None
            for grad, needs in zip([loss, *grads], needed[1:], strict=True)
        ]
        return (None, *scaled)


def _known(gradient: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Returns a gradient as a function of the inputs of the loss, without a derivative."""
    if not torch.is_grad_enabled():
        return gradient
    result: Tensor = _Known.apply(gradient, *inputs)  # type: ignore[no-untyped-call]
    return result


class _Known(Function):
    """A known gradient: `backward` raises."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        """Returns the gradient."""
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> NoReturn:
        """Raises."""
        raise RuntimeError(_TWICE)


class _Constants(Function):
    """Results without a derivative: `backward` raises."""

    @staticmethod
    def forward(ctx: Any, op: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the results."""
        ctx.op = op
        return tuple(value.view_as(value) for value in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> NoReturn:
        """Raises."""
        raise RuntimeError(_CONSTANT.format(op=ctx.op))
