"""Both intervals against SciPy, and how often they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from innerloop.runs.statistics import (
    Interval,
    corrected_interval,
    interquartile_mean,
    mean_interval,
    stratified_bootstrap,
)

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


def test_interval_over_tasks_is_students() -> None:
    values = np.random.default_rng(0).exponential(size=50)
    got = mean_interval(values, 0.9)
    wanted = stats.t.interval(0.9, 49, loc=values.mean(), scale=stats.sem(values))
    assert got.mean == pytest.approx(values.mean(), rel=1e-14)
    assert (got.low, got.high) == pytest.approx(wanted, rel=1e-12)


def test_a_diverged_task_leaves_no_interval() -> None:
    got = mean_interval(np.array([1.0, math.inf, 2.0]), 0.95)
    assert got == Interval(math.inf, -math.inf, math.inf)


def test_interval_over_tasks_covers() -> None:
    rng = np.random.default_rng(1)
    hits = [
        i.low <= 0.5 <= i.high for i in (mean_interval(rng.random(40), 0.9) for _ in range(2000))
    ]
    # Four binomial standard errors around 90 %.
    assert abs(np.mean(hits) - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 2000)


@pytest.mark.parametrize("count", [4, 8, 40])
def test_interquartile_mean_is_the_trimmed_mean(count: int) -> None:
    values = np.random.default_rng(0).standard_normal((count, 3, 2)) ** 3
    np.testing.assert_allclose(
        interquartile_mean(values), stats.trim_mean(values, 0.25, axis=0), rtol=1e-12
    )


def test_interquartile_mean_takes_parts_of_values() -> None:
    # Of five values the middle half holds three quarters of the second and the fourth.
    assert interquartile_mean(np.array([9.0, 0.0, 4.0, -9.0, 2.0])) == pytest.approx(
        (0.75 * 0.0 + 2.0 + 0.75 * 4.0) / 2.5
    )
    assert interquartile_mean(np.array([3.0])) == 3.0
    assert interquartile_mean(np.array([1.0, 4.0])) == 2.5


def test_stratified_bootstrap_covers_a_difference_of_means() -> None:
    """Strata of unequal size and spread: the interval is that of the normal approximation."""
    source = np.random.default_rng(1)
    one, two = source.standard_normal((40, 2)), 5.0 + 3.0 * source.standard_normal((90, 2))

    def difference(a, b):
        return a.mean(0) - b.mean(0)

    low, high = stratified_bootstrap(difference, [one, two], 0.9, source)
    error = np.sqrt(one.var(0) / 40 + two.var(0) / 90)
    reach = stats.norm.ppf(0.95) * error
    np.testing.assert_allclose(low, difference(one, two) - reach, atol=0.15 * reach.max())
    np.testing.assert_allclose(high, difference(one, two) + reach, atol=0.15 * reach.max())


def test_stratified_bootstrap_keeps_rows_and_strata_together() -> None:
    """Columns of a row move together, and a stratum draws from itself alone."""
    rows = np.arange(6.0)[:, None] * np.array([1.0, 10.0])

    def check(a, b):
        assert (a[:, 1] == 10.0 * a[:, 0]).all()
        assert (a[:, 0] < 6).all()
        assert (b[:, 0] >= 100).all()
        assert (len(a), len(b)) == (6, 6)
        return a.mean(0)

    stratified_bootstrap(check, [rows, rows + 100], 0.9, np.random.default_rng(0), resamples=20)
