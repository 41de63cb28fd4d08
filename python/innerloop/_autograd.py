"""Routes each operation to its raw op in the way the surroundings need, and gives meta_loss its
derivative.

Plain eager calls go straight to the kernel. Under torch.func transforms a call goes through an
autograd.Function whose `vmap` folds the mapped axis into the task axis. Under torch.compile, and
with anything that is not a plain tensor on the CPU or a GPU, it goes to the registered op.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from innerloop import _ops
from innerloop._params import RateForm
from innerloop._plan import Plan, find_plan

Tensors = Sequence["Tensor | None"]

# what the flat tensor arguments of each operation are, before its leaves (and hvp's vectors)
_HEADS = {
    "predict": ("data",),
    "loss_and_grad": ("data",) * 4,
    "hvp": ("data",) * 4,
    "adapt": ("rates", *("data",) * 4),
    "meta_loss": ("rates", *("data",) * 8),
    "meta_grad": ("rates", *("data",) * 8, "data"),
}


_X_AT = {name: head.index("data") for name, head in _HEADS.items()}
_PLAIN = (Tensor, torch.nn.Parameter)


def transforms_active() -> bool:
    """Says whether a torch.func transform (vmap, grad, ...) is running."""
    return torch._C._are_functorch_transforms_active()


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


def _call(
    name: str, plan: Plan, tensors: Tensors, kernels: dict[str, Callable[..., Any]] | None = None
) -> Any:
    """Calls the kernel or op of one operation with flat tensors: its head, then its leaves."""
    if kernels is None:
        kernels = _kernels(tensors[_X_AT[name]])
    head = len(_HEADS[name])
    carried = plan if kernels is _ops.KERNELS else plan.text
    if name == "hvp":
        half = head + len(plan.leaves)
        return kernels[name](tensors[head:half], tensors[half:], *tensors[:head], carried)
    return kernels[name](tensors[head:], *tensors[:head], carried)


def _apply(function: type[Function], *arguments: Any) -> Any:
    """Returns function.apply(*arguments), which torch leaves untyped."""
    return function.apply(*arguments)


def _eager_apply(function: type[Function], *arguments: Any) -> Any:
    """Returns function.apply(*arguments) outside torch.func, without its 15 us of signature
    inspection."""
    return super(Function, function).apply(*arguments)  # type: ignore[misc]


def run(name: str, plan: Plan, tensors: Tensors, *, constant: bool = False) -> Any:
    """Returns the results of an operation that has no derivative. If they could be differentiated,
    they carry a derivative that raises, unless the caller wants constants."""
    if torch.compiler.is_compiling():
        return _call(name, plan, tensors)
    if transforms_active():
        return _apply(_Opaque, name, plan, *tensors)
    if not constant and _wants_grad(tensors):
        return _eager_apply(_Opaque, name, plan, *tensors)
    return _call(name, plan, tensors)


def _wants_grad(tensors: Tensors) -> bool:
    """Says whether autograd would record an operation on these tensors."""
    if torch.is_grad_enabled():
        for value in tensors:
            if value is not None and value.requires_grad:
                return True
    return False


def meta_loss(plan: Plan, tensors: Tensors) -> Tensor:
    """Returns the losses [T], differentiable once in the rates and the leaves."""
    result: Tensor
    if transforms_active():
        result = _apply(_MetaLoss, plan, *tensors)
    elif not _wants_grad(tensors):
        result = _call("meta_loss", plan, tensors)
    elif torch.compiler.is_compiling():
        result = _apply(_MetaLoss, plan, *tensors)
    else:
        result = _eager_apply(_MetaLoss, plan, *tensors)
    return result


def mean_meta_loss(plan: Plan, tensors: Tensors) -> Tensor:
    """Returns sum_t w_t loss_t (the tensors of meta_grad), differentiable once in the rates and the
    leaves. Its gradient is computed with it, if one is wanted, so that backward only scales."""
    result: Tensor
    if transforms_active():
        result = _apply(_MeanMetaLoss, plan, *tensors)[0]
    elif not _wants_grad(tensors):
        head = len(_HEADS["meta_grad"])
        losses = _call("meta_loss", plan, (*tensors[: head - 1], *tensors[head:]))
        result = weighted_total(losses, tensors[head - 1])
    elif torch.compiler.is_compiling():
        result = _apply(_MeanMetaLoss, plan, *tensors)[0]
    else:
        result = _eager_apply(_MeanMetaLoss, plan, *tensors)[0]
    return result


# ---------------------------------------------------------------- folding a mapped axis into T


def _tasks(name: str, tensors: Tensors, in_dims: Sequence[int | None]) -> int:
    """Returns T of one slice of the mapped arguments: the first data argument always has a task
    axis."""
    at = _X_AT[name]
    x = tensors[at]
    assert x is not None
    return x.shape[0] if in_dims[at] is None or in_dims[at] != 0 else x.shape[1]


def _front(value: Tensor, dim: int | None, size: int) -> Tensor:
    """Returns the value with the mapped axis [B] in front; expanded if it was not mapped."""
    return value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


def _fold_data(value: Tensor, dim: int | None, size: int) -> Tensor:
    """Returns per-task data [T, ...] of all slices as [B T, ...]."""
    moved = _front(value, dim, size)
    return moved.reshape(size * moved.shape[1], *moved.shape[2:])


def _fold_shared(value: Tensor, dim: int | None, size: int, tasks: int) -> Tensor:
    """Returns a value that the T tasks of a slice share as [B T, ...]."""
    moved = _front(value, dim, size).unsqueeze(1)  # [B, 1, ...]
    wide = moved.expand(size, tasks, *moved.shape[2:])
    return wide.reshape(size * tasks, *moved.shape[2:])


class _Folded(NamedTuple):
    """Arguments with the mapped axis folded into T, and which of them each slice's tasks shared."""

    plan: Plan
    tensors: list[Tensor | None]
    tasks: int  # T of one slice
    shared_rates: bool
    shared_leaves: list[bool]


def _fold(
    name: str, plan: Plan, tensors: Tensors, in_dims: Sequence[int | None], size: int, split: bool
) -> _Folded:
    """Folds every argument. With `split`, shared leaves and rates become per task even when
    unmapped, so that their gradients stay apart."""
    head = _HEADS[name]
    tasks = _tasks(name, tensors, in_dims)
    form = plan.options.rates
    folded: list[Tensor | None] = []
    shared_leaves = []
    for i, (value, dim) in enumerate(zip(tensors, in_dims, strict=True)):
        if value is None:
            folded.append(None)
            continue
        if i < len(head) and head[i] == "data":
            shared = False
        elif i < len(head):
            shared = not form.per_task
        else:
            leaf = plan.leaves[(i - len(head)) % len(plan.leaves)]
            shared = value.ndim - (dim is not None) == len(leaf.shape)
            shared_leaves.append(shared)
        if not shared:
            folded.append(_fold_data(value, dim, size))
        elif dim is None and not split:
            folded.append(value)
        else:
            folded.append(_fold_shared(value, dim, size, tasks))
    if (
        "rates" in head
        and not form.per_task
        and (split or in_dims[head.index("rates")] is not None)
    ):
        rates = RateForm(True, form.per_step, form.unit)
        plan = find_plan(plan.model, dataclasses.replace(plan.options, rates=rates))
    return _Folded(plan, folded, tasks, not form.per_task, shared_leaves)


def _unfold(value: Tensor, size: int, tasks: int) -> Tensor:
    """Returns a per-task result [B T, ...] as [B, T, ...]."""
    return value.reshape(size, tasks, *value.shape[1:])


def _unfold_meta_grad(
    out: Sequence[Tensor], folded: _Folded, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns meta_grad's outputs slice by slice; what the tasks of a slice shared is summed over
    them."""
    loss, support_loss, query_loss = (_unfold(v, size, folded.tasks) for v in out[:3])
    total = size * folded.tasks
    parts = out[3].split([total * leaf.size for leaf in folded.plan.leaves])
    blocks = []
    for part, leaf, shared in zip(parts, folded.plan.leaves, folded.shared_leaves, strict=True):
        block = part.reshape(size, folded.tasks, leaf.size)
        blocks.append(block.sum(1) if shared else block.flatten(1))
    rate_grad = _unfold(out[4], size, folded.tasks)
    if folded.shared_rates:
        rate_grad = rate_grad.sum(1)
    return loss, support_loss, query_loss, torch.cat(blocks, 1), rate_grad


def _slice_weight(folded: _Folded, size: int, task_weight: Tensor | None) -> Tensor:
    """Returns the task weights of the folded call: 1/T of a slice unless given."""
    if task_weight is not None:
        return task_weight
    x = folded.tensors[1]
    assert x is not None
    return x.new_full((size * folded.tasks,), 1 / max(folded.tasks, 1))


# ---------------------------------------------------------------- Functions


def _refuse(name: str) -> None:
    """Raises since a derivative that the fused operations do not have is wanted."""
    text = _ops.DOUBLE_BACKWARD if name in ("meta_grad", "meta_loss") else _ops.NO_BACKWARD
    raise RuntimeError(text.format(op="meta_loss" if name == "meta_grad" else name))


class _Opaque(Function):
    """Any operation as a function without derivative: `backward` raises, `vmap` folds."""

    @staticmethod
    def forward(name: str, plan: Plan, *tensors: Tensor | None) -> Any:
        """Calls the raw op."""
        return _call(name, plan, tensors, _ops.RAW)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Remembers the name for the message."""
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Raises."""
        _refuse(ctx.name)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], name: str, plan: Plan, *tensors: Tensor | None
    ) -> tuple[Any, Any]:
        """Folds the mapped axis into the task axis."""
        size = info.batch_size
        folded = _fold(name, plan, tensors, in_dims[2:], size, split=name == "meta_grad")
        if name == "meta_grad":
            weight_at = len(_HEADS[name]) - 1
            folded.tensors[weight_at] = _slice_weight(folded, size, folded.tensors[weight_at])
            out = _apply(_Opaque, name, folded.plan, *folded.tensors)
            return _unfold_meta_grad(out, folded, size), (0,) * 5
        out = _apply(_Opaque, name, folded.plan, *folded.tensors)
        if isinstance(out, Tensor):
            return _unfold(out, size, folded.tasks), 0
        return tuple(_unfold(v, size, folded.tasks) for v in out), (0,) * len(out)


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
        """Returns the gradients of the rates and the leaves."""
        plan, tensors = ctx.plan, ctx.saved_tensors
        head = len(_HEADS["meta_loss"])
        arguments = (*tensors[:head], cotangent, *tensors[head:])
        out = run("meta_grad", plan, arguments)
        grads = _ops.split_grads(tensors[head:], out[3])
        return (None, out[4], *(None,) * (head - 1), *grads)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], plan: Plan, *tensors: Tensor | None
    ) -> tuple[Tensor, int]:
        """Folds the mapped axis into the task axis."""
        folded = _fold("meta_loss", plan, tensors, in_dims[1:], info.batch_size, split=False)
        out = _apply(_MetaLoss, folded.plan, *folded.tensors)
        return _unfold(out, info.batch_size, folded.tasks), 0


class _MeanMetaLoss(Function):
    """sum_t w_t loss_t with its gradient from the same pass: (total, loss, grads, rate_grad), of
    which the last three are constants."""

    @staticmethod
    def forward(plan: Plan, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Calls meta_grad once."""
        out = _call("meta_grad", plan, tensors)
        weight = tensors[len(_HEADS["meta_grad"]) - 1]
        return weighted_total(out[0], weight), out[0], out[3], out[4]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keeps the gradients, and the inputs that have one so that a second derivative meets
        `_Scale`."""
        _, loss, grads, rate_grad = output
        ctx.mark_non_differentiable(loss, grads, rate_grad)
        head = len(_HEADS["meta_grad"])
        ctx.save_for_backward(grads, rate_grad, inputs[1], *inputs[head + 1 :])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, *ignored: Any) -> Any:
        """Scales the gradients."""
        grads, rate_grad, *inputs = ctx.saved_tensors
        if torch.compiler.is_compiling():
            grads = _ops.SCALE_GRAD(cotangent, grads, inputs)
            rate_grad = _ops.SCALE_GRAD(cotangent, rate_grad, inputs)
        elif torch.is_grad_enabled():
            grads = _apply(_Scale, cotangent.expand_as(grads), grads, *inputs)
            rate_grad = _apply(_Scale, cotangent.expand_as(rate_grad), rate_grad, *inputs)
        else:
            grads = grads * cotangent
            rate_grad = rate_grad * cotangent if ctx.needs_input_grad[1] else None
        parts = _ops.split_grads(inputs[1:], grads)
        nones = (None,) * (len(_HEADS["meta_grad"]) - 1)
        return (None, rate_grad, *nones, *parts)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], plan: Plan, *tensors: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Folds the mapped axis into the task axis."""
        size = info.batch_size
        folded = _fold("meta_grad", plan, tensors, in_dims[1:], size, split=True)
        weight_at = len(_HEADS["meta_grad"]) - 1
        weight = _slice_weight(folded, size, folded.tensors[weight_at])
        folded.tensors[weight_at] = weight
        out = _apply(_Opaque, "meta_grad", folded.plan, *folded.tensors)
        loss, _, _, grads, rate_grad = _unfold_meta_grad(out, folded, size)
        total = (loss * _unfold(weight, size, folded.tasks)).sum(1)
        return (total, loss, grads, rate_grad), (0,) * 4


class _Scale(Function):
    """A known gradient times a cotangent of its shape. It depends on the inputs of the loss as
    well, in a way that is not provided: `backward` raises."""

    @staticmethod
    def forward(cotangent: Tensor, gradient: Tensor, *inputs: Tensor) -> Tensor:
        """Returns the product."""
        return gradient * cotangent

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        """Raises."""
        _refuse("meta_loss")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        """Multiplies slice by slice."""
        pair = (
            _front(v, d, info.batch_size) for v, d in zip(tensors[:2], in_dims[:2], strict=True)
        )
        return _apply(_Scale, *pair, *tensors[2:]), 0


def weighted_total(loss: Tensor, task_weight: Tensor | None) -> Tensor:
    """Returns sum_t w_t loss_t, with w_t = 1/T if None, as a 0-d tensor."""
    if task_weight is not None:
        return torch.dot(loss, task_weight)
    return loss.mean() if loss.shape[0] else loss.sum()
