"""Several gradient steps (Result 14(a)) and the expansion for any inner solver."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from variants_problems import (
    Q1,
    draw,
    gradient_steps,
    matrix_step,
    normal_equations,
    random_mixture,
    ridge_fit,
    two_tasks,
    z_scores,
)

from innerloop.bounds import linear
from innerloop.bounds.linear import rules, training
from innerloop.bounds.linear.designs import Designs
from innerloop.bounds.linear.rules import GradientSteps, MatrixRate, Ridge, rule_moments

THETA = np.array([0.25, 0.5])


def test_check_values_of_two_steps():
    law = linear.Mixture([1.0], [Q1], [[0.0, 0.0]], [1.0])
    found = rule_moments(law, GradientSteps(0.2, 2), 5.0)
    expected = [[0.5046272, 0.0068319999999999215], [0.0068319999999999215, 0.4909632]]
    np.testing.assert_allclose(found.hessian[0, 0], expected, rtol=0, atol=2e-15)
    assert found.noise[0, 0] == pytest.approx(0.090208, abs=2e-16)


def test_one_step_is_result_2():
    law = two_tasks()
    for samples in (1, 5, None):
        assert linear.risk_k_steps(law, THETA, inner_lr=0.3, samples=samples) == pytest.approx(
            linear.risk(law, THETA, inner_lr=0.3, samples=samples), rel=1e-14
        )
    assert linear.risk_k_steps(law, THETA, inner_lr=0.3, steps=0) == pytest.approx(1.7515625)


@pytest.mark.parametrize("samples", [1, 4, np.inf])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("p", [1, 2])
def test_wick_rule_and_product_rule_agree(p, steps, samples, monkeypatch):
    law = random_mixture(np.random.default_rng(p), p)
    words = rule_moments(law, GradientSteps(-0.35, steps), samples)
    monkeypatch.setattr(rules, "_MOST_WICK_STEPS", 0)
    points = rule_moments(law, GradientSteps(-0.35, steps), samples)
    assert points.averaged_by == ("population" if np.isinf(samples) else "Gauss product rule")
    np.testing.assert_allclose(words.hessian, points.hessian, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(words.noise, points.noise, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_population_steps_have_a_closed_form(steps):
    law = two_tasks()
    weights, q, theta, sigma2 = law.nodes()
    shrink = np.linalg.matrix_power(np.eye(2) - 0.3 * q, steps)
    gap = np.einsum("gij,gj->gi", shrink, THETA - theta)
    expected = 0.5 * weights @ (np.einsum("gi,gij,gj->g", gap, q, gap) + sigma2)
    found = linear.risk_k_steps(law, THETA, inner_lr=0.3, steps=steps)
    assert found == pytest.approx(expected, rel=1e-13)


# Rates of several steps are small: at (0.2, 3) a seventh of the score covariance comes from designs
# of probability 1e-6, which no sample of this size shows (see the test of rare designs).
SOLVERS = [
    (GradientSteps(0.3, 1), gradient_steps(0.3, 1)),
    (GradientSteps(0.1, 3), gradient_steps(0.1, 3)),
    (GradientSteps(-0.05, 4), gradient_steps(-0.05, 4)),
    (Ridge(0.7), ridge_fit(0.7)),
    (
        MatrixRate([[0.3, 0.1], [-0.05, 0.2]]),
        matrix_step(np.array([[0.3, 0.1], [-0.05, 0.2]])),
    ),
]


@pytest.mark.parametrize(("rule", "solve"), SOLVERS, ids=lambda x: type(x).__name__)
def test_risk_after_solver_against_data(rule, solve):
    law, rng = two_tasks(), np.random.default_rng(5)
    tasks = law.sample(rng, 100_000)
    x, y = draw(rng, tasks, 5)
    gap = solve(x, y, np.tile(THETA, (len(x), 1))) - tasks.theta
    risk = 0.5 * (np.einsum("ti,tij,tj->t", gap, tasks.Q, gap) + tasks.sigma2)
    moments = rule_moments(law, rule, 5.0)
    weights, _, theta, sigma2 = law.nodes()
    distance = np.einsum("gi,gij,gj->g", THETA - theta, moments.hessian.mean(0), THETA - theta)
    expected = 0.5 * weights @ (distance + sigma2 * (1.0 + moments.noise.mean(0)))
    # One comparison in standard errors: false alarm with probability 6e-7.
    assert np.abs(z_scores(risk[:, None], expected)).max() < 5.0


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize(("rule", "solve"), SOLVERS, ids=lambda x: type(x).__name__)
def test_training_constants_against_data(rule, solve, split):
    law, rng = two_tasks(), np.random.default_rng(6)
    rows = 5
    found = training.train(law, rule, rows, split=split, function="test")
    target, curvature, scores, shift = (
        value.mean(0) for value in (found.target, found.curvature, found.scores, found.shift)
    )
    tasks = law.sample(rng, 100_000)
    support = draw(rng, tasks, rows)
    w, z = normal_equations(solve, support, draw(rng, tasks, rows) if split else support)
    psi = z - w @ target
    outer = psi[:, :, None] * psi[:, None, :]
    second = np.einsum("tij,jk,tk->ti", w, np.linalg.inv(curvature), psi)
    # Sobol averages have relative errors below 1e-3 of these standard errors. 13 comparisons at 5
    # standard errors: a false alarm with probability 1e-5.
    assert np.abs(z_scores(w, curvature)).max() < 5.0
    assert np.abs(z_scores(psi, np.zeros(2))).max() < 5.0
    assert np.abs(z_scores(outer, scores)).max() < 5.0
    assert np.abs(z_scores(second, -curvature @ shift)).max() < 5.0


def test_rare_designs_against_importance_sampling():
    law, rule, rows, stretch = two_tasks(), GradientSteps(0.2, 3), 5, 1.6
    found = training.train(law, rule, rows, split=True, function="test")
    z = stretch * np.random.default_rng(2).standard_normal((16, 20_000, rows, 2))
    size = (z**2).sum(axis=(2, 3))
    weight = np.exp(2 * rows * np.log(stretch) - 0.5 * size * (1 - stretch**-2))
    each = []
    for values, mass in zip(z.swapaxes(2, 3) @ z / rows, weight, strict=True):
        points = Designs(values[None], mass / len(mass), float(rows), "importance", False)
        offset = (law.nodes().theta - found.target[0])[None]
        inverse = np.linalg.inv(found.curvature)
        scores, _ = training._scores(law.nodes(), rule, points, True, offset, inverse)
        each.append(np.tensordot(law.nodes().weights, scores[0], 1))
    # 16 repetitions: a t-variable with 15 degrees of freedom exceeds 5.5 with probability 6e-5.
    assert np.abs(z_scores(np.array(each), found.scores[0])).max() < 5.5


def test_expansion_of_one_step_is_result_8():
    law = two_tasks()
    found = linear.rule_expansion(law, GradientSteps(0.3), samples=5)
    known = linear.expansion(law, inner_lr=0.3, samples=5)
    assert found.drs == pytest.approx(0.6158734807533022, rel=1e-13)
    assert found.maml == pytest.approx(1.5841688334102069, rel=1e-13)
    assert found.drs_limit == pytest.approx(0.05856618506120933, rel=1e-12)
    assert found.maml_limit == 0.0
    assert found.crossover == pytest.approx(16.533351995608204, rel=1e-12)
    assert (found.drs, found.maml) == pytest.approx((known.drs, known.maml), rel=1e-12)
    assert found.averaged_by == "Wick rule"


def test_matrix_rate_of_the_identity_is_a_step():
    law = two_tasks()
    step = linear.rule_expansion(law, GradientSteps(0.3), samples=5)
    for split in (True, False):
        step = linear.rule_expansion(law, GradientSteps(0.3), samples=5, split=split)
        matrix = linear.rule_expansion(law, MatrixRate(0.3 * np.eye(2)), samples=5, split=split)
        for name in ("drs", "maml", "drs_limit", "maml_limit", "crossover"):
            wanted = pytest.approx(getattr(step, name), rel=1e-11, abs=1e-15, nan_ok=True)
            assert getattr(matrix, name) == wanted


def test_expansion_with_another_test_rule():
    law = two_tasks()
    found = linear.rule_expansion(
        law, GradientSteps(0.1), samples=4, test_rule=GradientSteps(0.4), test_samples=8
    )
    assert found.drs_limit == pytest.approx(0.09102527689645379, rel=1e-12)
    assert found.drs == pytest.approx(0.4628553487814494, rel=1e-12)
    assert found.maml_limit == pytest.approx(0.05874858246847253, rel=1e-12)
    assert found.maml == pytest.approx(0.8195239836365882, rel=1e-12)
    assert "DRS" not in found.explain()
    assert found.to_dict()["averaged_by"] == "Wick rule"


def test_random_points_state_their_error():
    law = two_tasks()
    found = linear.rule_expansion(law, Ridge(0.7), samples=5)
    again = linear.rule_expansion(law, Ridge(0.7), samples=5, seed=1)
    assert 0.0 < found.standard_error["maml"] < 1e-3
    for name in ("maml", "drs", "drs_limit"):
        error = np.hypot(found.standard_error[name], again.standard_error[name])
        # Two estimates with 15 degrees of freedom each: 5.5 is exceeded with probability 5e-6.
        assert abs(getattr(found, name) - getattr(again, name)) < 5.5 * error


def test_crossover_says_why_there_is_none():
    homogeneous = linear.centroid_law(Q1, tau2=0.8, sigma2=0.7)
    never = linear.rule_expansion(homogeneous, GradientSteps(0.3), samples=5)
    assert never.crossover == np.inf
    assert "joint training is ahead" in never.explain()
    whole = linear.rule_expansion(homogeneous, GradientSteps(0.1), samples=5, split=False)
    assert whole.crossover == 0.0
    assert "MAML is ahead at every number of tasks from" in whole.crossover.reason


def test_risk_broadcasts():
    law = two_tasks()
    grid = linear.risk_k_steps(
        law, torch.tensor(THETA), inner_lr=[[0.1], [0.3]], steps=2, samples=[5, 9, 20]
    )
    assert grid.shape == (2, 3)
    one = linear.risk_k_steps(law, THETA, inner_lr=0.3, steps=2, samples=9)
    assert grid[1, 1] == pytest.approx(one, rel=1e-14)
    assert "Wick rule" in one.explain()
    assert one.to_dict()["source"] == "Result 14(a)"


def test_many_steps_of_many_dimensions_are_averaged_at_random_points():
    law = random_mixture(np.random.default_rng(1), 4, count=2)
    found = linear.risk_k_steps(law, np.ones(4), inner_lr=0.1, steps=4, samples=6)
    assert "randomised Sobol" in found.explain()
    assert linear.risk_k_steps(law, np.ones(4), inner_lr=0.1, steps=3, samples=6) > found


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda law: linear.risk_k_steps(law, [1.0], inner_lr=0.1), ValueError, "theta must have"),
        (lambda law: linear.risk_k_steps(law, THETA, inner_lr=np.nan), ValueError, "finite"),
        (lambda law: linear.risk_k_steps(law, THETA, inner_lr=0.1, steps=-1), ValueError, "steps"),
        (lambda law: linear.risk_k_steps(law, THETA, inner_lr=0.1, steps=1.5), ValueError, "whole"),
        (lambda law: linear.risk_k_steps(law, THETA, inner_lr=1, samples=0), ValueError, "least 1"),
        (lambda law: linear.risk_k_steps("law", THETA, inner_lr=0.1), TypeError, "task law"),
        (lambda law: linear.rule_expansion(law, 0.3, samples=5), TypeError, "GradientSteps"),
        (lambda law: linear.rule_expansion(law, GradientSteps(1), samples=0), ValueError, "least"),
        (lambda law: linear.rule_expansion(law, MatrixRate([[0.1]]), samples=5), ValueError, "fit"),
        (lambda law: GradientSteps(np.inf), ValueError, "finite"),
        (lambda law: GradientSteps(0.1, -1), ValueError, "steps"),
        (lambda law: MatrixRate([[0.1, 0.2]]), ValueError, "square"),
        (lambda law: Ridge(0.0), ValueError, "Result 16"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(two_tasks())


def test_singular_mean_curvature_is_named():
    flat = linear.Mixture([1.0], [[[1.0, 0.0], [0.0, 0.0]]], [[0.0, 0.0]], [1.0])
    with pytest.raises(ValueError, match=r"positive definite.*Result 3"):
        linear.rule_expansion(flat, Ridge(1.0), samples=5)


def exact_risk(samples: int, rate: Fraction, steps: int, noise: Fraction) -> float:
    """The risk after gradient steps of one weight at distance 1, in rational arithmetic: moments of
    chi-square / N."""
    moments = [Fraction(1)]
    for k in range(2 * steps):
        moments.append(moments[-1] * Fraction(samples + 2 * k, samples))
    distance = sum(comb(2 * steps, k) * (-rate) ** k * moments[k] for k in range(2 * steps + 1))
    heard = sum(
        (comb(2 * steps, k) - (2 * comb(steps, k) if k <= steps else 0))
        * (-rate) ** k
        * moments[k - 1]
        for k in range(1, 2 * steps + 1)
    )
    return float((distance + noise + noise / samples * heard) / 2)


@pytest.mark.parametrize(
    ("samples", "rate", "steps"),
    [(10, (1, 20), 100), (5, (1, 8), 30), (50, (1, 2), 50), (200, (1, 2), 150), (3, (1, 2), 40)],
)
def test_many_steps_are_exact(samples: int, rate: tuple[int, int], steps: int) -> None:
    """To 1e-12: sums of some hundred positive terms."""
    law = linear.Mixture([1.0], [[[1.0]]], [[0.0]], [0.5])
    found = linear.risk_k_steps(
        law, [1.0], inner_lr=rate[0] / rate[1], steps=steps, samples=samples
    )
    wanted = exact_risk(samples, Fraction(*rate), steps, Fraction(1, 2))
    assert abs(found / wanted - 1) < 1e-12


def test_averages_that_draws_do_not_see_are_refused() -> None:
    law = linear.Mixture([1.0], [np.eye(3)], [[0.0] * 3], [0.5])
    with pytest.raises(ValueError, match=r"none beyond .* is drawn: use "):
        linear.risk_k_steps(law, [1.0, 0, 0], inner_lr=0.3, steps=10, samples=4)
    found = linear.risk_k_steps(law, [1.0, 0, 0], inner_lr=0.1, steps=10, samples=4)
    # by Gauss-Laguerre rules over the ordered eigenvalues of a Wishart matrix, 60 nodes each
    assert abs(found - 0.4819436647002506) < 1e-4
