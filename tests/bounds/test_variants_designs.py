"""Averages over designs: exactness of the product rule, accuracy of the others."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from innerloop.bounds import linear
from innerloop.bounds.linear import designs

rng = np.random.default_rng(11)


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 40])
@pytest.mark.parametrize(("p", "factors"), [(1, 6), (2, 6), (3, 3)])
def test_product_rule_equals_wick_rule(p, factors, samples):
    between = [rng.standard_normal((p, p)) for _ in range(factors + 1)]
    rule = designs.gauss_designs(p, samples, factors)
    word = np.broadcast_to(between[0], rule.values[0].shape)
    for matrix in between[1:]:
        word = word @ rule.values[0] @ matrix
    found = np.tensordot(rule.weights, word, 1)
    size = np.tensordot(rule.weights, np.abs(word), 1).max()
    assert rule.weights.sum() == pytest.approx(1.0, abs=1e-14)
    # The Wick rule adds up to 10395 terms: their rounding decides.
    assert np.abs(found - linear.wick(np.eye(p), between, samples)).max() < 1e-12 * size


def test_product_rule_is_exact_to_its_degree_only():
    rule = designs.gauss_designs(1, 3, 4)
    moments = [rule.weights @ rule.values[0, :, 0, 0] ** k for k in range(8)]
    expected = linear.scalar_moments(7, 3)
    assert moments[:6] == pytest.approx(expected[:6], rel=1e-13)
    assert abs(moments[6] / expected[6] - 1.0) > 1e-3


@pytest.mark.parametrize("samples", [1, 2, 3, 10, 200, 5000])
def test_chi_square_quadrature(samples):
    rule = designs.chi_square_designs(samples)
    x = rule.values[0, :, 0, 0]
    moments = [rule.weights @ x**k for k in range(5)]
    assert moments == pytest.approx(linear.scalar_moments(4, samples), rel=1e-11)
    law = stats.chi2(samples)
    inside = [*law.ppf([1e-20, 0.01, 0.5, 0.99]), law.isf(1e-20)]
    for penalty in (1e-3, 0.1, 1.0, 30.0):

        def kept(chi2, penalty=penalty):
            return (penalty / (chi2 / samples + penalty)) ** 2 * law.pdf(chi2)

        pieces = [
            integrate.quad(kept, a, b, epsabs=0.0, epsrel=1e-12, limit=400)[0]
            for a, b in itertools.pairwise(inside)
        ]
        assert rule.weights @ (penalty / (x + penalty)) ** 2 == pytest.approx(
            sum(pieces), rel=1e-9 if samples < 3 else 1e-10
        )


@pytest.mark.parametrize(("p", "samples"), [(2, 5), (3, 2), (5, 9)])
def test_sobol_points_agree_with_exact_moments(p, samples):
    rule = designs.sobol_designs(p, samples, points=512, seed=4)
    assert rule.values.shape == (16, 512, p, p)
    each = np.einsum("j,bjxy->bxy", rule.weights, rule.values @ rule.values)
    error = each.std(0, ddof=1) / 4.0
    # 16 randomisations: a t-variable with 15 degrees of freedom exceeds 6.5 with probability 1e-5.
    assert error.max() < 0.03
    assert (np.abs(each.mean(0) - linear.square_moment(np.eye(p), samples)) < 6.5 * error).all()


def test_sobol_points_repeat_with_the_seed():
    first, again, other = (designs.sobol_designs(2, 5, points=8, seed=s) for s in (3, 3, 4))
    assert (first.values == again.values).all()
    assert not (first.values == other.values).any()


def test_choice_of_rule():
    assert designs.designs(2, np.inf, None).rule == "population"
    assert designs.designs(2, 5, 8).exact
    assert designs.designs(1, 5, None).rule == "chi-square quadrature"
    assert designs.designs(2, 5, None).rule == "randomised Sobol"
    assert designs.designs(2, 5, 8, tasks=10**5).values.shape[1] == 16


def test_too_many_dimensions_are_refused():
    with pytest.raises(ValueError, match="p = 210 needs 22155 random numbers"):
        designs.sobol_designs(210, 300, points=2)
