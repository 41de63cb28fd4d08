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


def interquartile_mean(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The mean [...] of the middle half of the values [n, ...] along the first axis.

    The values at the ends of that half count with the part of them that lies in it, so that n need
    not be a multiple of four.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=0)
    count = len(ordered)
    edges = np.clip(np.arange(count + 1) / count, 0.25, 0.75)
    return np.asarray(np.tensordot(2.0 * np.diff(edges), ordered, axes=(0, 0)))


def stratified_bootstrap(
    statistic: Callable[..., NDArray[np.float64]],
    strata: Sequence[NDArray[np.floating[Any]]],
    level: float,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of the percentile bootstrap interval of a statistic of several independent samples.

    Every resample draws rows of each stratum with replacement, as many as it has; what follows the
    first axis (checkpoints, updates) moves with its row.

    Args:
        statistic: arrays [n_i, ...], one for each stratum, to an array [...].
        strata: the samples [n_i, ...].
        level: coverage, such as 0.95. With few rows it is reached from below.

    Source: Efron and Tibshirani 1993, chapters 8 and 13; Agarwal et al. 2021 for its use on seeds.
    """
    found = np.stack(
        [
            statistic(*(rows[rng.integers(len(rows), size=len(rows))] for rows in strata))
            for _ in range(resamples)
        ]
    )
    low, high = np.quantile(found, [0.5 - level / 2.0, 0.5 + level / 2.0], axis=0)
    return low, high
