"""What all learners share: the wrapped module, the choice of back end, adaptation and
evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from innerloop import functional
from innerloop._batching import with_task_axis
from innerloop._calling import named
from innerloop._checks.engine import refuse_backend
from innerloop._checks.network import check_statistics
from innerloop._checks.options import check_flag
from innerloop._checks.rows import check_batch
from innerloop._checks.solver import check_adapt_params, check_inner_lr, check_options
from innerloop._choice import Choice, Model, choice_for, refusal_for
from innerloop._derivatives import transforms_active
from innerloop._inner_step import last_step
from innerloop._params import BatchLike, InnerLr, LeafShape, leaf_shapes
from innerloop._solver import OPTIONS, in_words, solver_of
from innerloop._tasks import alone, loop_reason
from innerloop.learners import _checks as learner_checks
from innerloop.learners.adapted import Adapted
from innerloop.learners.description import Description
from innerloop.learners.evaluation import BatchParts, Evaluation, evaluate
from innerloop.learners.rates import InnerRates
from innerloop.objectives import Loss, Objective, resolve, suited

# options that are settled when a learner is made, and what to do instead of setting them
_SETTLED = {
    "inner_lr": "pass inner_lr= to the call, change the parameters of .rates, or make another one",
    "learn_inner_lr": "make another one",
    "adapt_params": "make another one",
    "allow_tf32": "make another one",
}


class Learner(nn.Module):
    """A network with the way in which it adapts to a task. Base of MAML and JointTraining.

    The parameters are the wrapped module's own, never copies: after `optimizer.step()` the module
    itself has learned.

    Members:
        module: the wrapped module.
        rates: the inner rates, an nn.Module (its parameters are the learned rates); None if there
            are none.
        adapted_names: the parameters that the inner loop changes, by the module's names, in its
            order.
        steps, order, loss, query_loss, momentum, nesterov, weight_decay: the settings; `steps`, the
            last three, and the options of a torch loss, may be changed at any time.
    """

    rates: InnerRates | None
    momentum: float
    nesterov: bool
    weight_decay: float

    @named
    def __init__(
        self,
        module: nn.Module,
        *,
        inner_lr: InnerLr | None,
        learn_inner_lr: bool | str,
        steps: int,
        order: int,
        loss: Loss,
        query_loss: Loss | None,
        solver: Mapping[str, Any],
        adapt_params: Sequence[str] | None,
        backend: str,
        allow_tf32: bool,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        check_options(op, steps, order, backend)
        resolve(op, loss)
        if query_loss is not None:
            resolve(op, query_loss, "query_loss")
        check_flag(op, "allow_tf32", allow_tf32)
        learner_checks.check_module(op, module)
        self.module = module
        self.steps = steps
        self.order = order
        self.loss = loss
        self.query_loss = query_loss
        solver_of(op, **solver)
        for name, value in solver.items():
            setattr(self, name, value)
        self._backend = backend
        self._allow_tf32 = allow_tf32
        self._description = Description()
        leaves = self._leaves()
        named = dict(module.named_parameters())
        self._parameter_names = frozenset(named)
        like = next(p for p in named.values() if p.is_floating_point())
        if adapt_params is None:
            self.adapted_names = tuple(
                leaf.name for leaf in leaves if leaf.is_floating and named[leaf.name].requires_grad
            )
            learner_checks.check_some_adapted(op, self.adapted_names, list(named))
        else:
            check_adapt_params(op, adapt_params, leaves)
            self.adapted_names = tuple(leaf.name for leaf in leaves if leaf.name in adapt_params)
        self.rates = None
        if inner_lr is not None:
            check_inner_lr(op, inner_lr, leaves, self.adapted_names, steps, like)
            adapted = [leaf for leaf in leaves if leaf.name in self.adapted_names]
            self.rates = InnerRates(
                inner_lr, learn=learn_inner_lr, steps=steps, leaves=adapted, like=like, op=op
            )
        if backend in ("fused", "batched"):
            refusal = refusal_for(module, like.device, like.dtype, backend, self._objectives)
            if refusal:
                refuse_backend(op, refusal, backend)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses options that are settled when a learner is made: a plain attribute of that name
        would change nothing."""
        if name in _SETTLED:
            raise AttributeError(f"{type(self).__name__}: {name} cannot be set; {_SETTLED[name]}")
        super().__setattr__(name, value)

    # ------------------------------------------------------------ back end

    @property
    def _objectives(self) -> tuple[Objective, Objective]:
        """What the losses of support and query rows mean now: options of torch's losses may be set,
        and hooks come and go."""
        op = type(self).__name__
        objective = resolve(op, self.loss)
        if self.query_loss is None:
            return objective, objective
        return objective, resolve(op, self.query_loss, "query_loss")

    @property
    def _solver(self) -> dict[str, Any]:
        """The options of the inner loop's steps as they are now."""
        return {name: getattr(self, name) for name in OPTIONS}

    @property
    def choice(self) -> Choice:
        """The back end of the next call and the reason for it."""
        if self._backend == "torch":
            return Choice("torch", 'backend="torch" was asked for')
        parameters = list(self.module.parameters())
        like = next((p for p in parameters if p.is_floating_point()), parameters[0])
        model = self._description.of(self.module)[0]
        where = like.device, like.dtype, self._backend
        return choice_for(model, *where, self._objectives, self.module)

    @property
    def backend(self) -> str:
        """The back end of the next call: "fused", "batched" or "torch"."""
        return self.choice.backend

    def explain(self) -> str:
        """Returns in words what the learner does: back end and reason, settings, which parameters
        adapt."""
        choice = self.choice
        objective, outer = self._objectives
        lines = [
            f"{type(self).__name__}: {self._settings()}",
            f"back end: {choice.backend}, {choice.reason}",
        ]
        try:
            check_statistics(type(self).__name__, self.module, selects_rows=False)
        except NotImplementedError as refusal:
            lines[1] = f"refused: {refusal}"
        foreign = objective if objective.rows is None else outer
        looped = loop_reason(self.module, foreign)
        if choice.backend == "torch" and looped is not None:
            what = "module" if foreign.function is None else "module or the loss"
            lines.append(
                f"tasks run one after another, since torch.vmap refused the {what}: {looped}"
            )
        frozen = [k for k, p in self.module.named_parameters() if not p.requires_grad]
        fixed = [k for k, _ in self.module.named_parameters() if k not in self.adapted_names]
        lines.append(f"adapted in the inner loop: {', '.join(self.adapted_names) or 'nothing'}")
        lines.append(f"not adapted: {', '.join(fixed) or 'none'}")
        lines.append(f"frozen (no meta-gradient): {', '.join(frozen) or 'none'}")
        learned: dict[str, None] = {}
        for loss in (self.loss, self.query_loss):
            if isinstance(loss, nn.Module):
                learned |= dict.fromkeys(name for name, _ in loss.named_parameters())
        if learned:
            lines.append(f"learned with the loss: {', '.join(learned)}")
        return "\n".join(lines)

    def _settings(self) -> str:
        """Returns the settings in words."""
        objective, outer = self._objectives
        query = "" if outer is objective else f", query loss {outer.name}"
        words = in_words(**self._solver)
        return f"loss {objective.name}{query}, {self.steps} inner steps{words}"

    def extra_repr(self) -> str:
        """Shows the settings."""
        return self._settings()

    def _leaves(self) -> tuple[LeafShape, ...]:
        """Returns the module's parameters as leaves."""
        named = dict(self.module.named_parameters())
        constant = [k for k, v in named.items() if not v.is_floating_point()]
        return leaf_shapes({k: tuple(v.shape) for k, v in named.items()}, constant)

    def _model(
        self, support: Any, query: Any = None
    ) -> tuple[Model, dict[str, Tensor], Objective, Objective]:
        """Returns what the functional layer is to run (the description if there is one, else the
        module), the parameters, and the losses of support and query rows."""
        model: Model = self.module
        objective, outer = self._objectives
        if outer is objective:
            objective = outer = suited(objective, support, query)
        else:
            objective, outer = suited(objective, support), suited(outer, query)
        is_fused = objective.is_fused and (query is None or outer.is_fused)
        with alone():
            if self._backend == "torch" or not is_fused:
                params: dict[str, Tensor] = dict(self.module.named_parameters())
            else:
                model, params = self._description.of(self.module)
        learner_checks.check_same_parameters(type(self).__name__, params, self._parameter_names)
        if model is self.module:
            selects = any(map(learner_checks.leaves_rows_out, (support, query)))
            check_statistics(type(self).__name__, self.module, selects_rows=selects)
        return model, params, objective, outer

    def _batch(self, batch: BatchLike) -> BatchLike:
        """Returns a batch as it is, and a single task as a batch of one."""
        return with_task_axis(self.module, batch)[0]

    def _rates_for(self, op: str, inner_lr: InnerLr | None, steps: int) -> InnerLr:
        """Returns the rates of one call."""
        if inner_lr is not None:
            return inner_lr
        if self.rates is None:
            learner_checks.refuse_without_rate(op)
        return self.rates.for_steps(steps)

    def _anchored(self, loss: Tensor, model: Model) -> Tensor:
        """Returns the loss, tied to every parameter where it is not yet (on the torch back end), so
        that unused ones get zero gradients."""
        if isinstance(model, nn.Module) and torch.is_grad_enabled():
            with alone():
                wanted = [p for p in self.parameters() if p.requires_grad]
            if torch.compiler.is_compiling() or transforms_active():
                reached: set[int] = set()
            else:
                reached = _variables_of(loss.grad_fn)
            if wanted and all(id(p) in reached for p in wanted):
                return loss
            kind = _Anchor if torch.compiler.is_compiling() else _AnchorForwards
            loss = kind.apply(loss, *wanted)  # type: ignore[no-untyped-call]
        return loss

    # ------------------------------------------------------------ use after training

    @named
    def adapt(
        self, support: BatchLike, *, steps: int | None = None, inner_lr: InnerLr | None = None
    ) -> Adapted:
        """Returns the network adapted to each task, as a function of new inputs.

        Args:
            support: (x [T, N, ...], y[, count[, weight]]), as in training; a single task (x [N,
                ...], y [N, ...]) is adapted to alone.
            steps: inner steps; None for the learner's own. Rates per step are cut, or the last one
                is repeated.
            inner_lr: rates; None for the learner's own.

        Returns:
            Adapted: call it on x [T, M, ...] ([M, ...] for a single task). It holds constants, no
                autograd state.

        Raises:
            ValueError: a shape does not fit, or JointTraining has no inner_lr.

        Cost: time O(T S N P); memory O(T P).

        Example:
            >>> import innerloop as il
            >>> learner = il.MAML(nn.Linear(2, 1), inner_lr=0.1, steps=1)
            >>> learner.adapt((torch.ones(4, 5, 2), torch.ones(4, 5)))(torch.ones(4, 3, 2)).shape
            torch.Size([4, 3, 1])
        """
        steps = self.steps if steps is None else steps
        rates = self._rates_for(f"{type(self).__name__}.adapt", inner_lr, steps)
        support, is_single = with_task_axis(self.module, support)
        model, params, objective, _ = self._model(support)
        with torch.no_grad():
            adapted = functional.adapt(
                {k: v.detach() for k, v in params.items()},
                support,
                model=model,
                inner_lr=_detached(rates),
                steps=steps,
                loss=objective,
                **self._solver,
                adapt_params=self.adapted_names,
                backend=self._backend,
                allow_tf32=self._allow_tf32,
            )
        constants = {k: v.detach() for k, v in adapted.items()}
        return Adapted(
            self.module,
            constants,
            self._backend,
            self._allow_tf32,
            is_single=is_single,
            step=last_step(steps),
        )

    @named
    def evaluate(
        self,
        support: BatchLike,
        query: BatchLike,
        *,
        steps: int | None = None,
        inner_lr: InnerLr | None = None,
    ) -> Evaluation:
        """Returns the query loss (and accuracy) of each task after 0..S inner steps on its support
        rows.

        Modules that behave differently in training mode (dropout) do so here too: call
        `learner.eval()` first.

        Args:
            support, query, steps, inner_lr: as in `adapt` and in training.

        Returns:
            Evaluation: losses [T, S + 1], means and 95 % confidence half-widths over tasks.
                Constants, no autograd state.

        Raises:
            ValueError: as `adapt`.

        Cost: time O(T S (N + Q) P); memory O(S P) per task for as many tasks at a time as fit 64
            MiB, at least one.

        Example:
            >>> import innerloop as il
            >>> learner, x = il.MAML(nn.Linear(2, 1), inner_lr=0.1, steps=3), torch.ones(4, 5, 2)
            >>> learner.evaluate((x, x[..., :1]), (x, x[..., :1])).loss.shape
            torch.Size([4, 4])
        """
        steps = self.steps if steps is None else steps
        op = f"{type(self).__name__}.evaluate"
        check_options(op, steps, self.order, self._backend)
        support_parts = check_batch(op, "support", self._batch(support))
        query_parts = check_batch(op, "query", self._batch(query))
        rates: InnerLr = 0.0 if not steps else self._rates_for(op, inner_lr, steps)
        model, params, objective, outer = self._model(support_parts, query_parts)
        support_parts, query_parts = _constants(support_parts), _constants(query_parts)
        # a module that the torch back end runs may differentiate in its forward pass
        with torch.set_grad_enabled(self.backend == "torch"):
            return evaluate(
                {k: v.detach() for k, v in params.items()},
                support_parts,
                query_parts,
                model=model,
                inner_lr=_detached(rates),
                steps=steps,
                objective=objective,
                outer=outer,
                solver=self._solver,
                adapted=self.adapted_names,
                backend=self._backend,
                allow_tf32=self._allow_tf32,
            )


def _constants(parts: BatchParts) -> BatchParts:
    """Returns a batch without autograd history."""
    x, y, count, weight = parts
    return x.detach(), y.detach(), count, None if weight is None else weight.detach()


def _detached(inner_lr: InnerLr) -> InnerLr:
    """Returns rates without autograd history."""
    if isinstance(inner_lr, Mapping):
        return {k: v.detach() if isinstance(v, Tensor) else v for k, v in inner_lr.items()}
    return inner_lr.detach() if isinstance(inner_lr, Tensor) else inner_lr


def _variables_of(node: Any) -> set[int]:
    """Returns the parameters that a node of autograd's graph is a function of, by identity."""
    before = () if node is None else node.next_functions
    return {id(getattr(other, "variable", None)) for other, _ in before}


class _Anchor(torch.autograd.Function):
    """The loss itself, as a function of every parameter: those that it does not use get zeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(loss: Tensor, *parameters: Tensor) -> Tensor:
        """Returns the loss."""
        return loss.view_as(loss)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps the parameters, for their shapes."""
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        """Passes the cotangent on, and zeros to the parameters."""
        return (cotangent, *(torch.zeros_like(p) for p in ctx.saved_tensors))


class _AnchorForwards(_Anchor):
    """The same with a forward mode, which torch.compile does not trace."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Tensor) -> Tensor:
        """Passes the loss's tangent on."""
        return tangent.view_as(tangent)
