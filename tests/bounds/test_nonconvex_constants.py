"""What constants may be, what a missing one costs, and what results say about themselves."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from nonconvex_cases import B0, SIZES, standing

from innerloop.bounds import Quantity, nonconvex, plug_in
from innerloop.bounds.nonconvex import Constants


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"L_plus": -1.0}, ValueError, "L_plus must be finite and at least 0 .got -1"),
        ({"rho": float("nan")}, ValueError, "rho must be finite"),
        ({"G": float("inf")}, ValueError, "leave an unknown constant out"),
        ({"sigma_g": "big"}, TypeError, "sigma_g must be a number"),
        ({"L_plus": None}, TypeError, "L_plus must be a number"),
        *(
            ({name: value}, TypeError, f"{name} must be a number")
            for name in ("L_plus", "ell", "rho", "gap_maml")
            for value in ("1.5", b"1.5", np.str_("1.5"), True, np.True_)
        ),
        ({"L_plus": 0.0, "ell": 0.0}, ValueError, "L_plus or ell must be positive"),
    ],
)
def test_bad_constants_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(B0, **given)


def test_constants_take_tensors_and_numpy_numbers():
    c = Constants(L_plus=torch.tensor(2.0), ell=np.float32(0.5), G=3)
    assert (c.L_plus, c.ell, c.G, c.L) == (2.0, 0.5, 3.0, 2.0)
    assert all(type(value) is Quantity for value in c.known().values())
    assert c.scaled(L_plus=0.5).L_plus == 1.0
    with pytest.raises(ValueError, match="rho must be given"):
        c.scaled(rho=2.0)


def test_a_standing_cannot_be_asserted_only_carried():
    with pytest.raises(TypeError, match="standing"):
        Constants(L_plus=1.0, ell=0.5, standing="certified")
    assert set(B0.standing.values()) == {"assumed"}
    assert standing("certified") != B0
    assert dataclasses.replace(B0, rho=3.0).standing_of("rho") == "assumed"


def test_standing_reaches_the_results_and_their_text():
    mixed = dataclasses.replace(standing("certified"), rho=plug_in(2.0))
    for constants, expected in (
        (B0, {"assumed"}),
        (standing("certified"), {"checked"}),
        (mixed, {"checked", "estimated"}),
    ):
        found = nonconvex.modelling_gradient(constants, inner_lr=0.1)
        assert {item.standing for item in found.assumptions} == expected
    text = nonconvex.modelling_gradient(mixed, inner_lr=0.1).explain()
    assert "estimated: B3: every task's Hessian is rho-Lipschitz (rho = 2)" in text
    assert "plug-in: computed from estimates" in text
    assert "estimated: rho" in text
    assert "Result 27" in text
    assert "certified" in mixed.explain()
    assert "plug-in" in mixed.explain()
    assert (
        "holds if the numbers you gave hold"
        in nonconvex.compare(B0, budget=64_000, batch=8, **SIZES).explain()
    )


NEEDS = [
    (lambda c: nonconvex.maml_smoothness(c, inner_lr=0.1), "rho", "Result 21"),
    (lambda c: nonconvex.maml_smoothness(c, inner_lr=0.1, samples=2), "L_plus_s", "Result 21"),
    (lambda c: nonconvex.maml_smoothness(c, inner_lr=0.1, samples=2), "rho_s", "Result 21"),
    (lambda c: nonconvex.maml_smoothness(c, inner_lr=0.1, samples=2), "sigma_g", "Result 21"),
    (lambda c: nonconvex.maml_smoothness(c, inner_lr=0.1), "G", "Result 21"),
    (lambda c: nonconvex.sampling_gap(c, inner_lr=0.1, samples=2), "sigma_g", "Result 22"),
    (lambda c: nonconvex.gradient_bias(c, inner_lr=0.1, samples=2), "sigma_H", "Result 23"),
    (lambda c: nonconvex.gradient_bias(c, inner_lr=0.1, samples=2), "sigma_g", "Result 23"),
    (lambda c: nonconvex.difference_error(c, inner_lr=0.1, step=1, vector_norm=1), "rho", "23"),
    (lambda c: nonconvex.maml_variance(c, **SIZES), "ell_s", "Result 24"),
    (lambda c: nonconvex.maml_variance(c, **SIZES), "G", "Result 24"),
    (lambda c: nonconvex.drs_variance(c, samples=2), "sigma_gamma", "Result 24"),
    (lambda c: nonconvex.modelling_gradient(c, inner_lr=0.1), "sigma_Hgamma", "Result 27"),
    (lambda c: nonconvex.sample_complexity(c, epsilon=0.1, **SIZES), "gap_drs", "Result 25"),
    (
        lambda c: nonconvex.relative_constants(c, inner_lr=0.1, samples=1, queries=1),
        "sigma_gamma",
        "Result 30",
    ),
]


@pytest.mark.parametrize(("call", "name", "result"), NEEDS)
def test_a_missing_constant_is_named_with_the_result_that_needs_it(call, name, result):
    call(B0)
    with pytest.raises(ValueError, match=rf"{name}.*must be given.*{result}"):
        call(dataclasses.replace(B0, **{name: None}))


def test_fewer_constants_give_weaker_bounds_that_still_hold():
    full = nonconvex.maml_variance(B0, **SIZES)
    for name in ("rho", "sigma_Hgamma", "sigma_H", "sigma_gamma"):
        less = dataclasses.replace(B0, **{name: None})
        assert nonconvex.maml_variance(less, **SIZES) > full
        if name in ("rho",):
            weaker = nonconvex.gradient_bias(less, inner_lr=0.1, samples=4)
            assert weaker == pytest.approx(1.05 * 0.1 * 0.5 / 2 + 0.01 * 0.8 * 0.5 / 4)
    assert nonconvex.gradient_gap(dataclasses.replace(B0, G2=0.5), inner_lr=0.1) == pytest.approx(
        0.105
    )


def test_sharp_forms_are_never_larger():
    rng = np.random.default_rng(0)
    for _ in range(200):
        above, below = rng.uniform(0.0, 3.0, 2)
        c = dataclasses.replace(
            B0,
            L_plus=above,
            ell=below,
            L_plus_s=above * rng.uniform(1.0, 3.0),
            ell_s=below * rng.uniform(1.0, 3.0),
            sigma_gamma=rng.uniform(0.0, 1.0),
        )
        grid = {"inner_lr": rng.normal(0.0, 0.5), "samples": [1, 4, 30], "queries": 3}
        for steps in (1, 2, 4):
            plain = nonconvex.maml_variance(c, steps=steps, **grid)
            sharp = nonconvex.maml_variance(c, steps=steps, sharp=True, **grid)
            assert (sharp <= plain * (1 + 1e-12)).all()
            options = {"inner_lr": grid["inner_lr"], "samples": [1, 4, 30], "steps": steps}
            plain = nonconvex.maml_smoothness(c, **options)
            sharp = nonconvex.maml_smoothness(c, sharp=True, **options)
            assert (sharp <= plain * (1 + 1e-12)).all()


def test_sample_intervals_always_contain_the_tasks():
    narrow = dataclasses.replace(B0, L_plus_s=0.1, ell_s=0.1, rho_s=0.1)
    assert nonconvex.maml_smoothness(narrow, inner_lr=0.1, samples=4) == (
        nonconvex.maml_smoothness(B0, inner_lr=0.1, samples=4)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nonconvex.kappa(B0, inner_lr=float("nan")), "inner_lr must be finite"),
        (lambda: nonconvex.maml_smoothness(B0, inner_lr=0.1, steps=0), "steps .* at least 1"),
        (lambda: nonconvex.maml_variance(B0, inner_lr=0.1, samples=0, queries=1), "samples"),
        (lambda: nonconvex.gradient_bias(B0, inner_lr=0.1, samples=2, order=3), "order"),
        (lambda: nonconvex.inverse_link(B0, inner_lr=0.42), "Result 30 needs it"),
        (lambda: nonconvex.inverse_link(B0, inner_lr=0.25, steps=2), "must be below 2"),
        (
            lambda: nonconvex.value_interval(B0, inner_lr=0.1, gradient_square=-1.0),
            "gradient_square must be at least 0",
        ),
        (
            lambda: nonconvex.modelling_error_bound(
                B0, inner_lr=0.1, square_at_maml=0.0, square_at_drs=1.0
            ),
            "global minimisers",
        ),
        (
            lambda: nonconvex.modelling_error_from_gradient(0.1, growth=0.0),
            "growth must be positive",
        ),
        (lambda: nonconvex.crossover_budget(B0, steps=2, objective="population", **SIZES), "steps"),
        (lambda: nonconvex.crossover_budget(B0, objective="other", **SIZES), "objective"),
        (
            lambda: nonconvex.crossover_budget(dataclasses.replace(B0, gap_maml=0.0), **SIZES),
            "gap_maml must be positive",
        ),
        (lambda: nonconvex.compare(B0, budget=10, batch=8, **SIZES), "one update"),
        (lambda: nonconvex.difference_error(B0, inner_lr=1, step=0, vector_norm=1), "step must be"),
        (
            lambda: nonconvex.linear_constants([1.0], [[[1.0]]], [[1.0, 2.0]], [1.0], at=[0.0]),
            "must fit",
        ),
        (
            lambda: nonconvex.linear_constants([0.5], [[[1.0]]], [[1.0]], [1.0], at=[0.0]),
            "sum 1",
        ),
        (lambda: nonconvex.quadratic_smoothness([[-1.0]], inner_lr=0.1), "semidefinite"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_bound_beyond_floating_point_is_infinite_with_a_reason():
    found = nonconvex.maml_smoothness(B0, inner_lr=1.0, steps=2000)
    assert np.isinf(found)
    assert "floating-point range" in found.explain()
    assert np.isinf(nonconvex.gradient_gap(B0, inner_lr=1.0, steps=2000))


def test_results_survive_pickle_and_json():
    found = nonconvex.maml_variance(B0, **SIZES)
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert again.assumptions == found.assumptions
    for record in (
        B0,
        nonconvex.crossover_budget(B0, batch=8, **SIZES),
        nonconvex.sample_complexity(B0, epsilon=0.1, **SIZES),
        nonconvex.value_interval(B0, inner_lr=0.1, gradient_square=1.0),
        nonconvex.inverse_link(B0, inner_lr=0.1),
        nonconvex.relative_constants(B0, inner_lr=0.1, samples=1, queries=1),
    ):
        assert json.loads(json.dumps(record.to_dict()))
        assert record.explain()
