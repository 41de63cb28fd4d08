"""Result 25: the closed forms against numerical optimisation, and exact inversion."""

from __future__ import annotations

import math

import numpy as np
import pytest

from innerloop.bounds.nonconvex import (
    RelativeConstants,
    adaptive_sgd_bound,
    best_rate,
    sgd_bound,
    updates_needed,
)


def cases(count=60):
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield {
            "smoothness": 10.0 ** rng.uniform(-2, 2),
            "gap": 10.0 ** rng.uniform(-2, 2),
            "variance": 10.0 ** rng.uniform(-4, 2),
            "batch": int(rng.integers(1, 9)),
        }


@pytest.mark.parametrize("slope", [0.0, 3.0])
def test_the_best_rate_is_best_and_attains_the_bound(slope):
    for given in cases():
        given = {**given, "slope": slope, "updates": 300}
        rate, bound = best_rate(**given), sgd_bound(**given)
        assert sgd_bound(rate=float(rate), **given) == pytest.approx(bound, rel=1e-12)
        largest = 2.0 / (given["smoothness"] * (1.0 + slope / given["batch"]))
        grid = largest * np.concatenate([np.geomspace(1e-6, 0.99, 400), [rate / largest * 1.001]])
        assert (sgd_bound(rate=grid, **given) >= bound * (1 - 1e-12)).all()


def test_the_best_biased_rate_is_best_below_one_over_smoothness():
    for given in cases():
        given = {**given, "bias": 0.3, "updates": 300}
        bound = sgd_bound(**given)
        grid = np.geomspace(1e-6, 1.0, 500) / given["smoothness"]
        assert (sgd_bound(rate=grid, **given) >= bound * (1 - 1e-12)).all()
        x = given["smoothness"] * given["gap"] / 300
        noise = given["variance"] / given["batch"]
        stated = max(4.0 * x, 2.0 * np.sqrt(2.0 * x * noise)) + 0.09
        assert bound <= stated * (1 + 1e-12)


@pytest.mark.parametrize("extra", [{}, {"slope": 2.0}, {"bias": 0.05}])
def test_updates_needed_is_the_exact_inverse(extra):
    """The bound depends on the gap per update only, so that its inverse can be tested between
    whole numbers of updates."""
    few = 0
    for given in cases():
        for epsilon in (0.06, 0.5, 3.0):
            count = updates_needed(epsilon=epsilon, **given, **extra)
            if count == 1.0:
                few += 1
                assert sgd_bound(updates=1, **given, **extra) <= epsilon**2 * (1 + 1e-12)
                continue
            per_update = {**given, "gap": given["gap"] / float(count)}
            bound = sgd_bound(updates=1, **per_update, **extra)
            assert bound == pytest.approx(epsilon**2, rel=1e-10)
            after = sgd_bound(updates=math.ceil(count), **given, **extra)
            assert after <= epsilon**2 * (1 + 1e-12)
            before = sgd_bound(updates=math.ceil(count) - 1, **given, **extra)
            assert before >= epsilon**2 * (1 - 1e-12)
    assert 0 < few < 180


@pytest.mark.parametrize("updates", [0, 0.5, 12.7, math.nan, math.inf, -3])
def test_there_is_no_part_of_an_update(updates):
    given = {"smoothness": 1.0, "gap": 1.0, "variance": 1.0, "updates": updates}
    for function in (sgd_bound, best_rate):
        with pytest.raises(
            ValueError, match=r"updates must be (whole numbers of at least 1|at most)"
        ):
            function(**given)
    flat = RelativeConstants((1.0, 0.0), (0.0, 0.0), 1.0, ())
    with pytest.raises(ValueError, match=r"updates must be (whole numbers of at least 1|at most)"):
        adaptive_sgd_bound(flat, gap=1.0, updates=updates)


def test_a_bias_above_the_target_is_never_averaged_out():
    given = {"smoothness": 1.0, "gap": 1.0, "variance": 1.0}
    found = updates_needed(epsilon=0.1, bias=0.1, **given)
    assert np.isinf(found)
    assert "bias" in found.explain()
    both = updates_needed(epsilon=[0.1, 0.2], bias=0.15, **given)
    assert np.isinf(both).tolist() == [True, False]


def test_limits_without_noise_or_gap():
    exact = {"smoothness": 2.0, "variance": 0.0, "updates": 10}
    assert best_rate(gap=1.0, **exact) == 0.5
    assert sgd_bound(gap=1.0, **exact) == pytest.approx(2.0 * 2.0 / 10)
    assert sgd_bound(gap=0.0, **exact) == 0.0
    assert sgd_bound(gap=0.0, bias=0.1, **exact) == pytest.approx(0.01)
    still = {"smoothness": 2.0, "gap": 0.0, "variance": 1.0, "updates": 10}
    assert best_rate(**still) == 0.0
    assert sgd_bound(**still) == 0.0
    assert sgd_bound(bias=0.1, **still) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"rate": 1.0}, "rate must be below 2"),
        ({"rate": 0.6, "bias": 0.1}, "at most 1 / smoothness"),
        ({"slope": 1.0, "bias": 0.1}, "slope must be 0"),
        ({"rate": 0.0}, "rate must be positive"),
        ({"bias": -0.1}, "bias must be at least 0"),
        ({"batch": 0}, "batch"),
    ],
)
def test_arguments_outside_the_result_are_refused(extra, message):
    with pytest.raises(ValueError, match=message):
        sgd_bound(smoothness=2.0, gap=1.0, variance=1.0, updates=10, **extra)


def test_arrays_broadcast():
    found = sgd_bound(
        smoothness=1.0, gap=[[1.0], [2.0]], variance=0.5, updates=[10, 100, 1000], batch=4
    )
    assert found.shape == (2, 3)
    single = sgd_bound(smoothness=1.0, gap=2.0, variance=0.5, updates=100, batch=4)
    assert found[1, 1] == pytest.approx(float(single))


def test_adaptive_bound_is_smallest_at_its_own_caution():
    known = RelativeConstants((1.5, 0.3), (0.8, 2.0), 1.2, ())
    given = {"gap": 2.0, "updates": 4000, "batch": 4}
    best = adaptive_sgd_bound(known, **given)
    cautions = np.geomspace(1.5, 200.0, 300)
    grid = adaptive_sgd_bound(known, caution=cautions, **given)
    assert (grid >= best * (1 - 1e-12)).all()
    assert grid.min() == pytest.approx(best, rel=1e-3)
    with pytest.raises(ValueError, match="caution must be at least"):
        adaptive_sgd_bound(known, caution=1.2, **given)
    assert adaptive_sgd_bound(known, gap=0.0, updates=10, caution=3.0) > 0.0
