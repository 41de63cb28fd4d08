"""Results 6 and 7: the estimators' scores, their covariances, the published estimators."""

import numpy as np
import pytest
import torch
from linear_problems import (
    PSI_CROSS,
    PSI_DRS,
    PSI_MAML,
    STEP,
    W1,
    draw_sides,
    random_mixture,
    scores,
)

from innerloop.bounds import linear
from innerloop.bounds.linear.fourth import _normal_rule, _wishart_rule


def test_check_values():
    found = linear.score_covariances(W1, **STEP)
    np.testing.assert_allclose(found.drs, PSI_DRS, rtol=1e-13)
    np.testing.assert_allclose(found.maml, PSI_MAML, rtol=1e-13)
    np.testing.assert_allclose(found.cross, PSI_CROSS, rtol=1e-13)
    assert "Result 7" in found.explain()


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(("rate", "samples"), [(0.5, 3), (-0.5, 4), (0.9, 8)])
def test_covariances_against_simulation(p, rate, samples):
    # All entries of the three matrices, at most 27 a case and 9 cases; 5 s.e. each.
    rng = np.random.default_rng([p, samples])
    law = random_mixture(rng, p)
    found = linear.score_covariances(law, inner_lr=rate, samples=samples)
    centre = linear.minimisers(law, inner_lr=rate, samples=samples)
    products = {"drs": [], "maml": [], "cross": []}
    means = []
    for _ in range(3):
        tasks = law.sample(rng, 40000)
        sides = draw_sides(rng, tasks, samples)
        (_, joint), (_, maml) = scores(tasks, sides, rate, centre.drs, centre.maml)
        means.append(np.hstack([joint, maml]))
        for name, a, b in (("drs", joint, joint), ("maml", maml, maml), ("cross", joint, maml)):
            products[name].append(a[:, :, None] * b[:, None, :])
    means = np.concatenate(means)
    assert (np.abs(means.mean(axis=0)) < 5.0 * means.std(axis=0) / np.sqrt(len(means))).all()
    for name, parts in products.items():
        values = np.concatenate(parts)
        error = values.std(axis=0) / np.sqrt(len(values))
        assert (np.abs(values.mean(axis=0) - getattr(found, name)) < 5.0 * error).all(), name


@pytest.mark.parametrize(("rate", "samples"), [(0.3, 5), (-0.8, 1), (1.2, 2), (0.4, None)])
def test_maml_covariance_against_gauss_quadrature(rate, samples):
    # The support is averaged by an exact product rule, the query by the order-two closed form.
    n = np.inf if samples is None else float(samples)
    centre = linear.minimisers(W1, inner_lr=rate, samples=samples).maml
    factors, shares = _wishart_rule(2, n)
    points, mass = _normal_rule(3, factors.shape[-1])
    total = np.zeros((2, 2))
    for weight, q, theta, sigma2 in zip(*W1.nodes(), strict=True):
        rows = np.linalg.cholesky(q) @ factors
        step = np.eye(2) - rate * rows @ np.swapaxes(rows, 1, 2)
        noise = np.sqrt(sigma2 / n) * np.einsum("kir,lr->kli", rows, points)
        v = np.einsum("kij,j->ki", step, theta - centre)[:, None, :] - rate * noise
        outer = v[..., :, None] * v[..., None, :]
        query = linear.sandwich_moment(q, outer, n) + sigma2 / n * q
        query = np.einsum("klij,l->kij", query, mass)
        total += weight * np.einsum("k,kij->ij", shares, step @ query @ step)
    got = linear.score_covariances(W1, inner_lr=rate, samples=samples).maml
    np.testing.assert_allclose(got, total, rtol=1e-11)


def test_one_dimension():
    # Psi_m by hand from the moments of s = 1 - a qh.
    law, rate, n = linear.published_law(beta=1.5), 0.7, 4
    weights, q, theta, sigma2 = law.nodes()
    q = q[:, 0, 0]
    chi = linear.scalar_moments(5, n)

    def moment(power, times):
        coefficients = np.poly1d([-rate, 1.0]) ** power
        return sum(
            c * q ** (k + times) * chi[k + times] for k, c in enumerate(coefficients.coeffs[::-1])
        )

    centre = linear.minimisers(law, inner_lr=rate, samples=n)
    away = theta[:, 0] - centre.maml[0]
    inner = away**2 * moment(4, 0) + rate**2 * sigma2 / n * moment(2, 1)
    maml = weights @ ((1 + 2 / n) * q**2 * inner + sigma2 / n * q * moment(2, 0))
    found = linear.score_covariances(law, inner_lr=rate, samples=n)
    assert found.maml[0, 0] == pytest.approx(maml, rel=1e-12)
    away = theta[:, 0] - centre.drs[0]
    drs = weights @ ((1 + 2 / (2 * n)) * q**2 * away**2 + sigma2 * q / (2 * n))
    assert found.drs[0, 0] == pytest.approx(drs, rel=1e-12)


def test_without_inner_step_maml_is_least_squares_on_the_query():
    found = linear.score_covariances(W1, inner_lr=0.0, samples=6)
    other = linear.score_covariances(W1, inner_lr=0.0, samples=3)
    np.testing.assert_allclose(found.maml, other.drs, rtol=1e-13)  # n = 6 samples both


def test_many_samples_leave_heterogeneity():
    limit = linear.score_covariances(W1, inner_lr=0.3, samples=None)
    large = linear.score_covariances(W1, inner_lr=0.3, samples=10**9)
    for name in ("drs", "maml", "cross"):
        np.testing.assert_allclose(getattr(large, name), getattr(limit, name), rtol=1e-7)


def test_grids_equal_single_calls():
    rates, sizes = np.array([-0.2, 0.5])[:, None], np.array([2, 7, 30])
    grid = linear.score_covariances(W1, inner_lr=rates, samples=sizes)
    assert grid.cross.shape == (2, 3, 2, 2)
    np.testing.assert_array_equal(
        grid.cross[1, 2], linear.score_covariances(W1, inner_lr=0.5, samples=30).cross
    )


# The estimators of Result 6 from data.


def data(rng, law, tasks, samples):
    """Rows of drawn tasks as (support, query), each (x, y)."""
    drawn = law.sample(rng, tasks)
    sides = []
    for _ in range(2):
        x = rng.standard_normal((tasks, samples, law.p)) @ np.swapaxes(
            np.linalg.cholesky(drawn.Q), 1, 2
        )
        noise = rng.standard_normal((tasks, samples)) * np.sqrt(drawn.sigma2)[:, None]
        sides.append((x, np.einsum("tni,ti->tn", x, drawn.theta) + noise))
    return sides


def test_estimators_minimise_their_losses():
    rng = np.random.default_rng(2)
    support, query = data(rng, W1, 30, 6)
    joint = linear.drs_estimate(support, query)
    x = np.concatenate([support[0], query[0]], axis=1).reshape(-1, 2)
    y = np.concatenate([support[1], query[1]], axis=1).ravel()
    np.testing.assert_allclose(joint, np.linalg.lstsq(x, y, rcond=None)[0], rtol=1e-11)
    for rate in (-0.4, 0.0, 0.3, 0.8):
        theta = torch.tensor(
            linear.maml_estimate(support, query, inner_lr=rate), requires_grad=True
        )
        (xs, ys), (xq, yq) = ((torch.tensor(a) for a in side) for side in (support, query))
        slope = ((xs @ theta - ys).unsqueeze(-1) * xs).mean(dim=1)
        adapted = theta - rate * slope
        loss = 0.5 * (((xq * adapted[:, None]).sum(-1) - yq) ** 2).mean()
        (gradient,) = torch.autograd.grad(loss, theta)
        assert gradient.abs().max() < 1e-12


def test_estimates_come_from_the_mean_score():
    # theta - theta* = (mean W)^-1 (mean psi), with the W and psi of Result 6.
    rng = np.random.default_rng(4)
    centre = linear.minimisers(W1, **STEP)
    tasks = W1.sample(rng, 40)
    factor = np.linalg.cholesky(tasks.Q)
    sides, data_sides = [], []
    for _ in range(2):
        x = np.einsum("tij,tnj->tni", factor, rng.standard_normal((40, 5, 2)))
        noise = rng.standard_normal((40, 5)) * np.sqrt(tasks.sigma2)[:, None]
        sides.append((np.swapaxes(x, 1, 2) @ x / 5, np.einsum("tni,tn->ti", x, noise) / 5))
        data_sides.append((x, np.einsum("tni,ti->tn", x, tasks.theta) + noise))
    pairs = scores(tasks, sides, 0.3, centre.drs, centre.maml)
    estimates = (
        linear.drs_estimate(*data_sides),
        linear.maml_estimate(*data_sides, inner_lr=0.3),
    )
    for (weight, psi), target, estimate in zip(
        pairs, (centre.drs, centre.maml), estimates, strict=True
    ):
        step = np.linalg.solve(weight.mean(axis=0), psi.mean(axis=0))
        np.testing.assert_allclose(estimate, target + step, rtol=1e-10)


def test_least_norm_solution():
    rng = np.random.default_rng(9)
    support, query = [(rng.normal(size=(2, 1, 6)), rng.normal(size=(2, 1))) for _ in range(2)]
    joint = linear.drs_estimate(support, query)
    x = np.concatenate([support[0], query[0]]).reshape(-1, 6)
    y = np.concatenate([support[1], query[1]]).ravel()
    np.testing.assert_allclose(joint, np.linalg.pinv(x) @ y, atol=1e-12)
    for rate, got in zip(
        (0.2, -0.1), linear.maml_estimate(support, query, inner_lr=[0.2, -0.1]), strict=True
    ):
        rows, targets = [], []
        for (a,), (b,), (c,), (d,) in zip(*support, *query, strict=True):
            step = np.eye(6) - rate * np.outer(a, a)
            rows.append(c @ step)
            targets.append(d - rate * c @ a * b)
        np.testing.assert_allclose(got, np.linalg.pinv(np.array(rows)) @ targets, atol=1e-11)


def test_bad_data():
    x, y = np.ones((3, 4, 2)), np.ones((3, 4))
    with pytest.raises(ValueError, match=r"query must be x \[M, N, p\]"):
        linear.drs_estimate((x, y), (x, y[:, :3]))
    with pytest.raises(ValueError, match="same tasks and inputs"):
        linear.drs_estimate((x, y), (x[:2], y[:2]))
    with pytest.raises(ValueError, match="support x must have 3 axes"):
        linear.maml_estimate((x[0], y[0]), (x, y), inner_lr=0.1)
    with pytest.raises(ValueError, match="inner_lr must be finite"):
        linear.maml_estimate((x, y), (x, y), inner_lr=np.nan)
    with pytest.raises(ValueError, match="query y must be finite"):
        linear.drs_estimate((x, y), (x, y * np.nan))
