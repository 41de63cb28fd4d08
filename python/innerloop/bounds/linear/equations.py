"""Each task's normal equations of joint training and of MAML, from its rows (for Result 36)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from innerloop.bounds._arguments import Array
from innerloop.bounds.linear.sizes import check_finite


class Equations(NamedTuple):
    """Per-task normal equations; the estimator solves their average over tasks.

    Members:
        left: [M, p, p] symmetric, W_t.
        right: [M, p, K], z_t of each output.
    """

    left: Array
    right: Array


def drs_equations(
    support_x: Array,
    support_y: Array,
    query_x: Array,
    query_y: Array,
    query_count: Array | None = None,
) -> Equations:
    """Returns the equations of least squares on all rows of each task, one mean per task.

    Args:
        support_x: [M, N, p]; support_y: [M, N, K]; query_x: [M, Q, p]; query_y: [M, Q, K]. No
            support rows (N = 0) are allowed.
        query_count: [M], query rows in use (None: all).
    """
    weight = _row_weights(query_x, query_count)
    rows = support_x.shape[1] + (weight > 0).sum(axis=1)
    share = support_x.shape[1] / rows
    left, right = _moments(query_x, query_y, weight * (1.0 - share)[:, None])
    if support_x.shape[1]:
        more = np.broadcast_to(1.0 / rows[:, None], support_x.shape[:2])
        extra_left, extra_right = _moments(support_x, support_y, more)
        left, right = left + extra_left, right + extra_right
    return Equations(left, right)


def maml_equations(
    support_x: Array,
    support_y: Array,
    query_x: Array,
    query_y: Array,
    query_count: Array | None = None,
    *,
    inner_lr: float,
    steps: int,
) -> Equations:
    """Returns the equations of MAML's quadratic objective: one support/query pair per entry.

    The inner steps map theta to S theta + s with S = (I - alpha Q1)^K, so W = S Q2 S and
    z = S (q2 - Q2 s).

    Args:
        as for `drs_equations`, with N >= 1; inner_lr and steps as for `estimate`.
    """
    size, outputs = support_x.shape[2], support_y.shape[2]
    full = np.full(support_x.shape[:2], 1.0 / support_x.shape[1])
    inner_left, inner_right = _moments(support_x, support_y, full)
    left, right = _moments(query_x, query_y, _row_weights(query_x, query_count))
    rate = inner_lr / outputs
    one = np.eye(size) - rate * inner_left
    map_left = np.broadcast_to(np.eye(size), one.shape)
    map_right = np.zeros_like(inner_right)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            map_left = one @ map_left
            map_right = one @ map_right + rate * inner_right
        made = map_left @ left @ map_left  # S is a polynomial in Q1, hence symmetric
        made = (made + made.transpose(0, 2, 1)) / 2.0
        made_right = map_left @ (right - left @ map_right)
    for part in (map_left, made, made_right):
        check_finite(part, "estimate", "the map of the inner steps")
    return Equations(made, made_right)


def _row_weights(x: Array, count: Array | None) -> Array:
    """[M, rows]: 1/count on the rows in use, zero on padding."""
    if count is None:
        return np.full(x.shape[:2], 1.0 / x.shape[1])
    used = np.arange(x.shape[1])[None, :] < count[:, None]
    return np.where(used, 1.0 / count[:, None], 0.0)


def _moments(x: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """Weighted sums x x' [M, p, p] and x y' [M, p, K] over the rows of each task."""
    scaled = (x * weight[..., None]).transpose(0, 2, 1)
    return scaled @ x, scaled @ y
