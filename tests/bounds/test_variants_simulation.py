"""Whole estimators, simulated: expected excess risk and asymptotic covariance of the variants."""

import numpy as np
import pytest
from variants_problems import (
    Q1,
    draw,
    gradient_steps,
    matrix_step,
    normal_equations,
    ridge_fit,
    two_tasks,
)

from innerloop.bounds import linear
from innerloop.bounds.linear.rules import GradientSteps, MatrixRate, Ridge

RATE = np.array([[0.3, 0.1], [-0.05, 0.2]])
SOLVERS = {
    "two steps": (GradientSteps(0.2, 2), gradient_steps(0.2, 2)),
    "ridge": (Ridge(1.0), ridge_fit(1.0)),
    "matrix": (MatrixRate(RATE), matrix_step(RATE)),
}


def estimate(rng, law, solve, tasks, rows, split):
    """MAML's estimate [p] from `tasks` tasks, and that of joint training on the same rows."""
    drawn = law.sample(rng, tasks)
    support = draw(rng, drawn, rows if split else 2 * rows)
    query = draw(rng, drawn, rows) if split else support
    w, z = normal_equations(solve, support, query)
    x, y = (
        np.concatenate(pair, axis=1) if split else pair[0]
        for pair in zip(support, query, strict=True)
    )
    joint, *_ = np.linalg.lstsq(x.reshape(-1, law.p), y.ravel(), rcond=None)
    return np.linalg.solve(w.sum(0), z.sum(0)), joint


@pytest.mark.slow
@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize("name", SOLVERS)
def test_expected_excess_against_simulation(name, split):
    rule, solve = SOLVERS[name]
    law, tasks, rows, repeats = two_tasks(), 1000, 5, 1500
    found = linear.rule_expansion(law, rule, samples=rows, split=split)
    rng = np.random.default_rng(17)
    both = np.array([estimate(rng, law, solve, tasks, rows, split) for _ in range(repeats)])
    hessian = linear.rules.rule_moments(law, rule, rows).hessian.mean(0)
    hessian = np.tensordot(law.nodes().weights, hessian, 1)
    gap = both - found.minimiser
    excess = 0.5 * np.einsum("rmi,ij,rmj->rm", gap, hessian, gap)
    error = excess.std(0, ddof=1) / np.sqrt(repeats)
    predicted = [found.maml_limit + found.maml / tasks, found.drs_limit + found.drs / tasks]
    # Two comparisons at 4.5 standard errors (probability 1.4e-5). The neglected terms are of order
    # 1 / tasks^2: about 1 % of c / tasks, a third of a standard error.
    assert (np.abs(excess.mean(0) - predicted) < 4.5 * error).all()


@pytest.mark.slow
def test_bayesian_maml_and_gls_reach_their_covariances():
    bound = linear.efficiency_bound(Q1, sigma2=0.7, tau2=0.8, samples=5)
    rng, tasks, repeats = np.random.default_rng(23), 300, 3000
    root = np.linalg.cholesky(Q1)
    found = np.empty((repeats, 2, 2))
    for index in range(repeats):
        x = rng.standard_normal((tasks, 10, 2)) @ root.T
        theta = np.sqrt(0.8) * rng.standard_normal((tasks, 2))
        y = np.einsum("tni,ti->tn", x, theta) + np.sqrt(0.7) * rng.standard_normal((tasks, 10))
        best = linear.gls(x, y, sigma2=0.7, tau2=0.8)
        half = linear.bayes_maml(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:], sigma2=0.7, tau2=0.8)
        found[index] = best.estimate, half.estimate
    for which, covariance in ((0, bound.gls), (1, bound.bayes_maml)):
        size = tasks * np.einsum("ri,ij,rj->r", found[:, which], Q1, found[:, which])
        error = size.std(ddof=1) / np.sqrt(repeats)
        # 4.5 standard errors: probability 7e-6 each; E (sum)^-1 exceeds (E sum)^-1 by O(1 / tasks).
        assert abs(size.mean() - np.trace(Q1 @ covariance)) < 4.5 * error
