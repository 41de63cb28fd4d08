"""How well the predicted heat maps fit the simulated ones, region by region of the grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from innerloop.studies.linear_regression.result import Sweep

Array = NDArray[np.float64]


class Range(NamedTuple):
    """Values above `low` and up to `high`."""

    low: float
    high: float

    def text(self, values: list[float]) -> str:
        """The values of a grid that lie in the range, as its ends."""
        inside = sorted(value for value in values if self.low < value <= self.high)
        if len(inside) == 1:
            return f"{inside[0]:g}"
        return f"{inside[0]:g}-{inside[-1]:g}"


TASK_RANGES = (Range(0, 5), Range(5, 50), Range(50, math.inf))
SAMPLE_RANGES = (Range(0, 1), Range(1, 10), Range(10, 50), Range(50, math.inf))
# of |alpha| beta, the largest eigenvalue of the step
STEP_RANGES = (Range(-1, 0), Range(0, 0.5), Range(0.5, 1), Range(1, math.inf))


@dataclasses.dataclass(frozen=True)
class Region:
    """Agreement in one region.

    Members:
        after_update: which of the two maps.
        steps, samples, tasks: the values of |alpha| beta, N and M that the region holds.
        cells: number of (M, N, alpha) in it.
        mean: mean of |predicted - simulated|.
        worst: its maximum.
        noise: what the mean would be from chance alone, roughly: the finite number of trials, and
            the standard errors of the prediction.
        same_side: share of the cells whose simulated fraction differs from 1/2 by more than two
            standard errors in which theory names the same winner; NaN without such cells.
    """

    after_update: bool
    steps: str
    samples: str
    tasks: str
    cells: int
    mean: float
    worst: float
    noise: float
    same_side: float

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON types; NaN becomes None."""
        fields = dataclasses.asdict(self)
        if math.isnan(self.same_side):
            fields["same_side"] = None
        return fields


def agreement(sweep: Sweep) -> list[Region]:
    """Every region of the sweep's grid that is not empty, after the update first.

    Raises:
        ValueError: the sweep has no prediction.
    """
    if sweep.prediction is None:
        raise ValueError("agreement: the sweep has no prediction; see theory.predict")
    settings = sweep.settings
    tasks = [float(m) for m in settings.tasks]
    samples = [float(n) for n in settings.samples]
    steps = [abs(rate) * settings.beta for rate in settings.inner_lrs]
    prediction = sweep.prediction
    maps = {
        True: (sweep.maml_better_after, prediction.better_after, prediction.error_after),
        False: (sweep.maml_better_before, prediction.better_before, prediction.error_before),
    }
    regions = []
    for after_update, (simulated, predicted, errors) in maps.items():
        for step_range, r in _ranges(STEP_RANGES, steps):
            for sample_range, n in _ranges(SAMPLE_RANGES, samples):
                for task_range, m in _ranges(TASK_RANGES, tasks):
                    at = np.ix_(m, n, r)
                    numbers = _compare(simulated[at], predicted[at], errors[at], settings.trials)
                    regions.append(
                        Region(after_update, step_range, sample_range, task_range, *numbers)
                    )
    return regions


def _ranges(
    ranges: tuple[Range, ...], values: list[float]
) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """The text and the indices of each range that holds values."""
    array = np.array(values)
    for each in ranges:
        inside = np.flatnonzero((array > each.low) & (array <= each.high))
        if len(inside):
            yield each.text(values), inside


def clear(simulated: Array, trials: int) -> NDArray[np.bool_]:
    """Where a share of so many trials is further than two standard errors from one half."""
    return np.asarray(np.abs(simulated - 0.5) > 1.0 / math.sqrt(trials))


def _compare(simulated: Array, predicted: Array, errors: Array, trials: int) -> tuple[Any, ...]:
    """The numbers of a region, as `Region` orders them."""
    difference = np.abs(predicted - simulated)
    error = np.sqrt(predicted * (1 - predicted) / trials + np.nan_to_num(errors) ** 2)
    decided = clear(simulated, trials)
    agrees = (simulated > 0.5) == (predicted > 0.5)
    same_side = float(agrees[decided].mean()) if decided.any() else math.nan
    return (
        int(difference.size),
        float(difference.mean()),
        float(difference.max()),
        float(math.sqrt(2 / math.pi) * error.mean()),
        same_side,
    )


def tabulate(
    regions: list[Region], show: Callable[[Region], str]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row per range of steps and samples, a column per range of tasks."""
    columns = list(dict.fromkeys(region.tasks for region in regions))
    cells = {(r.steps, r.samples, r.tasks): show(r) for r in regions}
    rows = [
        [steps, samples, *(cells[steps, samples, tasks] for tasks in columns)]
        for steps, samples in dict.fromkeys((r.steps, r.samples) for r in regions)
    ]
    return ["αβ", "N", *(f"M = {tasks}" for tasks in columns)], rows
