"""Means over independent test tasks with Student intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from innerloop.compare.statistics import Interval


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
