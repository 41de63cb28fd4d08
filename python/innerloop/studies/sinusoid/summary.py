"""From errors of single tasks to means, medians and paired changes with intervals; first within a
run, then over the runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from innerloop.runs.methods import JOINT, METHODS
from innerloop.runs.statistics import Interval, mean_interval
from innerloop.studies.sinusoid.measuring import Errors
from innerloop.studies.sinusoid.settings import ADAPT_STEPS
from innerloop.studies.sinusoid.waves import AMPLITUDE

# Four times the largest squared target: far beyond any fit, however poor.
DIVERGED = 4.0 * AMPLITUDE[1] ** 2


@dataclasses.dataclass(frozen=True)
class Row:
    """Errors of all methods in one run after the same number of fine-tuning steps.

    Args:
        steps: fine-tuning steps.
        error: mean over test tasks of each method's squared error.
        median: the median over test tasks.
        change: mean over test tasks of the error minus joint training's, for the other methods.
        failed: test tasks on which fine-tuning diverged; a few of them rule a mean.
    """

    steps: int
    error: dict[str, Interval]
    median: dict[str, float]
    change: dict[str, Interval]
    failed: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of one number per run, and the least and the largest."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """Errors of all methods over the runs after the same number of fine-tuning steps.

    Args:
        steps: fine-tuning steps.
        mean: each method's mean over test tasks; infinite in runs in which a task diverges.
        median: its median over test tasks.
        change: of the other methods against joint training. Over several runs the mean of their
            changes with Student's interval over runs, which are independent; of one run, its own.
            Where fine-tuning of either diverges in some run, changes are those of medians.
        failed: test tasks on which fine-tuning diverged, in all runs together.
    """

    steps: int
    mean: dict[str, Spread]
    median: dict[str, Spread]
    change: dict[str, Interval]
    failed: dict[str, int]


def spread(values: Sequence[float]) -> Spread:
    """The spread of one number per run; NaN counts as infinite."""
    array = np.where(np.isnan(values), np.inf, values)
    with np.errstate(invalid="ignore"):  # between two infinite numbers
        middle = float(np.median(array))
    return Spread(
        math.inf if math.isnan(middle) else middle, float(array.min()), float(array.max())
    )


def over_runs(runs: Sequence[Sequence[Row]], level: float) -> list[Summary]:
    """One summary for each of 0..K steps from the rows of every run."""
    made = []
    for at_step in zip(*runs, strict=True):
        failed = {method: sum(row.failed[method] for row in at_step) for method in METHODS}
        made.append(
            Summary(
                at_step[0].steps,
                {m: spread([_mean(row, m) for row in at_step]) for m in METHODS},
                {m: spread([row.median[m] for row in at_step]) for m in METHODS},
                {
                    m: _change(at_step, m, failed[m] + failed[JOINT], level)
                    for m in METHODS
                    if m != JOINT
                },
                failed,
            )
        )
    return made


def _mean(row: Row, method: str) -> float:
    return math.inf if row.failed[method] else row.error[method].mean


def _change(at_step: Sequence[Row], method: str, failed: int, level: float) -> Interval:
    if failed:
        changes = [row.median[method] - row.median[JOINT] for row in at_step]
    else:
        changes = [row.change[method].mean for row in at_step]
    if len(changes) > 1:
        return mean_interval(np.array(changes), level)
    return Interval(changes[0], -math.inf, math.inf) if failed else at_step[0].change[method]


def _median(errors: Errors) -> float:
    return float(np.median(np.where(np.isnan(errors), np.inf, errors)))


def _failed(errors: Errors) -> int:
    return int(np.sum(~(errors <= DIVERGED)))


def rows(errors: dict[str, Errors], level: float) -> list[Row]:
    """One row for each of 0..K steps from errors {method: [T, K + 1]} on the same tasks."""
    return [
        Row(
            steps,
            {method: mean_interval(errors[method][:, steps], level) for method in METHODS},
            {method: _median(errors[method][:, steps]) for method in METHODS},
            {
                method: mean_interval(
                    _difference(errors[method][:, steps], errors[JOINT][:, steps]), level
                )
                for method in METHODS
                if method != JOINT
            },
            {method: _failed(errors[method][:, steps]) for method in METHODS},
        )
        for steps in range(ADAPT_STEPS + 1)
    ]


def _difference(values: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    """values - base, which is not finite where either has diverged."""
    with np.errstate(invalid="ignore"):
        return np.asarray(values - base)
