"""Batches made of lists of tasks, and of single ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from innerloop._checks.rows import check_tasks
from innerloop._params import Batch, BatchLike


def batch(tasks: Sequence[tuple[Tensor, Tensor]]) -> Batch:
    """Returns one batch of tasks of any sizes: rows stacked and padded, with the number of rows of
    each.

    Args:
        tasks: (x [N_t, ...], y [N_t, ...]) for each task; rows have one shape, dtype and device.

    Returns:
        Batch with x [T, N, ...] and y [T, N, ...], N the largest N_t, zeros in the rows after the
        last of a task; count [T] int64, or None if all tasks are of one size.

    Raises:
        ValueError: there are no tasks, or shapes or devices differ.
        TypeError: a task is no tuple (x, y) of tensors, or dtypes differ.

    Differentiability: any number of times in the rows.

    Example:
        >>> whole = batch([(torch.ones(3, 2), torch.ones(3)), (torch.ones(5, 2), torch.ones(5))])
        >>> whole.x.shape, whole.count.tolist()
        (torch.Size([2, 5, 2]), [3, 5])
    """
    found = check_tasks("batch", tasks)
    numbers = [x.shape[0] for x, _ in found]
    x, y = (pad_sequence([task[at] for task in found], batch_first=True) for at in (0, 1))
    if min(numbers) == max(numbers):
        return Batch(x, y)
    return Batch(x, y, torch.tensor(numbers, device=x.device))


def with_task_axis(module: nn.Module, batch: BatchLike) -> tuple[BatchLike, bool]:
    """Returns a batch, given one or a single task, and whether it was a single one: y is [N], or
    floating [N, K] and does not begin with the first two sizes of x, or x is [N, D] for a module
    that begins with a linear layer of D inputs. What is neither is left to later checks."""
    if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 4:
        return batch, False
    x, y = batch[0], batch[1]
    if not _is_plain(x) or not _is_plain(y) or x.ndim < 2 or y.ndim < 1:
        return batch, False
    if x.shape[0] != y.shape[0] or y.ndim > 2 or (y.ndim == 2 and not y.is_floating_point()):
        return batch, False
    if x.shape[:2] == y.shape[:2]:
        first = next((part for part in module.modules() if part._parameters), None)
        if x.ndim > 2 or not isinstance(first, nn.Linear) or first.in_features != x.shape[1]:
            return batch, False
    rest = (None if v is None else torch.as_tensor(v).unsqueeze(0) for v in batch[2:])
    return Batch(x.unsqueeze(0), y.unsqueeze(0), *rest), True


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Says whether a value is a tensor that has sizes."""
    return type(value) is Tensor and value.layout is torch.strided and not value.is_nested
