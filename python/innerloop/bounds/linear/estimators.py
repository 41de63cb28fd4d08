"""The two closed-form meta-estimators of linear regression, from data (Result 6)."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds._arguments import Array
from innerloop.bounds.linear import sizes


def drs_estimate(support: tuple[Any, Any], query: tuple[Any, Any]) -> Array:
    """Returns the joint estimate: least squares on all samples of all tasks pooled.

    Args:
        support: (x [M, N, p], y [M, N]), arrays or tensors.
        query: (x [M, N', p], y [M, N']).

    Returns:
        [p] float64; of all minimisers the one of least norm.

    Raises:
        TypeError: not real numbers.
        ValueError: a shape does not fit, NaN.

    Cost:
        O(M N p^2 + p^3).

    Assumes:
        Nothing about the law of the data. Checked: shapes and finite values.

    Source:
        Result 6 (Gao and Sener's code).

    >>> import numpy as np
    >>> x = np.array([[[1.0], [2.0]], [[3.0], [1.0]]])
    >>> drs_estimate((x, 2.0 * x[..., 0]), (x, 2.0 * x[..., 0]))
    array([2.])
    """
    (q1, r1, n1), (q2, r2, n2) = _sides(support, query, "drs_estimate")
    weight = (n1 * q1 + n2 * q2).sum(axis=0)
    target = (n1 * r1 + n2 * r2).sum(axis=0)
    return _least_norm(weight, target)


def maml_estimate(support: tuple[Any, Any], query: tuple[Any, Any], *, inner_lr: Any) -> Array:
    """Returns the MAML estimate: it minimises the query loss after one inner step on the support.

    It solves sum_t S Qh2 S theta = sum_t S (qh2 - rate Qh2 qh1) with S = I - rate Qh1, where Qh are
    the second moments of the inputs and qh their products with the targets.

    Args:
        support: (x [M, N, p], y [M, N]), arrays or tensors; the inner step averages over N.
        query: (x [M, N', p], y [M, N']).
        inner_lr: rate, any sign; a number or an array.

    Returns:
        [p] or [*inner_lr.shape, p] float64; of all minimisers the one of least norm.

    Raises:
        TypeError: not real numbers.
        ValueError: a shape does not fit, NaN.

    Cost:
        O(M N p^2) for the moments, then O(M p^3) per rate.

    Assumes:
        Nothing about the law of the data. Checked: shapes and finite values.

    Source:
        Result 6 (Gao and Sener's code).

    >>> import numpy as np
    >>> x = np.array([[[1.0], [2.0]], [[3.0], [1.0]]])
    >>> side = (x, 2.0 * x[..., 0])
    >>> maml_estimate(side, side, inner_lr=[0.0, 0.1])
    array([[2.],
           [2.]])
    """
    (q1, r1, _), (q2, r2, _) = _sides(support, query, "maml_estimate")
    rate = sizes.array(inner_lr, function="maml_estimate", name="inner_lr")
    weights = np.empty((*rate.shape, *q1.shape[1:]))
    targets = np.empty((*rate.shape, q1.shape[-1]))
    for index in np.ndindex(rate.shape):
        step = np.eye(q1.shape[-1]) - rate[index] * q1
        weights[index] = (step @ q2 @ step).sum(axis=0)
        targets[index] = _times(step, r2 - rate[index] * _times(q2, r1)).sum(axis=0)
    return _least_norm((weights + np.swapaxes(weights, -1, -2)) / 2.0, targets)


Moments = tuple[Array, Array, float]


def _sides(support: tuple[Any, Any], query: tuple[Any, Any], function: str) -> list[Moments]:
    """For each side: X'X / N [M, p, p], X'y / N [M, p] and N."""
    found: list[Moments] = []
    for name, (inputs, targets) in (("support", support), ("query", query)):
        x = sizes.array(inputs, function=function, name=f"{name} x", ndim=3)
        y = sizes.array(targets, function=function, name=f"{name} y", ndim=2)
        if x.shape[:2] != y.shape or 0 in x.shape:
            raise ValueError(
                f"{function}: {name} must be x [M, N, p] and y [M, N], all at least 1 "
                f"(got {x.shape} and {y.shape})"
            )
        n = x.shape[1]
        found.append((np.swapaxes(x, 1, 2) @ x / n, np.einsum("mni,mn->mi", x, y) / n, float(n)))
    if found[0][0].shape != found[1][0].shape:
        raise ValueError(
            f"{function}: support and query must have the same tasks and inputs "
            f"(got [M, p] = {found[0][1].shape} and {found[1][1].shape})"
        )
    return found


def _least_norm(weight: Array, target: Array) -> Array:
    """The solution of least norm of weight theta = target for symmetric weight [..., p, p]."""
    return _times(np.asarray(np.linalg.pinv(weight, hermitian=True), dtype=np.float64), target)


def _times(matrix: Array, vector: Array) -> Array:
    """Matrix times vector over leading axes."""
    return np.asarray((matrix @ vector[..., None])[..., 0])
