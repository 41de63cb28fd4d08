"""Result 29: every crossing is found, the special cases say so, and what drives a crossover."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from nonconvex_cases import B0, SIZES, standing

from innerloop.bounds import nonconvex
from innerloop.bounds.nonconvex.complexity import Route
from innerloop.bounds.nonconvex.race import Race
from innerloop.bounds.nonconvex.race import race as made_race


def certificates(race, budget):
    """Both certificates at budgets that need not be whole updates: Result 25 (b) and (d)."""
    found = []
    for route, bias in ((race.drs, None), (race.maml, race.floor)):
        x = float(route.smoothness * route.gap * race.batch * route.task_samples) / budget
        noise = float(route.variance) / race.batch
        if bias is None:
            found.append(x + np.sqrt(x**2 + 2.0 * x * noise))
        else:
            best = np.where(2.0 * x <= noise, 2.0 * np.sqrt(2.0 * x * noise), 2.0 * x + noise)
            found.append(best + float(bias) ** 2)
    return (float(race.factor) * np.sqrt(found[0]) + float(race.offset)) ** 2, found[1]


def test_certificates_of_this_file_are_the_bounds_themselves():
    rng = np.random.default_rng(5)
    for floor in (False, True):
        for _ in range(20):
            race = random_race(rng, floor)
            updates = int(rng.integers(1, 1000))
            pair = certificates(race, updates * race.batch * 8.0)
            for value, route, bias in ((None, race.drs, None), (pair[1], race.maml, race.floor)):
                own = nonconvex.sgd_bound(
                    smoothness=route.smoothness, gap=route.gap, variance=route.variance,
                    updates=updates, batch=race.batch, bias=bias,
                )  # fmt: skip
                expected = (race.factor * np.sqrt(own) + race.offset) ** 2
                value, expected = (pair[0], expected) if value is None else (value, own)
                assert value == pytest.approx(float(expected), rel=1e-12)


def random_race(rng, floor):
    routes = [
        Route(10.0 ** rng.uniform(-1, 1), 10.0 ** rng.uniform(-1, 1), 10.0 ** rng.uniform(-3, 3), 8)
        for _ in range(2)
    ]
    offset = 10.0 ** rng.uniform(-3, 1)
    made = offset * 10.0 ** rng.uniform(-2, 0.3) if floor else None
    return Race(*routes, int(rng.integers(1, 9)), rng.uniform(1.0, 2.0), offset, made)


@pytest.mark.parametrize("floor", [False, True], ids=["samples", "population"])
def test_crossings_are_those_of_a_fine_grid(floor):
    rng = np.random.default_rng(int(floor))
    budgets = np.exp(np.linspace(-20.0, 45.0, 40_001))
    seen = set()
    for _ in range(150):
        race = random_race(rng, floor)
        drs, maml = certificates(race, budgets)
        ahead = maml < drs
        clear = np.abs(maml - drs) > 1e-9 * drs
        changes = np.flatnonzero(ahead[1:] != ahead[:-1])
        roots, maml_wins = race.crossings()
        found = sorted(math.exp(race.samples_drs(math.exp(root))) for root in roots)
        inside = [budget for budget in found if budgets[0] < budget < budgets[-1]]
        if clear[np.concatenate([changes, changes + 1])].all():
            assert len(inside) == len(changes)
            for budget, k in zip(inside, changes, strict=True):
                assert budgets[k] * (1 - 1e-9) <= budget <= budgets[k + 1] * (1 + 1e-9)
        if clear[-1] and (not found or found[-1] < budgets[-1]):
            assert ahead[-1] == maml_wins
        seen.add(len(found))
        for budget in inside:
            drs, maml = certificates(race, budget)
            assert drs == pytest.approx(float(maml), rel=1e-9)
    assert {0, 1} <= seen


def test_three_crossings_are_found():
    """Joint training is ahead with few samples by its smaller curvature, falls behind when the
    modelling term matters, is ahead again while MAML is noisy, and loses in the end."""
    race = Race(Route(1.0, 1.0, 0.015, 1), Route(1.022, 1.0, 12.1, 1), 1.0, 1.0, 1.0, None)
    roots, maml_wins = race.crossings()
    assert maml_wins
    budgets = sorted(math.exp(race.samples_drs(math.exp(root))) for root in roots)
    assert len(budgets) == 3
    between = np.sqrt(np.multiply(budgets[1:], budgets[:-1]))
    points = np.array([budgets[0] / 2.0, *between, budgets[-1] * 2.0])
    drs, maml = certificates(race, points)
    assert (maml < drs).tolist() == [False, True, False, True]


def test_beyond_the_crossover_maml_is_ahead_and_the_guarantee_holds():
    rng = np.random.default_rng(2)
    crossed = 0
    for _ in range(60):
        c = B0.scaled(
            **{name: 10.0 ** rng.uniform(-1.0, 1.0) for name in B0.known() if name != "ell"}
        )
        setting = {"inner_lr": 0.3 / c.L, "samples": 4, "queries": 4, "batch": 8}
        found = nonconvex.crossover_budget(c, **setting)
        assert found.budget <= found.guaranteed
        if 0.0 < found.budget < math.inf:
            crossed += 1
            near = found.budget * np.array([0.999, 1.001, 10.0, 1e6])
            drs, maml = certificates(made_race(c, **setting), near)
            assert (maml < drs).tolist() == [False, True, True, True]
            assert drs[0] == pytest.approx(found.level, rel=1e-2)
    assert crossed > 20


def test_no_crossover_says_why():
    never = nonconvex.crossover_budget(B0, inner_lr=0.0, samples=4, queries=4)
    assert math.isinf(never.budget)
    assert "no modelling term" in never.budget.explain()
    assert math.isinf(never.guaranteed)
    always = nonconvex.crossover_budget(B0, inner_lr=-0.1, samples=4, queries=4, batch=8)
    assert always.budget == 0.0
    assert "every budget" in always.explain()
    assert always.crossings == ()
    near = B0.scaled(gap_drs=0.1, gap_maml=0.1)  # they cross at a tenth, below one update
    late = nonconvex.crossover_budget(near, batch=8, **SIZES)
    assert late.budget == 0.0
    assert late.crossings == ()
    assert math.isnan(late.level)
    assert "every budget that pays for an update of each method (64 samples)" in late.explain()
    biased = nonconvex.crossover_budget(
        dataclasses.replace(B0, sigma_gamma=0.001), objective="population", batch=8, **SIZES
    )
    assert math.isinf(biased.budget)
    assert "bias floor" in biased.explain()
    assert math.isinf(biased.guaranteed)


def test_population_objective_has_its_own_crossover():
    found = nonconvex.crossover_budget(B0, objective="population", batch=8, **SIZES)
    assert found.offset == pytest.approx(0.0441)
    assert found.floor == pytest.approx(0.00165625)
    assert 0.0 < found.budget <= found.guaranteed < math.inf


def test_certificates_are_for_whole_updates_only():
    """What does not pay for an update is left over: 12.9 updates are 12."""
    twelve, more, thirteen = (
        nonconvex.compare(B0, budget=64 * updates, batch=8, **SIZES) for updates in (12, 12.9, 13)
    )
    assert more.maml.updates == 12
    for method in ("drs", "maml"):
        part = getattr(more, method)
        assert part.maml == getattr(twelve, method).maml > getattr(thirteen, method).maml
        assert part.rate == getattr(twelve, method).rate


def test_several_steps_need_their_own_initial_gap():
    """Result 22 bounds MAML's gap after one step only."""
    derived = dataclasses.replace(B0, gap_maml=None)
    assert nonconvex.compare(derived, budget=64_000, batch=8, **SIZES).maml.gap > 2.0
    for call in (nonconvex.crossover_budget, nonconvex.sample_complexity):
        further = {"epsilon": 0.1} if call is nonconvex.sample_complexity else {}
        with pytest.raises(ValueError, match=r"gap_maml .* must be given; .* for several steps"):
            call(derived, steps=2, **SIZES, **further)


def test_powers_beyond_floating_point_are_refused_with_the_reason():
    far = {**SIZES, "inner_lr": 3.0, "steps": 2000}
    for call, further in (
        (nonconvex.compare, {"budget": 64_000}),
        (nonconvex.crossover_budget, {}),
        (nonconvex.sample_complexity, {"epsilon": 0.1}),
    ):
        with pytest.raises(ValueError, match=r"keep kappa\^\(2 steps\) within floating point"):
            call(B0, **far, **further)
    zero = B0.scaled(sigma_g=0.0, G=0.0)  # 0 times infinity is not a number, and not printed
    for value in (
        nonconvex.maml_variance(zero, **far),
        nonconvex.maml_smoothness(zero, inner_lr=3.0, steps=2000, samples=4),
        nonconvex.gradient_gap(zero, inner_lr=3.0, steps=2000, samples=4),
    ):
        assert math.isinf(value)
        assert "floating-point range" in value.explain()


def test_several_steps_use_the_crude_link():
    found = nonconvex.crossover_budget(B0, steps=2, batch=8, **SIZES)
    assert found.factor == 1.0
    assert found.offset == pytest.approx(
        nonconvex.gradient_gap(B0, inner_lr=0.1, steps=2, samples=4)
    )
    rough = nonconvex.crossover_budget(dataclasses.replace(B0, sigma_Hgamma=None), batch=8, **SIZES)
    assert rough.factor == 1.0


def test_comparison_puts_the_results_together():
    found = nonconvex.compare(B0, budget=64_000, batch=8, **SIZES)
    assert found.drs.updates == found.maml.updates == 1000.0
    assert found.maml.maml == pytest.approx(0.02460487831917544, rel=1e-12)
    assert found.drs.own == pytest.approx(0.01612887115094479, rel=1e-12)
    expected = (1.1025 * math.sqrt(0.01612887115094479) + 0.0441 + 0.00165625) ** 2
    assert found.drs.maml == pytest.approx(expected, rel=1e-12)
    assert found.better == "maml"
    assert not found.maml.certified
    sure = nonconvex.compare(standing("certified"), budget=64_000, batch=8, **SIZES)
    assert sure.maml.certified
    assert sure.standing == sure.crossover.budget.standing == "certified"
    text = found.explain()
    for phrase in ("MAML has the smaller certificate", "assumed", "Result 29", "driven by"):
        assert phrase in text
    document = json.loads(json.dumps(found.to_dict()))
    assert document["crossover"]["budget"]["value"] == pytest.approx(520.3844755259573)
    assert document["maml"]["elasticities"]["gap_maml"] == found.maml.elasticities["gap_maml"]


def test_elasticities_are_logarithmic_derivatives():
    c = nonconvex.Constants(L_plus=2.0, ell=1.0, rho=3.0, sigma_g=0.5, gap_drs=1.0)
    found = nonconvex.elasticities(lambda known: known.L_plus * known.rho**-2 + 0.0, c)
    assert found == {"rho": pytest.approx(-2.0), "L_plus": pytest.approx(1.0)}
    assert list(found) == ["rho", "L_plus"]
    comparison = nonconvex.compare(B0, budget=64_000, batch=8, **SIZES)
    x, noise = 1.3175 * 2.0 / 1000.0, 0.7221743125 / 8
    root = math.sqrt(x * x + 2.0 * x * noise)
    expected = x * (1.0 + (x + noise) / root) / (x + root)
    assert comparison.maml.elasticities["gap_maml"] == pytest.approx(expected, rel=1e-6)


def test_losses_may_be_rescaled():
    """s times the loss at inner rate a / s: gradients scale by s, certificates by s^2, budgets
    not at all."""
    plain = nonconvex.compare(B0, budget=64_000, batch=8, **SIZES)
    scaled = nonconvex.compare(
        B0.scaled(**dict.fromkeys(B0.known(), 7.0)),
        budget=64_000,
        batch=8,
        inner_lr=0.1 / 7.0,
        samples=4,
        queries=4,
    )
    assert scaled.maml.maml == pytest.approx(49.0 * plain.maml.maml, rel=1e-12)
    assert scaled.drs.maml == pytest.approx(49.0 * plain.drs.maml, rel=1e-12)
    assert scaled.crossover.budget == pytest.approx(float(plain.crossover.budget), rel=1e-10)
