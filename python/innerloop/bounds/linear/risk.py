"""Risk after one inner step, its minimisers, and the modelling error of joint training."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._quantities import hands_on
from innerloop.bounds._results import Assumption, Record, quantity
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.quadratic import post_update

GAUSSIAN = Assumption("inputs are Gaussian given the task and noise is independent of them (D4)")


def law_assumptions(law: TaskLaw, *more: Assumption) -> tuple[Assumption, ...]:
    """What every result about `law` rests on, then `more`."""
    if law.exact:
        averaged = Assumption("averages over the tasks are exact", "checked")
    else:
        count = len(law.nodes().weights)
        averaged = Assumption(f"averages over the tasks come from {count} drawn tasks", "estimated")
    if law.trust.standing in ("plug-in", "heuristic"):
        more = (Assumption("the numbers that describe the law are estimates", "estimated"), *more)
    return (GAUSSIAN, averaged, *more)


def rate_and_samples(inner_lr: Any, samples: Any, function: str) -> tuple[Array, Array]:
    """The two arguments checked, neither empty: any finite rate; N >= 1, or None for infinity."""
    rate = sizes.array(inner_lr, function=function, name="inner_lr")
    count = _arguments.counts(samples, function=function, name="samples", none=np.inf)
    for name, value in (("inner_lr", rate), ("samples", count)):
        check_some(value, function, name)
    return rate, count


def check_some(value: Array, function: str, name: str) -> None:
    """Raises ValueError for an array without entries."""
    if not value.size:
        raise ValueError(f"{function}: {name} must hold at least one number (got {value.shape})")


class Population(NamedTuple):
    """The post-update objective as a quadratic, over a broadcast of rates and samples.

    Members:
        curvature: [..., p, p], E A.
        drs: [p], minimiser of the joint objective.
        maml: [..., p], minimiser of this objective.
        slope: [..., p], its gradient at `drs`, E[A (drs - theta)].
        offset: [..., p], drs - maml without cancellation.
    """

    curvature: Array
    drs: Array
    maml: Array
    slope: Array
    offset: Array


def population(law: TaskLaw, rate: Array, samples: Array, function: str) -> Population:
    """What Results 3 and 4 need, after checking that E Q and E A are positive definite."""
    quadratics = post_update(law)
    _arguments.positive_definite(quadratics.joint, function=function, name="E Q", result="Result 3")
    sizes.check_steps(rate, quadratics.largest, function)
    drs = quadratics.drs()
    rate, samples = np.broadcast_arrays(rate, samples)
    found = [
        quadratics.at(float(a), float(n), drs)
        for a, n in zip(rate.ravel(), samples.ravel(), strict=True)
    ]
    curvature = np.array([each.curvature for each in found]).reshape((*rate.shape, law.p, law.p))
    slope = np.array([each.slope for each in found]).reshape((*rate.shape, law.p))
    _arguments.positive_definite(curvature, function=function, name="E A", result="Result 3")
    offset: Array = np.linalg.solve(curvature, slope[..., None])[..., 0].astype(np.float64)
    return Population(curvature, drs, drs - offset, slope, offset)


@hands_on
def risk(law: TaskLaw, theta: Any, *, inner_lr: Any = 0.0, samples: Any = None) -> Any:
    """Returns the expected risk of a new task after one inner step from `theta`.

    The step uses N fresh samples: E 1/2 (y - x . (theta - rate * empirical gradient))^2.

    Args:
        law: the task law.
        theta: [p] or [..., p], the initial parameters.
        inner_lr: rate, any sign; 0 gives the risk before any update.
        samples: N >= 1; None for a step along the exact gradient. Leading axes of theta,
            `inner_lr` and `samples` broadcast.

    Returns:
        Quantity, or float64 array of the broadcast shape.

    Raises:
        TypeError: not real numbers.
        ValueError: theta without p entries, N below 1, NaN.

    Cost:
        O(G p^3) once per law, O(G p^2) per value (O(p^2) for the published law).

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Checked: whether
        averages over the law are exact, which the result states.

    Source:
        Result 2 (test risk of Gao and Sener's code, its simulated matrix in closed form).

    >>> from innerloop.bounds import linear
    >>> law = linear.Mixture([1.0], [[[1.0]]], [[1.0]], [0.5])
    >>> float(risk(law, [0.0])), float(risk(law, [0.0], inner_lr=1.0))
    (0.75, 0.25)
    """
    rate, count = rate_and_samples(inner_lr, samples, "risk")
    point = sizes.array(theta, function="risk", name="theta")
    if point.ndim == 0 or point.shape[-1] != law.p:
        raise ValueError(f"risk: theta must have shape [..., {law.p}] (got {point.shape})")
    sizes.check_steps(rate, post_update(law).largest, "risk")
    leading = np.broadcast_shapes(point.shape[:-1], rate.shape, count.shape)
    points = np.broadcast_to(point, (*leading, law.p))
    rates, counts = np.broadcast_to(rate, leading), np.broadcast_to(count, leading)
    value = np.empty(leading)
    for index in np.ndindex(leading):
        value[index] = post_update(law).risk(
            points[index], float(rates[index]), float(counts[index])
        )
    return quantity(
        value,
        name="risk after one inner step",
        source="Result 2",
        assumptions=law_assumptions(law),
    )


@dataclasses.dataclass(frozen=True)
class Minimisers(Record):
    """Where the two objectives have their minimum.

    Members:
        drs: [p], of the joint (DRS) objective.
        maml: [..., p], of the post-update (MAML) objective, over rates and samples.
    """

    drs: Array
    maml: Array

    def explain(self) -> str:
        """Both points in words."""
        return (
            f"joint training converges to {np.array2string(self.drs, precision=6)}\n"
            f"MAML converges to {np.array2string(self.maml, precision=6)}  (Result 3)"
        )


def minimisers(law: TaskLaw, *, inner_lr: Any, samples: Any = None) -> Minimisers:
    """Returns the minimisers of the joint objective and of the post-update objective.

    Args:
        law: the task law.
        inner_lr, samples: as for `risk`; arrays broadcast.

    Raises:
        TypeError: not real numbers.
        ValueError: E Q or E A is not positive definite (Result 3 needs both), N below 1, NaN.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Checked: E Q and
        E A are positive definite.

    Source:
        Result 3 (targets of the estimators in Gao and Sener's code).

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> found = minimisers(law, inner_lr=0.3, samples=5)
    >>> round(float(found.drs[0]), 6), round(float(found.maml[0]), 6)
    (1.333333, 1.187021)
    """
    rate, count = rate_and_samples(inner_lr, samples, "minimisers")
    found = population(law, rate, count, "minimisers")
    return Minimisers(found.drs, found.maml)


@hands_on
def modelling_error(law: TaskLaw, *, inner_lr: Any, samples: Any = None) -> Any:
    """Returns how much post-update risk joint training loses even with unlimited data.

    This is the MAML risk at the joint minimiser less its minimum. It is zero if all tasks share Q,
    or if Q and theta are independent.

    Args:
        law: the task law.
        inner_lr, samples: as for `risk`; arrays broadcast.

    Returns:
        Quantity or float64 array, non-negative.

    Raises:
        TypeError: not real numbers.
        ValueError: E Q or E A is not positive definite (Result 3), N below 1, NaN.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Checked: E Q and
        E A are positive definite.

    Source:
        Result 4 (this project's own).

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> round(modelling_error(law, inner_lr=0.3, samples=5), 9)
    0.004838073
    """
    rate, count = rate_and_samples(inner_lr, samples, "modelling_error")
    found = population(law, rate, count, "modelling_error")
    value = 0.5 * (found.slope * found.offset).sum(axis=-1)
    return quantity(
        np.maximum(value, 0.0),
        name="modelling error of joint training",
        source="Result 4",
        assumptions=law_assumptions(
            law, Assumption("E Q and E A are positive definite", "checked")
        ),
    )


@hands_on
def modelling_error_bound(law: TaskLaw, *, inner_lr: Any, samples: Any = None) -> Any:
    """Returns ||E[A (theta_drs - theta)]||^2 / (2 lambda_min(E A)), at least the modelling error.

    Args, Raises:
        as `modelling_error`.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Checked: E Q and
        E A are positive definite.

    Source:
        Result 4 (iii).

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> round(modelling_error_bound(law, inner_lr=0.3, samples=5), 9)
    0.004838073
    """
    rate, count = rate_and_samples(inner_lr, samples, "modelling_error_bound")
    found = population(law, rate, count, "modelling_error_bound")
    smallest = np.linalg.eigvalsh(found.curvature)[..., 0]
    return quantity(
        0.5 * (found.slope**2).sum(axis=-1) / smallest,
        name="upper bound on the modelling error",
        source="Result 4 (iii)",
        assumptions=law_assumptions(law),
    )


def small_rate_coefficient(law: TaskLaw) -> Any:
    """Returns k such that the modelling error is k rate^2 + O(rate^3), whatever N.

    Raises:
        ValueError: E Q is not positive definite (Result 3).

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). The rate is
        small. Checked: E Q is positive definite.

    Source:
        Result 4 (i).

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> k = small_rate_coefficient(law)
    >>> abs(modelling_error(law, inner_lr=1e-4, samples=5) / 1e-8 / k - 1) < 1e-3
    True
    """
    quadratics = post_update(law)
    _arguments.positive_definite(
        quadratics.joint, function="small_rate_coefficient", name="E Q", result="Result 3"
    )
    slope = quadratics.small_rate_slope(quadratics.drs())
    return quantity(
        2.0 * slope @ np.linalg.solve(quadratics.joint, slope),
        name="coefficient of rate^2 in the modelling error",
        source="Result 4 (i)",
        assumptions=law_assumptions(law),
    )
