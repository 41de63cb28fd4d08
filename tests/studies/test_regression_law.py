"""Sufficient statistics instead of samples leave every law as it was: the kernel against the
experiment drawn row by row.

Two-sample Kolmogorov-Smirnov tests at fixed seeds. Each file of 80-odd tests fails by chance with
probability below 1e-3 (level 1e-5 per test).
"""

import numpy as np
import pytest

from innerloop import _native
from innerloop.bounds import linear
from innerloop.studies.linear_regression import reference
from innerloop.studies.linear_regression.settings import Settings
from innerloop.studies.linear_regression.trials import draw_tasks, run_trials
from regression_cases import cell, settings_of

stats = pytest.importorskip("scipy.stats")
pytestmark = pytest.mark.skipif(not _native.is_available(), reason="needs the native extension")
LEVEL = 1e-5
COUNT = 6000
SHAPES = [(1, 1), (1, 2), (1, 6), (2, 1), (2, 2), (3, 1), (3, 2), (3, 4), (4, 3), (5, 30)]


def same_law(kernel, rows, what):
    assert stats.ks_2samp(kernel, rows, method="asymp").pvalue > LEVEL, what


@pytest.mark.parametrize(("p", "samples"), SHAPES)
def test_statistics_of_a_task(p, samples):
    """Traces, entries, quadratic forms in theta, and what couples support, query and noise."""
    tasks = draw_tasks(settings_of(p, seed=1), cell(1, samples), trials=COUNT)
    rows = reference.draw_rows(np.random.default_rng(2), p, 2.0, COUNT, samples)
    gram = np.swapaxes(rows.x, 2, 3) @ rows.x / samples
    moment = (np.swapaxes(rows.x, 2, 3) @ rows.y[..., None])[..., 0] / samples

    def summaries(theta, sigma2, q, gram, moment):
        noise = moment - (gram @ theta[:, None, :, None])[..., 0]  # X'eps / N
        return {
            "trace": np.trace(gram[:, 0], axis1=1, axis2=2),
            "first entry": gram[:, 1, 0, 0],
            "mixed entry": gram[:, 0, 0, -1],
            "determinant of the sum": np.linalg.det(gram.sum(1)),
            "support times query": np.einsum("tij,tji->t", gram[:, 0], gram[:, 1]),
            "fit": np.einsum("ti,tij,tj->t", theta, gram[:, 0], theta),
            "covariance": np.einsum("ti,tij,tj->t", theta, q, theta),
            "moment": moment[:, 1, -1],
            "noise": noise[:, 0, 0],
            "size of the noise": (noise[:, 1] ** 2).sum(1) / sigma2,
            "noise along theta": np.einsum("ti,ti->t", noise[:, 0], theta),
            "two noises": (noise[:, 0] * noise[:, 1]).sum(1),
        }

    kernel = summaries(*(part[:, 0] for part in tasks))
    by_rows = summaries(rows.theta, rows.sigma2, rows.Q, gram, moment)
    for name, values in kernel.items():
        same_law(values, by_rows[name], name)


@pytest.mark.parametrize(("p", "samples", "tasks"), [(1, 1, 2), (1, 5, 3), (2, 1, 2), (3, 1, 2)])
def test_estimates(p, samples, tasks):
    """The estimates themselves, also where both systems are singular (p = 3, two single rows)."""
    rates, count = (0.0, 0.3, 1.0), 2500
    found = run_trials(
        settings_of(p, rates, seed=3), cell(tasks, samples), trials=count, estimates=True
    )
    rng = np.random.default_rng(4)
    drs, maml = [], []
    for _ in range(count):
        rows = reference.draw_rows(rng, p, 2.0, tasks, samples)
        drs.append(reference.drs_estimate(rows))
        maml.append([reference.maml_estimate(rows, rate) for rate in rates])
    drs, maml = np.array(drs), np.array(maml)
    for i in range(p):
        same_law(found.drs[:, i], drs[:, i], f"pooled, coordinate {i}")
    for r, rate in enumerate(rates):
        same_law(found.maml[:, r, 0], maml[:, r, 0], f"rate {rate}")
        same_law(
            np.linalg.norm(found.maml[:, r] - found.drs, axis=1),
            np.linalg.norm(maml[:, r] - drs, axis=1),
            f"difference at rate {rate}",
        )


@pytest.mark.parametrize(("p", "samples"), [(1, 1), (1, 2), (1, 3), (2, 2), (3, 2), (6, 5)])
def test_gram_matrices_have_wishart_moments(p, samples):
    """Given the task, N gram ~ Wishart: mean Q, and E[G G] = Q^2 + (Q^2 + tr(Q) Q) / N (Result 1).

    Both within 5 standard errors in every entry (chance of failure below 1e-4 in all).
    """
    tasks = draw_tasks(settings_of(p, seed=6), cell(1, samples), trials=40000)
    q, gram = tasks.Q[:, 0], tasks.gram[:, 0, 1]
    square = q @ q
    trace = np.trace(q, axis1=1, axis2=2)[:, None, None]
    for error in (gram - q, gram @ gram - square - (square + trace * q) / samples):
        z = error.mean(0) / (error.std(0) / np.sqrt(len(error)))
        assert np.abs(z).max() < 5


@pytest.mark.parametrize(("p", "beta", "rate", "samples"), [(1, 2.0, 0.3, 5), (3, 1.0, 0.7, 2)])
def test_risks_are_those_of_the_theory(p, beta, rate, samples):
    """The closed form that the kernel evaluates is `bounds.linear`'s, term by term."""
    from innerloop.studies.linear_regression.risks import risk

    law = linear.published_law(p=p, beta=beta)
    made = risk(p, beta, rate, samples)
    least = np.full(p, made.optimum)
    np.testing.assert_allclose(
        linear.minimisers(law, inner_lr=rate, samples=samples).maml, least, rtol=1e-12
    )
    for theta in (least, np.zeros(p), np.arange(1.0, p + 1)):
        value = made.least + made.curvature / 2 * ((theta - made.optimum) ** 2).sum()
        expected = linear.risk(law, theta, inner_lr=rate, samples=samples)
        np.testing.assert_allclose(value, expected, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("p", "samples"), [(1, 1), (2, 1), (4, 3), (8, 20)])
def test_statistics_of_many_tasks(p, samples):
    """The same with 200000 tasks: differences of 0.5 % would show."""
    tasks = draw_tasks(Settings(p=p, seed=9), cell(1, samples), trials=200000)
    rows = reference.draw_rows(np.random.default_rng(10), p, 2.0, 200000, samples)
    gram = np.swapaxes(rows.x, 2, 3) @ rows.x / samples
    moment = (np.swapaxes(rows.x, 2, 3) @ rows.y[..., None])[..., 0] / samples
    same_law(
        np.linalg.norm(tasks.gram[:, 0, 0], axis=(1, 2)),
        np.linalg.norm(gram[:, 0], axis=(1, 2)),
        "size",
    )
    same_law(tasks.gram[:, 0, 1, 0, 0], gram[:, 1, 0, 0], "entry")
    same_law(tasks.moment[:, 0, 0, 0], moment[:, 0, 0], "moment")
