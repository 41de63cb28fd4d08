"""Routes each operation to its raw op in the way the surroundings need, and gives meta_loss its
derivatives.

Plain eager calls go straight to the kernel. Under torch.func transforms, and where autograd or
forward mode would differentiate, a call goes through an autograd.Function: its `vmap` folds the
mapped axis into the task axis; `backward` and `jvp` are right or raise. Under torch.compile, and
with anything that is not a plain tensor in memory, it goes to the registered op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function

from innerloop import _ops
from innerloop._derivatives import (
    NO_COMPILED_FORWARD,
    forward_mode,
    have_tangents,
    is_batched,
    is_differentiated,
    transforms_active,
    wants_grad,
)
from innerloop._folding import (
    HEADS,
    X_AT,
    Tensors,
    fold,
    slice_weight,
    unfold,
    unfold_meta_grad,
)
from innerloop._plan import Plan

_PLAIN = (Tensor, torch.nn.Parameter)
_LOSS_HEAD, _GRAD_HEAD = len(HEADS["meta_loss"]), len(HEADS["meta_grad"])


def _kernels(x: Any) -> dict[str, Callable[..., Any]]:
    """Returns the kernels themselves in ordinary eager execution on plain tensors (5 us less a
    call), else the ops that torch dispatches."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or type(x) not in _PLAIN
        or x.device.type not in ("cpu", "cuda")
    ):
        return _ops.RAW
    return _ops.KERNELS


def _call(name: str, plan: Plan, tensors: Tensors) -> Any:
    """Calls the kernel or op of one operation with flat tensors: its head, then its leaves."""
    kernels = _kernels(tensors[X_AT[name]])
    if kernels is _ops.KERNELS:
        try:
            return _arranged(kernels[name], name, plan, tensors, plan)
        except BufferError:  # some tensor is none that lies in memory: torch knows what it is
            pass
    return _arranged(_ops.RAW[name], name, plan, tensors, plan.text)


def _arranged(
    kernel: Callable[..., Any], name: str, plan: Plan, tensors: Tensors, carried: Plan | str
) -> Any:
    """Returns the kernel's results for flat tensors."""
    head = len(HEADS[name])
    if name == "hvp":
        half = head + len(plan.leaves)
        return kernel(tensors[head:half], tensors[half:], *tensors[:head], carried)
    return kernel(tensors[head:], *tensors[:head], carried)


def _apply(function: type[Function], *arguments: Any) -> Any:
    """Returns function.apply(*arguments), which torch leaves untyped."""
    return _for_mode(function).apply(*arguments)


def _eager_apply(function: type[Function], *arguments: Any) -> Any:
    """Returns function.apply(*arguments) outside torch.func, without its 15 us of signature
    inspection."""
    return super(Function, _for_mode(function)).apply(*arguments)


def _for_mode(function: type[Function]) -> Any:
    """Returns a function as it is in forward mode if a level of it is entered: torch.compile takes
    no functions that have a `jvp`."""
    if not forward_mode():
        return function
    if torch.compiler.is_compiling():
        raise RuntimeError(NO_COMPILED_FORWARD)
    return _IN_FORWARD_MODE[function]


def _compiling() -> bool:
    """Says whether torch.compile is tracing. It has no forward mode for ops, and would drop their
    tangents: that raises, for which it leaves the call to eager execution, or gives up."""
    if not torch.compiler.is_compiling():
        return False
    if forward_mode():
        raise RuntimeError(NO_COMPILED_FORWARD)
    return True


def run(name: str, plan: Plan, tensors: Tensors, *, constant: bool = False) -> Any:
    """Returns the results of an operation that has no derivative. If they could be differentiated,
    they carry a derivative that raises, unless the caller wants constants; these are none to
    torch.func and forward mode, which name what they differentiate."""
    if _compiling():
        if constant and not transforms_active():  # autograd is to record nothing, and be told so
            tensors = [value if value is None else value.detach() for value in tensors]
        return _call(name, plan, tensors)
    asked = "meta_grad" if constant else _ASKED.get(name, name)
    if transforms_active():
        return _apply(_Opaque, asked, name, plan, *tensors)
    if (not constant and wants_grad(tensors)) or (forward_mode() and have_tangents(tensors)):
        return _eager_apply(_Opaque, asked, name, plan, *tensors)
    return _call(name, plan, tensors)


def meta_loss(plan: Plan, tensors: Tensors) -> Tensor:
    """Returns the losses [T], differentiable once in the rates and the leaves."""
    compiling = _compiling()
    result: Tensor
    if transforms_active():
        result = _apply(_MetaLoss, plan, *tensors)
    elif not wants_grad(tensors) and not (forward_mode() and have_tangents(tensors)):
        result = _call("meta_loss", plan, tensors)
    elif compiling:
        result = _apply(_MetaLoss, plan, *_distinct(tensors))
    else:
        result = _eager_apply(_MetaLoss, plan, *tensors)
    return result


def mean_meta_loss(plan: Plan, tensors: Tensors) -> Tensor:
    """Returns sum_t w_t loss_t (the tensors of meta_grad), differentiable once in the rates, the
    leaves and w. Its gradient is computed with it, if one is wanted, so that backward only
    scales."""
    compiling = _compiling()
    result: Tensor
    if forward_mode() or not (transforms_active() or wants_grad(tensors)):
        losses = meta_loss(plan, _without_weight(tensors))
        result = weighted_total(losses, tensors[_GRAD_HEAD - 1])
    elif compiling:
        result = _apply(_MeanMetaLoss, plan, *_distinct(tensors))[0]
    elif transforms_active():
        result = _apply(_MeanMetaLoss, plan, *tensors)[0]
    else:
        result = _eager_apply(_MeanMetaLoss, plan, *tensors)[0]
    return result


def _distinct(tensors: Tensors) -> list[Tensor | None]:
    """Returns the tensors with a view in place of each that stands among them before, as where one
    batch is support and query: torch.compile takes no Function of the same tensor twice."""
    found: list[Tensor | None] = []
    for value in tensors:
        repeated = value is not None and any(value is other for other in found)
        found.append(value.view_as(value) if value is not None and repeated else value)
    return found


def weighted_total(loss: Tensor, task_weight: Tensor | None) -> Tensor:
    """Returns sum_t w_t loss_t, with w_t = 1/T if None, as a 0-d tensor."""
    if task_weight is not None:
        return torch.dot(loss, task_weight)
    return loss.mean() if loss.shape[0] else loss.sum()


def _without_weight(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Returns what belongs to the tensors of meta_grad without what belongs to its weights."""
    return (*arguments[: _GRAD_HEAD - 1], *arguments[_GRAD_HEAD:])


# ---------------------------------------------------------------- refusals

# the operation that a raw op is the derivative of
_ASKED = {"meta_grad": "meta_loss"}


def _refuse(asked: str) -> NoReturn:
    """Raises since a derivative that the fused operations do not have is wanted."""
    text = {"meta_loss": _ops.DOUBLE_BACKWARD, "meta_grad": _ops.CONSTANT}
    raise RuntimeError(text.get(asked, _ops.NO_BACKWARD).format(op=asked))


def _refuse_data(wanted: Sequence[Any]) -> None:
    """Raises if a derivative in the data is wanted after all, given what is wanted of a loss's
    arguments (plan, rates, x, y, count and weight of both sides, ...)."""
    if any(wanted[2 : _LOSS_HEAD + 1]):
        raise RuntimeError(_ops.NO_DATA_GRAD)


# ---------------------------------------------------------------- Functions


class _Opaque(Function):
    """Any operation as a function without derivative: `backward` raises, `vmap` folds."""

    @staticmethod
    def forward(asked: str, name: str, plan: Plan, *tensors: Tensor | None) -> Any:
        """Calls the raw op."""
        return _arranged(_ops.RAW[name], name, plan, tensors, plan.text)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Remembers the name for the message."""
        ctx.asked = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Raises."""
        _refuse(ctx.asked)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        asked: str,
        name: str,
        plan: Plan,
        *tensors: Tensor | None,
    ) -> tuple[Any, Any]:
        """Folds the mapped axis into the task axis."""
        size = info.batch_size
        folded = fold(name, plan, tensors, in_dims[3:], size, split=name == "meta_grad")
        if name == "meta_grad":
            weight_at = _GRAD_HEAD - 1
            folded.tensors[weight_at] = slice_weight(folded, size, folded.tensors[weight_at])
            out = _apply(_Opaque, asked, name, folded.plan, *folded.tensors)
            return unfold_meta_grad(out, folded, size), (0,) * 5
        out = _apply(_Opaque, asked, name, folded.plan, *folded.tensors)
        if isinstance(out, Tensor):
            return unfold(out, size, folded.tasks), 0
        return tuple(unfold(v, size, folded.tasks) for v in out), (0,) * len(out)


def _task_gradients(plan: Plan, tensors: Tensors) -> tuple[Tensor, list[Tensor]]:
    """Returns the gradient of each task's own loss in the flat rates and in every leaf: [T, ...]
    each, for the tensors of meta_loss."""
    alone = fold("meta_loss", plan, tensors, (None,) * len(tensors), 1, split=True)
    head, leaves = alone.tensors[:_LOSS_HEAD], alone.tensors[_LOSS_HEAD:]
    x = head[1]
    assert x is not None
    out = run("meta_grad", alone.plan, (*head, x.new_ones(alone.tasks), *leaves))
    parts = out[3].split([alone.tasks * leaf.size for leaf in plan.leaves])
    shapes = [(alone.tasks, *leaf.shape) for leaf in plan.leaves]
    return out[4], [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _along(gradient: Tensor, tangent: Tensor) -> Tensor:
    """Returns each task's derivative [T] along a tangent that it shares [...] or has [T, ...]."""
    product = gradient * tangent
    return product.sum(tuple(range(1, product.ndim))) if product.ndim > 1 else product


def _contracted(cotangent: Tensor, gradient: Tensor, shared: bool) -> Tensor:
    """Returns the sum over tasks (or the stack, unless shared) of cotangent_t gradient_t."""
    product = cotangent.reshape(-1, *[1] * (gradient.ndim - 1)) * gradient
    return product.sum(0) if shared else product


def _varies(cotangent: Tensor) -> bool:
    """Says whether a cotangent stands for many, or is differentiated itself."""
    if torch.compiler.is_compiling():
        return False
    return is_batched(cotangent) or is_differentiated(cotangent)


class _MetaLoss(Function):
    """The losses [T], with one meta_grad weighted by the cotangent as derivative."""

    @staticmethod
    def forward(plan: Plan, *tensors: Tensor | None) -> Tensor:
        """Calls the loss-only op."""
        result: Tensor = _call("meta_loss", plan, tensors)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps the inputs alone."""
        ctx.plan = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        """Returns the gradients of the rates and the leaves. For a cotangent that is a batch, or
        that is differentiated itself, each task's gradient is computed and multiplied with it."""
        _refuse_data(ctx.needs_input_grad)
        plan, tensors = ctx.plan, ctx.saved_tensors
        leaves = tensors[_LOSS_HEAD:]
        nones = (None,) * (_LOSS_HEAD - 1)
        if _varies(cotangent) and not any(v is not None and is_batched(v) for v in tensors):
            rate_grad, gradients = _task_gradients(plan, tensors)
            shared = [v.ndim == len(s.shape) for v, s in zip(leaves, plan.leaves, strict=True)]
            parts = (_contracted(cotangent, g, s) for g, s in zip(gradients, shared, strict=True))
            rate_part = _contracted(cotangent, rate_grad, not plan.options.rates.per_task)
            return (None, rate_part, *nones, *parts)
        arguments = (*tensors[:_LOSS_HEAD], cotangent, *leaves)
        out = run("meta_grad", plan, arguments)
        return (None, out[4], *nones, *_ops.split_grads(leaves, out[3]))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], plan: Plan, *tensors: Tensor | None
    ) -> tuple[Tensor, int]:
        """Folds the mapped axis into the task axis."""
        folded = fold("meta_loss", plan, tensors, in_dims[1:], info.batch_size, split=False)
        out = _apply(_MetaLoss, folded.plan, *folded.tensors)
        return unfold(out, info.batch_size, folded.tasks), 0


class _MeanMetaLoss(Function):
    """sum_t w_t loss_t with its gradient from the same pass: (total, loss, grads, rate_grad), of
    which the last three are constants. In forward mode `mean_meta_loss` does without it."""

    @staticmethod
    def forward(plan: Plan, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Calls meta_grad once."""
        out = _call("meta_grad", plan, tensors)
        return weighted_total(out[0], tensors[_GRAD_HEAD - 1]), out[0], out[3], out[4]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keeps the gradients, and the inputs that have one so that a second derivative meets
        `_Known`."""
        _, loss, grads, rate_grad = output
        ctx.mark_non_differentiable(loss, grads, rate_grad)
        ctx.save_for_backward(loss, grads, rate_grad, inputs[1], *inputs[_GRAD_HEAD + 1 :])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, *ignored: Any) -> Any:
        """Scales the gradients."""
        needed = ctx.needs_input_grad
        _refuse_data(needed)
        loss, grads, rate_grad, *inputs = ctx.saved_tensors

        def scaled(gradient: Tensor) -> Tensor:
            if torch.compiler.is_compiling():
                product: Tensor = _ops.SCALE_GRAD(cotangent, gradient, inputs)
                return product
            if torch.is_grad_enabled() or forward_mode():
                gradient = _apply(_Known, gradient, *inputs)
            return gradient * cotangent

        nones = (None,) * (_GRAD_HEAD - 2)
        return (
            None,
            scaled(rate_grad) if needed[1] else None,
            *nones,
            scaled(loss) if needed[_GRAD_HEAD] else None,
            *_ops.split_grads(inputs[1:], scaled(grads)),
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], plan: Plan, *tensors: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Folds the mapped axis into the task axis. What lies outside may differentiate the totals:
        for it they come from the losses, whose derivative is known, one pass more."""
        size = info.batch_size
        folded = fold("meta_grad", plan, tensors, in_dims[1:], size, split=True)
        weight_at = _GRAD_HEAD - 1
        weight = slice_weight(folded, size, folded.tensors[weight_at])
        folded.tensors[weight_at] = weight
        out = _apply(_Opaque, "meta_loss", "meta_grad", folded.plan, *folded.tensors)
        loss, _, _, grads, rate_grad = unfold_meta_grad(out, folded, size)
        known = loss
        if transforms_active() or wants_grad(tensors):
            dims = (None, *_without_weight(in_dims[1:]))
            known, _ = _MetaLoss.vmap(info, dims, plan, *_without_weight(tensors))
        total = (known * unfold(weight, size, folded.tasks)).sum(1)
        return (total, loss, grads, rate_grad), (0,) * 4


class _Known(Function):
    """A known gradient as a function of the inputs of the loss, whose derivative is not provided:
    `backward` raises. What else it is multiplied with can be differentiated."""

    @staticmethod
    def forward(gradient: Tensor, *inputs: Tensor) -> Tensor:
        """Returns the gradient."""
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        """Raises."""
        _refuse("meta_loss")

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], gradient: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Any]:
        """Leaves the mapped axis where it is."""
        return _apply(_Known, gradient, *inputs), in_dims[0]


# ---------------------------------------------------------------- the same in forward mode


class _OpaqueInForwardMode(_Opaque):
    """An operation without derivative: `jvp` raises as well."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        """Raises."""
        _refuse(ctx.asked)


class _MetaLossInForwardMode(_MetaLoss):
    """The losses with their derivative along tangents: each task's own gradient times these."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps the inputs. Absent tangents stay None: zeros for x would look like a wish."""
        _MetaLoss.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Returns each task's derivative along the tangents of the rates and the leaves."""
        _refuse_data([v is not None for v in tangents])
        rate_grad, gradients = _task_gradients(ctx.plan, ctx.saved_tensors)
        wanted = (tangents[1], *tangents[_LOSS_HEAD + 1 :])
        pairs = zip((rate_grad, *gradients), wanted, strict=True)
        terms = [_along(gradient, tangent) for gradient, tangent in pairs if tangent is not None]
        return torch.stack(terms).sum(0)


class _KnownInForwardMode(_Known):
    """A gradient whose derivative is not provided: `jvp` raises as well."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        """Raises."""
        _refuse("meta_loss")


_IN_FORWARD_MODE: dict[Any, Any] = {
    _Opaque: _OpaqueInForwardMode,
    _MetaLoss: _MetaLossInForwardMode,
    _Known: _KnownInForwardMode,
}
