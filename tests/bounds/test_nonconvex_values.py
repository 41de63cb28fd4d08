"""Every published number of Results 21-31, to near full precision."""

from __future__ import annotations

import math

import nonconvex_cases as cases
import numpy as np
import pytest
import torch
from nonconvex_cases import B0, SIZES

from innerloop.bounds import nonconvex


def close(found, expected):
    """Equal up to rounding of a few operations."""
    assert float(found) == pytest.approx(expected, rel=2e-13, abs=0.0)


def test_smoothness():
    close(nonconvex.kappa(B0, inner_lr=0.1), cases.KAPPA)
    found = nonconvex.maml_smoothness(B0, inner_lr=0.1, steps=[1, 2, 3])
    np.testing.assert_allclose(found, cases.SMOOTHNESS, rtol=2e-13)
    close(nonconvex.maml_smoothness(B0, inner_lr=0.1, samples=4), cases.SMOOTHNESS_SAMPLES)


def test_smoothness_agrees_with_the_literature():
    """With kappa = 1 + a L it is the K-step constant of Ji et al., and below 4 L + 2 a rho G."""
    c = nonconvex.Constants(L_plus=1.0, ell=1.0, rho=2.0, G=3.0)
    for a in (0.05, 0.3, 1.0):
        for steps in (1, 2, 5):
            k = 1.0 + a
            expected = k ** (2 * steps) + 2.0 * k ** (2 * steps - 1) * (k**steps - 1.0) * 3.0
            close(nonconvex.maml_smoothness(c, inner_lr=a, steps=steps), expected)
        assert nonconvex.maml_smoothness(c, inner_lr=a) <= 4.0 + 2.0 * a * 2.0 * 3.0 + 1e-12


def test_convex_tasks_do_not_stretch():
    c = nonconvex.Constants(L_plus=2.0, ell=0.0, rho=1.0, G=1.0)
    assert nonconvex.kappa(c, inner_lr=[0.0, 0.3, 1.0]).tolist() == [1.0, 1.0, 1.0]
    close(nonconvex.maml_smoothness(c, inner_lr=0.3, steps=4), 2.0 + 0.3 * 4)
    assert nonconvex.kappa(c, inner_lr=-0.1) == pytest.approx(1.2)


def test_bias():
    close(nonconvex.gradient_bias(B0, inner_lr=0.1, samples=4), cases.BIAS_SAME)
    close(
        nonconvex.gradient_bias(B0, inner_lr=0.1, samples=4, same_batch=False),
        cases.BIAS_SEPARATE,
    )
    first = nonconvex.gradient_bias(B0, inner_lr=0.1, samples=4, order=1)
    close(first, 0.000625 + 0.1 * 1.05)
    assert nonconvex.gradient_bias(B0, inner_lr=0.1, samples=None) == 0.0


def test_variance():
    found = nonconvex.maml_variance(B0, steps=[1, 2], **SIZES)
    np.testing.assert_allclose(found, cases.VARIANCE, rtol=2e-13)
    close(nonconvex.drs_variance(B0, samples=8), cases.VARIANCE_DRS)


def test_sgd():
    common = {"gap": 2.0, "updates": 1000, "batch": 8}
    population = {"bias": cases.BIAS_SAME, "smoothness": cases.SMOOTHNESS[0]}
    for given, (bound, rate) in (
        ({"smoothness": 1.0, "variance": cases.VARIANCE_DRS}, cases.SGD_DRS),
        (
            {"smoothness": cases.SMOOTHNESS_SAMPLES, "variance": cases.VARIANCE[0]},
            cases.SGD_MAML,
        ),
        ({**population, "variance": cases.VARIANCE[0]}, cases.SGD_POPULATION),
    ):
        close(nonconvex.sgd_bound(**given, **common), bound)
        close(nonconvex.best_rate(**given, **common), rate)


def test_complexity():
    found = nonconvex.sample_complexity(B0, epsilon=0.1, batch=8, **SIZES)
    close(found.updates_drs, cases.UPDATES_DRS)
    close(found.updates_maml, cases.UPDATES_MAML)
    close(found.ratio, cases.UPDATES_RATIO)
    close(found.samples_drs, 64 * cases.UPDATES_DRS)
    close(found.limit, 1.3175 * cases.VARIANCE[0] / cases.VARIANCE_DRS)
    close(found.work_ratio, 2 * cases.UPDATES_RATIO)
    assert "2.243 times as many" in found.explain()
    small = nonconvex.sample_complexity(B0, epsilon=[1e-4, 1e-5], batch=8, **SIZES)
    np.testing.assert_allclose(small.ratio, found.limit, rtol=1e-6)
    assert "times the samples" in small.explain()


def test_links():
    close(nonconvex.modelling_gradient(B0, inner_lr=0.1), cases.LINK_REFINED)
    close(nonconvex.gradient_gap(B0, inner_lr=0.1), cases.LINK_CRUDE)
    close(nonconvex.maml_gradient_bound(0.0, B0, inner_lr=0.1), cases.LINK_REFINED)
    close(nonconvex.gradient_gap(B0, inner_lr=0.1, steps=3), 1.1**6 - 1.0)


def test_values():
    found = nonconvex.value_interval(B0, inner_lr=0.1, gradient_square=0.7)
    close(found.lower, -0.1 * 1.025 * 0.7)
    close(found.upper, -0.1 * 0.95 * 0.7)
    wider = nonconvex.value_interval(B0, inner_lr=0.1, gradient_square=0.7, samples=4)
    close(found.lower - wider.lower, 0.5 * 0.01 * 0.25 / 8)
    close(wider.upper - found.upper, 1.0 * 0.01 * 0.25 / 8)
    assert "at least" in wider.explain()
    array = nonconvex.value_interval(B0, inner_lr=[0.1, -0.1], gradient_square=0.7)
    assert array.upper[1] == pytest.approx(0.1 * 1.05 * 0.7)
    assert "between" in array.explain()


def test_initial_gap_of_maml():
    derived = nonconvex.Constants(L_plus=1.0, ell=0.5, G=2.0, sigma_g=0.5, gap_drs=3.0)
    assert nonconvex.maml_gap(B0, inner_lr=0.1) == 2.0
    assert nonconvex.maml_gap(derived, inner_lr=[0.0, 1.0, 2.0]).tolist() == [3.0, 3.0, 3.0]
    close(nonconvex.maml_gap(derived, inner_lr=-0.1), 3.0 + 0.1 * 1.05 * 4.0)
    close(nonconvex.maml_gap(derived, inner_lr=3.0), 3.0 + 3.0 * 0.5 * 4.0)
    close(nonconvex.maml_gap(derived, inner_lr=0.1, samples=2), 3.0 + 0.01 * 0.25 / 4)


def test_crossover():
    found = nonconvex.crossover_budget(B0, batch=8, **SIZES)
    assert len(found.crossings) == 1
    close(found.budget, cases.CROSSOVER)
    close(found.guaranteed, cases.CROSSOVER_GUARANTEED)
    close(found.offset, cases.LINK_REFINED + cases.BIAS_SAME)


def test_inverse_link():
    found = nonconvex.inverse_link(B0, inner_lr=0.1)
    close(found.slope, cases.INVERSE[0])
    close(found.spread, cases.INVERSE[1])
    assert found.noise == 0.0
    a = 0.1
    close(found.slope, 1.0 / (1.0 - 2.0 * a - a * a))


# Example W1: two linear tasks, population inner step.
Q = np.array([[[2.0, 0.5], [0.5, 1.0]], [[0.5, -0.2], [-0.2, 1.5]]])
THETA = np.array([[1.0, -1.0], [0.5, 2.0]])
SIGMA2 = np.array([0.5, 1.0])
WEIGHTS = np.array([0.5, 0.5])


def minimiser(curvature):
    return np.linalg.solve(
        np.einsum("g,gij->ij", WEIGHTS, curvature),
        np.einsum("g,gij,gj->i", WEIGHTS, curvature, THETA),
    )


def test_modelling_error_of_linear_tasks():
    a = 0.3
    turn = np.eye(2) - a * Q
    bent = turn @ Q @ turn
    drs, maml = minimiser(Q), minimiser(bent)
    squares = [
        float(WEIGHTS @ (np.einsum("gij,gj->gi", Q, point - THETA) ** 2).sum(-1))
        for point in (maml, drs)
    ]
    known = nonconvex.linear_constants(WEIGHTS, Q, THETA, SIGMA2, at=drs)
    close(known.L_plus, 2.207106781186548)
    found = nonconvex.modelling_error_bound(
        known, inner_lr=a, square_at_maml=squares[0], square_at_drs=squares[1]
    )
    close(found, cases.VALUE_BOUND)
    away = drs - maml
    exact = 0.5 * away @ np.einsum("g,gij->ij", WEIGHTS, bent) @ away
    assert exact == pytest.approx(cases.VALUE_EXACT, rel=1e-12)
    assert exact <= found


def test_linear_tasks_have_the_constants_of_result_31():
    drs = minimiser(Q)
    known = nonconvex.linear_constants(WEIGHTS, Q, THETA, SIGMA2, at=drs)
    assert (known.ell, known.rho) == (0.0, 0.0)
    for a in (0.1, 0.3, -0.2):
        stretch = nonconvex.kappa(known, inner_lr=a)
        expected = 2.0 * abs(a) * stretch * known.sigma_gamma * known.sigma_Hgamma
        close(nonconvex.modelling_gradient(known, inner_lr=a), expected)
        turn = np.eye(2) - a * Q
        slope = np.einsum("g,gij,gj->i", WEIGHTS, turn @ Q @ turn, drs - THETA)
        assert np.linalg.norm(slope) <= expected
    rates = np.linspace(0.0, 2.0 / known.L, 9)
    sharp = nonconvex.quadratic_smoothness(Q, inner_lr=rates)
    assert (sharp <= known.L * (1 + 1e-12)).all()
    assert (sharp <= nonconvex.maml_smoothness(known, inner_lr=rates) * (1 + 1e-12)).all()
    spectrum = np.linalg.eigvalsh(Q).ravel()
    close(
        nonconvex.quadratic_smoothness(Q, inner_lr=0.3, steps=2),
        (spectrum * (1 - 0.3 * spectrum) ** 4).max(),
    )


def test_noise_of_linear_tasks_is_that_of_simulated_samples():
    """Mean squared deviations of 200000 one-sample gradients and Hessians, within 5 standard
    errors (chance of a false alarm below 1e-6 for each of the four numbers)."""
    rng = np.random.default_rng(3)
    at = np.array([0.25, 0.5])
    for g in range(2):
        x = rng.multivariate_normal(np.zeros(2), Q[g], 200_000)
        noise = math.sqrt(SIGMA2[g]) * rng.standard_normal(200_000)
        slopes = ((x @ (at - THETA[g])) - noise)[:, None] * x
        mean = Q[g] @ (at - THETA[g])
        outer = np.einsum("ni,nj->nij", x, x) - Q[g]
        known = nonconvex.linear_constants(
            [1.0], Q[g : g + 1], THETA[g : g + 1], SIGMA2[g : g + 1], at=at
        )
        for sample, exact in (
            (((slopes - mean) ** 2).sum(-1), known.sigma_g**2),
            ((outer**2).sum((-2, -1)), known.sigma_H**2),
        ):
            error = sample.std() / math.sqrt(len(sample))
            assert abs(sample.mean() - exact) < 5.0 * error


def test_torch_tensors_and_arrays_broadcast():
    rates = torch.tensor([[0.1], [-0.2]], dtype=torch.float32)
    found = nonconvex.maml_variance(B0, inner_lr=rates, samples=torch.tensor([4, 8, 16]), queries=4)
    assert found.shape == (2, 3)
    assert found.dtype == np.float64
    single = nonconvex.maml_variance(B0, inner_lr=float(rates[1]), samples=8, queries=4)
    assert found[1, 1] == pytest.approx(float(single), rel=1e-14)
