"""Folds an axis that torch.vmap maps over into the task axis, so that one native call does all
slices, and takes the results apart again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop._arguments import Arguments
from innerloop._params import RateForm, Side
from innerloop._plan import Plan, find_plan


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
    arguments: Arguments
    tasks: int  # T of one slice
    shared_rates: bool
    shared_leaves: list[bool]


def fold(plan: Plan, given: Arguments, dims: Arguments, size: int, split: bool) -> Folded:
    """Folds every argument, whose mapped axes are `dims`. With `split`, shared leaves and rates
    become per task even when unmapped, so that their gradients stay apart."""
    x_dim = dims.support.x  # the task axis is that of the first rows
    tasks = given.support.x.shape[0 if x_dim is None or x_dim != 0 else 1]
    inner = plan.options.inner

    def data(value: Tensor | None, dim: int | None) -> Tensor | None:
        return None if value is None else _fold_data(value, dim, size)

    def side(values: Side, axes: Side) -> Side:
        return Side(*(data(v, d) for v, d in zip(values, axes, strict=True)))  # type: ignore[arg-type]

    def either(value: Tensor, dim: int | None, shared: bool) -> Tensor:
        if not shared:
            return _fold_data(value, dim, size)
        if dim is None and not split:
            return value
        return _fold_shared(value, dim, size, tasks)

    def leaves(values: Sequence[Any], axes: Sequence[Any]) -> tuple[list[Tensor], list[bool]]:
        shared = [
            value.ndim - (dim is not None) == len(leaf.shape)
            for value, dim, leaf in zip(values, axes, plan.leaves, strict=True)
        ]
        folded = [either(*each) for each in zip(values, axes, shared, strict=True)]
        return folded, shared

    params, shared_leaves = leaves(given.params, dims.params)
    rates = given.rates
    if rates is not None:
        rates = either(rates, dims.rates, not inner.rates.per_task)
        if not inner.rates.per_task and (split or dims.rates is not None):
            form = RateForm(True, inner.rates.per_step, inner.rates.unit)
            moved = dataclasses.replace(inner, rates=form)
            plan = find_plan(plan.model, dataclasses.replace(plan.options, inner=moved))
    arguments = Arguments(
        params,
        rates,
        side(given.support, dims.support),
        side(given.query, dims.query),
        data(given.task_weight, dims.task_weight),
        leaves(given.vector, dims.vector)[0] if given.vector else (),
    )
    return Folded(plan, arguments, tasks, not inner.rates.per_task, shared_leaves)


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


def slice_weight(folded: Folded, size: int) -> Tensor:
    """Returns the task weights of the folded call: 1/T of a slice unless given."""
    given = folded.arguments.task_weight
    if isinstance(given, Tensor):
        return given
    x: Tensor = folded.arguments.support.x
    return x.new_full((size * folded.tasks,), 1 / max(folded.tasks, 1))
