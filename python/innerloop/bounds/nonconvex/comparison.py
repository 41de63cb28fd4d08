"""Both methods side by side for given constants: certificates, crossover and what drives them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from innerloop.bounds._arguments import Array
from innerloop.bounds._carrying import trust_of
from innerloop.bounds._quantities import computed
from innerloop.bounds._results import Quantity, Record
from innerloop.bounds._standing import Standing, in_words, joined
from innerloop.bounds.nonconvex._checks import positive
from innerloop.bounds.nonconvex.complexity import Route
from innerloop.bounds.nonconvex.constants import MEANINGS, Constants
from innerloop.bounds.nonconvex.crossover import Crossover, crossover_of
from innerloop.bounds.nonconvex.race import Objective, Race, race
from innerloop.bounds.nonconvex.sgd import best_rate, sgd_bound

_STEP = 1e-4  # relative change of a constant in a central difference; error about 1e-8


@dataclasses.dataclass(frozen=True)
class Certificate(Record):
    """What a training budget certifies for one method.

    Members:
        method: "drs" (joint training) or "maml".
        smoothness, gap, variance: Lambda, initial gap and V^2 of the objective it descends.
        updates: whole SGD updates that the budget pays for.
        rate: outer learning rate of the certificate.
        own: bound on the mean of E|gradient|^2 of its own objective over the updates.
        maml: bound on the same for the MAML objective.
        elasticities: per cent change of `maml` for one per cent more of each constant; constants
            that are 0 or do not move it are left out here, and count in `standing` all the same.
    """

    method: str
    smoothness: Quantity
    gap: Quantity
    variance: Quantity
    updates: float
    rate: Quantity
    own: Quantity
    maml: Quantity
    elasticities: dict[str, Quantity]

    @property
    def standing(self) -> Standing:
        """The weakest standing of all constants that the formula of `maml` mentions."""
        return self.maml.standing

    @property
    def certified(self) -> bool:
        """Whether all of these constants are certified."""
        return self.standing == "certified"

    def to_dict(self) -> dict[str, Any]:
        """Every field and the standing, ready for JSON."""
        return {
            **super().to_dict(),
            "standing": self.standing,
            "rests_on": self.maml.rests_on,
        }

    def explain(self) -> str:
        """The certificate in plain words."""
        name = "joint training" if self.method == "drs" else "MAML"
        trust = trust_of(self.maml)
        assert trust is not None
        return "\n".join(
            [
                f"{name}: after {self.updates:.6g} updates at rate {self.rate:.4g} the mean of "
                f"E|MAML gradient|^2 is at most {self.maml:.6g}  (Results 21-27)",
                f"  {in_words(trust)}",
                f"  smoothness {self.smoothness:.4g}, initial gap {self.gap:.4g}, gradient "
                f"variance {self.variance:.4g} per task; own objective {self.own:.6g}",
                f"  driven by {_ranking(self.elasticities)}",
            ]
        )


@dataclasses.dataclass(frozen=True)
class Comparison(Record):
    """Certificates of both methods for one budget, and where they cross.

    Members:
        constants: as given.
        setting: inner rate, sizes, budget and objective.
        drs, maml: Certificate of each method.
        crossover: Crossover.
        elasticities: per cent change of the crossover budget for one per cent more of each
            constant; empty if there is no crossing.
    """

    constants: Constants
    setting: dict[str, Any]
    drs: Certificate
    maml: Certificate
    crossover: Crossover
    elasticities: dict[str, Quantity]

    @property
    def standing(self) -> Standing:
        """The weaker standing of both certificates, which is also that of their order."""
        return joined(filter(None, map(trust_of, (self.drs.maml, self.maml.maml)))).standing

    def to_dict(self) -> dict[str, Any]:
        """Every field and the standing, ready for JSON."""
        return {**super().to_dict(), "standing": self.standing}

    @property
    def better(self) -> str:
        """The method with the smaller certificate for the MAML gradient."""
        return "maml" if self.maml.maml < self.drs.maml else "drs"

    def explain(self) -> str:
        """Everything in plain words."""
        ahead = "MAML" if self.better == "maml" else "joint training"
        lines = [
            f"with {self.setting['budget']:.6g} samples, {ahead} has the smaller certificate",
            self.drs.explain(),
            self.maml.explain(),
            self.crossover.explain(),
        ]
        if self.elasticities:
            lines.append(f"  the crossover is driven by {_ranking(self.elasticities)}")
        return "\n".join([*lines, "constants:", self.constants.explain()])


def compare(
    constants: Constants,
    *,
    budget: float,
    inner_lr: float,
    samples: int,
    queries: int,
    batch: int = 1,
    drs_samples: int | None = None,
    steps: int = 1,
    objective: Objective = "samples",
    sharp: bool = False,
) -> Comparison:
    """Both methods' certificates for the MAML gradient, the crossover, and what dominates them.

    Args:
        constants: as `crossover_budget` needs them.
        budget: samples S that training may use in total, at least one update's worth; what does
            not pay for a whole update is left over.
        inner_lr, samples, queries, batch, drs_samples, steps, objective, sharp: as in
            `crossover_budget`.

    Returns:
        Comparison. Elasticities are central differences in the logarithm of each positive constant.

    Raises:
        ValueError: a constant that is needed is missing, or an argument is out of range.

    Cost:
        Less than a second, most of it for the elasticities.

    Assumes:
        B1-B7 along the iterates of both methods, fresh samples at every update. Checked: the
        constants needed are given and in range. Not checked: that they hold.

    Source:
        Results 21-27 and 29 (own).

    >>> b0 = Constants(L_plus=1.0, ell=0.5, rho=2.0, G=1.0, sigma_g=0.5, sigma_H=0.8,
    ...                sigma_gamma=0.6, sigma_Hgamma=0.3, L_plus_s=1.0, ell_s=0.5, rho_s=2.0,
    ...                gap_drs=2.0, gap_maml=2.0)
    >>> found = compare(b0, budget=64_000, inner_lr=0.1, samples=4, queries=4, batch=8)
    >>> print(f"{found.better}: {found.maml.maml:.6f}, drs: {found.drs.maml:.6f}")
    maml: 0.024605, drs: 0.034512
    """
    total = positive(budget, function="compare", name="budget")
    setting: dict[str, Any] = {
        "inner_lr": inner_lr if isinstance(inner_lr, Quantity) else float(inner_lr),
        "samples": samples,
        "queries": queries,
        "batch": batch,
        "drs_samples": drs_samples,
        "steps": steps,
        "objective": objective,
        "sharp": sharp,
    }

    made = race(constants, **setting)
    weights = _slopes(functools.partial(_answers, total, setting), constants)
    methods = {
        name: Certificate(name, **numbers, elasticities=weights[name])
        for name, numbers in _certificates(made, total).items()
    }
    return Comparison(
        constants,
        {"budget": float(total), **setting},
        methods["drs"],
        methods["maml"],
        crossover_of(made, constants),
        weights["crossover"],
    )


def _answers(total: Array, setting: dict[str, Any], constants: Constants) -> dict[str, Quantity]:
    """The bound on the squared MAML gradient of each method, and the crossover."""
    made = race(constants, **setting)
    found = {name: numbers["maml"] for name, numbers in _certificates(made, total).items()}
    return {**found, "crossover": crossover_of(made, constants).budget}


def _certificates(made: Race, total: Array) -> dict[str, dict[str, Any]]:
    """The numbers of both certificates at a budget."""
    drs = _descent("joint training", made.drs, made.batch, total, None)
    maml = _descent("MAML", made.maml, made.batch, total, made.floor)
    drs["maml"] = (made.factor * np.sqrt(drs["own"]) + made.offset) ** 2
    maml["maml"] = maml["own"]
    return {"drs": drs, "maml": maml}


def _descent(method: str, route: Route, batch: Any, total: Any, bias: Any) -> dict[str, Any]:
    """SGD on one objective with as many whole updates as the budget pays for.

    Raises:
        ValueError: it does not pay for one.
    """
    affordable = float(total / (batch * route.task_samples))
    updates = math.floor(affordable * (1.0 + 1e-12))  # a budget computed from whole updates
    if updates < 1:
        raise ValueError(
            f"compare: budget must pay for one update of {method} at least "
            f"(it pays for {affordable:.3g})"
        )
    known: dict[str, Any] = {
        "smoothness": route.smoothness,
        "gap": route.gap,
        "variance": route.variance,
        "updates": updates,
        "batch": batch,
        "bias": bias,
    }
    return {
        "smoothness": computed(route.smoothness),
        "gap": computed(route.gap),
        "variance": computed(route.variance),
        "updates": float(updates),
        "rate": computed(best_rate(**known), total),
        "own": computed(sgd_bound(**known), total),
    }


def elasticities(
    function: Callable[[Constants], float | Quantity], constants: Constants
) -> dict[str, Quantity]:
    """d log(function) / d log(constant) of each constant it depends on, largest first.

    Args:
        function: a positive number computed from constants.
        constants: where to differentiate; constants that are 0 or not given are left out.

    Returns:
        Names and slopes, by decreasing size; slopes below 1e-7 count as no dependence. What is left
            out here may matter all the same: a constant that is 0, or the smaller one in a maximum,
            does not move the value until its true value is another.

    Assumes:
        The function is smooth in every constant. Checked: its values are finite and positive;
        constants for which they are not are left out.

    Source:
        Central differences; at a kink (a minimum that changes sides) the mean of both slopes.

    >>> elasticities(lambda known: known.L_plus**2, Constants(L_plus=3.0, ell=1.0))
    {'L_plus': 2.0}
    """
    return _slopes(lambda known: {"value": function(known)}, constants)["value"]


def _slopes(
    function: Callable[[Constants], Mapping[str, float | Quantity]], constants: Constants
) -> dict[str, dict[str, Quantity]]:
    """The elasticities of several numbers that are computed together."""
    found: dict[str, dict[str, Quantity]] = {name: {} for name in function(constants)}
    for name, value in constants.known().items():
        if value == 0.0:
            continue
        ends = [function(constants.scaled(**{name: math.exp(sign * _STEP)})) for sign in (1, -1)]
        for what, slopes in found.items():
            high, low = (float(end[what]) for end in ends)
            if 0.0 < high < math.inf and 0.0 < low < math.inf:
                slope = (math.log(high) - math.log(low)) / (2.0 * _STEP)
                if abs(slope) > 1e-7:
                    slopes[name] = computed(round(slope, 8), *constants.known().values())
    return {
        what: dict(sorted(slopes.items(), key=lambda item: -abs(item[1])))
        for what, slopes in found.items()
    }


def _ranking(weights: dict[str, Quantity]) -> str:
    """The leading constants with their elasticities."""
    shown = [f"{name} ({slope:+.2f}: {MEANINGS[name]})" for name, slope in weights.items()]
    return "; ".join(shown[:4]) if shown else "no constant"
