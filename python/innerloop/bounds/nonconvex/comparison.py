"""Both methods side by side for given constants: certificates, crossover and what drives them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from innerloop.bounds._results import Quantity, Record
from innerloop.bounds.nonconvex._checks import positive
from innerloop.bounds.nonconvex.complexity import Route
from innerloop.bounds.nonconvex.constants import MEANINGS, Constants
from innerloop.bounds.nonconvex.crossover import Crossover, Objective, crossover_budget, race
from innerloop.bounds.nonconvex.sgd import best_rate, sgd_bound

_STEP = 1e-4  # relative change of a constant in a central difference; error about 1e-8


@dataclasses.dataclass(frozen=True)
class Certificate(Record):
    """What a training budget certifies for one method.

    Members:
        method: "drs" (joint training) or "maml".
        smoothness, gap, variance: Lambda, initial gap and V^2 of the objective it descends.
        updates: SGD updates that the budget allows.
        rate: outer learning rate of the certificate.
        own: bound on the mean of E|gradient|^2 of its own objective over the updates.
        maml: bound on the same for the MAML objective.
        elasticities: per cent change of `maml` for one per cent more of each constant.
        certified: every constant that `maml` depends on is certified.
    """

    method: str
    smoothness: float
    gap: float
    variance: float
    updates: float
    rate: float
    own: float
    maml: float
    elasticities: dict[str, float]
    certified: bool

    def explain(self) -> str:
        """The certificate in plain words."""
        name = "joint training" if self.method == "drs" else "MAML"
        word = "certified" if self.certified else "plug-in estimate"
        return "\n".join(
            [
                f"{name}: after {self.updates:.6g} updates at rate {self.rate:.4g} the mean of "
                f"E|MAML gradient|^2 is at most {self.maml:.6g}  ({word}; Results 21-27)",
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
    elasticities: dict[str, float]

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
        budget: samples S that training may use in total, at least one update's worth.
        inner_lr, samples, queries, batch, drs_samples, steps, objective, sharp: as in
            `crossover_budget`.

    Returns:
        Comparison. Elasticities are central differences in the logarithm of each positive constant.

    Raises:
        ValueError: a constant that is needed is missing, or an argument is out of range.

    Cost:
        About 0.2 seconds, most of it for the elasticities.

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
    total = float(positive(budget, function="compare", name="budget"))
    setting: dict[str, Any] = {
        "inner_lr": float(inner_lr),
        "samples": samples,
        "queries": queries,
        "batch": batch,
        "drs_samples": drs_samples,
        "steps": steps,
        "objective": objective,
        "sharp": sharp,
    }

    made = _certificates(constants, total, setting)
    for name, numbers in made.items():
        if numbers["updates"] < 1.0:
            raise ValueError(
                f"compare: budget must pay for one update of {name} at least "
                f"(it pays for {numbers['updates']:.3g})"
            )
    methods = {}
    for name, numbers in made.items():
        weights = elasticities(functools.partial(_certified, total, setting, name), constants)
        sure = all(constants.standing_of(constant) == "certified" for constant in weights)
        methods[name] = Certificate(name, **numbers, elasticities=weights, certified=sure)
    found = crossover_budget(constants, **setting)
    weights = {}
    if 0.0 < found.budget < math.inf:
        weights = elasticities(
            lambda known: float(crossover_budget(known, **setting).budget), constants
        )
    return Comparison(
        constants, {"budget": total, **setting}, methods["drs"], methods["maml"], found, weights
    )


def _certificates(
    constants: Constants, total: float, setting: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """The numbers of both certificates at a budget."""
    made = race(constants, **setting)
    drs = _descent(made.drs, made.batch, total, None)
    maml = _descent(made.maml, made.batch, total, made.floor)
    drs["maml"] = (made.factor * math.sqrt(drs["own"]) + made.offset) ** 2
    maml["maml"] = maml["own"]
    return {"drs": drs, "maml": maml}


def _certified(total: float, setting: dict[str, Any], method: str, constants: Constants) -> float:
    """The bound on the squared MAML gradient of one method."""
    return _certificates(constants, total, setting)[method]["maml"]


def _descent(route: Route, batch: float, total: float, bias: float | None) -> dict[str, float]:
    """SGD on one objective with the whole budget."""
    updates = total / (batch * float(route.task_samples))
    known: dict[str, Any] = {
        "smoothness": route.smoothness,
        "gap": route.gap,
        "variance": route.variance,
        "updates": updates,
        "batch": batch,
        "bias": bias,
    }
    return {
        "smoothness": float(route.smoothness),
        "gap": float(route.gap),
        "variance": float(route.variance),
        "updates": updates,
        "rate": float(best_rate(**known)),
        "own": float(sgd_bound(**known)),
    }


def elasticities(
    function: Callable[[Constants], float | Quantity], constants: Constants
) -> dict[str, float]:
    """d log(function) / d log(constant) of each constant it depends on, largest first.

    Args:
        function: a positive number computed from constants.
        constants: where to differentiate; constants that are 0 or not given are left out.

    Returns:
        Names and slopes, by decreasing size; slopes below 1e-7 count as no dependence.

    Assumes:
        The function is smooth in every constant. Checked: its values are finite and positive;
        constants for which they are not are left out.

    Source:
        Central differences; at a kink (a minimum that changes sides) the mean of both slopes.

    >>> elasticities(lambda known: known.L_plus**2, Constants(L_plus=3.0, ell=1.0))
    {'L_plus': 2.0}
    """
    found = {}
    for name, value in constants.known().items():
        if value == 0.0:
            continue
        high, low = (
            float(function(constants.scaled(**{name: math.exp(sign * _STEP)}))) for sign in (1, -1)
        )
        if high > 0.0 and low > 0.0 and np.isfinite([high, low]).all():
            slope = (math.log(high) - math.log(low)) / (2.0 * _STEP)
            if abs(slope) > 1e-7:
                found[name] = round(slope, 8)
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


def _ranking(weights: dict[str, float]) -> str:
    """The leading constants with their elasticities."""
    shown = [f"{name} ({slope:+.2f}: {MEANINGS[name]})" for name, slope in weights.items()]
    return "; ".join(shown[:4]) if shown else "no constant"
