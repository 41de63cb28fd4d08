"""Both certificates as functions of the budget, and every budget at which they are equal
(Result 29)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.polynomial import Polynomial

from innerloop.bounds._arguments import counts
from innerloop.bounds._quantities import computed, tracked
from innerloop.bounds._results import Quantity
from innerloop.bounds._standing import CERTAIN
from innerloop.bounds.nonconvex.bias import gradient_bias
from innerloop.bounds.nonconvex.complexity import Route, routes
from innerloop.bounds.nonconvex.constants import Constants, bound
from innerloop.bounds.nonconvex.links import gradient_gap, modelling_gradient
from innerloop.bounds.nonconvex.smoothness import kappa

Objective = Literal["samples", "population"]


@dataclasses.dataclass(frozen=True)
class Race:
    """Both certificates as functions of the budget, with the constants put in as quantities.

    With levels z = sqrt(certificate), joint training needs 2 a (w^2 + v) / w^4 samples for z =
    factor w + offset, with a = L gap B n and v = V_d^2 / B, and MAML the inverse of Result 25 (b)
    or (d). Equality of the two is a polynomial equation in w.
    """

    drs: Route
    maml: Route
    batch: Any
    factor: Any
    offset: Any
    floor: Any

    def result(self, value: float) -> Quantity:
        """A number that was computed from all of this, in ways that no tracked arithmetic sees."""
        parts = *self.drs, *self.maml, self.batch, self.factor, self.offset, self.floor
        return computed(value, *parts)

    @property
    def least(self) -> float:
        """The budget that pays for one update of either method."""
        return float(self.batch * max(self.drs.task_samples, self.maml.task_samples))

    @functools.cached_property
    def link(self) -> tuple[float, float, float | None]:
        """Factor, offset and floor as plain numbers."""
        floor = None if self.floor is None else float(self.floor)
        return float(self.factor), float(self.offset), floor

    @functools.cached_property
    def scales(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(a, v) of joint training and of MAML as plain numbers."""
        return self._scale(self.drs), self._scale(self.maml)

    def _scale(self, route: Route) -> tuple[float, float]:
        """a and v of a method."""
        cost = route.smoothness * route.gap * self.batch * route.task_samples
        return float(cost), float(route.variance / self.batch)

    @property
    def start(self) -> float:
        """The least w for which MAML has a certificate of that level."""
        factor, offset, floor = self.link
        return max(0.0, ((floor or 0.0) - offset) / factor)

    def samples_drs(self, excess: float) -> float:
        """log of the samples that joint training needs at w = start + excess."""
        cost, noise = self.scales[0]
        w = self.start + excess
        return math.log(2.0 * cost) + math.log(w * w + noise) - 4.0 * math.log(w)

    def samples_maml(self, excess: float) -> float:
        """log of the samples that MAML needs for the same level."""
        cost, noise = self.scales[1]
        factor, offset, floor = self.link
        if floor is None:
            z = factor * excess + offset
            return math.log(2.0 * cost) + math.log(z * z + noise) - 4.0 * math.log(z)
        above = factor * excess + max(0.0, offset - floor)
        room = above * (above + 2.0 * floor)
        if room <= 2.0 * noise:
            return math.log(8.0 * cost * noise) - 2.0 * math.log(room)
        return math.log(2.0 * cost) - math.log(room - noise)

    def difference(self, log_excess: float) -> float:
        """log samples of joint training minus those of MAML: positive where MAML is ahead."""
        excess = math.exp(log_excess)
        return self.samples_drs(excess) - self.samples_maml(excess)

    def turning_points(self) -> list[float]:
        """Positive excesses between which `difference` changes sign once at most."""
        (cost_d, noise_d), (cost_m, noise_m) = self.scales
        factor, offset, known_floor = self.link
        floor = known_floor or 0.0
        w = Polynomial([self.start, 1.0])
        z = Polynomial([max(offset, floor), factor])
        if known_floor is None:
            equation = cost_d * (w**2 + noise_d) * z**4 - cost_m * (z**2 + noise_m) * w**4
            return positive_roots(equation.deriv())
        room = z**2 - floor**2
        noisy = cost_d * (w**2 + noise_d) * room**2 - 4.0 * cost_m * noise_m * w**4
        quiet = cost_d * (w**2 + noise_d) * (room - noise_m) - cost_m * w**4
        switch = (math.sqrt(2.0 * noise_m + floor**2) - max(offset, floor)) / factor
        points = [*positive_roots(noisy.deriv()), *positive_roots(quiet.deriv())]
        return sorted([*points, switch] if switch > 0.0 else points)

    def crossings(self) -> tuple[list[float], bool]:
        """log excess of every crossing, increasing, and whether MAML is ahead for large budgets."""
        noises = [math.sqrt(noise) for _, noise in self.scales]
        _, offset, floor = self.link
        size = math.log(max(offset, floor or 0.0, *noises) or 1.0)
        marks = [size - 230.0, *map(math.log, self.turning_points()), size + 230.0]
        marks.sort()
        signs = [self.difference(mark) > 0.0 for mark in marks]
        roots = [
            bisect(self.difference, low, high)
            for low, high, before, after in zip(
                marks[:-1], marks[1:], signs[:-1], signs[1:], strict=True
            )
            if before != after
        ]
        return roots, signs[0]


def positive_roots(polynomial: Polynomial) -> list[float]:
    """The positive zeros at which a real polynomial changes sign, increasing.

    Between neighbouring zeros of the derivative a polynomial is monotone, so bisection there
    misses nothing that rounding does not hide.
    """
    kept = np.trim_zeros(polynomial.coef)  # zeros at 0 are not positive
    if len(kept) < 2:
        return []
    trimmed = Polynomial(kept)
    reach = 2.0 + float(np.abs(kept[:-1]).max() / abs(kept[-1]))
    marks = [0.0, *positive_roots(trimmed.deriv()), reach]
    marks.sort()
    values = [float(trimmed(mark)) > 0.0 for mark in marks]
    return [
        bisect(trimmed, marks[k], marks[k + 1])
        for k in range(len(marks) - 1)
        if values[k] != values[k + 1]
    ]


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """A zero of `function`, whose sign differs at the ends, to the last bit."""
    rising = function(high) > 0.0
    while True:
        middle = (low + high) / 2.0
        if middle in (low, high):
            return middle
        if (function(middle) > 0.0) == rising:
            high = middle
        else:
            low = middle


def race(
    constants: Constants,
    *,
    inner_lr: float,
    samples: int,
    queries: int,
    batch: int = 1,
    drs_samples: int | None = None,
    steps: int = 1,
    objective: Objective = "samples",
    sharp: bool = False,
) -> Race:
    """Both methods' certificates with the constants put in; arguments as `crossover_budget`."""
    function = "crossover_budget"
    if objective not in ("samples", "population"):
        raise ValueError(
            f'{function}: objective must be "samples" or "population" (got {objective!r})'
        )
    depth = counts(steps, function=function, name="steps")
    if objective == "population" and depth != 1.0:
        raise ValueError(
            f"{function}: steps must be 1 for the population objective, whose gradient estimates "
            'are biased; Result 23 needs it. Use objective="samples"'
        )
    drs, maml = routes(
        constants,
        inner_lr=inner_lr,
        samples=samples,
        queries=queries,
        drs_samples=drs_samples,
        steps=steps,
        population=objective == "population",
        sharp=sharp,
        function=function,
    )
    for name, route in (("gap_drs", drs), ("gap_maml", maml)):
        if np.ndim(route.gap) or np.ndim(route.variance):
            raise ValueError(f"{function}: arguments must be single numbers")
        if not route.gap > 0.0:
            raise ValueError(f"{function}: {name} must be positive; Result 29 needs it")
    refined = depth == 1.0 and None not in (
        constants.sigma_gamma,
        constants.sigma_Hgamma,
        constants.rho,
    )
    biased: dict[str, Any] = {"inner_lr": inner_lr, "samples": samples}
    if refined:
        factor = tracked(kappa(constants, inner_lr=inner_lr), CERTAIN) ** 2
        offset = tracked(modelling_gradient(constants, inner_lr=inner_lr), CERTAIN)
        if objective == "samples":
            offset = offset + gradient_bias(constants, **biased)
    else:
        factor = tracked(1.0, CERTAIN)
        used = samples if objective == "samples" else None
        gap = gradient_gap(constants, inner_lr=inner_lr, steps=steps, samples=used)
        offset = tracked(gap, CERTAIN)
    floor = gradient_bias(constants, **biased) if objective == "population" else None
    tasks = counts(batch, function=function, name="batch")
    return Race(
        drs,
        maml,
        tasks,
        _part(factor, "factor of joint training's own gradient in the MAML gradient"),
        _part(offset, "MAML gradient left when joint training's own is 0"),
        floor,
    )


def _part(value: Any, name: str) -> Any:
    """A part of the link between both objectives, with a name that lets it stand as it is."""
    return bound(value, name=name, source="Result 27")
