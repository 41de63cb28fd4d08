"""Result 10: the normal approximation of the probability that joint training ends worse, and which
law a prediction comes from."""

import numpy as np
import pytest
from linear_problems import STEP, W1, draw_sides, scores
from scipy import integrate, stats

from helpers import sweep
from innerloop.bounds import linear
from innerloop.bounds.linear.normal import (
    _in_more_dimensions,
    _in_one_dimension,
    _limit,
    normal_cells,
)
from innerloop.bounds.linear.scores import estimators

# beta, rate, N; asymptotic (co)variances of both estimates; then probabilities at M = 25 and 100
# that were computed with each bias b divided once too often by its E W (see
# docs/theory/linear.md, Result 10).
PUBLISHED = [
    (2.0, 0.3, 5, (0.384444444444, 0.351304182873, 0.996974086516), (0.5155787594, 0.7940626901)),
    (1.0, 0.5, 25, (0.081629629630, 0.075733654167, 0.163489038224), (0.6082455590, 0.8789217592)),
    (2.0, 0.1, 25, (0.26651851851851893, 0.2633221557945182, 0.3155415096967371),
     (0.510883198694434, 0.6604696722553575)),
]  # fmt: skip
IDS = ["beta2-.3-5", "beta1-.5-25", "beta2-.1-25"]


@pytest.mark.parametrize("case", PUBLISHED, ids=IDS)
def test_covariances(case):
    beta, rate, samples, expected, _ = case
    spread = _limit(linear.published_law(1, beta), rate, float(samples), True, "test")[3]
    np.testing.assert_allclose(
        [spread[0, 0], spread[0, 1], spread[1, 1]], expected, rtol=1e-11, atol=0.0
    )


@pytest.mark.parametrize("case", PUBLISHED, ids=IDS)
def test_bivariate_formula_has_the_checked_values_with_their_bias(case):
    beta, rate, samples, _, expected = case
    law = linear.published_law(1, beta)
    hessian, offset, bias, spread = _limit(law, rate, float(samples), True, "test")
    found = estimators(law, rate, float(samples), "test")
    theirs = bias / [found.drs.weight[0, 0], found.maml.weight[0, 0]]
    got = [
        _in_one_dimension(hessian[None], (offset + theirs / m)[None], spread[None] / m)[0]
        for m in (25, 100)
    ]
    np.testing.assert_allclose(got, expected, atol=6e-11)


@pytest.mark.parametrize("after_update", [True, False])
@pytest.mark.parametrize("case", PUBLISHED, ids=IDS)
def test_one_dimension_against_integration(case, after_update):
    beta, rate, samples, _, _ = case
    law = linear.published_law(1, beta)
    _, offset, bias, spread = _limit(law, rate, float(samples), after_update, "test")
    for tasks in (5, 25, 100):
        mean, cov = offset + bias / tasks, spread / tasks
        slope = cov[0, 1] / cov[1, 1]
        left = np.sqrt(cov[0, 0] - slope * cov[0, 1])

        def density(y, mean=mean, cov=cov, slope=slope, left=left):
            centre = mean[0] + slope * (y - mean[1])
            inside = stats.norm.cdf((abs(y) - centre) / left) - stats.norm.cdf(
                (-abs(y) - centre) / left
            )
            return (1.0 - inside) * stats.norm.pdf(y, mean[1], np.sqrt(cov[1, 1]))

        reach = 12.0 * np.sqrt(cov[1, 1])
        exact = integrate.quad(
            density, mean[1] - reach, mean[1] + reach, points=[0.0], epsabs=1e-12, limit=500
        )[0]
        got = approximated(law, rate, samples, tasks, after_update)
        assert got == pytest.approx(exact, abs=1e-9)


def approximated(law, rate, samples, tasks, after_update=True):
    """The normal approximation at one cell."""
    cell = (np.array([float(value)]) for value in (rate, samples, tasks))
    return normal_cells(law, *cell, after_update, "test")[0]


def random_forms(rng, cells, p):
    """Hessians, means and covariances of random comparisons, some of them one-sided."""
    h = rng.normal(size=(cells, p, p + 1))
    root = rng.normal(size=(cells, 2 * p, 2 * p + 1)) / np.sqrt(2 * p)
    scale = 10.0 ** rng.uniform(-2.0, 0.5, cells)
    return (
        h @ np.swapaxes(h, 1, 2),
        rng.normal(size=(cells, 2 * p)),
        root @ np.swapaxes(root, 1, 2) * scale[:, None, None],
    )


def test_inversion_equals_the_closed_form_in_one_dimension():
    forms = random_forms(np.random.default_rng(0), 500, 1)
    np.testing.assert_allclose(_in_more_dimensions(*forms), _in_one_dimension(*forms), atol=1e-11)


@pytest.mark.parametrize("p", sweep([2, 3], [2]))
def test_inversion_against_sampling(p):
    # 20 forms, 2e5 draws each, 4.5 s.e.: false alarm 1.4e-4.
    rng = np.random.default_rng(p)
    hessian, mean, covariance = random_forms(rng, 20, p)
    got = _in_more_dimensions(hessian, mean, covariance)
    for h, m, c, value in zip(hessian, mean, covariance, got, strict=True):
        z = m + rng.standard_normal((200000, 2 * p)) @ np.linalg.cholesky(c).T
        x, y = z[:, :p], z[:, p:]
        worse = np.einsum("ti,ij,tj->t", x, h, x) > np.einsum("ti,ij,tj->t", y, h, y)
        error = np.sqrt(max(value * (1.0 - value), 1e-5) / len(z))
        assert abs(worse.mean() - value) < 4.5 * error


def test_degenerate_comparisons():
    one = np.ones((1, 1, 1))
    mean = np.array([[0.5, 0.2]])
    for solve, close in ((_in_one_dimension, 1e-12), (_in_more_dimensions, 2e-4)):
        # No noise at all: the means decide, and a tie is not worse.
        assert solve(one, mean, np.zeros((1, 2, 2))) == 1.0
        assert solve(one, mean[:, ::-1], np.zeros((1, 2, 2))) == 0.0
        assert solve(one, 0.0 * mean, np.zeros((1, 2, 2))) == 0.0
        # Only Y moves: P(|Y| < 0.5).
        only = np.array([[[0.0, 0.0], [0.0, 1.0]]])
        expected = stats.norm.cdf(0.3) - stats.norm.cdf(-0.7)
        np.testing.assert_allclose(solve(one, mean, only), expected, atol=close)
        # Symmetric comparisons, with either sign of the correlation.
        for correlation in (0.0, 0.7, -0.7):
            both = np.array([[[1.0, correlation], [correlation, 1.0]]])
            np.testing.assert_allclose(solve(one, 0.0 * mean, both), 0.5, atol=1e-12)
        # Equal estimates: never worse.
        assert solve(one, np.full((1, 2), 0.3), np.ones((1, 2, 2))) == 0.0


def test_singular_covariances():
    # Two tasks without sampling noise: both estimates move along one line, so the comparison is a
    # quadratic inequality in one normal variable.
    hessian, offset, bias, spread = _limit(W1, 0.3, np.inf, True, "test")
    values, vectors = np.linalg.eigh(spread)
    assert values[-2] < 1e-12 * values[-1]
    for tasks in (10, 100):
        mean = offset + bias / tasks
        line = vectors[:, -1] * np.sqrt(values[-1] / tasks)
        signed = np.zeros((4, 4))
        signed[:2, :2], signed[2:, 2:] = hessian, -hessian
        roots = np.roots([line @ signed @ line, 2.0 * line @ signed @ mean, mean @ signed @ mean])
        low, high = sorted(roots)
        outside = stats.norm.cdf(low) + stats.norm.sf(high)
        expected = outside if line @ signed @ line > 0.0 else 1.0 - outside
        assert approximated(W1, 0.3, np.inf, tasks) == pytest.approx(expected, abs=2e-4)


def test_against_simulated_training():
    # W1 at M = 200: the normal approximation is within 0.01, and the frequency has 4 s.e. 0.012.
    rng = np.random.default_rng(3)
    centre = linear.minimisers(W1, **STEP)
    trials, tasks, worse = 1000, 200, {True: [], False: []}
    for _ in range(trials // 100):
        drawn = W1.sample(rng, 100 * tasks)
        pairs = scores(drawn, draw_sides(rng, drawn, 5), 0.3, centre.drs, centre.maml)
        points = []
        for (weight, psi), target in zip(pairs, (centre.drs, centre.maml), strict=True):
            w = weight.reshape(100, tasks, 2, 2).mean(axis=1)
            s = psi.reshape(100, tasks, 2).mean(axis=1)
            points.append(target + np.linalg.solve(w, s[..., None])[..., 0])
        for after in (True, False):
            drs, maml = (linear.risk(W1, x, **(STEP if after else {})) for x in points)
            worse[after].append(drs > maml)
    for after in (True, False):
        predicted = approximated(W1, 0.3, 5, tasks, after)
        frequency = np.mean(worse[after])
        error = np.sqrt(predicted * (1 - predicted) / trials)
        assert abs(frequency - predicted) < 0.01 + 4.0 * error


def test_bad_input():
    with pytest.raises(ValueError, match="tasks must be whole numbers of at least 1"):
        linear.probability_drs_worse(W1, **STEP, tasks=0)
    with pytest.raises(ValueError, match="inner_lr must be finite"):
        linear.probability_drs_worse(W1, inner_lr=np.nan, samples=5, tasks=10)
