"""Confidence intervals for means over independent tasks, and over splits that share tasks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with a two-sided confidence interval; the bounds are infinite when they cannot be
    known.
    """

    mean: float
    low: float
    high: float

    def mapped(self, function: Callable[[float], float]) -> Interval:
        """The interval of an increasing function of the quantity; unknown ends stay unknown."""
        return Interval(
            *(
                function(value) if math.isfinite(value) else value
                for value in (self.mean, self.low, self.high)
            )
        )


def corrected_interval(
    values: Sequence[float], test_tasks: int, other_tasks: int, level: float
) -> Interval:
    """The mean of `values`, one per random split, with the corrected resampled t interval.

    Splits share tasks, so their results are dependent and s^2 / R is far too small a variance for
    the mean. The corrected variance is s^2 (1 / R + test_tasks / other_tasks), used with R - 1
    degrees of freedom.

    Args:
        values: R numbers; test_tasks, other_tasks: tasks in each split's test part and outside it.
        level: coverage, such as 0.95.

    Returns:
        Interval; one split gives infinite bounds, and a value that is not finite an infinite mean
        as well.

    Source:
        Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 52 (2003), the
        corrected resampled t-test. A heuristic that was found to have close to the right size, not
        an exact result.
    """
    array = np.asarray(values, dtype=np.float64)
    count = len(array)
    if count == 0 or not np.isfinite(array).all():
        return Interval(math.inf, -math.inf, math.inf)
    mean = float(array.mean())
    if count == 1:
        return Interval(mean, -math.inf, math.inf)
    variance = float(array.var(ddof=1)) * (1.0 / count + test_tasks / other_tasks)
    reach = float(special.stdtrit(count - 1, 0.5 + level / 2.0)) * math.sqrt(variance)
    return Interval(mean, mean - reach, mean + reach)


def mean_interval(values: NDArray[np.floating[Any]], level: float) -> Interval:
    """The mean of independent values [T] with its two-sided Student interval.

    A value that is not finite makes the mean infinite and both ends unknown.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        return Interval(math.inf, -math.inf, math.inf)
    mean = float(array.mean())
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    reach = float(special.stdtrit(len(array) - 1, 0.5 + level / 2.0)) * error
    return Interval(mean, mean - reach, mean + reach)
