"""Results 2 to 4: risks, minimisers, modelling error."""

import numpy as np
import pytest
from linear_problems import (
    A1,
    A2,
    DRS,
    GAP,
    GAP_COEFFICIENT,
    GAP_POPULATION,
    GAP_SMALL_RATE,
    MAML,
    MAML_POPULATION,
    POINT,
    RISK_BEFORE,
    RISK_MINIMUM,
    RISK_POPULATION,
    RISK_SAMPLES,
    STEP,
    W1,
    draw_sides,
    random_mixture,
)

from innerloop.bounds import linear
from innerloop.bounds.linear.risk import population

CLOSE = {"rtol": 1e-13, "atol": 0.0}


def single(index):
    """The law with one of W1's tasks."""
    return linear.Mixture([1.0], *(v[index : index + 1] for v in W1.nodes()[1:]))


def test_check_values():
    for index, expected in enumerate((A1, A2)):
        at = population(single(index), np.asarray(0.3), np.asarray(5.0), "test")
        np.testing.assert_allclose(at.curvature, expected, **CLOSE)
    assert linear.risk(W1, POINT, **STEP) == pytest.approx(RISK_SAMPLES, rel=1e-14)
    assert linear.risk(W1, POINT, inner_lr=0.3) == pytest.approx(RISK_POPULATION, rel=1e-14)
    assert linear.risk(W1, POINT) == pytest.approx(RISK_BEFORE, rel=1e-14)
    found = linear.minimisers(W1, **STEP)
    np.testing.assert_allclose(found.drs, DRS, **CLOSE)
    np.testing.assert_allclose(found.maml, MAML, **CLOSE)
    np.testing.assert_allclose(
        linear.minimisers(W1, inner_lr=0.3).maml, MAML_POPULATION, rtol=1e-12
    )
    assert linear.risk(W1, found.maml, **STEP) == pytest.approx(RISK_MINIMUM, rel=1e-14)
    gaps = linear.modelling_error(W1, inner_lr=[0.3, 0.3, 1e-3], samples=[5, np.inf, 5])
    np.testing.assert_allclose(gaps, [GAP, GAP_POPULATION, GAP_SMALL_RATE], rtol=5e-13)
    assert linear.small_rate_coefficient(W1) == pytest.approx(GAP_COEFFICIENT, rel=1e-13)


def test_risk_against_simulation():
    # One step on N rows by hand; 12 cases, 5 s.e.
    rng = np.random.default_rng(5)
    for p in (1, 2, 3):
        law = random_mixture(rng, p)
        theta = rng.normal(size=p)
        for rate, samples in ((0.6, 1), (-0.4, 3), (1.1, 4), (0.0, 2)):
            tasks = law.sample(rng, 40000)
            (hat, noise), _ = draw_sides(rng, tasks, samples)
            away = theta - tasks.theta
            after = away - rate * (np.einsum("tij,tj->ti", hat, away) - noise)
            value = 0.5 * (np.einsum("ti,tij,tj->t", after, tasks.Q, after) + tasks.sigma2)
            error = value.std() / np.sqrt(len(value))
            exact = linear.risk(law, theta, inner_lr=rate, samples=samples)
            assert abs(value.mean() - exact) < 5.0 * error


def test_minimiser_is_the_minimum():
    rng = np.random.default_rng(6)
    for p in (1, 2, 3):
        law = random_mixture(rng, p)
        for rate in (-0.7, 0.4, 1.5):
            for samples in (1, 6, None):
                step = {"inner_lr": rate, "samples": samples}
                found = linear.minimisers(law, **step)
                best = linear.risk(law, found.maml, **step)
                nearby = found.maml + 0.1 * rng.normal(size=(50, p))
                assert (linear.risk(law, nearby, **step) >= best).all()
                gap = linear.risk(law, found.drs, **step) - best
                assert linear.modelling_error(law, **step) == pytest.approx(gap, abs=1e-13)


@pytest.mark.slow
@pytest.mark.ci
def test_upper_bound_never_fails():
    # Result 4 (iii) over 300 random laws, both signs of the rate.
    rng = np.random.default_rng(8)
    rates, sizes = np.linspace(-1.5, 1.5, 13)[:, None], np.array([1.0, 3.0, 20.0, np.inf])
    for trial in range(300):
        law = random_mixture(rng, 1 + trial % 3, tasks=2 + trial % 4)
        gap = linear.modelling_error(law, inner_lr=rates, samples=sizes)
        bound = linear.modelling_error_bound(law, inner_lr=rates, samples=sizes)
        assert (gap >= 0.0).all()
        assert (gap <= bound * (1 + 1e-12)).all()
    law = linear.published_law()  # one dimension: equality
    assert linear.modelling_error_bound(law, **STEP) == pytest.approx(
        linear.modelling_error(law, **STEP), rel=1e-13
    )


def test_small_rates():
    coefficient = linear.small_rate_coefficient(W1)
    rates = np.array([1e-2, 1e-3, 1e-4, 1e-6, 1e-9])
    ratio = linear.modelling_error(W1, inner_lr=rates, samples=5) / (coefficient * rates**2)
    # The correction is linear in the rate down to rounding: no cancellation.
    assert (np.abs(ratio - 1.0) <= 1.0 * rates + 1e-12).all()
    assert linear.modelling_error(W1, inner_lr=0.0, samples=5) == 0.0


def test_no_modelling_error_without_dependence():
    _, q, theta, sigma2 = W1.nodes()
    same_curvature = linear.Mixture([0.3, 0.7], q[[0, 0]], theta, sigma2)
    pairs = [(a, b) for a in range(2) for b in range(2)]
    independent = linear.Mixture(
        [0.25] * 4, [q[a] for a, _ in pairs], [theta[b] for _, b in pairs], [1.0] * 4
    )
    for law in (same_curvature, independent):
        for rate in (-0.4, 0.3, 0.9):
            assert linear.modelling_error(law, inner_lr=rate, samples=3) == 0.0


def test_broadcasting_and_types():
    rates, sizes = np.linspace(-0.2, 1.0, 7)[:, None], np.array([1, 4, 9])
    grid = linear.modelling_error(W1, inner_lr=rates, samples=sizes)
    assert grid.shape == (7, 3)
    one = linear.modelling_error(W1, inner_lr=rates[4, 0], samples=4)
    assert grid[4, 1] == pytest.approx(one, rel=1e-14)
    assert one.source == "Result 4"
    assert "checked: averages over the tasks are exact" in one.explain()
    points = np.random.default_rng(0).normal(size=(5, 1, 1, 2))
    assert linear.risk(W1, points, inner_lr=rates, samples=sizes).shape == (5, 7, 3)
    assert linear.minimisers(W1, inner_lr=rates, samples=sizes).maml.shape == (7, 3, 2)
    assert "Result 3" in linear.minimisers(W1, **STEP).explain()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: linear.risk(W1, [1.0]), r"theta must have shape \[..., 2\]"),
        (lambda: linear.risk(W1, [1.0, np.nan]), "theta must be finite"),
        (lambda: linear.risk(W1, POINT, inner_lr=np.inf), "inner_lr must be finite"),
        (lambda: linear.risk(W1, POINT, samples=0), "samples must be whole numbers"),
        (lambda: linear.modelling_error(W1, inner_lr=0.1, samples=-2), "samples must be whole"),
        (
            lambda: linear.minimisers(
                linear.Mixture([1.0], [[[1.0, 0.0], [0.0, 0.0]]], [[1.0, 1.0]], [1.0]),
                inner_lr=0.1,
            ),
            "minimisers: E Q must be positive definite .*Result 3",
        ),
        (
            lambda: linear.modelling_error(
                linear.Mixture([1.0], [[[2.0]]], [[1.0]], [1.0]), inner_lr=0.5
            ),
            "modelling_error: E A must be positive definite .*Result 3",
        ),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(ValueError, match=text):
        call()
