"""From the units' numbers to risks with intervals: what validation tasks pick, and what that costs
on test tasks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from innerloop.compare.config import Config
from innerloop.compare.episodes import split_sizes
from innerloop.compare.tables import Tasks
from innerloop.compare.units import units_of
from innerloop.runs.methods import FIRST_ORDER, JOINT, LABELS, MAML, METHODS
from innerloop.runs.statistics import Interval, corrected_interval

Results = dict[str, dict[str, Any]]
RISK_FLOOR = 1e-12


@dataclasses.dataclass(frozen=True)
class Choice:
    """A setting of one method on one split, with its risks.

    `steps` inner steps in training (0 for joint training), `rate` in training and testing,
    `adapt_steps` at test time; `outer` is Adam's rate (0 where the solution is exact).
    """

    outer: float
    rate: float
    steps: int
    adapt_steps: int
    stable: bool
    validation: float
    test: float
    validation_error: float
    test_error: float


@dataclasses.dataclass(frozen=True)
class Row:
    """Risks of all methods under one rule of choice, over all splits.

    Args:
        risk: geometric mean over splits of each method's test risk.
        mean: arithmetic mean of the same.
        error: mean error rate of each method, for classes.
        change: mean of the test risk minus joint training's on the same split, for the others.
        relative: geometric mean of the ratio of these two risks, minus one.
        wins: splits in which the method's test risk is strictly below joint training's.
        failed: splits in which the method has no finite test risk.
    """

    risk: dict[str, Interval]
    mean: dict[str, float]
    error: dict[str, Interval]
    change: dict[str, Interval]
    relative: dict[str, Interval]
    wins: dict[str, int]
    failed: dict[str, int]


class Analysis:
    """All summaries of one finished run."""

    def __init__(self, config: Config, tasks: Tasks, results: Results) -> None:
        self.config = config
        self.has_classes = bool(tasks.classes)
        self.support = tasks.fixed_support or config.shots
        training, validation, self.test_tasks = split_sizes(len(tasks.names), config)
        self.other_tasks = training + validation
        self.candidates = {
            (split, method): list(_choices(config, results, split, method))
            for split in range(config.splits)
            for method in METHODS
        }
        everything = range(config.adapt_steps + 1)
        self.picked_choices = self._pick(lambda choice: True)
        self.picked = self._row(self.picked_choices)
        self.by_adapt_steps = [
            self._row(self._pick(lambda choice, k=k: choice.adapt_steps == k))  # type: ignore[misc]
            for k in everything
        ]
        self.same_rate = {
            (steps, rate): self._row(self._same_rate(steps, rate))
            for steps in config.steps
            for rate in config.inner_lrs
        }
        self.untrained = {
            method: sum(
                not results[unit.name]["trained"]
                for split in range(config.splits)
                for unit in units_of(config, split, method)
            )
            for method in (FIRST_ORDER, MAML)
        }

    def _pick(self, allowed: Callable[[Choice], bool]) -> dict[str, list[Choice]]:
        """The allowed choice with the lowest validation risk, for each method and split.

        A choice that is unstable on known tasks is taken only when nothing else is allowed: its
        risk on a few validation tasks says little about tasks with a larger curvature. The first
        wins a tie.
        """
        return {
            method: [
                min(
                    filter(allowed, self.candidates[split, method]),
                    key=_preference,
                )
                for split in range(self.config.splits)
            ]
            for method in METHODS
        }

    def _same_rate(self, steps: int, rate: float) -> dict[str, list[Choice]]:
        """Every method at one rate, adapted as many steps as MAML was trained for (or the most
        that were measured).
        """
        adapt_steps = min(steps, self.config.adapt_steps)
        return {
            method: [
                min(
                    (
                        choice
                        for choice in self.candidates[split, method]
                        if choice.rate == rate
                        and choice.adapt_steps == adapt_steps
                        and choice.steps == (0 if method == JOINT else steps)
                    ),
                    key=_preference,
                )
                for split in range(self.config.splits)
            ]
            for method in METHODS
        }

    def interval(self, values: Iterable[float]) -> Interval:
        """The corrected interval of one number per split."""
        return corrected_interval(
            list(values), self.test_tasks, self.other_tasks, self.config.level
        )

    def _row(self, choices: dict[str, list[Choice]]) -> Row:
        risks = {method: [choice.test for choice in choices[method]] for method in METHODS}
        logs = {method: [_log(risk) for risk in risks[method]] for method in METHODS}
        others = (FIRST_ORDER, MAML)
        return Row(
            risk={method: self.interval(logs[method]).mapped(_exp) for method in METHODS},
            mean={method: sum(risks[method]) / len(risks[method]) for method in METHODS},
            error={
                method: self.interval(choice.test_error for choice in choices[method])
                for method in METHODS
                if self.has_classes
            },
            change={
                method: self.interval(_differences(risks[method], risks[JOINT]))
                for method in others
            },
            relative={
                method: self.interval(_differences(logs[method], logs[JOINT])).mapped(
                    lambda value: _exp(value) - 1.0
                )
                for method in others
            },
            wins={
                method: sum(a < b for a, b in zip(risks[method], risks[JOINT], strict=True))
                for method in others
            },
            failed={method: sum(not math.isfinite(a) for a in risks[method]) for method in METHODS},
        )

    def _mostly(self, holds: Callable[[Choice], bool]) -> str:
        """The methods whose picked choice has a property in most splits."""
        return ", ".join(
            LABELS[method]
            for method in METHODS
            if 2 * sum(holds(choice) for choice in self.picked_choices[method]) > self.config.splits
        )

    def notes(self) -> list[str]:
        """Sentences about the run that a reader should not have to discover."""
        sentences = []
        rates = self.config.inner_lrs
        for end, word in ((max(rates), "largest"), (min(rates), "smallest")):

            def is_at_end(choice: Choice, end: float = end) -> bool:
                return choice.rate == end and choice.adapt_steps > 0

            methods = self._mostly(is_at_end)
            if len(rates) > 1 and methods:
                sentences.append(
                    f"{methods}: the {word} inner rate ({end:g}) was picked in most splits; "
                    "widen --inner-lrs."
                )
        outer = self.config.outer_lrs
        methods = self._mostly(lambda choice: choice.outer == max(outer, default=None))
        if len(outer) > 1 and methods:
            sentences.append(
                f"{methods}: the largest outer rate ({max(outer):g}) was picked in most splits, so "
                "training may be unfinished; try larger --outer-lrs or more --iterations."
            )
        last = self.config.adapt_steps
        methods = self._mostly(lambda choice: choice.adapt_steps == last)
        if methods:
            sentences.append(
                f"{methods}: most splits picked the most fine-tuning steps ({last}); "
                "more --adapt-steps may lower the risk further."
            )
        total = self.config.splits * len(units_of(self.config, 0, MAML))
        for method, count in self.untrained.items():
            if count:
                what = "diverged" if self.config.outer_lrs else "has no stable solution"
                sentences.append(
                    f"{LABELS[method]}: training {what} in {count} of {total} (split, setting) "
                    "pairs; these were never picked."
                )
        for method in (JOINT, MAML):
            typical, mean = self.picked.risk[method].mean, self.picked.mean[method]
            if math.isfinite(mean) and mean > 2.0 * typical:
                worst = max(choice.test for choice in self.picked_choices[method])
                sentences.append(
                    f"{LABELS[method]}: a few splits are far worse than the typical one "
                    f"(mean {mean:.3g}, worst {worst:.3g}): fine-tuning nearly diverges there."
                )
        if self.test_tasks + self.other_tasks < 20:
            sentences.append(
                f"Only {self.test_tasks + self.other_tasks} tasks: intervals over splits are rough."
            )
        return sentences


def _preference(choice: Choice) -> tuple[bool, float]:
    """Stable choices first, then the lowest validation risk."""
    return not choice.stable, choice.validation


def _log(risk: float) -> float:
    """The logarithm of a risk; anything below the floor is solved, and equally so."""
    return math.log(max(risk, RISK_FLOOR))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700.0 else math.inf


def _differences(values: list[float], base: list[float]) -> list[float]:
    """Paired differences, infinite where either side is."""
    return [
        a - b if math.isfinite(a) and math.isfinite(b) else math.inf
        for a, b in zip(values, base, strict=True)
    ]


def _choices(config: Config, results: Results, split: int, method: str) -> Iterable[Choice]:
    """Every (setting, adaptation steps) of one method on one split, in the order of the grid."""
    for unit in units_of(config, split, method):
        for curve in results[unit.name]["curves"]:
            absent = [None] * (config.adapt_steps + 1)
            columns = zip(
                curve["validation"],
                curve["test"],
                curve.get("validation_error", absent),
                curve.get("test_error", absent),
                strict=True,
            )
            for adapt_steps, column in enumerate(columns):
                yield Choice(
                    unit.outer,
                    curve["rate"],
                    unit.steps,
                    adapt_steps,
                    curve["stable"][adapt_steps],
                    *(math.inf if value is None else float(value) for value in column),
                )
