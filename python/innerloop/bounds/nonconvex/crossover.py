"""The number of samples from which on MAML has the smaller certificate (Result 29)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.polynomial import Polynomial

from innerloop.bounds._arguments import counts
from innerloop.bounds._results import Assumption, Quantity, Record, quantity
from innerloop.bounds.nonconvex.bias import gradient_bias
from innerloop.bounds.nonconvex.complexity import Route, routes
from innerloop.bounds.nonconvex.constants import Constants, conditions
from innerloop.bounds.nonconvex.links import gradient_gap, modelling_gradient
from innerloop.bounds.nonconvex.sgd import updates_needed
from innerloop.bounds.nonconvex.smoothness import kappa

Objective = Literal["samples", "population"]


@dataclasses.dataclass(frozen=True)
class Crossover(Record):
    """Where the certificates of the two methods for E|MAML gradient|^2 cross (Result 29).

    Members:
        budget: S, the least number of samples beyond which MAML's certificate is always the
            smaller one; 0 if it is for every budget, infinite if it never stays so.
        crossings: every budget at which the certificates are equal, increasing (three at most).
        level: the common certificate at `budget`.
        guaranteed: an upper bound for `budget` in closed form.
        approximate: `budget` if noise dominates, in closed form and often crude; None for the
            population objective.
        factor, offset: certificate of joint training = (factor sqrt(own certificate) + offset)^2.
        floor: bias that MAML's certificate keeps, 0 for the N-sample objective.
    """

    budget: Quantity
    crossings: tuple[float, ...]
    level: float
    guaranteed: Quantity
    approximate: float | None
    factor: float
    offset: float
    floor: float

    def explain(self) -> str:
        """The predicted crossover in plain words."""
        head, *conditions_met = self.budget.explain().splitlines()
        lines = [head]
        if 0.0 < self.budget < math.inf:
            lines += [
                f"  both certify E|MAML gradient|^2 <= {self.level:.4g} there",
                f"  guaranteed to be at most {self.guaranteed:.6g}",
            ]
        if len(self.crossings) > 1:
            shown = ", ".join(f"{value:.6g}" for value in self.crossings)
            lines.append(f"  the certificates cross {len(self.crossings)} times: at {shown}")
        lines.append("  it compares upper bounds, so it predicts their order, not performance")
        lines += conditions_met
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Race:
    """Both certificates as functions of the budget, with the constants put in.

    With levels z = sqrt(certificate), joint training needs 2 a (w^2 + v) / w^4 samples for z =
    factor w + offset, with a = L gap B n and v = V_d^2 / B, and MAML the inverse of Result 25 (b)
    or (d). Equality of the two is a polynomial equation in w.
    """

    drs: Route
    maml: Route
    batch: float
    factor: float
    offset: float
    floor: float | None

    def _scale(self, route: Route) -> tuple[float, float]:
        """a and v of a method."""
        cost = route.smoothness * route.gap * self.batch * route.task_samples
        return float(cost), float(route.variance) / self.batch

    @property
    def start(self) -> float:
        """The least w for which MAML has a certificate of that level."""
        return max(0.0, ((self.floor or 0.0) - self.offset) / self.factor)

    def samples_drs(self, excess: float) -> float:
        """log of the samples that joint training needs at w = start + excess."""
        cost, noise = self._scale(self.drs)
        w = self.start + excess
        return math.log(2.0 * cost) + math.log(w * w + noise) - 4.0 * math.log(w)

    def samples_maml(self, excess: float) -> float:
        """log of the samples that MAML needs for the same level."""
        cost, noise = self._scale(self.maml)
        if self.floor is None:
            z = self.factor * excess + self.offset
            return math.log(2.0 * cost) + math.log(z * z + noise) - 4.0 * math.log(z)
        above = self.factor * excess + max(0.0, self.offset - self.floor)
        room = above * (above + 2.0 * self.floor)
        if room <= 2.0 * noise:
            return math.log(8.0 * cost * noise) - 2.0 * math.log(room)
        return math.log(2.0 * cost) - math.log(room - noise)

    def difference(self, log_excess: float) -> float:
        """log samples of joint training minus those of MAML: positive where MAML is ahead."""
        excess = math.exp(log_excess)
        return self.samples_drs(excess) - self.samples_maml(excess)

    def turning_points(self) -> list[float]:
        """Positive excesses between which `difference` changes sign once at most."""
        (cost_d, noise_d), (cost_m, noise_m) = self._scale(self.drs), self._scale(self.maml)
        floor = self.floor or 0.0
        w = Polynomial([self.start, 1.0])
        z = Polynomial([max(self.offset, floor), self.factor])
        if self.floor is None:
            equation = cost_d * (w**2 + noise_d) * z**4 - cost_m * (z**2 + noise_m) * w**4
            return positive_roots(equation.deriv())
        room = z**2 - floor**2
        noisy = cost_d * (w**2 + noise_d) * room**2 - 4.0 * cost_m * noise_m * w**4
        quiet = cost_d * (w**2 + noise_d) * (room - noise_m) - cost_m * w**4
        switch = (math.sqrt(2.0 * noise_m + floor**2) - max(self.offset, floor)) / self.factor
        points = [*positive_roots(noisy.deriv()), *positive_roots(quiet.deriv())]
        return sorted([*points, switch] if switch > 0.0 else points)

    def crossings(self) -> tuple[list[float], bool]:
        """log excess of every crossing, increasing, and whether MAML is ahead for large budgets."""
        noises = [math.sqrt(self._scale(route)[1]) for route in (self.drs, self.maml)]
        size = math.log(max(self.offset, self.floor or 0.0, *noises) or 1.0)
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
        factor = float(kappa(constants, inner_lr=inner_lr)) ** 2
        offset = float(modelling_gradient(constants, inner_lr=inner_lr))
        if objective == "samples":
            offset += float(gradient_bias(constants, **biased))
    else:
        factor = 1.0
        used = samples if objective == "samples" else None
        offset = float(gradient_gap(constants, inner_lr=inner_lr, steps=steps, samples=used))
    floor = float(gradient_bias(constants, **biased)) if objective == "population" else None
    tasks = float(counts(batch, function=function, name="batch"))
    return Race(drs, maml, tasks, factor, offset, floor)


def crossover_budget(
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
) -> Crossover:
    """The number of samples S beyond which MAML's certificate for its own gradient is the smaller.

    Joint training is certified for the MAML gradient by its own certificate and Result 27: (kappa^2
    sqrt(own) + e)^2. MAML is certified directly. The first tends to e^2, the second to 0 (to the
    squared bias for the population objective). All crossings are found: equality is a polynomial
    equation, bracketed between its turning points and bisected in the logarithm.

    Args:
        constants: needs gap_drs, the curvature constants of B2, B3, B7, G2 (or G), sigma_gamma,
            sigma_g and, for the refined link at one step, sigma_Hgamma and sigma_H. Without
            sigma_Hgamma, and for several steps, the crude link is used.
        inner_lr: inner rate, any sign.
        samples, queries: N and N_o, per task and update.
        batch: B, tasks per update.
        drs_samples: samples n per task for joint training; samples + queries by default.
        steps: inner steps K.
        objective: "samples" for the MAML objective with N-sample inner steps (unbiased gradients),
            "population" for the one with population steps (biased gradients, one step only).
        sharp: use the sharper forms of Results 21 and 24.

    Returns:
        Crossover.

    Raises:
        ValueError: a constant that is needed is missing, an initial gap is 0, or an argument is
            out of range.

    Cost:
        A few milliseconds.

    Assumes:
        B1-B7 along the iterates of both methods, fresh samples at every update. Checked: the
        constants needed are given and in range. Not checked: that they hold.

    Source:
        Result 29 (own). It orders certificates, which are upper bounds; it does not order the
        methods' true performance.

    >>> b0 = Constants(L_plus=1.0, ell=0.5, rho=2.0, G=1.0, sigma_g=0.5, sigma_H=0.8,
    ...                sigma_gamma=0.6, sigma_Hgamma=0.3, L_plus_s=1.0, ell_s=0.5, rho_s=2.0,
    ...                gap_drs=2.0, gap_maml=2.0)
    >>> found = crossover_budget(b0, inner_lr=0.1, samples=4, queries=4, batch=8)
    >>> print(f"{found.budget:.6f} (at most {found.guaranteed:.0f})")
    520.384476 (at most 7107196)
    """
    made = race(
        constants,
        inner_lr=inner_lr,
        samples=samples,
        queries=queries,
        batch=batch,
        drs_samples=drs_samples,
        steps=steps,
        objective=objective,
        sharp=sharp,
    )
    roots, maml_wins = made.crossings()
    budgets = tuple(sorted(math.exp(made.samples_drs(math.exp(root))) for root in roots))
    level, reason = math.nan, None
    if not maml_wins:
        value = math.inf
        reason = (
            "joint training keeps the smaller certificate for large budgets: the bias floor of "
            "MAML's gradients is at least the modelling term"
            if made.floor
            else "joint training keeps the smaller certificate for large budgets: there is no "
            "modelling term to hold it back"
        )
    elif not budgets:
        value, reason = 0.0, "MAML has the smaller certificate for every budget"
    else:
        value = budgets[-1]
        level = (made.factor * (made.start + math.exp(roots[0])) + made.offset) ** 2
    met = (
        *conditions(constants, "B1", "B2", "B3", "B4", "B5g", "B5H", "B6g", "B6H", "B7"),
        Assumption("the constants hold along both methods' iterates"),
    )
    return Crossover(
        budget=quantity(
            value,
            name="samples beyond which MAML has the smaller certificate",
            source="Result 29",
            assumptions=met,
            reason=reason,
        ),
        crossings=budgets,
        level=level,
        guaranteed=_guaranteed(made, met),
        approximate=_approximate(made),
        factor=made.factor,
        offset=made.offset,
        floor=made.floor or 0.0,
    )


def _guaranteed(made: Race, met: tuple[Assumption, ...]) -> Quantity:
    """Samples after which MAML's certificate is below what joint training's tends to."""
    value, reason = math.inf, "there is no modelling term, so no such budget is guaranteed"
    if made.offset > 0.0:
        needed = updates_needed(
            epsilon=made.offset,
            smoothness=made.maml.smoothness,
            gap=made.maml.gap,
            variance=made.maml.variance,
            batch=made.batch,
            bias=made.floor,
        )
        value = float(needed) * made.batch * float(made.maml.task_samples)
        reason = needed.reason
    bound: Quantity = quantity(
        value,
        name="guaranteed upper bound of the crossover",
        source="Result 29",
        assumptions=met,
        reason=reason,
    )
    return bound


def _approximate(made: Race) -> float | None:
    """The crossover if both certificates are in their large-budget regime."""
    if made.floor is not None:
        return None
    drs, maml = (
        (2.0 * float(route.smoothness * route.gap * route.variance * route.task_samples)) ** 0.25
        for route in (made.drs, made.maml)
    )
    lead = maml - made.factor * drs
    if lead <= 0.0:
        return 0.0
    return (lead / made.offset) ** 4 if made.offset > 0.0 else math.inf
