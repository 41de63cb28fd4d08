"""From the units' numbers to risks with intervals: what validation tasks pick, and what that costs
on test tasks.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innerloop.compare.config import Config
from innerloop.compare.curvature import default_rates
from innerloop.compare.episodes import split_sizes
from innerloop.compare.measuring import UNSTABLE_SHARE
from innerloop.compare.tables import Tasks
from innerloop.compare.units import units_of
from innerloop.runs.methods import FIRST_ORDER, JOINT, LABELS, MAML, METHODS
from innerloop.runs.statistics import Interval, corrected_interval

Results = dict[str, dict[str, Any]]
Setting = tuple[float, float, int, int]
# Squares of what rounding leaves of exact solutions, relative to the target's variance.
RISK_FLOOR = 1e-24
# A larger risk has diverged like an infinite one, and its square would overflow.
_LARGEST_RISK = 1e100
# Fine-tuning is said to diverge where it does harm in more than this share of the splits and
# multiplies the risk of these by the next number, or that of one split by the last.
MOST_HARMED, MOST_HARM, MOST_HARM_ONCE = 0.1, 2.0, 10.0


@dataclasses.dataclass(frozen=True)
class Choice:
    """A setting of one method on one split, with its risks.

    `steps` inner steps in training (0 for joint training), `rate` in training and testing,
    `adapt_steps` at test time; `outer` is Adam's rate (0 where the solution is exact). `raised` are
    the test tasks whose support loss fine-tuning raises, `start` the test risk without fine-tuning.
    """

    outer: float
    rate: float
    steps: int
    adapt_steps: int
    stable: bool
    raised: tuple[int, ...]
    start: float
    validation: float
    test: float
    validation_error: float
    test_error: float

    @property
    def setting(self) -> Setting:
        """What identifies the setting in every split."""
        return self.outer, self.rate, self.steps, self.adapt_steps

    @property
    def is_harmed(self) -> bool:
        """Whether fine-tuning diverges on test tasks and makes the test risk worse."""
        return bool(self.raised) and self.test > self.start


@dataclasses.dataclass(frozen=True)
class Divergence:
    """What happens where settings that suit the known tasks diverge on held-out ones.

    Args:
        splits: splits in which fine-tuning at the picked setting diverges, for joint training or
            MAML, whichever is harmed more; method: which of them that is.
        tasks: names of the tasks that it happens on, most frequent first.
        before, after: mean test risk of that method over these splits without and with fine-tuning
            (`after` may be infinite).
        safe_rate: largest rate of the grid at which joint training raises the support loss of
            hardly any task of the table; None if there is none.
    """

    splits: int
    method: str
    tasks: tuple[str, ...]
    before: float
    after: float
    safe_rate: float | None


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

    def __init__(
        self,
        config: Config,
        tasks: Tasks,
        results: Results,
        curvature: NDArray[np.float64] | None = None,
    ) -> None:
        """Summaries of all units' results; `curvature` [T] as of `Problem`."""
        self.config = config
        self.tasks = tasks
        self.curvature = curvature
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
        # Settings that no choice may take; none unless fine-tuning diverges on held-out tasks.
        self._unsafe: dict[str, set[Setting]] = {method: set() for method in METHODS}
        self.divergence = self._find_divergence()
        if self.divergence is not None:
            self._unsafe = {method: self._unsafe_settings(method) for method in METHODS}
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

        A choice that is unstable on known tasks, or is known to diverge on others, is taken only
        when nothing else is allowed: its risk on a few validation tasks says little about tasks
        with a larger curvature. The first wins a tie.
        """
        return {
            method: [
                min(
                    filter(allowed, self.candidates[split, method]),
                    key=lambda choice, unsafe=self._unsafe[method]: (  # type: ignore[misc]
                        choice.setting in unsafe,
                        *_preference(choice),
                    ),
                )
                for split in range(self.config.splits)
            ]
            for method in METHODS
        }

    def _find_divergence(self) -> Divergence | None:
        """What fine-tuning at the settings that known tasks pick does to held-out tasks, if it
        diverges there.
        """
        picks = self._pick(lambda choice: True)
        harmed = {m: [choice for choice in picks[m] if choice.is_harmed] for m in (JOINT, MAML)}
        method = max(harmed, key=lambda m: sum(choice.test for choice in harmed[m]))
        worst = harmed[method]
        splits = self.config.splits
        before, after = (
            sum(getattr(choice, name) for choice in worst) / max(len(worst), 1)
            for name in ("start", "test")
        )
        often = len(worst) > MOST_HARMED * splits and after > MOST_HARM * before
        if not often and not any(c.test > MOST_HARM_ONCE * c.start for c in worst):
            return None
        counted = collections.Counter(task for choice in worst for task in choice.raised)
        unsafe = self._unsafe_settings(JOINT)
        safe = [
            rate
            for rate in self.config.inner_lrs
            if not any(rate == other for _, other, _, _ in unsafe)
        ]
        return Divergence(
            len(worst),
            method,
            tuple(self.tasks.names[task] for task, _ in counted.most_common()),
            before,
            after,
            max(safe, default=None),
        )

    def _unsafe_settings(self, method: str) -> set[Setting]:
        """Settings that raise the support loss of more than one held-out task in a hundred, or have
        an infinite risk on some split.
        """
        splits = range(self.config.splits)
        raised: collections.Counter[Setting] = collections.Counter()
        unsafe = set()
        for choice in (choice for split in splits for choice in self.candidates[split, method]):
            raised[choice.setting] += len(choice.raised)
            if not math.isfinite(choice.test):
                unsafe.add(choice.setting)
        most = UNSTABLE_SHARE * len(splits) * self.test_tasks
        return unsafe | {setting for setting, count in raised.items() if count > most}

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

        def is_smallest(choice: Choice) -> bool:
            return choice.rate == min(rates) and choice.adapt_steps > 0

        def is_largest(choice: Choice) -> bool:
            return choice.rate == max(rates) and choice.adapt_steps > 0

        ends = [(is_smallest, "smallest", min(rates))]
        if self.curvature is None or max(rates) < max(default_rates(self.curvature)):
            ends.append((is_largest, "largest", max(rates)))
        for holds, word, rate in ends:
            methods = self._mostly(holds)
            if len(rates) > 1 and methods and self.divergence is None:
                sentences.append(
                    f"{methods}: the {word} inner rate ({rate:g}) was picked in most splits; "
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
        before, after = (self.by_adapt_steps[k].risk[JOINT].mean for k in (last - 1, last))
        if methods and self.divergence is None and after < before * (1.0 - self.config.margin):
            sentences.append(
                f"{methods}: most splits picked the most fine-tuning steps ({last}); "
                "more --adapt-steps may lower the risk further."
            )
        sentences += self._raised_losses()
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
                    f"(mean {mean:.3g}, worst {worst:.3g}): they test on tasks unlike the others."
                )
        if self.test_tasks + self.other_tasks < 20:
            sentences.append(
                f"Only {self.test_tasks + self.other_tasks} tasks: intervals over splits are rough."
            )
        return sentences

    def _raised_losses(self) -> list[str]:
        """Where fine-tuning comes near to diverging without doing harm overall."""
        sentences = []
        for method in (JOINT, MAML):
            near = [choice for choice in self.picked_choices[method] if choice.raised]
            if near:
                counted = collections.Counter(task for choice in near for task in choice.raised)
                name = self.tasks.names[counted.most_common(1)[0][0]]
                sentences.append(
                    f"{LABELS[method]}: in {len(near)} of {self.config.splits} splits fine-tuning "
                    f"raised the support loss of held-out tasks (such as {name!r}): more steps "
                    "would diverge there."
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
                    tuple(curve["raised"][adapt_steps]),
                    *(
                        math.inf if value is None or value > _LARGEST_RISK else float(value)
                        for value in (curve["test"][0], *column)
                    ),
                )
