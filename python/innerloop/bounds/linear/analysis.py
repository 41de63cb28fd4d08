"""Everything the linear theory says about one problem, in one typed result."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from innerloop.bounds import _arguments
from innerloop.bounds._results import Quantity, Record
from innerloop.bounds.linear.existence import Existence, mean_excess_exists
from innerloop.bounds.linear.expansion import LARGE_M, crossover, expansion
from innerloop.bounds.linear.guarantee import guarantee
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.probability import probability_drs_worse
from innerloop.bounds.linear.risk import law_assumptions, rate_and_samples


@dataclasses.dataclass(frozen=True)
class Analysis(Record):
    """Joint training against MAML at one inner rate, N and number of tasks.

    Excess risks are over the best initial point for the post-update risk.

    Members:
        inner_lr, samples, tasks: the setting; samples is infinite for a population step.
        modelling_error: excess of joint training with unlimited tasks (Result 4).
        drs_statistical, maml_statistical: c / M, the excess that comes from finitely many tasks
            (Result 8).
        drs_excess, maml_excess: predicted totals.
        crossover: tasks below which joint training is predicted to win (Result 9).
        drs_worse_before, drs_worse_after: predicted probability that the joint estimate has the
            larger risk before and after an inner step (Result 10).
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
    drs_worse_before: Quantity
    drs_worse_after: Quantity
    delta: float
    drs_guarantee: Quantity
    maml_guarantee: Quantity
    drs_mean: Existence
    maml_mean: Existence

    @property
    def verdict(self) -> str:
        """Which method is predicted to have the smaller expected risk after the inner step."""
        return "maml" if self.maml_excess < self.drs_excess else "drs"

    def explain(self) -> str:
        """The comparison in plain words."""
        support = "a population step" if math.isinf(self.samples) else f"N = {int(self.samples)}"
        name = {"maml": "MAML", "drs": "joint training"}[self.verdict]
        lines = [
            f"Inner rate {self.inner_lr:g}, {support}, {self.tasks} training tasks.",
            f"Modelling error of joint training: {self.modelling_error:.4g}. This much post-update "
            "risk it loses however many tasks there are.",
            f"Statistical errors at {self.tasks} tasks: joint training "
            f"{self.drs_statistical:.4g}, MAML {self.maml_statistical:.4g}.",
            f"Predicted excess risk: joint training {self.drs_excess:.4g}, MAML "
            f"{self.maml_excess:.4g}, so {name} is expected to win.",
            self._crossing(),
            "Probability that joint training ends worse: "
            f"{self.drs_worse_before:.3f} before an inner step, {self.drs_worse_after:.3f} after.",
            f"Guarantees with probability {1.0 - self.delta:g}: joint training "
            f"{_bound(self.drs_guarantee)}, MAML {_bound(self.maml_guarantee)}.",
        ]
        for method, mean in (("joint training", self.drs_mean), ("MAML", self.maml_mean)):
            if mean.finite is False:
                lines.append(
                    f"Caution: the mean excess risk of {method} is infinite ({mean.reason}); the "
                    "prediction describes typical runs, not averages."
                )
        lines.append("Predictions are for many tasks and carry no error bound; guarantees hold for")
        lines.append("any number of tasks. All rest on:")
        lines += [f"  {a.standing}: {a.text}" for a in self.modelling_error.assumptions]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Every member and the verdict, ready for JSON."""
        return {**super().to_dict(), "verdict": self.verdict}

    def _crossing(self) -> str:
        """The sentence about the crossover."""
        if math.isinf(self.crossover):
            return "Joint training is predicted to win at every number of tasks."
        if self.crossover == 0.0:
            return "MAML is predicted to win at every number of tasks."
        return (
            f"The crossover is at about {self.crossover:.3g} tasks: joint training wins below, "
            "MAML above."
        )


def analyse(
    law: TaskLaw, *, inner_lr: Any, samples: Any = None, tasks: Any, delta: Any = 0.1
) -> Analysis:
    """Returns what Results 4 and 8-13 say about joint training and MAML in one setting.

    Args:
        law: the task law.
        inner_lr: inner rate of training and test, one number.
        samples: N, one number; None for a population inner step. Joint training pools 2 N.
        tasks: M, one number.
        delta: failure probability of the guarantees.

    Returns:
        Analysis: `.explain()` for words, `.to_dict()` for JSON.

    Raises:
        TypeError: not real numbers.
        ValueError: arrays, a value out of range, E Q or E A not positive definite (Result 3).
        ModuleNotFoundError: p = 1 needs SciPy, which comes with innerloop[cli].

    Assumes:
        Those of Results 4 and 8-13. Checked: E Q and E A are positive definite.

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
    drs, maml = found.at(m)
    assumptions = law_assumptions(law, LARGE_M)

    def predicted(value: Any, what: str) -> Quantity:
        return Quantity(float(value), name=what, source="Result 8", assumptions=assumptions)

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
        drs_worse_before=probability_drs_worse(law, **step, tasks=m, after_update=False),
        drs_worse_after=probability_drs_worse(law, **step, tasks=m),
        delta=float(failure),
        drs_guarantee=guarantee(law, method="drs", **step, tasks=m, delta=failure),
        maml_guarantee=guarantee(law, method="maml", **step, tasks=m, delta=failure),
        drs_mean=mean_excess_exists(law, method="drs", **step, tasks=m),
        maml_mean=mean_excess_exists(law, method="maml", **step, tasks=m),
    )


def _bound(value: Quantity) -> str:
    """A guarantee in words."""
    return "says nothing yet" if math.isinf(value) else f"at most {value:.4g}"
