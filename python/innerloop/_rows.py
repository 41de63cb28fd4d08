"""Objective: which rows of a batch are in use, and what stands in the others."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_used(x: Tensor, count: Tensor | None, weight: Tensor | None) -> Tensor:
    """Returns which rows of x [T, N, ...] are in use [T, N]."""
    used = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if count is not None:
        used &= torch.arange(x.shape[1], device=x.device) < count.detach()[:, None]
    if weight is not None:
        used &= weight.detach() != 0
    return used


def spare_rows(x: Tensor, used: Tensor) -> Tensor:
    """Returns what stands in rows that are not in use, [T, 1, ...]: a row that is, of the task or,
    if it has none, of another, so that a module finds nothing that it does not know; else zeros."""
    tasks, rows = used.shape
    if not tasks or not rows:
        return x.new_zeros(())
    has = used.any(1)
    row = used.to(torch.int32).argmax(1)
    task = torch.where(has, torch.arange(tasks, device=x.device), has.to(torch.int32).argmax())
    found = x[task, row[task]].unsqueeze(1)
    return torch.where(has.any(), found, 0)
