"""No inequality is violated on random families, and the attack would notice if one were."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import sweep
from innerloop.bounds.nonconvex.attack import RATES, attack, random_family
from innerloop.bounds.nonconvex.simulation import Setting, modelling_error, simulate

KINDS = ("tanh", "logistic")
TOLERANCE = 1.0 + 1e-9  # rounding of measured / bound where a bound is attained


def family_and_rng(kind, seed):
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    return random_family(kind, rng), rng


def attacked(kind, seeds, **options):
    """Ratios of all families together."""
    ratios = {}
    for seed in seeds:
        family, rng = family_and_rng(kind, seed)
        for name, found in attack(family, rng, **options).items():
            ratios.setdefault(name, []).extend(found)
    return ratios


def assert_no_violation(ratios, least_cases):
    for name, found in ratios.items():
        assert len(found) >= least_cases, name
        assert np.isfinite(found).all(), name
        assert max(found) <= TOLERANCE, f"{name}: {max(found)}"
        assert max(found) > 0.01, f"{name} measures nothing"


@pytest.mark.parametrize("kind", sweep(KINDS, ["logistic"]))
def test_no_inequality_is_violated(kind):
    ratios = attacked(kind, range(4), points=4)
    assert len(ratios) == 51
    assert_no_violation(ratios, least_cases=24)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", range(3))
def test_no_inequality_is_violated_on_many_families(kind, part):
    ratios = attacked(kind, range(1000 + 60 * part, 1060 + 60 * part))
    assert_no_violation(ratios, least_cases=360)


HARD = (0.1, 1.0)
# Constants made too small by these factors, and inequalities that must then fail.
SPOILED = {
    "curvature": (
        dict.fromkeys(("L_plus", "ell", "rho", "L_plus_s", "ell_s", "rho_s"), 0.01),
        [
            *(f"smoothness, K={k}, bounded gradients" for k in (1, 2, 3)),
            *(f"smoothness, K={k}, one end point" for k in (1, 2, 3)),
            "smoothness, K=1, N=1, one end point",
            "smoothness, K=2, N=2, one end point, sharp",
            "smoothness relative to gradient",
            *(f"gradient gap, K={k}" for k in (1, 2, 3)),
            *(f"gradient gap, K={k}, N=1" for k in (1, 2, 3)),
            "value interval",
            "value interval, N=1",
            "sampling gap, N=2",
            "bias, first order",
            "inverse link",
            "inverse link, N=1",
            *(f"variance, K={k}" for k in (1, 2, 3)),
        ],
    ),
    "Hessian Lipschitz": (
        {"rho": 0.03, "rho_s": 0.03},
        ["finite-difference product", "bias, separate batch"],
    ),
    "gradients": ({"G": 0.1, "G2": 0.1}, ["bias, first order", "variance, K=1", "variance, K=2"]),
    "noise": (
        {"sigma_g": 0.1, "sigma_H": 0.1},
        [
            "bias, same batch",
            "sampling gap, N=1",
            "value interval, N=1",
            "variance, K=1, sharp",
            "variance of joint gradients",
        ],
    ),
    "spread": (
        {"sigma_gamma": 0.03, "sigma_Hgamma": 0.03},
        ["refined link", "refined link, N=1", "variance relative to gradient"],
    ),
}


@pytest.mark.parametrize("name", sweep(SPOILED, ["noise"]))
def test_the_attack_notices_constants_that_are_too_small(name):
    factors, expected = SPOILED[name]

    def spoil(constants):
        return constants.scaled(**factors)

    worst = {}
    for kind in KINDS:
        for label, found in attacked(kind, range(4), points=3, rates=HARD, change=spoil).items():
            worst[label] = max(worst.get(label, 0.0), *found)
    missed = [label for label in expected if worst[label] <= TOLERANCE]
    assert not missed


def test_rates_of_both_signs_are_attacked():
    assert min(RATES) < 0.0 < max(RATES)


def modelling_ratios(kind, seeds):
    ratios = []
    for seed in seeds:
        family, rng = family_and_rng(kind, seed)
        curvature = family.constants().L
        for rate in (-0.3, 0.3, 1.0):
            found = modelling_error(family, rate / curvature, rng, starts=3)
            assert found.measured >= 0.0
            if found.bound > 1e-9:
                ratios.append(found.ratio)
    return ratios


@pytest.mark.parametrize("kind", KINDS)
def test_modelling_error_is_within_its_bound(kind):
    pytest.importorskip("scipy")
    ratios = modelling_ratios(kind, range(4))
    assert len(ratios) >= 6
    assert 0.01 < max(ratios) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_modelling_error_is_within_its_bound_on_many_families(kind):
    pytest.importorskip("scipy")
    ratios = modelling_ratios(kind, range(2000, 2060))
    assert len(ratios) >= 90
    assert max(ratios) <= TOLERANCE


def test_modelling_error_bound_needs_its_curvature():
    """With curvature made 50 times smaller the bound fails, or is negative and refused."""
    pytest.importorskip("scipy")
    failed = 0
    for seed in range(6):
        family, rng = family_and_rng("tanh", seed)
        exact = family.constants()
        small = exact.scaled(L_plus=0.02, ell=0.02)
        for rate in (-1.0, 1.0):
            try:
                found = modelling_error(family, rate / exact.L, rng, starts=4, constants=small)
            except ValueError:
                failed += 1
            else:
                failed += found.measured > found.bound * TOLERANCE
    assert failed > 0


# method, inner rate in units of 1 / L (of 1 / L_s for the adaptive steps), further sizes
RUNS = {
    "joint training": ("drs", 0.3, {}),
    "MAML": ("maml", 0.3, {}),
    "MAML, negative rate": ("maml", -0.2, {"batch": 1}),
    "MAML, two steps": ("maml", 0.2, {"steps": 2, "samples": 2}),
    "MAML, population": ("maml, population", 0.3, {"samples": 2, "queries": 2}),
    "MAML, adaptive": ("maml, adaptive", 0.05, {}),
}


def sgd_outcomes(name, seeds, **sizes):
    method, rate, further = RUNS[name]
    for kind in KINDS:
        for seed in seeds:
            family, rng = family_and_rng(kind, seed)
            known = family.constants()
            scale = known.L_plus_s if method == "maml, adaptive" else known.L
            yield simulate(family, method, Setting(rate / scale, **{**sizes, **further}), rng)


@pytest.mark.parametrize("name", RUNS)
def test_simulated_sgd_stays_below_its_bound(name):
    """The mean over runs, minus 5 of its standard errors (a bound that held would fail by chance
    with probability below 1e-6), never exceeds the bound; here it does not come near."""
    for found in sgd_outcomes(name, range(3), updates=40, runs=24):
        assert found.measured - 5.0 * found.standard_error <= found.bound
        assert found.ratio < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_simulated_sgd_stays_below_its_bound_in_long_runs(name):
    for found in sgd_outcomes(name, range(3000, 3010), updates=400, runs=24):
        assert found.measured - 5.0 * found.standard_error <= found.bound


def test_simulated_sgd_would_exceed_a_bound_for_a_smaller_smoothness():
    """Constants 1000 times too small: the runs must leave the bound far behind."""
    worst = 0.0
    for seed in range(4):
        family, rng = family_and_rng("logistic", seed)
        exact = family.constants()
        wrong = exact.scaled(**dict.fromkeys(("L_plus", "ell", "sigma_g", "sigma_gamma"), 1e-3))
        found = simulate(family, "drs", Setting(0.1, updates=40), rng, constants=wrong)
        worst = max(worst, found.ratio)
    assert worst > 1.0
