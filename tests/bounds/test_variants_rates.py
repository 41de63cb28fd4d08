"""Matrix rates and optimal rates (Results 14(b)-(d) and 17)."""

import numpy as np
import pytest
import torch
from variants_problems import Q1, random_mixture, two_tasks

from innerloop.bounds import linear
from innerloop.bounds.linear.rules import GradientSteps, MatrixRate, rule_moments
from innerloop.bounds.linear.training import sandwich, train

THETA = np.array([0.25, 0.5])
SPREAD = np.array([[0.6, 0.2], [0.2, 0.9]])


def common_law(q, second_moment, sigma2):
    """Tasks with the same Q whose solutions have mean 0 and this second moment."""
    p = len(q)
    reach = np.sqrt(p) * np.linalg.cholesky(second_moment).T
    theta = np.concatenate([reach, -reach])
    count = len(theta)
    return linear.Mixture(
        np.full(count, 1 / count), np.repeat(q[None], count, 0), theta, np.full(count, sigma2)
    )


def test_check_value_of_the_matrix_rate():
    found = linear.matrix_rate_moments(Q1, [[0.3, 0.1], [-0.05, 0.2]], 5)
    expected = [[0.6110000000000002, 0.09500000000000001], [0.09500000000000001, 0.73775]]
    np.testing.assert_allclose(found.hessian, expected, rtol=1e-14)


@pytest.mark.parametrize("samples", [1, 6, None])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_matrix_rate_against_exact_averages(p, samples):
    rng = np.random.default_rng(p)
    law, rate = random_mixture(rng, p), 0.4 * rng.standard_normal((p, p))
    closed = linear.matrix_rate_moments(law.nodes().Q, rate, samples)
    exact = rule_moments(law, MatrixRate(rate), np.inf if samples is None else samples)
    np.testing.assert_allclose(closed.hessian, exact.hessian[0], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(closed.noise, exact.noise[0], rtol=1e-12, atol=1e-14)


def test_matrix_rate_risk_of_a_scalar_rate_is_result_2():
    law = two_tasks()
    rates = np.array([-0.2, 0.1, 0.3])
    found = linear.matrix_rate_risk(
        law, torch.tensor(THETA), rate=rates[:, None, None] * np.eye(2), samples=5
    )
    known = linear.risk(law, THETA, inner_lr=rates, samples=5)
    np.testing.assert_allclose(found, known, rtol=1e-14)
    one = linear.matrix_rate_risk(law, THETA, rate=0.3 * np.eye(2))
    assert one == pytest.approx(0.94871421875, rel=1e-14)
    assert one.to_dict()["source"] == "Result 14(b)"


def test_check_value_of_the_best_test_rate():
    found = linear.optimal_test_rate(two_tasks(), THETA, samples=5)
    assert found == pytest.approx(0.41886429078357873, rel=1e-14)


@pytest.mark.parametrize("samples", [1, 8, None])
def test_best_test_rate_is_the_minimum_of_the_parabola(samples):
    law = random_mixture(np.random.default_rng(3), 3)
    theta = np.array([1.0, -0.5, 0.2])
    best = linear.optimal_test_rate(law, theta, samples=samples)
    rates = best + np.array([-0.05, 0.0, 0.05])
    low, middle, high = linear.risk(law, theta, inner_lr=rates, samples=samples)
    assert best > 0.0
    assert middle < low
    assert abs(high - low) < 1e-13 * low  # symmetric about the minimum


def test_best_test_rate_broadcasts_over_samples():
    law = two_tasks()
    found = linear.optimal_test_rate(law, THETA, samples=[1, 5, 10**9])
    assert (np.diff(found) > 0.0).all()
    assert found[2] == pytest.approx(linear.optimal_test_rate(law, THETA), rel=1e-8)


def test_check_value_of_the_best_matrix_rate():
    expected = [
        [0.293040293040293, -0.054945054945054944],
        [-0.054945054945054916, 0.5311355311355311],
    ]
    closed = linear.optimal_matrix_rate_common(Q1, SPREAD, 0.7, samples=5)
    general = linear.optimal_matrix_rate(common_law(Q1, SPREAD, 0.7), np.zeros(2), samples=5)
    np.testing.assert_allclose(closed, expected, rtol=1e-13)
    np.testing.assert_allclose(general, expected, rtol=1e-12)
    np.testing.assert_allclose(
        linear.optimal_matrix_rate_common(Q1, SPREAD, 0.7), np.linalg.inv(Q1), rtol=1e-13
    )


@pytest.mark.parametrize("p", [1, 2, 3])
def test_best_matrix_rate_is_stationary_for_any_tasks(p):
    rng = np.random.default_rng(20 + p)
    law, theta = random_mixture(rng, p), rng.standard_normal(p)
    best = linear.optimal_matrix_rate(law, theta, samples=6)
    value = linear.matrix_rate_risk(law, theta, rate=best, samples=6)
    for _ in range(5):
        step = 1e-2 * rng.standard_normal((p, p))
        up, down = (
            linear.matrix_rate_risk(law, theta, rate=best + s * step, samples=6) for s in (1, -1)
        )
        assert min(up, down) > value
        assert abs(up - down) < 1e-13 * value  # the risk is quadratic: no slope, no difference
    scalar = linear.optimal_test_rate(law, theta, samples=6)
    assert value <= linear.risk(law, theta, inner_lr=scalar, samples=6) * (1 + 1e-14)


def test_check_value_of_the_training_slope():
    law = common_law(np.eye(2), SPREAD, 0.7)
    assert linear.training_rate_slope(law, samples=5) == pytest.approx(0.56, rel=1e-13)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_training_slope_is_the_derivative(p):
    rng = np.random.default_rng(40 + p)
    q, second, h = (a @ a.T / 4 + 0.1 * np.eye(p) for a in rng.standard_normal((3, p, p)))
    law = common_law(q, second, 0.4)

    def variance(rate):
        trained = train(law, GradientSteps(rate), 7, split=True, function="test")
        return np.trace(h @ sandwich(trained)[0])

    step = 1e-4  # the error of the central difference is about step^2 = 1e-8 of the variance
    slope = (variance(step) - variance(-step)) / (2 * step)
    found = linear.training_rate_slope(law, samples=7, hessian=h)
    assert found == pytest.approx(slope, abs=1e-6 * variance(0.0))


def test_best_training_rate_of_the_isotropic_example():
    law = common_law(np.eye(2), SPREAD, 0.7)
    found = linear.optimal_training_rate(law, samples=5)
    assert found.rate == pytest.approx(-0.0513, abs=5e-5)
    assert found.variance == pytest.approx(2.66604, abs=5e-6)
    assert found.variance_at_zero == pytest.approx(2.68, rel=1e-13)
    assert found.slope_at_zero == pytest.approx(0.56, rel=1e-13)
    for rate in (found.rate - 1e-3, found.rate + 1e-3):
        trained = train(law, GradientSteps(rate), 5, split=True, function="test")
        assert np.trace(sandwich(trained)[0]) > found.variance
    assert "-0.0513" in found.explain()


def test_without_noise_the_best_training_rate_of_isotropic_tasks_is_zero():
    law = common_law(np.eye(2), SPREAD, 0.0)
    assert linear.training_rate_slope(law, samples=5) == pytest.approx(0.0, abs=1e-14)
    assert abs(linear.optimal_training_rate(law, samples=5).rate) < 1e-12


@pytest.mark.parametrize(("sigma2", "end"), [(0.01, 1.0), (100.0, -1.0)])
def test_best_training_rate_may_lie_at_the_end_of_the_range(sigma2, end):
    # Only the flat direction counts: its variance falls towards one end, by heterogeneity that
    # leaks in from the steep direction or by noise.
    law, h = common_law(np.diag([1.0, 0.1]), np.eye(2), sigma2), np.diag([0.0, 1.0])
    found = linear.optimal_training_rate(law, samples=200, hessian=h)
    assert found.rate == pytest.approx(end, rel=1e-14)
    assert np.sign(found.slope_at_zero) == -end
    assert "end of the range" in found.explain()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda law: linear.matrix_rate_moments(-Q1, np.eye(2), 5), "positive semidefinite"),
        (lambda law: linear.matrix_rate_moments(Q1, np.eye(3), 5), "rate must have shape"),
        (lambda law: linear.matrix_rate_risk(law, [1.0], rate=np.eye(2)), "theta must have"),
        (lambda law: linear.matrix_rate_risk(law, THETA, rate=np.eye(2), samples=0), "least 1"),
        (lambda law: linear.optimal_matrix_rate(law, [np.nan, 0.0]), "finite"),
        (lambda law: linear.optimal_matrix_rate_common(Q1, np.eye(3), 1.0), "second_moment"),
        (lambda law: linear.optimal_matrix_rate_common(Q1, SPREAD, -1.0), "non-negative"),
        (lambda law: linear.optimal_matrix_rate_common(0 * Q1, SPREAD, 1.0), "Result 14"),
        (lambda law: linear.optimal_matrix_rate_common(Q1, 0 * SPREAD, 1.0), "second_moment must"),
        (lambda law: linear.training_rate_slope(law, samples=5), "same for all tasks; Result 17"),
        (lambda law: linear.optimal_training_rate(law, samples=5), "same for all tasks"),
    ],
)
def test_bad_arguments_of_rates(call, message):
    with pytest.raises(ValueError, match=message):
        call(two_tasks())


def test_a_risk_without_a_best_rate_is_refused():
    solved = linear.Mixture([1.0], [Q1], [THETA], [0.5])
    with pytest.raises(ValueError, match="must depend on the inner rate"):
        linear.optimal_test_rate(solved, THETA)
    with pytest.raises(ValueError, match="Result 14"):
        linear.optimal_matrix_rate(solved, THETA)
    assert linear.optimal_test_rate(solved, THETA, samples=5) == 0.0
    law = common_law(Q1, SPREAD, 0.5)
    with pytest.raises(ValueError, match="hessian must have shape"):
        linear.training_rate_slope(law, samples=5, hessian=np.eye(3))
