"""Risk after one inner step, its minimisers, and the modelling error of joint training."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._results import Assumption, Record, quantity
from innerloop.bounds.linear.laws import LowOrder, TaskLaw

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
    """The two arguments checked: any finite rate; N >= 1, or None for infinity."""
    rate = _arguments.array(inner_lr, function=function, name="inner_lr")
    return rate, _arguments.counts(samples, function=function, name="samples", none=np.inf)


_LOW_ORDER: WeakKeyDictionary[TaskLaw, LowOrder] = WeakKeyDictionary()


def low_order(law: TaskLaw) -> LowOrder:
    """`law.low_order()`, computed once per law object."""
    found = _LOW_ORDER.get(law)
    if found is None:
        found = _LOW_ORDER[law] = law.low_order()
    return found


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
    low = low_order(law)
    weights = _weights(rate, samples)
    joint = low.matrices[0]
    _arguments.positive_definite(joint, function=function, name="E Q", result="Result 3")
    drs = np.linalg.solve(joint, low.vectors[0])
    curvature = np.tensordot(weights, low.matrices, 1)
    _arguments.positive_definite(curvature, function=function, name="E A", result="Result 3")
    # The first member of the family contributes E[Q (drs - theta)] = 0: leaving it out keeps the
    # slope exact for small rates. What remains below rounding is zero.
    parts = low.matrices[1:] @ drs - low.vectors[1:]  # [3, p]
    slope = weights[..., 1:] @ parts
    rounding = np.abs(weights[..., 1:]) @ (
        np.abs(low.matrices[1:]) @ np.abs(drs) + np.abs(low.vectors[1:])
    )
    slope = np.where(np.abs(slope) <= 64.0 * np.finfo(np.float64).eps * rounding, 0.0, slope)
    offset: Array = np.linalg.solve(curvature, slope[..., None])[..., 0].astype(np.float64)
    return Population(curvature, drs, drs - offset, slope, offset)


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
        O(G p^3) once per law, O(p^2) per value.

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
    point = _arguments.array(theta, function="risk", name="theta")
    if point.ndim == 0 or point.shape[-1] != law.p:
        raise ValueError(f"risk: theta must have shape [..., {law.p}] (got {point.shape})")
    low = low_order(law)
    weights = _weights(rate, count)
    quadratic = np.einsum("...i,fij,...j->...f", point, low.matrices, point)
    linear = point @ low.vectors.T
    distance = (weights * (quadratic - 2.0 * linear + low.scalars)).sum(axis=-1)
    value = 0.5 * (distance + low.noise + rate**2 / count * low.noise_trace)
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
    low = low_order(law)
    _arguments.positive_definite(
        low.matrices[0], function="small_rate_coefficient", name="E Q", result="Result 3"
    )
    drs = np.linalg.solve(low.matrices[0], low.vectors[0])
    slope = low.matrices[1] @ drs - low.vectors[1]
    return quantity(
        2.0 * slope @ np.linalg.solve(low.matrices[0], slope),
        name="coefficient of rate^2 in the modelling error",
        source="Result 4 (i)",
        assumptions=law_assumptions(law),
    )


def _weights(rate: Array, samples: Array) -> Array:
    """A = sum over the family of `LowOrder` with these weights, [..., 4]."""
    rate, samples = np.broadcast_arrays(rate, samples)
    noise = rate**2 / samples
    return np.stack([np.ones_like(rate), -2.0 * rate, rate**2 + noise, noise], axis=-1)
