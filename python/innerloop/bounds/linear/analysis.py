"""Everything the linear theory says about one problem, in one typed result."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._quantities import hands_on
from innerloop.bounds._results import Quantity, Record
from innerloop.bounds.linear.conditional import DRAWS, checked_draws, checked_seed
from innerloop.bounds.linear.existence import Existence, mean_excess_exists
from innerloop.bounds.linear.expansion import LARGE_M, crossover, expansion
from innerloop.bounds.linear.guarantee import guarantee
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.probability import as_quantity, predicted_cells
from innerloop.bounds.linear.risk import law_assumptions, rate_and_samples

# Relative difference of expected risks, and risks, that are rounding.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Analysis(Record):
    """Joint training against MAML at one inner rate, N and number of tasks.

    Excess risks are over the best initial point for the post-update risk.

    Members:
        inner_lr, samples, tasks: the setting; samples is infinite for a population step.
        modelling_error: excess of joint training with unlimited tasks (Result 4).
        drs_statistical, maml_statistical: c / M, the excess that comes from finitely many tasks
            (Result 8). NaN with a reason for fewer tasks than `fewest_tasks`, like the next two.
        drs_excess, maml_excess: predicted totals.
        crossover: tasks below which joint training is predicted to win (Result 9).
        fewest_tasks: M from which Results 8 and 9 describe means (`tasks_needed`).
        drs_worse_before, drs_worse_after: predicted probability that the joint estimate has the
            larger risk before and after an inner step (Result 10a, or Result 10 for many tasks).
        drs_worse_error: the larger standard error of the two; NaN where Result 10 gives them.
        delta: failure probability of the guarantees.
        drs_guarantee, maml_guarantee: bounds on the excess that hold with probability 1 - delta
            (Result 11).
        drs_mean, maml_mean: whether the mean excess is finite (Result 13).
    """

    inner_lr: float
    samples: float
    tasks: int
    modelling_error: Quantity
    drs_statistical: Quantity
    maml_statistical: Quantity
    drs_excess: Quantity
    maml_excess: Quantity
    crossover: Quantity
    fewest_tasks: int
    drs_worse_before: Quantity
    drs_worse_after: Quantity
    drs_worse_error: float
    delta: float
    drs_guarantee: Quantity
    maml_guarantee: Quantity
    drs_mean: Existence
    maml_mean: Existence

    @property
    def verdict(self) -> str:
        """Which method is predicted to have the smaller expected risk after the inner step, or, for
        fewer than `fewest_tasks`, the smaller risk in most trainings: "maml", "drs", or "tie" where
        the expected risks differ by rounding.
        """
        if self.describes_means:
            both = float(self.maml_excess), float(self.drs_excess)
            if abs(both[0] - both[1]) <= _ROUNDING * max(map(abs, both)) or max(both) < _ROUNDING:
                return "tie"
            return "maml" if self.maml_excess < self.drs_excess else "drs"
        return "maml" if self.drs_worse_after > 0.5 else "drs"

    @property
    def describes_means(self) -> bool:
        """Whether there are tasks enough for the expansion of means."""
        return self.tasks >= self.fewest_tasks

    def explain(self) -> str:
        """The comparison in plain words."""
        support = "a population step" if math.isinf(self.samples) else f"N = {int(self.samples)}"
        name = {"maml": "MAML", "drs": "joint training", "tie": "neither"}[self.verdict]
        lines = [
            f"Inner rate {self.inner_lr:g}, {support}, {self.tasks} training tasks.",
            f"Modelling error of joint training: {self.modelling_error:.4g}. This much post-update "
            "risk it loses however many tasks there are.",
            *self._means(name),
            self._crossing(),
            "Probability that joint training ends worse: "
            f"{self.drs_worse_before:.3f} before an inner step, {self.drs_worse_after:.3f} after "
            + (
                "(normal approximation)."
                if math.isnan(self.drs_worse_error)
                else f"(standard error {self.drs_worse_error:.1g})."
            ),
            f"Guarantees with probability {1.0 - self.delta:g}: joint training "
            f"{_bound(self.drs_guarantee)}, MAML {_bound(self.maml_guarantee)}.",
        ]
        for method, mean in (("joint training", self.drs_mean), ("MAML", self.maml_mean)):
            if mean.finite is False:
                lines.append(
                    f"Caution: the mean excess risk of {method} is infinite ({mean.reason}); ask "
                    "for medians and frequencies, not averages."
                )
        lines.append("Predicted means are for many tasks and carry no error bound; probabilities")
        lines.append("and guarantees hold for any number of tasks. All rest on:")
        lines += [f"  {a.standing}: {a.text}" for a in self.drs_worse_after.assumptions]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Every member and the verdict, ready for JSON."""
        return {**super().to_dict(), "verdict": self.verdict}

    def _means(self, name: str) -> list[str]:
        """The sentences about expected risks and the winner."""
        if not self.describes_means:
            return [
                f"Expected risks follow the theory from {self.fewest_tasks} tasks on; for "
                f"{self.tasks} they are not predicted. {name[0].upper()}{name[1:]} is expected to "
                "win more than half of all trainings."
            ]
        return [
            f"Statistical errors at {self.tasks} tasks: joint training "
            f"{self.drs_statistical:.4g}, MAML {self.maml_statistical:.4g}.",
            f"Predicted excess risk: joint training {self.drs_excess:.4g}, MAML "
            f"{self.maml_excess:.4g}, so {name} is expected to win.",
        ]

    def _crossing(self) -> str:
        """The sentence about the crossover."""
        if math.isnan(self.crossover):
            assert self.crossover.reason is not None
            return f"No crossover is given: {self.crossover.reason}."
        if math.isinf(self.crossover):
            return (
                "Joint training is predicted to win at every number of tasks from "
                f"{self.fewest_tasks} on."
            )
        if self.crossover == 0.0:
            return f"MAML is predicted to win at every number of tasks from {self.fewest_tasks} on."
        return (
            f"In expected risk, to leading order, the crossover is at about {self.crossover:.3g} "
            f"tasks: joint training wins below and MAML above, from {self.fewest_tasks} tasks on; "
            "nothing is said of fewer."
        )


@hands_on
def analyse(
    law: TaskLaw,
    *,
    inner_lr: Any,
    samples: Any = None,
    tasks: Any,
    delta: Any = 0.1,
    draws: int = 2 * DRAWS,
    seed: int = 0,
) -> Analysis:
    """Returns what Results 4 and 8-13 say about joint training and MAML in one setting.

    A number outside the range of its formula is NaN with a reason, and `.explain()` says so
    instead of printing it.

    Args:
        law: the task law.
        inner_lr: inner rate of training and test, one number.
        samples: N, one number; None for a population inner step. Joint training pools 2 N.
        tasks: M, one number.
        delta: failure probability of the guarantees.
        draws, seed: of the exact law, as for `exact_probability_drs_worse`.

    Returns:
        Analysis: `.explain()` for words, `.to_dict()` for JSON.

    Raises:
        TypeError: not real numbers.
        ValueError: arrays, a value out of range, E Q or E A not positive definite (Result 3), more
            tasks than the exact law takes and fewer than the normal approximation needs.
        ModuleNotFoundError: for many tasks p = 1 needs SciPy, which comes with innerloop[cli].

    Cost:
        Mostly that of the exact law.

    Assumes:
        Those of Results 4 and 8-13. Checked: E Q and E A are positive definite, and each formula's
        range.

    Source:
        Results 4, 8, 9, 10, 11 and 13.

    >>> from innerloop.bounds import linear
    >>> found = linear.analyse(linear.published_law(), inner_lr=0.3, samples=5, tasks=100)
    >>> found.verdict, round(found.crossover, 1)
    ('maml', 32.3)
    """
    name = "analyse"
    rate, count = rate_and_samples(inner_lr, samples, name)
    m = _arguments.counts(tasks, function=name, name="tasks")
    failure = _arguments.probability(delta, function=name, name="delta")
    if rate.ndim or count.ndim or m.ndim or failure.ndim:
        raise ValueError(f"{name}: inner_lr, samples, tasks and delta must be single numbers")
    step: dict[str, Any] = {"inner_lr": rate, "samples": count}
    found = expansion(law, **step)
    fewest = int(found.fewest_tasks)
    enough = float(m) >= fewest
    drs, maml = (np.asarray(part) for part in (found.at(m) if enough else (np.nan, np.nan)))
    assumptions = law_assumptions(law, LARGE_M)
    why = (
        f"Result 8 describes means from {fewest} tasks on; drs_worse_after is exact for any number"
    )

    def predicted(value: Any, what: str) -> Quantity:
        return Quantity(
            float(value) if enough else np.nan,
            name=what,
            source="Result 8",
            assumptions=assumptions,
            reason=None if enough else why,
        )

    trainings, start = checked_draws(draws, name), checked_seed(seed, name)
    a, n, size = (np.array([float(value)]) for value in (rate, count, m))
    worse = predicted_cells(law, a, n, size, trainings, start, name)

    return Analysis(
        inner_lr=float(rate),
        samples=float(count),
        tasks=int(m),
        modelling_error=Quantity(
            float(found.drs_limit),
            name="modelling error of joint training",
            source="Result 4",
            assumptions=law_assumptions(law),
        ),
        drs_statistical=predicted(found.drs / m, "statistical error of joint training"),
        maml_statistical=predicted(found.maml / m, "statistical error of MAML"),
        drs_excess=predicted(drs, "predicted excess risk of joint training"),
        maml_excess=predicted(maml, "predicted excess risk of MAML"),
        crossover=crossover(law, **step),
        fewest_tasks=fewest,
        drs_worse_before=as_quantity(law, worse, 0, float(m), trainings),
        drs_worse_after=as_quantity(law, worse, 1, float(m), trainings),
        drs_worse_error=float(worse.error.max()),
        delta=float(failure),
        drs_guarantee=guarantee(law, method="drs", **step, tasks=m, delta=failure),
        maml_guarantee=guarantee(law, method="maml", **step, tasks=m, delta=failure),
        drs_mean=mean_excess_exists(law, method="drs", **step, tasks=m),
        maml_mean=mean_excess_exists(law, method="maml", **step, tasks=m),
    )


def _bound(value: Quantity) -> str:
    """A guarantee in words."""
    return "says nothing yet" if math.isinf(value) else f"at most {value:.4g}"
