"""From errors of single tasks to means, medians and paired changes with intervals."""

from __future__ import annotations

import dataclasses

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
    """Errors of all methods after the same number of fine-tuning steps.

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
