"""The experiment row by row in plain NumPy: the readable twin of the kernel, and what tests hold
against it. It draws every sample and solves a least-squares problem on the stacked rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from innerloop.bounds.linear.laws import haar_rotations

Array = NDArray[np.float64]


class Rows(NamedTuple):
    """Samples of M tasks: x [M, 2, N, p] and y [M, 2, N], support before query."""

    theta: Array
    sigma2: Array
    Q: Array
    x: Array
    y: Array


def draw_rows(rng: np.random.Generator, p: int, beta: float, tasks: int, samples: int) -> Rows:
    """`tasks` tasks of the published law with `samples` support and query rows each."""
    theta = rng.uniform(0.0, beta, (tasks, p))
    sigma2 = rng.uniform(0.0, beta, tasks)
    root = haar_rotations(rng, tasks, p) * np.sqrt(theta)[:, None, :]  # Q = root root'
    normals = rng.standard_normal((tasks, 2, samples, p))
    x = normals @ np.swapaxes(root, 1, 2)[:, None]
    noise = np.sqrt(sigma2)[:, None, None] * rng.standard_normal((tasks, 2, samples))
    y = (x @ theta[:, None, :, None])[..., 0] + noise
    return Rows(theta, sigma2, root @ np.swapaxes(root, 1, 2), x, y)


def drs_estimate(rows: Rows) -> Array:
    """Pooled least squares [p] over all samples of all tasks."""
    p = rows.x.shape[-1]
    return _least_squares(rows.x.reshape(-1, p), rows.y.reshape(-1))


def maml_estimate(rows: Rows, inner_lr: float) -> Array:
    """MAML's minimiser [p]: least squares of the query targets on the query rows after the step.

    A task's step theta - a (G theta - h) on its support, G = X1'X1 / N and h = X1'y1 / N, turns its
    query residual into y2 - a X2 h - X2 (I - a G) theta.
    """
    _, _, samples, p = rows.x.shape
    design, target = [], []
    for x, y in zip(rows.x, rows.y, strict=True):
        shrink = np.eye(p) - inner_lr / samples * x[0].T @ x[0]
        design.append(x[1] @ shrink)
        target.append(y[1] - inner_lr / samples * x[1] @ (x[0].T @ y[0]))
    return _least_squares(np.concatenate(design), np.concatenate(target))


def _least_squares(design: Array, target: Array) -> Array:
    """The solution of smallest norm."""
    return np.asarray(np.linalg.lstsq(design, target, rcond=None)[0])
