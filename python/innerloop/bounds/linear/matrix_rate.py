"""One inner step with a matrix rate, theta' = theta - P grad: its risk and its best matrix
(Result 14(b), (d)).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._results import quantity
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.risk import law_assumptions
from innerloop.bounds.linear.rules import checked_theta, single_count


class MatrixRateMoments(NamedTuple):
    """The post-update risk of a task as a quadratic: d' hessian d / 2 + sigma2 (1 + noise) / 2.

    Members:
        hessian: [..., p, p], A = E[(I - P Qh)' Q (I - P Qh)].
        noise: [...], tr(P'QPQ) / N.
    """

    hessian: Array
    noise: Array


def matrix_rate_moments(Q: Any, rate: Any, samples: Any = None) -> MatrixRateMoments:
    """Returns the curvature of the post-update risk and the noise share of one matrix step.

    Args:
        Q: [..., p, p], covariances of the inputs.
        rate: P [..., p, p], any matrices.
        samples: N [...], or None for the population step. All leading axes broadcast.

    Returns:
        MatrixRateMoments.

    Raises:
        TypeError: not real numbers.
        ValueError: Q is no covariance matrix, rate does not fit it, or N below 1.

    Cost:
        O(p^3) per matrix.

    Assumes:
        Rows are independent and N(0, Q). Checked: Q is a covariance matrix.

    Source:
        Result 14(b), from the second moments of Result 1.

    >>> rate = [[0.3, 0.1], [-0.05, 0.2]]
    >>> matrix_rate_moments([[2.0, 0.5], [0.5, 1.0]], rate, 5).hessian.round(6)
    array([[0.611  , 0.095  ],
           [0.095  , 0.73775]])
    """
    q = sizes.covariances(Q, function="matrix_rate_moments", name="Q")
    matrix = _rate(rate, q.shape[-1], "matrix_rate_moments")
    n = _arguments.counts(samples, function="matrix_rate_moments", name="samples", none=np.inf)
    return _moments(q, matrix, n)


def matrix_rate_risk(law: TaskLaw, theta: Any, *, rate: Any, samples: Any = None) -> Any:
    """Returns the expected risk after one inner step with a matrix rate on fresh samples.

    Args:
        law: distribution of tasks.
        theta: [p], initial parameters.
        rate: P [..., p, p], any matrices; P = alpha I is the ordinary step.
        samples: N [...], support points, or None for the population step. Leading axes broadcast.

    Returns:
        Quantity, or float64 array [...] for several rates or sample sizes.

    Raises:
        TypeError, ValueError: as `matrix_rate_moments`, or theta does not fit the law.

    Cost:
        O(G p^3) per rate for G nodes of the law.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Checked: whether
        averages over the law are exact, which the result states.

    Source:
        Result 14(b).

    >>> from innerloop.bounds.linear import published_law
    >>> round(matrix_rate_risk(published_law(), [1.0], rate=[[0.3]], samples=5), 6)
    0.577467
    """
    nodes, point = checked_theta(law, theta, "matrix_rate_risk")
    matrix = _rate(rate, law.p, "matrix_rate_risk")
    n = _arguments.counts(samples, function="matrix_rate_risk", name="samples", none=np.inf)
    found = _moments(nodes.Q, matrix[..., None, :, :], n[..., None])
    gap = point - nodes.theta
    error = np.einsum("gi,...gij,gj->...g", gap, found.hessian, gap)
    risk = 0.5 * (error + nodes.sigma2 * (1.0 + found.noise)) @ nodes.weights
    return quantity(
        risk,
        name="risk after one step with a matrix rate",
        source="Result 14(b)",
        assumptions=law_assumptions(law),
    )


def optimal_matrix_rate(law: TaskLaw, theta: Any, *, samples: int | None = None) -> Array:
    """Returns the matrix rate with the lowest expected risk after one step from theta.

    The risk is a convex quadratic in P. Its stationarity condition,
    E[Q P C] = E[Q d d' Q] with C = (1 + 1/N) Q d d' Q + (d'Q d + sigma2) Q / N and
    d = theta - theta_task, is solved as p^2 linear equations; the tasks may have different Q.

    Args:
        law: distribution of tasks.
        theta: [p], initial parameters.
        samples: N, or None for the population step.

    Returns:
        [p, p] float64; symmetric if all tasks have the same Q.

    Raises:
        TypeError, ValueError: arguments that do not fit; a minimiser that is not unique (for
            example samples=None and solutions that do not vary in all directions).

    Cost:
        O(G p^4 + p^6) for G nodes.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). theta does not
        depend on the test task. Checked: that the minimum is determined.

    Source:
        Result 14(d), extended here to tasks with different Q (docs/theory/variants.md).

    >>> from innerloop.bounds.linear import published_law
    >>> optimal_matrix_rate(published_law(), [1.0], samples=5).round(4)
    array([[0.339]])
    """
    nodes, point = checked_theta(law, theta, "optimal_matrix_rate")
    n = single_count(samples, "optimal_matrix_rate")
    p = law.p
    gap = point - nodes.theta
    moved = (nodes.Q @ gap[..., None])[..., 0]  # Q d
    outer = moved[:, :, None] * moved[:, None, :]
    scale = (gap * moved).sum(-1) + nodes.sigma2
    right = (1.0 + 1.0 / n) * outer + scale[:, None, None] * nodes.Q / n
    # vec by rows: (Q P C)_il = sum_jk Q_ij C_lk P_jk for symmetric C.
    system = np.einsum("g,gij,gkl->ikjl", nodes.weights, nodes.Q, right).reshape(p * p, p * p)
    _arguments.positive_definite(
        (system + system.T) / 2.0,
        function="optimal_matrix_rate",
        name="the curvature of the risk in P",
        result="Result 14(d)",
    )
    aim = np.einsum("g,gij->ij", nodes.weights, outer)
    return np.asarray(np.linalg.solve(system, aim.ravel()).reshape(p, p))


def optimal_matrix_rate_common(
    Q: Any, second_moment: Any, sigma2: float, *, samples: int | None = None
) -> Array:
    """Returns the best matrix rate for tasks that share their input covariance.

    P = D [(1 + 1/N) Q D + (t / N) I]^-1 with D = E d d' and t = tr(Q D) + E sigma2: the inverse
    curvature, shrunk where the solutions vary little or the support is small.

    Args:
        Q: [p, p], the common covariance.
        second_moment: D [p, p], second moment of theta - theta_task, symmetric and positive
            semidefinite.
        sigma2: mean noise variance, non-negative.
        samples: N, or None for the population step (which gives Q^-1).

    Returns:
        [p, p] float64, symmetric.

    Raises:
        TypeError, ValueError: arguments that do not fit; Q not positive definite; for samples=None
            or t = 0, D not positive definite.

    Cost:
        O(p^3).

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). All tasks share
        Q. Checked: Q and the second moment are covariance matrices.

    Source:
        Result 14(d).

    >>> optimal_matrix_rate_common([[2.0]], [[1.5]], 1.0, samples=4).round(6)
    array([[0.315789]])
    """
    function = "optimal_matrix_rate_common"
    q = sizes.covariances(
        sizes.array(Q, function=function, name="Q", ndim=2), function=function, name="Q"
    )
    moment = sizes.covariances(second_moment, function=function, name="second_moment")
    noise = sizes.array(sigma2, function=function, name="sigma2", ndim=0)
    n = single_count(samples, function)
    if moment.shape != q.shape:
        raise ValueError(
            f"{function}: second_moment must have shape {q.shape} (got {moment.shape})"
        )
    if noise < 0.0:
        raise ValueError(f"{function}: sigma2 must be non-negative (got {noise:g})")
    _arguments.positive_definite(q, function=function, name="Q", result="Result 14(d)")
    total = np.trace(q @ moment) + noise
    if np.isinf(n) or total == 0.0:
        _arguments.positive_definite(
            moment, function=function, name="second_moment", result="Result 14(d), samples=None"
        )
    system = (1.0 + 1.0 / n) * q @ moment + total / n * np.eye(len(q))
    rate = np.linalg.solve(system.T, moment.T).T
    return np.asarray((rate + rate.T) / 2.0)


def _moments(q: Array, rate: Array, n: Array) -> MatrixRateMoments:
    """Curvature and noise share for broadcasting Q, P and N."""
    inside = np.swapaxes(rate, -1, -2) @ q @ rate
    straight = q @ inside @ q
    trace = np.trace(inside @ q, axis1=-2, axis2=-1)
    keep = np.eye(q.shape[-1]) - rate @ q
    hessian = np.swapaxes(keep, -1, -2) @ q @ keep
    hessian = hessian + (straight + trace[..., None, None] * q) / n[..., None, None]
    return MatrixRateMoments(hessian, trace / n)


def _rate(rate: Any, p: int, function: str) -> Array:
    """The rate as [..., p, p]."""
    made = sizes.array(rate, function=function, name="rate")
    if made.ndim < 2 or made.shape[-2:] != (p, p):
        raise ValueError(f"{function}: rate must have shape [..., {p}, {p}] (got {made.shape})")
    return made
