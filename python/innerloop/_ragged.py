"""Tasks of different sizes for losses that must see the rows in use and nothing else: tasks with
equally many rows in use are mapped together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._params import Side
from innerloop._tasks import _each, _joined, over_tasks
from innerloop.objectives import Objective


def is_ragged(side: object) -> bool:
    """Says whether rows of a side may be left out."""
    return isinstance(side, Side) and (side.count is not None or side.weight is not None)


def rows_in_use(side: Side) -> Tensor:
    """Returns which rows count [T, N]: those below the count, with a weight other than 0."""
    used = torch.ones(side.x.shape[:2], dtype=torch.bool, device=side.x.device)
    if side.count is not None:
        used = torch.arange(side.x.shape[1], device=side.x.device) < side.count[:, None]
    return used if side.weight is None else used & (side.weight != 0)


def in_front(used: Tensor, side: Side) -> tuple[Side, Tensor]:
    """Returns the same rows with those in use [T, N] first, in their order, and the number of these
    [T]."""
    # not argsort, which torch 2.4 cannot batch: it warns and loops
    order = torch.sort(used.to(torch.int8), dim=1, descending=True, stable=True).indices  # [T, N]
    task = torch.arange(used.shape[0], device=used.device)[:, None]

    def moved(rows: Tensor) -> Tensor:
        return rows[task, order]

    weight = None if side.weight is None else moved(side.weight)
    return Side(moved(side.x), moved(side.y), None, weight), used.sum(1)


def over_ragged_tasks(
    model: object,
    objective: Objective,
    task: Callable[..., Any],
    trees: Sequence[Any],
    axes: Sequence[Any],
    tasks: int,
) -> Any:
    """Returns `over_tasks` of the same arguments, for a callable with exactly the rows in use.

    Named losses leave the other rows out by themselves. Sizes of tasks are read from the data, and
    each different size (or pair of sizes) is mapped by itself.
    """
    ragged = [at for at, tree in enumerate(trees) if is_ragged(tree)]
    if objective.rows is not None or not ragged:
        return over_tasks(model, objective, task, trees, axes, tasks)
    trees, axes = list(trees), list(axes)
    sizes = []
    for at in ragged:
        trees[at], count = in_front(rows_in_use(trees[at]), trees[at])
        sizes.append(_read(objective, count))
        axes[at] = axes[at]._replace(count=None)
    groups: dict[tuple[int, ...], list[int]] = {}
    for t in range(tasks):
        groups.setdefault(tuple(rows[t] for rows in sizes), []).append(t)
    if not groups:
        return over_tasks(model, objective, task, trees, axes, 0)
    results = []
    for rows, members in groups.items():
        index = torch.tensor(members, device=trees[ragged[0]].x.device)

        def chosen(value: Tensor, _: object, index: Tensor = index) -> Tensor:
            return value[index]

        parts = [_each(chosen, tree, axis) for tree, axis in zip(trees, axes, strict=True)]
        for at, n in zip(ragged, rows, strict=True):
            x, y, _, weight = parts[at]
            parts[at] = Side(x[:, :n], y[:, :n], None, None if weight is None else weight[:, :n])
        results.append(over_tasks(model, objective, task, parts, axes, len(members)))
    place = torch.tensor([t for members in groups.values() for t in members]).argsort()
    return _each(lambda value, _: value[place.to(value.device)], _joined(results, torch.cat), 0)


def _read(objective: Objective, count: Tensor) -> list[int]:
    """Returns numbers of rows as they are, outside of transforms that hide them."""
    try:
        if not torch.compiler.is_compiling():
            numbers: list[int] = count.tolist()
            return numbers
    except RuntimeError:  # inside torch.func.vmap
        pass
    raise NotImplementedError(
        f"reference: count and weight must be known numbers for the loss {objective.name}, which "
        "is given the rows in use alone (got tensors under torch.compile or torch.func.vmap); use "
        "a named loss, or tasks of equal size"
    )
