"""Ridge adaptation, implicit MAML (Result 16)."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats
from variants_problems import Q1, two_tasks

from innerloop.bounds import linear
from innerloop.bounds.linear.rules import Ridge, rule_moments
from innerloop.bounds.linear.training import train


def single(q, sigma2=1.0):
    """One one-dimensional task with theta = 0."""
    return linear.Mixture([1.0], [[[q]]], [[0.0]], [sigma2])


def test_check_values_of_ridge():
    found = rule_moments(single(1.5), Ridge(0.7), 5.0)
    assert found.hessian[0, 0, 0, 0] == pytest.approx(0.2467525192041561, rel=1e-13)
    assert 5.0 * found.noise[0, 0] == pytest.approx(0.45280755156326463, rel=1e-13)
    limit = linear.isotropic_ridge_limit(0.5, 0.7)
    assert limit.stieltjes == pytest.approx(0.6931856494789596, rel=1e-14)
    # -penalty^2 m'(penalty), evaluated with 50 digits; central differences of m give the same to
    # their own accuracy (0.2714080778704 with steps of 1e-6).
    assert limit.hessian == pytest.approx(0.27140807782600466, rel=1e-13)


@pytest.mark.parametrize("samples", [1, 2, 7, 60])
@pytest.mark.parametrize("penalty", [0.02, 1.3, 25.0])
def test_one_dimension_against_quadrature(samples, penalty):
    q, theta, sigma2 = 0.8, 1.7, 0.6
    law = stats.chi2(samples)
    ends = [*law.ppf([1e-18, 0.02, 0.5, 0.98]), law.isf(1e-18)]

    def after(chi2):
        second = q * chi2 / samples
        keep, transfer = penalty / (second + penalty), 1.0 / (second + penalty)
        mean_square = keep**2 * theta**2 + sigma2 / samples * transfer**2 * second
        return 0.5 * (q * mean_square + sigma2) * law.pdf(chi2)

    expected = sum(
        integrate.quad(after, a, b, epsabs=0.0, epsrel=1e-12, limit=500)[0]
        for a, b in itertools.pairwise(ends)
    )
    found = linear.ridge_risk(single(q, sigma2), [theta], penalty=penalty, samples=samples)
    assert found == pytest.approx(expected, rel=1e-8 if samples == 1 else 1e-10)


def test_limits_in_the_penalty():
    law, theta = two_tasks(), [0.25, 0.5]
    stiff = linear.ridge_risk(law, theta, penalty=1e9, samples=5)
    assert stiff == pytest.approx(1.7515625, rel=1e-8)
    noise = 0.5 * law.nodes().weights @ law.nodes().sigma2
    assert linear.ridge_risk(law, theta, penalty=1e-9) == pytest.approx(noise, rel=1e-8)


def test_a_stiff_ridge_is_a_small_gradient_step():
    law, theta = two_tasks(), [0.25, 0.5]
    # T = 1 / penalty to first order, so the two risks differ by O(penalty^-2).
    ridge = linear.ridge_risk(law, theta, penalty=1e4)
    step = linear.risk(law, theta, inner_lr=1e-4)
    assert abs(ridge - step) < 3e-7
    assert abs(step - linear.risk(law, theta)) > 1e-5


@pytest.mark.parametrize("penalty", [0.3, 2.0])
def test_population_ridge_has_a_closed_form(penalty):
    law = two_tasks()
    found = rule_moments(law, Ridge(penalty), np.inf)
    q = law.nodes().Q
    keep = penalty * np.linalg.inv(q + penalty * np.eye(2))
    np.testing.assert_allclose(found.hessian[0], keep @ keep @ q, rtol=1e-13, atol=1e-15)
    assert (found.noise == 0.0).all()


def test_isotropic_limit_against_large_matrices():
    rng = np.random.default_rng(9)
    for p, rows in ((150, 300), (240, 120)):
        spectra = [np.linalg.eigvalsh(x.T @ x / rows) for x in rng.standard_normal((6, rows, p))]
        values = np.maximum(np.concatenate(spectra), 0.0)
        limit = linear.isotropic_ridge_limit(p / rows, 0.7)
        inverse = 1.0 / (values + 0.7)
        # Linear statistics of the spectrum fluctuate and are biased by O(1 / p), about 0.3 %.
        assert inverse.mean() == pytest.approx(limit.stieltjes, rel=0.01)
        assert (0.49 * inverse**2).mean() == pytest.approx(limit.hessian, rel=0.01)
        assert p / rows * (values * inverse**2).mean() == pytest.approx(limit.noise, rel=0.01)


@pytest.mark.parametrize("aspect", [0.01, 1.0, 3.0])
def test_isotropic_limit_satisfies_its_equation(aspect):
    penalty = np.array([1e-3, 0.5, 40.0])
    found = linear.isotropic_ridge_limit(aspect, penalty)
    m = found.stieltjes
    np.testing.assert_allclose(
        aspect * penalty * m**2 + (1 - aspect + penalty) * m, np.ones(3), rtol=1e-12
    )
    step = 1e-5 * penalty
    up, down = (linear.isotropic_ridge_limit(aspect, penalty + s * step) for s in (1, -1))
    slope = (up.stieltjes - down.stieltjes) / (2 * step)
    np.testing.assert_allclose(found.hessian, -(penalty**2) * slope, rtol=1e-8)
    assert "Result 16" in found.explain()


def test_no_split_ridge_has_no_bias_for_independent_solutions():
    law = linear.centroid_law(Q1, tau2=0.8, sigma2=0.7, centre=[1.0, 2.0])
    found = train(law, Ridge(0.7), 10, split=False, function="test")
    np.testing.assert_allclose(found.target, np.tile([1.0, 2.0], (16, 1)), rtol=1e-12)


def test_ridge_risk_broadcasts_and_repeats():
    law, theta = two_tasks(), [0.25, 0.5]
    grid = linear.ridge_risk(law, theta, penalty=[0.5, 1.0, 2.0], samples=[[5], [10]])
    assert grid.shape == (2, 3)
    one = linear.ridge_risk(law, theta, penalty=1.0, samples=10)
    assert one == grid[1, 1]
    assert "standard error" in one.explain()
    # More rows to adapt on can only help a well-tuned fit; here they do by a visible amount.
    assert (grid[1] < grid[0]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear.ridge_risk(two_tasks(), [0.0, 0.0], penalty=-1.0), "Result 16"),
        (lambda: linear.ridge_risk(two_tasks(), [0.0], penalty=1.0), "theta must have"),
        (lambda: linear.ridge_risk(two_tasks(), [0.0, 0.0], penalty=np.nan), "finite"),
        (lambda: linear.isotropic_ridge_limit(0.0, 1.0), "aspect must be positive"),
        (lambda: linear.isotropic_ridge_limit(0.5, 0.0), "penalty must be positive"),
    ],
)
def test_bad_arguments_of_ridge(call, message):
    with pytest.raises(ValueError, match=message):
        call()
