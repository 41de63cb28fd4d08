"""Routes each operation to its raw op in the way the surroundings need, and gives meta_loss its
derivatives.

Plain eager calls go straight to the kernel. Under torch.func transforms, and where autograd or
forward mode would differentiate, a call goes through an autograd.Function: its `vmap` folds the
mapped axis into the task axis; `backward` and `jvp` are right or raise. Under torch.compile, and
with anything that is not a plain tensor in memory, it goes to the registered op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function

from innerloop import _kernels, _native, _ops
from innerloop._arguments import Arguments, arguments_of
from innerloop._derivatives import (
    NO_COMPILED_FORWARD,
    check_same_losses,
    forward_mode,
    have_tangents,
    is_batched,
    is_differentiated,
    transforms_active,
    wants_grad,
)
from innerloop._folding import fold, slice_weight, unfold, unfold_meta_grad
from innerloop._kernels import KERNELS, MetaGradOutputs, linearize
from innerloop._plan import Plan


def _call(name: str, plan: Plan, given: Arguments) -> Any:
    """Calls the kernel or op of one operation."""
    if _native.runs_directly(given.support.x):
        return direct(name, plan, given)
    return _ops.call(name, plan, given)


def direct(name: str, plan: Plan, given: Arguments) -> Any:
    """Calls the kernel of one operation, where execution is known to be ordinary and eager on plain
    tensors."""
    try:
        return KERNELS[name](plan, given)
    except BufferError:  # some tensor is none that lies in memory: torch knows what it is
        pass  # and what it raises is not about this
    return _ops.call(name, plan, given)


def meta_grad_by_leaf(plan: Plan, given: Arguments) -> MetaGradOutputs:
    """Calls the kernel of meta_grad as `direct` does, for a list of gradients."""
    try:
        return _kernels.meta_grad_by_leaf(plan, given)
    except BufferError:  # as in `direct`
        pass
    out = MetaGradOutputs(*_ops.call("meta_grad", plan, given))
    return out._replace(grads=_kernels.split(out.grads, given.params))


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


def run(name: str, plan: Plan, given: Arguments, *, constant: bool = False) -> Any:
    """Returns the results of an operation that has no derivative. If they could be differentiated,
    they carry a derivative that raises, unless the caller wants constants; these are none to
    torch.func and forward mode, which name what they differentiate."""
    if _compiling():
        if constant and not transforms_active():  # autograd is to record nothing, and be told so
            flat = [value if value is None else value.detach() for value in given.flat()]
            given = arguments_of(flat, len(plan.leaves))
        return _call(name, plan, given)
    asked = "meta_grad" if constant else _ASKED.get(name, name)
    if transforms_active():
        return _apply(_Opaque, asked, name, plan, *given.flat())
    if (not constant and wants_grad(given.flat())) or (
        forward_mode() and have_tangents(given.flat())
    ):
        return _eager_apply(_Opaque, asked, name, plan, *given.flat())
    return _call(name, plan, given)


def vector_product(
    name: str, plan: Plan, given: Arguments, *, keeps: bool
) -> Callable[[list[Tensor]], Tensor]:
    """Returns the function vector -> product [T, P] of "hvp" or "fisher_product". `keeps`: what
    products share is kept between them, where nothing but the kernel runs."""

    def alone(vector: list[Tensor]) -> Tensor:
        result: Tensor = run(name, plan, given._replace(vector=vector))
        return result

    def is_ordinary(tensors: Sequence[Any]) -> bool:
        return (
            _native.runs_directly(given.support.x)
            and not forward_mode()
            and not wants_grad(tensors)
        )

    linear = linearize(name, plan, given) if keeps and is_ordinary(given.flat()) else None
    if linear is None:
        return alone

    def together(vector: list[Tensor]) -> Tensor:
        if is_ordinary(vector):
            try:
                return linear(vector)
            except BufferError:  # as in `direct`
                pass
        return alone(vector)

    return together


def meta_loss(plan: Plan, given: Arguments) -> Tensor:
    """Returns the losses [T], differentiable once in the rates and the leaves."""
    compiling = _compiling()
    result: Tensor
    if transforms_active():
        result = _apply(_MetaLoss, plan, *given.flat())
    elif not wants_grad(given.flat()) and not (forward_mode() and have_tangents(given.flat())):
        result = _call("meta_loss", plan, given)
    elif compiling:
        result = _ops.call("meta_loss", plan, given)
    else:
        result = _eager_apply(_MetaLoss, plan, *_recordable(given.flat()))
    return result


def mean_meta_loss(plan: Plan, given: Arguments) -> Tensor:
    """Returns sum_t w_t loss_t (the arguments of meta_grad), differentiable once in the rates, the
    leaves and w. Its gradient is computed with it, if one is wanted, so that backward only
    scales."""
    compiling = _compiling()
    result: Tensor
    if forward_mode() or not (transforms_active() or wants_grad(given.flat())):
        losses = meta_loss(plan, given._replace(task_weight=None))
        result = _ops.weighted_total(losses, given.task_weight)
    elif compiling:
        result = _ops.call("mean_meta_loss", plan, given)[0]
    elif transforms_active():
        result = _apply(_MeanMetaLoss, plan, *given.flat())[0]
    else:
        result = _eager_apply(_MeanMetaLoss, plan, *_recordable(given.flat()))[0]
    return result


def _recordable(tensors: Sequence[Any]) -> list[Any]:
    """Returns the tensors with copies of those that come from inference_mode, which autograd does
    not keep."""
    return [v.clone() if v is not None and v.is_inference() else v for v in tensors]


# ---------------------------------------------------------------- refusals

# the operation that a raw op is the derivative of
_ASKED = {"meta_grad": "meta_loss"}


def _refuse(asked: str) -> NoReturn:
    """Raises since a derivative that the fused operations do not have is wanted."""
    text = {"meta_loss": _ops.DOUBLE_BACKWARD, "meta_grad": _ops.CONSTANT}
    raise RuntimeError(text.get(asked, _ops.NO_BACKWARD).format(op=asked))


def _refuse_data(wanted: Iterable[Any]) -> None:
    """Raises if a derivative in the data is wanted after all."""
    if any(wanted):
        raise RuntimeError(_ops.NO_DATA_GRAD)


# ---------------------------------------------------------------- Functions


class _Opaque(Function):
    """Any operation as a function without derivative: `backward` raises, `vmap` folds."""

    @staticmethod
    def forward(asked: str, name: str, plan: Plan, *flat: Tensor | None) -> Any:
        """Calls the raw op."""
        return _ops.call(name, plan, arguments_of(flat, len(plan.leaves)))

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
        *flat: Tensor | None,
    ) -> tuple[Any, Any]:
        """Folds the mapped axis into the task axis."""
        size, leaves = info.batch_size, len(plan.leaves)
        _, _, _, *dims = in_dims
        is_grad = name == "meta_grad"
        folded = fold(
            plan, arguments_of(flat, leaves), arguments_of(dims, leaves), size, split=is_grad
        )
        given = folded.arguments
        if is_grad:
            given = given._replace(task_weight=slice_weight(folded, size))
        out = _apply(_Opaque, asked, name, folded.plan, *given.flat())
        if is_grad:
            return unfold_meta_grad(out, folded, size), (0,) * 5
        if isinstance(out, Tensor):
            return unfold(out, size, folded.tasks), 0
        return tuple(unfold(v, size, folded.tasks) for v in out), (0,) * len(out)


def _unmapped(plan: Plan) -> Arguments:
    """Returns the mapped axes of arguments that have none."""
    none = (None,) * len(plan.leaves)
    return Arguments(none)


def _task_gradients(plan: Plan, given: Arguments) -> tuple[Tensor, list[Tensor]]:
    """Returns the gradient of each task's own loss in the flat rates and in every leaf: [T, ...]
    each."""
    alone = fold(plan, given, _unmapped(plan), 1, split=True)
    ones = alone.arguments.support.x.new_ones(alone.tasks)
    out = run("meta_grad", alone.plan, alone.arguments._replace(task_weight=ones))
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
    def forward(plan: Plan, *flat: Tensor | None) -> Tensor:
        """Calls the loss-only op."""
        result: Tensor = _call("meta_loss", plan, arguments_of(flat, len(plan.leaves)))
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps the inputs, and the losses to recognise them by."""
        ctx.plan, *flat = inputs
        ctx.save_for_backward(*flat, output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        """Returns the gradients of the rates and the leaves. For a cotangent that is a batch, or
        that is differentiated itself, each task's gradient is computed and multiplied with it."""
        plan, (*flat, losses) = ctx.plan, ctx.saved_tensors
        given = arguments_of(flat, len(plan.leaves))
        _, *needed = ctx.needs_input_grad
        _refuse_data(arguments_of(needed, len(plan.leaves)).data())
        if _varies(cotangent) and not any(v is not None and is_batched(v) for v in flat):
            rate_grad, gradients = _task_gradients(plan, given)
            triples = zip(gradients, given.params, plan.leaves, strict=True)
            parts = [_contracted(cotangent, g, v.ndim == len(s.shape)) for g, v, s in triples]
            rates = _contracted(cotangent, rate_grad, not plan.options.inner.rates.per_task)
            return (None, *Arguments(parts, rates).flat())
        again, found = _ops.meta_loss_gradient(run, plan, given, cotangent)
        if losses.device.type == "cpu" and not (_compiling() or transforms_active()):
            check_same_losses(losses, again)
        return (None, *found.flat())

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], plan: Plan, *flat: Tensor | None
    ) -> tuple[Tensor, int]:
        """Folds the mapped axis into the task axis."""
        _, *dims = in_dims
        leaves = len(plan.leaves)
        given, axes = arguments_of(flat, leaves), arguments_of(dims, leaves)
        return _folded_meta_loss(plan, given, axes, info.batch_size), 0


def _folded_meta_loss(plan: Plan, given: Arguments, dims: Arguments, size: int) -> Tensor:
    """Returns the losses of every slice [B, T]."""
    folded = fold(plan, given, dims, size, split=False)
    out: Tensor = _apply(_MetaLoss, folded.plan, *folded.arguments.flat())
    return unfold(out, size, folded.tasks)


class _MeanMetaLoss(Function):
    """sum_t w_t loss_t with its gradient from the same pass: (total, loss, grads, rate_grad), of
    which the last three are constants. In forward mode `mean_meta_loss` does without it."""

    @staticmethod
    def forward(plan: Plan, *flat: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Calls meta_grad once."""
        given = arguments_of(flat, len(plan.leaves))
        out = _call("meta_grad", plan, given)
        return _ops.weighted_total(out[0], given.task_weight), out[0], out[3], out[4]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keeps the gradients, and the inputs that have one so that a second derivative meets
        `_Known`."""
        ctx.plan, *flat = inputs
        given = arguments_of(flat, len(ctx.plan.leaves))
        _, loss, grads, rate_grad = output
        ctx.mark_non_differentiable(loss, grads, rate_grad)
        weight = given.task_weight
        ctx.save_for_backward(loss, grads, rate_grad, weight, given.rates, *given.params)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, *ignored: Any) -> Any:
        """Scales the gradients."""
        _, *flat = ctx.needs_input_grad
        needed = arguments_of(flat, len(ctx.plan.leaves))
        _refuse_data(needed.data())
        loss, grads, rate_grad, weight, *inputs = ctx.saved_tensors
        _, *params = inputs
        if weight is not None:
            inputs = [*inputs, weight]

        def scaled(gradient: Tensor) -> Tensor:
            if torch.is_grad_enabled() or forward_mode():
                gradient = _apply(_Known, gradient, *inputs)
            return gradient * cotangent

        found = Arguments(
            _kernels.split(scaled(grads), params),
            scaled(rate_grad) if needed.rates else None,
            task_weight=scaled(loss) if needed.task_weight else None,
        )
        return (None, *found.flat())

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], plan: Plan, *flat: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Folds the mapped axis into the task axis. What lies outside may differentiate the totals:
        for it they come from the losses, whose derivative is known, one pass more."""
        size, leaves = info.batch_size, len(plan.leaves)
        _, *flat_dims = in_dims
        given, dims = arguments_of(flat, leaves), arguments_of(flat_dims, leaves)
        folded = fold(plan, given, dims, size, split=True)
        weight = slice_weight(folded, size)
        weighted = folded.arguments._replace(task_weight=weight)
        out = _apply(_Opaque, "meta_loss", "meta_grad", folded.plan, *weighted.flat())
        loss, _, _, grads, rate_grad = unfold_meta_grad(out, folded, size)
        known = loss
        if transforms_active() or wants_grad(flat):
            alone, axes = (each._replace(task_weight=None) for each in (given, dims))
            known = _folded_meta_loss(plan, alone, axes, size)
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
        _, *flat = inputs
        ctx.save_for_forward(*flat)
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Returns each task's derivative along the tangents of the rates and the leaves."""
        leaves = len(ctx.plan.leaves)
        _, *flat = tangents
        wanted = arguments_of(flat, leaves)
        _refuse_data(v is not None for v in wanted.data())
        rate_grad, gradients = _task_gradients(ctx.plan, arguments_of(ctx.saved_tensors, leaves))
        pairs = zip((rate_grad, *gradients), (wanted.rates, *wanted.params), strict=True)
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
