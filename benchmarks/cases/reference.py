"""The float64 answer every rival is checked against before it is timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from baselines import torch_func_baseline
from cases.nine import Problem

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def reference(problem: Problem, tasks_at_once: int | None = None) -> list[np.ndarray]:
    """Loss per task (absent for hvp) and every leaf, in float64, by eager torch.func.

    Tasks are taken in chunks whose parameters of all steps together stay near 160 MB, so that the
    check itself needs little memory.
    """
    wide = problem.to(torch.float64)
    case = problem.case
    if tasks_at_once is None:
        most = 1000 if problem.device == "cpu" else 100_000
        tasks_at_once = max(1, min(most, 20_000_000 // (case.parameters() * (case.steps + 1))))
    losses: list[torch.Tensor] = []
    parts: list[list[torch.Tensor]] = []
    for start in range(0, case.tasks, tasks_at_once):
        chunk = wide.rows(start, min(start + tasks_at_once, case.tasks))
        build = next(iter(torch_func_baseline.formulations(chunk).values()))
        loss, leaves = build()()
        if case.quantity == "meta_grad":
            losses.append(loss)
            leaves = [leaf * (chunk.case.tasks / case.tasks) for leaf in leaves]
        parts.append(leaves)
    by_leaf = list(zip(*parts, strict=True))
    if case.quantity == "hvp":
        return [torch.cat(rows).cpu().numpy() for rows in by_leaf]
    summed = [torch.stack(rows).sum(0).cpu().numpy() for rows in by_leaf]
    return [torch.cat(losses).cpu().numpy(), *summed]


def numbers(outcome: tuple[Any, list[Any]]) -> list[np.ndarray]:
    """What a rival's call returned, as arrays in the order of `reference`."""
    loss, leaves = outcome
    arrays = [_array(leaf) for leaf in leaves]
    return arrays if loss is None else [_array(loss), *arrays]


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)


def disagreement(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest relative error over the arrays, each in its own Euclidean norm; inf if unusable."""
    if [a.shape for a in found] != [b.shape for b in expected]:
        return float("inf")
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        error = float(np.linalg.norm((a.astype(np.float64) - b).ravel()))
        scale = float(np.linalg.norm(b.ravel()))
        ratio = error / scale if scale > 0 else error
        worst = max(worst, ratio if np.isfinite(ratio) else float("inf"))
    return worst
