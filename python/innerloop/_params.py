"""How callers hand over data: batches, inner rates in their many forms, and flat parameter
buffers."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Union

import torch
from torch import Tensor

Params = Mapping[str, Tensor]
InnerLr = float | Tensor | Mapping[str, float | Tensor]
BatchLike = Union["Batch", tuple[Tensor, ...], tuple[Tensor | None, ...]]


class Batch(NamedTuple):
    """One batch per task. Any tuple (x, y), (x, y, count) or (x, y, count, weight) works as well.

    Args:
        x: [T, N, D] inputs ([T, N, *any] for models that begin with Flatten).
        y: [T, N, K] targets ([T, N] when K is 1), or [T, N] int64 classes, or what a callable loss
            takes as targets, [T, N, ...].
        count: [T] int64, rows in use of each task; the rows after them are ignored whatever they
            hold.
        weight: [T, N] sample weights, used as given: a task's loss is sum_i weight_i loss_i.
            Without them every row in use weighs 1/count.

    Example:
        >>> Batch(torch.zeros(4, 5, 1), torch.zeros(4, 5)).count is None
        True
    """

    x: Tensor
    y: Tensor
    count: Tensor | None = None  # type: ignore[assignment]
    weight: Tensor | None = None


class Side(NamedTuple):
    """A batch as everything inside the package has it, of all tasks or of one: x [T, N, ...],
    y [T, N, ...], count [T] or None, weight [T, N] or None."""

    x: Tensor
    y: Tensor
    count: Tensor | None = None  # type: ignore[assignment]
    weight: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class RateForm:
    """Layout of a flat rate tensor [T if per_task][S if per_step][1, leaves or P by unit]."""

    per_task: bool
    per_step: bool
    unit: str  # "model", "leaf" or "element"


class LeafShape(NamedTuple):
    """Where a leaf lies in the flat [P] order, its own shape, and whether it can have a
    gradient."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int
    is_floating: bool = True


def leaf_shapes(
    shapes: Mapping[str, tuple[int, ...]], constant: Collection[str] = ()
) -> tuple[LeafShape, ...]:
    """Returns the leaves in order, with their places in the flat [P] order; `constant` ones are
    integers."""
    leaves = []
    offset = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        leaves.append(LeafShape(name, tuple(shape), offset, size, name not in constant))
        offset += size
    return tuple(leaves)


def is_number(value: object) -> bool:
    """Says whether a value is a real number (and not a truth value)."""
    return type(value) is float or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def is_tied(value: object, shape: tuple[int, ...], steps: int) -> bool:
    """Says whether a leaf's rate fits both the steps and the elements: [S] of a leaf [S]."""
    return isinstance(value, Tensor) and tuple(value.shape) == shape == (steps,)


def ties_have_steps(
    rates: Mapping[str, float | Tensor], shapes: Mapping[str, tuple[int, ...]], steps: int
) -> bool | None:
    """Says whether the tied rates of a dict are per step: what its other rates can only be. None
    where these are of both kinds or neither. `shapes` are the leaves' own."""
    said = {
        is_per_step(value, shapes[name])
        for name, value in rates.items()
        if isinstance(value, Tensor) and value.ndim and not is_tied(value, shapes[name], steps)
    }
    return said.pop() if len(said) == 1 else None


def is_per_step(value: float | Tensor, shape: tuple[int, ...]) -> bool:
    """Says whether one leaf's rate has a leading step axis. A tie that `settle_rates` has settled
    has one if it is [S, 1], and none if it is [S]."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return False
    return tuple(value.shape) != shape


def is_per_element(value: float | Tensor, shape: tuple[int, ...]) -> bool:
    """Says whether one leaf's rate, settled, has a number for each element of the leaf."""
    if not isinstance(value, Tensor):
        return False
    stepped = is_per_step(value, shape)
    return value.ndim > int(stepped) and tuple(value.shape[int(stepped) :]) == shape


def flatten_rates(
    inner_lr: InnerLr,
    leaves: Sequence[LeafShape],
    steps: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, RateForm]:
    """Returns the rates as one flat tensor with its layout; differentiable in every tensor given.

    `inner_lr` has passed the checks, with ties settled. Leaves that are not adapted get a rate of
    zero, never read.
    """
    if not isinstance(inner_lr, Mapping):
        if isinstance(inner_lr, Tensor):
            return inner_lr.contiguous(), RateForm(False, inner_lr.ndim == 1, "model")
        return number_tensor(float(inner_lr), dtype, device), RateForm(False, False, "model")
    form = rate_form(inner_lr, leaves)
    elementwise = form.unit == "element"
    columns = []
    for leaf in leaves:
        size = leaf.size if elementwise else 1
        value = inner_lr.get(leaf.name, 0.0)
        if not isinstance(value, Tensor):
            value = number_tensor(float(value), dtype, device)
        if is_per_step(value, leaf.shape):
            column = value.flatten(1) if value.ndim > 1 else value[:, None]
        else:
            column = value.reshape(1, -1)
        columns.append(column.expand(steps if form.per_step else 1, size))
    flat = torch.cat(columns, dim=1)  # [S or 1, leaves or P]
    return (flat if form.per_step else flat.reshape(-1)), form


def rate_form(inner_lr: Mapping[str, float | Tensor], leaves: Sequence[LeafShape]) -> RateForm:
    """Returns the coarsest layout that holds every entry of a dict of rates."""
    per_step = False
    elementwise = False
    for leaf in leaves:
        value = inner_lr.get(leaf.name)
        if isinstance(value, Tensor):
            per_step = per_step or is_per_step(value, leaf.shape)
            elementwise = elementwise or is_per_element(value, leaf.shape)
    return RateForm(False, per_step, "element" if elementwise else "leaf")


def named_leaves(names: Sequence[str], leaves: Sequence[LeafShape]) -> list[LeafShape]:
    """Returns the same leaves under other names."""
    return [leaf._replace(name=name) for name, leaf in zip(names, leaves, strict=True)]


def unflatten_rate_grad(
    grad: Tensor,
    inner_lr: Mapping[str, float | Tensor],
    form: RateForm,
    leaves: Sequence[LeafShape],
) -> dict[str, Tensor]:
    """Returns the gradient of the flat rates in the structure of a dict of rates, settled."""
    rows = grad if form.per_step else grad.unsqueeze(0)  # [S or 1, leaves or P]
    result: dict[str, Tensor] = {}
    for j, leaf in enumerate(leaves):
        if leaf.name not in inner_lr:
            continue
        value = inner_lr[leaf.name]
        start, size = (leaf.offset, leaf.size) if form.unit == "element" else (j, 1)
        column = rows[:, start : start + size]
        if not is_per_step(value, leaf.shape):
            column = column.sum(0, keepdim=True)
        if not is_per_element(value, leaf.shape):
            column = column.sum(1)
        result[leaf.name] = column.reshape(value.shape if isinstance(value, Tensor) else ())
    return {name: result[name] for name in inner_lr}


def as_given(grad: Tensor | dict[str, Tensor], inner_lr: InnerLr) -> Tensor | dict[str, Tensor]:
    """Returns the gradient of settled rates in the shapes in which the rates were given."""
    if not isinstance(inner_lr, Mapping) or not isinstance(grad, dict):
        return grad
    shapes = {k: v.shape for k, v in inner_lr.items() if isinstance(v, Tensor)}
    return {
        k: g.reshape(shapes[k]) if k in shapes and g.shape != shapes[k] else g
        for k, g in grad.items()
    }


_NUMBERS: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}


def number_tensor(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns a 0-d tensor holding a number, to be read only; on the CPU the same object each time.
    On a GPU it is new: what one stream fills, another stream or graph may not read unasked."""
    if (
        device.type == "cuda"
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
    ):
        return torch.full((), value, dtype=dtype, device=device)
    key = (value, dtype, device)
    found = _NUMBERS.get(key)
    if found is None:
        with torch.inference_mode(False):
            found = torch.full((), value, dtype=dtype, device=device)
        if not math.isnan(value):  # which would never find its own key again
            if len(_NUMBERS) >= 1024:
                _NUMBERS.clear()
            _NUMBERS[key] = found
    return found
