"""Objective: the policy objectives row by row, in plain PyTorch: the twins of
csrc/core/objectives/policy.h, derived in docs/math.md.

Targets y [..., N, 3 K + 1] hold a row's action [K], the recorded mean [K] and log-standard
deviation [K], and its advantage. Depends on torch alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Rows = Callable[[Tensor, Tensor, Tensor], Tensor]

LOG_STD = "log_std"  # the free leaf of a policy
CLIP = 0.3  # the default range of "pg_clipped"


def columns(outputs: int) -> int:
    """Returns how many numbers a row's targets are for K outputs."""
    return 3 * outputs + 1


def _parts(y: Tensor, outputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (action, recorded mean, recorded log_std, advantage) of targets."""
    action, mean, log_std, advantage = y.split([outputs, outputs, outputs, 1], dim=-1)
    return action, mean, log_std, advantage.squeeze(-1)


def _gradient_rows(
    name: str, clip: float, floor: float, mean: Tensor, y: Tensor, log_std: Tensor
) -> Tensor:
    """Returns the rows of "pg_loglik", "pg_ratio" or "pg_clipped". An advantage of 0 gives 0,
    whatever the ratio is."""
    action, recorded, old, advantage = _parts(y, mean.shape[-1])
    s = log_std.clamp(min=floor)
    counts = advantage != 0
    z = (action - mean) * torch.exp(-s)
    if name == "pg_loglik":
        log = -(s + 0.5 * z.square()).sum(-1) - 0.5 * mean.shape[-1] * math.log(2 * math.pi)
        return -advantage * torch.where(counts, log, 0)
    z_old = (action - recorded) * torch.exp(-old)
    log_ratio = (old - s + 0.5 * (z_old.square() - z.square())).sum(-1)
    log_ratio = torch.where(counts, log_ratio, 0)
    if name == "pg_ratio":
        return -advantage * torch.exp(log_ratio)
    ratio = torch.exp(log_ratio.detach())
    above = (advantage > 0) & (ratio > 1 + clip)
    below = (advantage < 0) & (ratio < 1 - clip)
    # a clipped row is a constant; its ratio may be infinite and must not meet a gradient of 0
    live = torch.exp(torch.where(above | below, 0, log_ratio))
    return -advantage * torch.where(above, 1 + clip, torch.where(below, 1 - clip, live))


def _kl_rows(clip: float, floor: float, mean: Tensor, y: Tensor, log_std: Tensor) -> Tensor:
    """Returns KL(recorded || policy) of each row."""
    _, recorded, old, _ = _parts(y, mean.shape[-1])
    s = log_std.clamp(min=floor)
    gap = (mean - recorded) * torch.exp(-s)
    return (s - old + 0.5 * (torch.exp(2 * (old - s)) + gap.square() - 1)).sum(-1)


ROWS: dict[str, Callable[..., Tensor]] = {
    "pg_loglik": functools.partial(_gradient_rows, "pg_loglik"),
    "pg_ratio": functools.partial(_gradient_rows, "pg_ratio"),
    "pg_clipped": functools.partial(_gradient_rows, "pg_clipped"),
    "kl": _kl_rows,
}


def rows_of(name: str, clip: float, floor: float) -> Rows:
    """Returns (means [..., N, K], targets, log_std [..., K]) -> values of the rows [..., N]."""
    return functools.partial(ROWS[name], clip, floor)
