"""Extreme eigenvalues from products: known spectra, rank deficiency, and how often they fail."""

import math

import numpy as np
import pytest
import torch

from innerloop.bounds import constants


def diagonal(*spectra):
    """Returns the product of diagonal matrices, one spectrum per task."""
    values = torch.tensor(np.array(spectra), dtype=torch.float64)
    return lambda v: v * values


def starts(tasks, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, size, generator=generator, dtype=torch.float64)


def test_check_values():
    # 1.648 * 20 * exp(-39 sqrt(0.1)) and the power bound of the same problem
    assert float(constants.lanczos_failure(0.1, 20, 400)) == pytest.approx(1.45172e-4, rel=1e-5)
    assert float(constants.power_failure(0.1, 20, 400)) == pytest.approx(0.6582, abs=5e-5)
    assert constants.products_needed(0.05, 0.01, 10**6) == 28


@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize("size", [3, 400, 10**6])
@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("delta", [0.1, 1e-4])
def test_products_needed_is_the_least_number(method, size, eps, delta):
    failure = {"lanczos": constants.lanczos_failure, "power": constants.power_failure}[method]
    k = constants.products_needed(eps, delta, size, method=method)
    assert float(failure(eps, k, size)) <= delta
    assert k == 1 or float(failure(eps, k - 1, size)) > delta


def test_sharp_bound_is_a_beta_probability_below_the_classical_one():
    eps, k, size = np.meshgrid([0.01, 0.1, 0.5], [1, 5, 20, 80], [2, 12, 400, 10**6])
    sharp = constants.lanczos_failure(eps, k, size, sharp=True)
    classical = constants.lanczos_failure(eps, k, size)
    assert (sharp <= classical).all()
    assert (sharp < 0.9 * classical)[(classical < 1) & (classical > 1e-250)].any()
    # p = 2: the start's angle is uniform, so the beta probability is an arc
    angle = 3 * math.atanh(math.sqrt(0.3))
    arc = 2 / math.pi * math.asin(1 / math.cosh(angle))
    assert float(constants.lanczos_failure(0.3, 2, 2, sharp=True)) == pytest.approx(arc)
    assert float(constants.lanczos_failure(0.3, 2, 1, sharp=True)) == 0.0


def test_failure_bounds_are_vectorised_and_explained():
    bounds = constants.lanczos_failure(np.array([0.1, 0.2]), np.array([[5], [30]]), 400)
    assert bounds.shape == (2, 2)
    assert (bounds <= 1).all()
    one = constants.lanczos_failure(0.1, 20, 400)
    assert "Result 32" in one.explain()
    assert one.to_dict()["assumptions"][1]["standing"] == "checked"


# Spectra on which under-estimation by a tenth is as likely as it gets: the rest of the spectrum
# lies just below the target, in one lump, spread out, or where the extremal polynomial peaks.
SIZE, EPS = 400, 0.1
SPECTRA = {
    "lump": [1.0] + [0.9 - 1e-9] * (SIZE - 1),
    "spread": [1.0, *np.linspace(0.0, 0.9 - 1e-9, SIZE - 1)],
    "two ends": [1.0] + [0.0, 0.9 - 1e-9] * 199 + [0.0],
    "peaks": [1.0, *(0.9 * np.cos(np.linspace(0.0, 1.57, SIZE - 1)) ** 2 - 1e-9)],
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("products", [6, 10])
def test_lanczos_fails_no_more_often_than_bounded(spectrum, products):
    trials = 600
    product = diagonal(*[SPECTRA[spectrum]] * trials)
    found = constants.largest_eigenvalue(product, starts(trials, SIZE), products)
    assert bool((found.value <= 1.0 + 1e-12).all())
    failures = int((found.value < 1.0 - EPS).sum())
    exact = float(constants.lanczos_failure(EPS, products, SIZE, sharp=True))
    assert exact < constants.lanczos_failure(EPS, products, SIZE)
    # 4 standard errors above: false alarm below 1e-4 for each spectrum
    assert failures / trials <= exact + 4 * math.sqrt(exact * (1 - exact) / trials)
    if products == 6 and spectrum in ("spread", "peaks"):
        assert failures > 0  # the bound is not tested in vain


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("products", [30, 40])
def test_power_iteration_fails_no_more_often_than_bounded(spectrum, products):
    trials = 300
    product = diagonal(*[SPECTRA[spectrum]] * trials)
    found = constants.largest_eigenvalue(product, starts(trials, SIZE, 1), products, method="power")
    failures = int((found.value < 1.0 - EPS).sum())
    bound = float(constants.power_failure(EPS, products, SIZE))
    assert failures / trials <= bound + 4 * math.sqrt(bound * (1 - bound) / trials)


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_full_krylov_space_gives_both_ends(size):
    draw = np.random.default_rng(0).normal(size=(3, size))
    product = diagonal(*draw)
    found = constants.lanczos(product, starts(3, size), 200)
    assert found.diagonal.shape == (3, size)  # cut to the dimension
    low, high = constants.ritz(found, product)
    np.testing.assert_allclose(high.value, draw.max(1), atol=1e-10)
    np.testing.assert_allclose(low.value, draw.min(1), atol=1e-10)
    assert float(torch.maximum(low.residual, high.residual).max()) < 1e-9


def test_tasks_of_any_rank_at_once():
    """Krylov spaces that are exhausted early add nothing to either end."""
    spectra = [[0.0] * 6, [2.0] * 6, [-3.0] * 6, [5.0, 0, 0, 0, 0, 0], [-4.0, -4, 1, 1, 1, 1],
               [1e-12, 1, 2, 3, 4, 1e3]]  # fmt: skip
    product = diagonal(*spectra)
    low, high = constants.ritz(constants.lanczos(product, starts(6, 6), 6), product)
    np.testing.assert_allclose(high.value, np.max(spectra, axis=1), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(low.value, np.min(spectra, axis=1), rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(high.vector.norm(dim=1), 1.0, rtol=1e-12)
    assert float(high.residual.max()) < 1e-9


def test_basis_stays_orthonormal():
    """With a dominant eigenvalue plain Lanczos loses orthogonality in a few steps."""
    spectrum = [1e8, *np.linspace(0.0, 1.0, 199)]
    found = constants.lanczos(diagonal(spectrum), starts(1, 200), 60)
    gram = found.basis[0] @ found.basis[0].T
    assert float((gram - torch.eye(60, dtype=torch.float64)).abs().max()) < 1e-12


def test_residual_certifies_an_eigenvalue():
    spectra = np.random.default_rng(2).normal(size=(20, 50))
    product = diagonal(*spectra)
    for end in constants.ritz(constants.lanczos(product, starts(20, 50), 4), product):
        distance = np.abs(spectra - end.value.numpy()[:, None]).min(1)
        assert (distance <= end.residual.numpy() + 1e-12).all()
        assert (end.residual.numpy() > 1e-3).any()  # four products are not enough to converge


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: constants.lanczos_failure(0.0, 3, 4), "eps must lie"),
        (lambda: constants.lanczos_failure(math.nan, 3, 4), "eps must be finite"),
        (lambda: constants.power_failure(0.1, 0, 4), "products must be at least 1"),
        (lambda: constants.power_failure(0.1, 2, 0), "size must be at least 1"),
        (lambda: constants.products_needed(1.0, 0.1, 4), "eps must lie"),
        (lambda: constants.products_needed(0.1, 0.0, 4), "delta must lie"),
        (lambda: constants.products_needed(0.1, 0.1, 4, method="qr"), "method must be"),
        (lambda: constants.lanczos(lambda v: v, torch.zeros(1, 3), 2), "start must not be zero"),
        (lambda: constants.lanczos(lambda v: v, torch.ones(1, 3), 0), "products must be"),
        (lambda: constants.power_iteration(lambda v: v, torch.zeros(1, 3), 2), "start must not"),
        (
            lambda: constants.largest_eigenvalue(lambda v: v, torch.ones(1, 3), 2, method="qr"),
            "method must be",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
