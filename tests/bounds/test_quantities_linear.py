"""What `bounds.linear` returns keeps the standing of the numbers that describe the law, and is a
float or an array wherever one is asked for."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest

from innerloop.bounds import Quantities, Quantity, linear, nonconvex, plug_in

W1 = {
    "weights": np.array([0.5, 0.5]),
    "Q": np.array([[[2.0, 0.5], [0.5, 1.0]], [[0.5, -0.2], [-0.2, 1.5]]]),
    "theta": np.array([[1.0, -1.0], [0.5, 2.0]]),
    "sigma2": np.array([0.5, 1.0]),
}
STEP = {"inner_lr": 0.3, "samples": 5}
OF_A_LAW = {
    "risk": lambda law: linear.risk(law, [0.1, 0.2], **STEP),
    "risk, rates": lambda law: linear.risk(law, [0.1, 0.2], inner_lr=[0.1, 0.3], samples=5),
    "modelling_error": lambda law: linear.modelling_error(law, **STEP),
    "modelling_error_bound": lambda law: linear.modelling_error_bound(law, inner_lr=0.3),
    "crossover": lambda law: linear.crossover(law, **STEP),
    "expansion": lambda law: linear.expansion(law, **STEP).drs,
    "probability_drs_worse": lambda law: linear.probability_drs_worse(law, tasks=50, **STEP),
    "score_fourth_moment": lambda law: linear.score_fourth_moment(law, method="drs", **STEP),
    "optimal_test_rate": lambda law: linear.optimal_test_rate(law, [0.1, 0.2], samples=5),
    "risk_k_steps": lambda law: linear.risk_k_steps(
        law, [0.1, 0.2], inner_lr=0.1, steps=2, samples=5
    ),
    "matrix_rate_risk": lambda law: linear.matrix_rate_risk(
        law, [0.1, 0.2], rate=0.1 * np.eye(2), samples=5
    ),
    "coarse_rates": lambda law: linear.coarse_rates(law, **STEP).drs,
    "analyse": lambda law: linear.analyse(law, tasks=100, **STEP).drs_excess,
}


@pytest.mark.parametrize("name", OF_A_LAW)
@pytest.mark.parametrize("data", W1)
def test_a_law_of_estimates_has_estimated_results(name, data):
    function = OF_A_LAW[name]
    plain = function(linear.Mixture(**W1))
    assert plain.standing == "assumed"
    found = function(linear.Mixture(**{**W1, data: plug_in(W1[data])}))
    assert found.standing == "plug-in"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(plain))


def test_the_published_law_of_an_estimated_scale():
    assert linear.crossover(linear.published_law(1, 2.0), **STEP).standing == "assumed"
    assert linear.crossover(linear.published_law(1, plug_in(2.0)), **STEP).standing == "plug-in"


COARSE = {"curvature": 1.0, "noise": 1.0, "distance": 0.0, "smallest": 1.0}
MOMENTS = {**COARSE, "step_square": 1.0, "step_noise": 1.0, "step_trace": 1.0}


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize("word", ["single", "several"])
def test_coarse_parameters_mark_their_bounds(name, word):
    value = plug_in(MOMENTS[name] if word == "single" else [MOMENTS[name], 2.0])
    found = linear.maml_score_bound(**STEP, **{**MOMENTS, name: value})
    assert found.standing == "plug-in"
    assert isinstance(found, Quantity if word == "single" else Quantities)
    if name in COARSE:
        found = linear.joint_score_bound(p=1, samples=5, **{**COARSE, name: value})
        assert found.standing == "plug-in"


def test_what_is_measured_on_a_table_is_an_estimate():
    rng = np.random.default_rng(0)
    sides = [rng.standard_normal((12, 6, 1)) for _ in range(4)]
    found = linear.estimate(*sides, inner_lr=0.1)
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if isinstance(value, Quantity):
            assert value.standing == "plug-in", field.name
    gap = nonconvex.sgd_bound(
        smoothness=1.0, gap=max(found.drs, found.maml, key=float), variance=1.0, updates=10
    )
    assert gap.standing == "plug-in"


def test_results_are_still_numbers():
    law = linear.Mixture(**W1)
    single = linear.risk(law, [0.1, 0.2], **STEP)
    several = linear.risk(law, [0.1, 0.2], inner_lr=[0.1, 0.3], samples=5)
    assert isinstance(single, float)
    assert isinstance(several, np.ndarray)
    assert several[1] == single
    assert f"{single:.3f}" == f"{float(single):.3f}"
    assert json.loads(json.dumps([single, *several])) == [float(single), *several.tolist()]
    for value in (single, several):
        again = pickle.loads(pickle.dumps(value))
        np.testing.assert_array_equal(np.asarray(again), np.asarray(value))
        assert again.standing == value.standing
        assert type(np.asarray(value)) is np.ndarray
        assert np.all(2 * value - value == value)
        assert np.all(value > 0)
