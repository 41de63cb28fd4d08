"""Exact training of linear models under squared error, where every objective is quadratic."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from innerloop.compare import episodes as ep
from innerloop.compare.problem import Problem, SplitData, Trained
from innerloop.compare.units import Unit
from innerloop.runs.methods import FIRST_ORDER, JOINT


def fit_exactly(problem: Problem, data: SplitData, unit: Unit) -> Trained:
    """A linear model's solution on the training tasks, and on all known tasks."""
    rows = ep.all_rows(data.data, data.parts.training)
    fitted, why, touches = stationary_point(problem, unit, rows, data.training)
    if why is None:
        rows = ep.all_rows(data.final_data, data.final_tasks)
        final, why, touches = stationary_point(problem, unit, rows, data.known)
        if why is None:
            return Trained([fitted], [final], None, 0, touches)
    return Trained([], [], why, 0, touches)


def stationary_point(
    problem: Problem,
    unit: Unit,
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    drawn: ep.Episodes,
) -> tuple[torch.Tensor, str | None, int]:
    """The exact stationary point of a linear model's training objective, whose gradient is affine
    in the parameters.

    The gradient at zero and at each unit vector gives that affine map; its minimum-norm root is
    refined once. A first-order MAML map with a direction of negative real part repels gradient
    descent: no training would end there.
    """
    size = problem.parameters
    if unit.method == JOINT:
        x, y, count = rows
        support: Any = (x[:, :0], y[:, :0])
        query: Any = (x, y, count)
        touches = int(count.sum())
    else:
        support = (drawn.support_x, drawn.support_y)
        query = (drawn.query_x, drawn.query_y, drawn.query_count)
        touches = drawn.support_x.shape[0] * drawn.support_x.shape[1] * unit.steps
        touches += int(drawn.query_count.sum())
    order = 1 if unit.method == FIRST_ORDER else 2

    def gradient(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        result = problem.meta_grad(
            torch.from_numpy(theta).to(problem.dtype),
            support,
            query,
            rate=unit.rate,
            steps=unit.steps,
            order=order,
        )
        return np.concatenate([part.double().numpy().ravel() for part in result.grad.values()])

    offset = gradient(np.zeros(size))
    with np.errstate(invalid="ignore"):
        matrix = np.column_stack([gradient(column) - offset for column in np.eye(size)])
    if not np.isfinite(matrix).all():
        return torch.zeros(size), "training diverged", touches
    values = np.linalg.eigvals(matrix)
    if values.real.min() < -1e-9 * np.abs(values).max():
        return torch.zeros(size), "first-order training is unstable at this rate", touches
    inverse = np.linalg.pinv(matrix, rcond=1e-12)
    with np.errstate(over="ignore", invalid="ignore"):
        theta = -inverse @ offset
        theta -= inverse @ gradient(theta)
    if not np.isfinite(theta).all():
        return torch.zeros(size), "training diverged", touches
    return torch.from_numpy(theta).to(problem.dtype), None, touches
