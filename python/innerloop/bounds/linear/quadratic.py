"""The post-update risk as a quadratic (Results 2-4), without cancellation.

A = (I - rate Q) Q (I - rate Q) + rate^2 / N (Q^3 + tr(Q^2) Q) is a sum of positive terms, each
accurate where a step solves a direction. It is averaged over a law's nodes, except for the
published law: there Result 5 has a closed form, whose terms cannot cancel because they are averages
over eigenvalues from 0 to beta.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from innerloop.bounds._arguments import Array
from innerloop.bounds.linear.averages import averages
from innerloop.bounds.linear.laws import PublishedLaw, TaskLaw

# A slope below this many roundings of its terms is 0.
_ROUNDINGS = 64.0 * float(np.finfo(np.float64).eps)


class Quadratic(NamedTuple):
    """The risk at one rate and N.

    Members:
        curvature: [p, p], E A.
        slope: [p], E[A (drs - theta)], its gradient at joint training's minimiser.
    """

    curvature: Array
    slope: Array


class PostUpdate:
    """The quadratics of one law.

    Members:
        joint: [p, p], E Q.
        largest: largest eigenvalue of any task's Q.
    """

    joint: Array
    largest: float

    def drs(self) -> Array:
        """Joint training's minimiser, [p]; needs a nonsingular E Q."""
        raise NotImplementedError

    def at(self, rate: float, samples: float, drs: Array) -> Quadratic:
        """The risk after a step of `rate` on `samples` rows."""
        raise NotImplementedError

    def small_rate_slope(self, drs: Array) -> Array:
        """E[Q^2 (drs - theta)], [p]: -2 rate times it is the slope for small rates."""
        raise NotImplementedError

    def risk(self, point: Array, rate: float, samples: float) -> float:
        """The expected risk after the step from `point` [p]."""
        raise NotImplementedError


class _OverNodes(PostUpdate):
    """Averages over the nodes of a law."""

    def __init__(self, law: TaskLaw) -> None:
        self._tasks = averages(law)
        self.joint = self._tasks.matrix({"Q": 1.0}, 0.0, np.inf)
        self.largest = self._tasks.largest

    def drs(self) -> Array:
        """Measured from one of the tasks, so that it is exact where they all agree."""
        origin = self._tasks.theta[0]
        pull, _ = self._tasks.times({"Q": 1.0}, 0.0, np.inf, self._tasks.theta - origin)
        return np.asarray(origin + np.linalg.solve(self.joint, pull))

    def at(self, rate: float, samples: float, drs: Array) -> Quadratic:
        """The slope comes from A, or from A - Q if that is smaller, since E[Q (drs - theta)] = 0:
        the first is accurate where a step solves all tasks, the second for small rates.
        """
        tasks = self._tasks
        whole = {"SQS": 1.0}
        change = {"hQ": -2.0 * rate, "hQh": rate**2}
        found = [tasks.times(words, rate, samples, drs - tasks.theta) for words in (whole, change)]
        slope, size = min(found, key=lambda pair: pair[1])
        slope = np.where(np.abs(slope) <= _ROUNDINGS * size, 0.0, slope)
        curvature = tasks.matrix(whole, rate, samples)
        return Quadratic((curvature + curvature.T) / 2.0, slope)

    def small_rate_slope(self, drs: Array) -> Array:
        tasks = self._tasks
        slope, size = tasks.times({"QQ": 1.0}, 0.0, np.inf, drs - tasks.theta)
        return np.where(np.abs(slope) <= _ROUNDINGS * size, 0.0, slope)

    def risk(self, point: Array, rate: float, samples: float) -> float:
        tasks = self._tasks
        distance = tasks.squares({"SQS": 1.0}, rate, samples, point - tasks.theta)
        heard = tasks.scalar({"|QQ": rate**2 / samples}, 0.0, np.inf)
        return 0.5 * float(tasks.weights @ (distance + tasks.sigma2 * (1.0 + heard)))


class _Published(PostUpdate):
    """The closed form of Result 5."""

    def __init__(self, law: PublishedLaw) -> None:
        self._low = law.low_order()
        self.joint = self._low.matrices[0]
        self.largest = law.beta

    def drs(self) -> Array:
        return np.asarray(np.linalg.solve(self.joint, self._low.vectors[0]))

    def at(self, rate: float, samples: float, drs: Array) -> Quadratic:
        """The first member of the family contributes E[Q (drs - theta)] = 0: leaving it out keeps
        the slope exact for small rates.
        """
        low, weights = self._low, _weights(rate, samples)
        parts = low.matrices[1:] @ drs - low.vectors[1:]  # [3, p]
        slope = weights[1:] @ parts
        sizes = np.abs(low.matrices[1:]) @ np.abs(drs) + np.abs(low.vectors[1:])
        rounding = _ROUNDINGS * (np.abs(weights[1:]) @ sizes)
        curvature = np.tensordot(weights, low.matrices, 1)
        return Quadratic(curvature, np.where(np.abs(slope) <= rounding, 0.0, slope))

    def small_rate_slope(self, drs: Array) -> Array:
        return np.asarray(self._low.matrices[1] @ drs - self._low.vectors[1])

    def risk(self, point: Array, rate: float, samples: float) -> float:
        low, weights = self._low, _weights(rate, samples)
        quadratic = np.einsum("i,fij,j->f", point, low.matrices, point)
        distance = weights @ (quadratic - 2.0 * low.vectors @ point + low.scalars)
        return 0.5 * float(distance + low.noise + rate**2 / samples * low.noise_trace)


def _weights(rate: float, samples: float) -> Array:
    """A as a sum over the family of `LowOrder`, [4]."""
    noise = rate**2 / samples
    return np.array([1.0, -2.0 * rate, rate**2 + noise, noise])


_KNOWN: WeakKeyDictionary[TaskLaw, PostUpdate] = WeakKeyDictionary()


def post_update(law: TaskLaw) -> PostUpdate:
    """The quadratics of `law`, made once per law object."""
    found = _KNOWN.get(law)
    if found is None:
        found = _Published(law) if isinstance(law, PublishedLaw) else _OverNodes(law)
        _KNOWN[law] = found
    return found
