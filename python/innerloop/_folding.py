"""Folds an axis that torch.vmap maps over into the task axis, so that one native call does all
slices, and takes the results apart again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from innerloop._params import RateForm
from innerloop._plan import Plan, find_plan

Tensors = Sequence["Tensor | None"]

# what the flat tensor arguments of each operation are, before its leaves (and hvp's vectors)
HEADS = {
    "predict": ("data",),
    "loss_and_grad": ("data",) * 4,
    "hvp": ("data",) * 4,
    "adapt": ("rates", *("data",) * 4),
    "meta_loss": ("rates", *("data",) * 8),
    "meta_grad": ("rates", *("data",) * 8, "data"),
}
X_AT = {name: head.index("data") for name, head in HEADS.items()}


def _tasks(name: str, tensors: Tensors, in_dims: Sequence[int | None]) -> int:
    """Returns T of one slice of the mapped arguments: the first data argument always has a task
    axis."""
    at = X_AT[name]
    x = tensors[at]
    assert x is not None
    return x.shape[0] if in_dims[at] is None or in_dims[at] != 0 else x.shape[1]


def front(value: Tensor, dim: int | None, size: int) -> Tensor:
    """Returns the value with the mapped axis [B] in front; expanded if it was not mapped."""
    return value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


def _fold_data(value: Tensor, dim: int | None, size: int) -> Tensor:
    """Returns per-task data [T, ...] of all slices as [B T, ...]."""
    moved = front(value, dim, size)
    return moved.reshape(size * moved.shape[1], *moved.shape[2:])


def _fold_shared(value: Tensor, dim: int | None, size: int, tasks: int) -> Tensor:
    """Returns a value that the T tasks of a slice share as [B T, ...]."""
    moved = front(value, dim, size).unsqueeze(1)  # [B, 1, ...]
    wide = moved.expand(size, tasks, *moved.shape[2:])
    return wide.reshape(size * tasks, *moved.shape[2:])


class Folded(NamedTuple):
    """Arguments with the mapped axis folded into T, and which of them each slice's tasks shared."""

    plan: Plan
    tensors: list[Tensor | None]
    tasks: int  # T of one slice
    shared_rates: bool
    shared_leaves: list[bool]


def fold(
    name: str, plan: Plan, tensors: Tensors, in_dims: Sequence[int | None], size: int, split: bool
) -> Folded:
    """Folds every argument. With `split`, shared leaves and rates become per task even when
    unmapped, so that their gradients stay apart."""
    head = HEADS[name]
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
    return Folded(plan, folded, tasks, not form.per_task, shared_leaves)


def unfold(value: Tensor, size: int, tasks: int) -> Tensor:
    """Returns a per-task result [B T, ...] as [B, T, ...]."""
    return value.reshape(size, tasks, *value.shape[1:])


def unfold_meta_grad(
    out: Sequence[Tensor], folded: Folded, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns meta_grad's outputs slice by slice; what the tasks of a slice shared is summed over
    them."""
    loss, support_loss, query_loss = (unfold(v, size, folded.tasks) for v in out[:3])
    total = size * folded.tasks
    parts = out[3].split([total * leaf.size for leaf in folded.plan.leaves])
    blocks = []
    for part, leaf, shared in zip(parts, folded.plan.leaves, folded.shared_leaves, strict=True):
        block = part.reshape(size, folded.tasks, leaf.size)
        blocks.append(block.sum(1) if shared else block.flatten(1))
    rate_grad = unfold(out[4], size, folded.tasks)
    if folded.shared_rates:
        rate_grad = rate_grad.sum(1)
    return loss, support_loss, query_loss, torch.cat(blocks, 1), rate_grad


def slice_weight(folded: Folded, size: int, task_weight: Tensor | None) -> Tensor:
    """Returns the task weights of the folded call: 1/T of a slice unless given."""
    if task_weight is not None:
        return task_weight
    x = folded.tensors[1]
    assert x is not None
    return x.new_full((size * folded.tasks,), 1 / max(folded.tasks, 1))
