"""The efficiency bound, generalised least squares and Bayesian MAML (Result 18)."""

import numpy as np
import pytest
from variants_problems import Q1, draw

from innerloop.bounds import linear
from innerloop.bounds.linear.rules import GradientSteps
from innerloop.bounds.linear.training import sandwich, train

MODEL = {"sigma2": 0.7, "tau2": 0.8}


def test_check_values_of_the_centroid_model():
    support, query = np.array([[1.0], [2.0]]), np.array([[0.5], [-1.0]])
    part = linear.information(support, **MODEL)
    whole = linear.information(np.concatenate([support, query]), **MODEL)
    assert part[0, 0] == pytest.approx(5 / 4.7, rel=1e-14)
    assert part[0, 0] == pytest.approx(1.0638297872, abs=5e-11)
    assert whole[0, 0] == pytest.approx(6.25 / 5.7, rel=1e-14)
    found = linear.bayes_maml(support[None], [[0.0, 0.0]], query[None], [[0.0, 0.0]], **MODEL)
    assert 1.0 / found.covariance[0, 0] == pytest.approx(0.0326614408, abs=5e-11)
    assert 1.0 / found.covariance[0, 0] == pytest.approx((whole - part)[0, 0], rel=1e-12)
    bound = linear.efficiency_bound([[1.5]], samples=5, **MODEL)
    assert bound.information[0, 0] == pytest.approx(1.1666638295122678, rel=1e-13)
    assert bound.standard_error == 0.0


def test_information_is_its_definition():
    x = np.random.default_rng(0).standard_normal((4, 3, 5))  # fewer rows than coordinates
    inner = np.linalg.inv(0.7 * np.eye(3) + 0.8 * x @ x.transpose(0, 2, 1))
    np.testing.assert_allclose(
        linear.information(x, **MODEL), x.transpose(0, 2, 1) @ inner @ x, rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize(("p", "rows", "queries"), [(1, 1, 1), (2, 5, 3), (4, 3, 9)])
def test_a_split_loses_exactly_the_support_information(p, rows, queries):
    rng = np.random.default_rng(p)
    x1, x2 = rng.standard_normal((7, rows, p)), rng.standard_normal((7, queries, p))
    found = linear.bayes_maml(x1, np.zeros((7, rows)), x2, np.zeros((7, queries)), **MODEL)
    weight = np.linalg.inv(found.covariance)
    lost = linear.information(x1, **MODEL).sum(0)
    whole = linear.information(np.concatenate([x1, x2], axis=1), **MODEL).sum(0)
    np.testing.assert_allclose(lost + weight, whole, rtol=1e-9, atol=1e-11 * np.abs(whole).max())


def test_estimators_are_unbiased_with_their_covariance():
    rng, repeats, tasks = np.random.default_rng(3), 4000, 6
    centre = np.array([1.0, -0.5])
    x = rng.standard_normal((tasks, 8, 2)) @ np.linalg.cholesky(Q1).T
    both = {"gls": [], "bayes": []}
    for _ in range(repeats):
        theta = centre + np.sqrt(0.8) * rng.standard_normal((tasks, 2))
        y = np.einsum("tni,ti->tn", x, theta) + np.sqrt(0.7) * rng.standard_normal((tasks, 8))
        best = linear.gls(x, y, **MODEL)
        half = linear.bayes_maml(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:], **MODEL)
        both["gls"].append(best.estimate)
        both["bayes"].append(half.estimate)
    for name, exact in (("gls", best.covariance), ("bayes", half.covariance)):
        gaps = (np.array(both[name]) - centre) @ np.linalg.inv(np.linalg.cholesky(exact)).T
        # Standard normal under the result: 4 means and 6 second moments at 5 standard errors
        # (1 and sqrt(2) or 1 over sqrt(repeats)) give a false alarm with probability 6e-6.
        assert np.abs(gaps.mean(0)).max() < 5 / np.sqrt(repeats)
        second = gaps.T @ gaps / repeats - np.eye(2)
        assert np.abs(np.diag(second)).max() < 5 * np.sqrt(2 / repeats)
        assert abs(second[0, 1]) < 5 / np.sqrt(repeats)


def test_no_estimator_beats_the_bound():
    bound = linear.efficiency_bound(Q1, samples=5, **MODEL)
    law = linear.centroid_law(Q1, **MODEL)
    others = [bound.bayes_maml, bound.drs]
    for rate in (-0.2, 0.0, 0.1, 0.3):
        others += [
            sandwich(train(law, GradientSteps(rate), rows, split=split, function="test"))[0]
            for rows, split in ((5, True), (10, False))
        ]
    # The bound is averaged over random points with relative errors of 1e-5.
    slack = 20 * bound.standard_error * np.linalg.norm(bound.gls) ** 2
    for covariance in others:
        assert np.linalg.eigvalsh(covariance - bound.gls).min() > -slack
    assert slack < 1e-3
    assert "Result 18" in bound.explain()


def test_bound_against_drawn_inputs():
    rng = np.random.default_rng(12)
    q = np.stack([Q1, np.diag([0.4, 1.2])])
    bound = linear.efficiency_bound(q, samples=3, weights=[0.25, 0.75], **MODEL)
    law = linear.centroid_law(q, weights=[0.25, 0.75], **MODEL)
    x, _ = draw(rng, law.sample(rng, 100_000), 6)
    for rows, expected in ((6, bound.information), (3, bound.support_information)):
        each = linear.information(x[:, :rows], **MODEL)
        error = each.std(0) / np.sqrt(len(each))
        # 6 distinct comparisons at 5 standard errors: probability 4e-6.
        assert (np.abs(each.mean(0) - expected) < 5 * error + 5 * bound.standard_error).all()


def test_without_scatter_gls_is_least_squares():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((3, 4, 2)), rng.standard_normal((3, 4))
    found = linear.gls(x, y, sigma2=0.5, tau2=0.0)
    pooled, *_ = np.linalg.lstsq(x.reshape(-1, 2), y.ravel(), rcond=None)
    np.testing.assert_allclose(found.estimate, pooled, rtol=1e-12)
    assert "standard errors" in found.explain()


def test_centroid_law_has_its_moments():
    law = linear.centroid_law(Q1, tau2=0.8, sigma2=0.7, centre=[1.0, -1.0])
    weights, q, theta, sigma2 = law.nodes()
    gap = theta - weights @ theta
    np.testing.assert_allclose(weights @ theta, [1.0, -1.0], rtol=1e-14)
    np.testing.assert_allclose(gap.T @ (weights[:, None] * gap), 0.8 * np.eye(2), atol=1e-14)
    assert (q == Q1).all()
    assert (sigma2 == 0.7).all()


X, Y = np.ones((2, 3, 1)), np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear.information([1.0], **MODEL), "X must have shape"),
        (lambda: linear.information(X, sigma2=0.0, tau2=1.0), "sigma2 must be positive"),
        (lambda: linear.information(X, sigma2=1.0, tau2=-1.0), "tau2 must be non-negative"),
        (lambda: linear.gls(X, Y[:1], **MODEL), "y must have shape"),
        (lambda: linear.gls(0 * X, Y, **MODEL), "positive definite.*Result 18"),
        (lambda: linear.bayes_maml(X, Y, X[:1], Y[:1], **MODEL), "same tasks"),
        (lambda: linear.bayes_maml(X, Y, X, Y, sigma2=1.0, tau2=0.0), "tau2 must be positive"),
        (lambda: linear.efficiency_bound([[0.0]], samples=5, **MODEL), "E Q must be positive"),
        (lambda: linear.efficiency_bound(np.ones((1, 1, 1, 1)), samples=5, **MODEL), "Q must have"),
        (lambda: linear.efficiency_bound([[1.0]], samples=0, **MODEL), "least 1"),
        (lambda: linear.centroid_law([[1.0]], tau2=-1.0, sigma2=1.0), "tau2"),
        (lambda: linear.centroid_law([[1.0]], tau2=1.0, sigma2=-1.0), "sigma2"),
        (lambda: linear.centroid_law([[1.0]], **MODEL, centre=[0.0, 0.0]), "centre must have"),
        (lambda: linear.gls(X, np.full((2, 3), np.nan), **MODEL), "finite"),
    ],
)
def test_bad_arguments_of_efficiency(call, message):
    with pytest.raises(ValueError, match=message):
        call()
