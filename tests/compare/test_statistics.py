"""The corrected resampled t interval against SciPy and against its own formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from innerloop.compare.statistics import Interval, corrected_interval

VALUES = [0.3, -0.1, 0.25, 0.4, 0.05, 0.11]


def test_without_overlap_it_is_the_ordinary_t_interval() -> None:
    # With test_tasks / other_tasks -> 0 the correction vanishes.
    got = corrected_interval(VALUES, 0, 36, 0.95)
    low, high = stats.t.interval(0.95, len(VALUES) - 1, np.mean(VALUES), stats.sem(VALUES))
    assert got.mean == pytest.approx(np.mean(VALUES), rel=1e-12)
    assert (got.low, got.high) == pytest.approx((low, high), rel=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_correction_multiplies_the_width(level: float) -> None:
    plain = corrected_interval(VALUES, 0, 36, level)
    corrected = corrected_interval(VALUES, 12, 36, level)
    count = len(VALUES)
    factor = math.sqrt(1.0 + count * 12 / 36)
    assert corrected.high - corrected.low == pytest.approx(factor * (plain.high - plain.low))


def test_interval_covers_the_mean_of_dependent_splits() -> None:
    # Splits that share one effect: correlation 1/4 is what test : other = 1 : 3 corrects for.
    generator = np.random.default_rng(3)
    covered = naive = 0
    for _ in range(400):
        values = 0.5 * generator.standard_normal() + math.sqrt(0.75) * generator.standard_normal(20)
        interval = corrected_interval(values, 1, 3, 0.95)
        covered += interval.low <= 0.0 <= interval.high
        interval = corrected_interval(values, 0, 3, 0.95)
        naive += interval.low <= 0.0 <= interval.high
    assert 0.92 <= covered / 400 <= 0.98
    assert naive / 400 < 0.7


def test_one_split_or_a_diverged_split_gives_no_bounds() -> None:
    assert corrected_interval([2.0], 1, 3, 0.95) == Interval(2.0, -math.inf, math.inf)
    assert not math.isfinite(corrected_interval([1.0, math.inf], 1, 3, 0.95).mean)
    assert corrected_interval([1.0, 1.0, 1.0], 1, 3, 0.95) == Interval(1.0, 1.0, 1.0)
