"""The best inner rate: at test time for given theta, and in training for the least variance
(Results 14(c) and 17).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._results import Record, quantity
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.laws import Nodes, TaskLaw
from innerloop.bounds.linear.moments import design_noise
from innerloop.bounds.linear.risk import law_assumptions
from innerloop.bounds.linear.rules import GradientSteps, checked_law, checked_theta
from innerloop.bounds.linear.training import train

# Grid on which the least variance is bracketed before bisection.
_GRID = 401


def optimal_test_rate(law: TaskLaw, theta: Any, *, samples: Any = None) -> Any:
    """Returns the inner rate with the lowest expected risk after one step from theta.

    The risk is a parabola in the rate, so the minimiser is unique; it is never negative.

    Args:
        law: distribution of tasks.
        theta: [p], initial parameters.
        samples: N [...], support rows of the test step, or None for the population step.

    Returns:
        Quantity, or float64 array for several N.

    Raises:
        TypeError: not real numbers, or not a law.
        ValueError: theta without p entries, N below 1, or a risk that does not depend on the rate
            (theta solves every task, and there is no noise or samples is None).

    Cost:
        O(G p^3) for G nodes of the law.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). theta does not
        depend on the test task. Checked: whether averages over the law are exact, which the result
        states.

    Source:
        Result 14(c).

    >>> from innerloop.bounds.linear import published_law
    >>> round(optimal_test_rate(published_law(), [1.0], samples=5), 4)
    0.339
    """
    function = "optimal_test_rate"
    nodes, point = checked_theta(law, theta, function)
    n = _arguments.counts(samples, function=function, name="samples", none=np.inf)
    gap = point - nodes.theta
    square = nodes.Q @ nodes.Q
    noise = design_noise(nodes.Q)
    gain = nodes.weights @ np.einsum("gi,gij,gj->g", gap, square, gap)
    bend = nodes.weights @ np.einsum("gi,gij,gj->g", gap, square @ nodes.Q, gap)
    scatter = nodes.weights @ (
        np.einsum("gi,gij,gj->g", gap, noise, gap)
        + nodes.sigma2 * np.trace(square, axis1=1, axis2=2)
    )
    curvature = bend + scatter / n
    if (curvature <= 0.0).any():
        raise ValueError(
            f"{function}: the risk must depend on the inner rate (theta solves every task without "
            "noise); Result 14(c) needs it"
        )
    return quantity(
        gain / curvature,
        name="best inner rate at test time",
        source="Result 14(c)",
        assumptions=law_assumptions(law),
    )


@dataclasses.dataclass(frozen=True)
class TrainingRate(Record):
    """The inner rate in training that gives MAML's estimator the least asymptotic variance.

    Members:
        rate: the minimiser.
        variance: tr(H Sigma) there; Sigma is the covariance of sqrt(M) (estimate - target).
        variance_at_zero: the same at rate 0 (N query rows, no adaptation).
        slope_at_zero: its derivative in the rate at 0, in closed form.
    """

    rate: Any
    variance: Any
    variance_at_zero: Any
    slope_at_zero: Any

    def explain(self) -> str:
        """The minimiser and what it gains, in words."""
        gain = 1.0 - self.variance / self.variance_at_zero if self.variance_at_zero else 0.0
        text = (
            f"the training rate of least variance is {self.rate:.4g}; it lowers the variance "
            f"{self.variance_at_zero:.5g} of rate 0 by {gain:.2%} (Result 17)"
        )
        return text if self.rate.reason is None else f"{text}\n{self.rate.reason}"


def training_rate_slope(law: TaskLaw, *, samples: Any, hessian: Any = None) -> Any:
    """Returns the derivative of MAML's asymptotic variance tr(H Sigma) in the inner rate, at 0.

    Positive means that a small negative rate in training lowers the variance. For Q = q I it equals
    2 sigma2 tr(H) / N and is positive whenever there is noise.

    Args:
        law: distribution of tasks with one common Q.
        samples: N [...], support rows, as many as query rows.
        hessian: H [p, p], positive semidefinite, of the risk that is measured; Q by default (the
            risk before adaptation).

    Returns:
        Quantity, or float64 array for several N.

    Raises:
        TypeError: not real numbers, or not a law.
        ValueError: tasks with different Q, Q singular (Result 17 needs a common positive definite
            Q), N below 1, H of another shape or not a covariance matrix.

    Cost:
        O(G p^2 + p^3).

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        independent and M is large: no remainder bound. All tasks share Q. Checked: they do, and Q
        is positive definite.

    Source:
        Result 17. Bernacchia 2021 reports optimal negative training rates in a related model.

    >>> from innerloop.bounds.linear import centroid_law
    >>> law = centroid_law([[1.0, 0.0], [0.0, 1.0]], tau2=0.8, sigma2=0.7)
    >>> round(training_rate_slope(law, samples=5), 12)
    0.56
    """
    nodes, q, h = _common(law, hessian, "training_rate_slope")
    n = _arguments.counts(samples, function="training_rate_slope", name="samples")
    return _slope(law, nodes, q, h, n)


def optimal_training_rate(law: TaskLaw, *, samples: int, hessian: Any = None) -> TrainingRate:
    """Returns the training rate, among |rate| <= 1 / lambda_max(Q), of the least variance.

    With a common Q every rate has the same target, so that only the variance matters. Where Q
    differs between tasks, the rate moves the target and the modelling error works against this
    small gain: see `allocate_labels` and `rule_expansion` with a test rule.

    Args:
        law: distribution of tasks with one common Q.
        samples: N support and N query rows.
        hessian: H [p, p], as for `training_rate_slope`.

    Returns:
        TrainingRate.

    Raises:
        TypeError, ValueError: as `training_rate_slope`.

    Cost:
        Five score covariances (degree 4 in the rate), then bisection on the derivative.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        independent and M is large: no remainder bound. All tasks share Q. Checked: they do, and Q
        is positive definite.

    Source:
        Result 17.

    >>> from innerloop.bounds.linear import centroid_law
    >>> law = centroid_law([[1.0, 0.0], [0.0, 1.0]], tau2=0.8, sigma2=0.7)
    >>> round(optimal_training_rate(law, samples=5).rate, 4)
    -0.0485
    """
    function = "optimal_training_rate"
    nodes, q, h = _common(law, hessian, function)
    n = sizes.array(
        _arguments.counts(samples, function=function, name="samples"),
        function=function, name="samples", ndim=0,
    )  # fmt: skip
    limit = 1.0 / float(np.linalg.eigvalsh(q)[-1])
    scaled = np.linspace(-1.0, 1.0, 5)
    trained = [
        train(law, GradientSteps(limit * x), float(n), split=True, function=function)
        for x in scaled
    ]
    powers = np.linalg.inv(np.vander(scaled, increasing=True))
    scores = np.tensordot(powers, np.array([t.scores[0] for t in trained]), 1)  # [5, p, p]
    curvature = np.tensordot(powers, np.array([t.curvature[0] for t in trained]), 1)

    # Below, the polynomial is rounding.
    resolved = 1e-9 * float(np.linalg.eigvalsh(q)[0])

    def variance(x: float) -> tuple[float, float]:
        """tr(H Sigma) and its derivative at rate limit * x."""
        up = x ** np.arange(5.0)
        down = np.array([0.0, 1.0, 2.0 * x, 3.0 * x**2, 4.0 * x**3])
        weight = np.tensordot(up, curvature, 1)
        if not np.linalg.eigvalsh(weight)[0] > resolved:
            return np.inf, np.inf  # a step that solves some direction: no estimate is worse
        inverse = np.linalg.inv(weight)
        sigma = inverse @ np.tensordot(up, scores, 1) @ inverse
        change = inverse @ np.tensordot(down, scores, 1) @ inverse
        bent = inverse @ np.tensordot(down, curvature, 1) @ sigma
        return float(np.trace(h @ sigma)), float(np.trace(h @ (change - bent - bent.T)))

    grid = np.linspace(-1.0, 1.0, _GRID)
    lowest = int(np.argmin([variance(x)[0] for x in grid]))
    reason = None
    if lowest in (0, _GRID - 1):
        best = float(grid[lowest])
        reason = "the rate lies at the end of the range |rate| <= 1 / lambda_max(Q)"
    else:
        low, high = float(grid[lowest - 1]), float(grid[lowest + 1])
        for _ in range(60):
            middle = (low + high) / 2.0
            low, high = (middle, high) if variance(middle)[1] < 0.0 else (low, middle)
        best = (low + high) / 2.0
    given = law_assumptions(law)
    named = {
        "rate": (limit * best, "training rate of least variance", reason),
        "variance": (variance(best)[0], "asymptotic variance at that rate", None),
        "variance_at_zero": (variance(0.0)[0], "asymptotic variance at rate 0", None),
    }
    return TrainingRate(
        slope_at_zero=_slope(law, nodes, q, h, n),
        **{
            field: quantity(value, name=text, source="Result 17", assumptions=given, reason=why)
            for field, (value, text, why) in named.items()
        },
    )


def _common(law: TaskLaw, hessian: Any, function: str) -> tuple[Nodes, Array, Array]:
    """The nodes, their common Q and H."""
    checked_law(law, function)
    nodes = law.nodes()
    q = nodes.Q[0]
    if np.abs(nodes.Q - q).max() > 1e-12 * np.abs(q).max():
        raise ValueError(f"{function}: Q must be the same for all tasks; Result 17 needs it")
    _arguments.positive_definite(q, function=function, name="Q", result="Result 17")
    if hessian is None:
        return nodes, q, q
    h = sizes.covariances(hessian, function=function, name="hessian")
    if h.shape != q.shape:
        raise ValueError(f"{function}: hessian must have shape {q.shape} (got {h.shape})")
    return nodes, q, h


def _slope(law: TaskLaw, nodes: Nodes, q: Array, h: Array, n: Array) -> Any:
    """The closed form of the derivative at 0."""
    gap = nodes.theta - nodes.weights @ nodes.theta
    second = np.einsum("g,gi,gj->ij", nodes.weights, gap, gap)
    noise = nodes.weights @ nodes.sigma2 + np.trace(second @ q)
    rise = noise * np.trace(h)
    fall = np.trace(second @ q @ q) * np.trace(np.linalg.solve(q, h))
    return quantity(
        2.0 / n * (rise - fall),
        name="slope of the asymptotic variance at training rate 0",
        source="Result 17",
        assumptions=law_assumptions(law),
    )
