"""What `bounds.linear` returns keeps the standing of the numbers that describe the law, and is a
float or an array wherever one is asked for."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle

import numpy as np
import pytest

from helpers import sweep
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


ARGUMENTS = {
    "inner_lr": 0.1, "samples": 5, "tasks": 1000, "delta": 0.1, "theta": [0.1, 0.2], "margin": 0.3,
}  # fmt: skip
FUNCTIONS = {
    name: function
    for name in linear.__all__
    if inspect.isfunction(function := getattr(linear, name))
    and "law" in inspect.signature(function).parameters
}
TAKEN = [
    (name, argument)
    for name, function in FUNCTIONS.items()
    for argument in ARGUMENTS
    if argument in inspect.signature(function).parameters
]


def standings(value):
    """The standings of all quantities in a result."""
    if isinstance(value, (Quantity, Quantities)):
        return {value.standing}
    if dataclasses.is_dataclass(value):
        value = tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    if isinstance(value, tuple):
        return set().union(*map(standings, value))
    return set()


@pytest.mark.parametrize(
    ("name", "argument"),
    sweep(TAKEN, [case for case in TAKEN if case[0] != "analyse" or case[1] == "inner_lr"]),
)
def test_an_estimate_among_the_arguments_is_an_estimate_in_the_results(name, argument):
    function = FUNCTIONS[name]
    known = {**ARGUMENTS, "steps": 2, "method": "maml", "penalty": 0.1, "rate": 0.1 * np.eye(2)}
    parameters = inspect.signature(function).parameters
    given = {k: v for k, v in known.items() if k in parameters}
    missing = [
        k for k, p in parameters.items() if p.default is p.empty and k not in ("law", *given)
    ]
    if missing:
        pytest.skip(f"takes {missing} as well")
    same = {**W1, "Q": np.repeat(W1["Q"][:1], 2, axis=0)}  # which some results ask for
    law = linear.Mixture(**(same if "training_rate" in name else W1))
    plain = standings(function(law, **given))
    found = standings(function(law, **{**given, argument: plug_in(given[argument])}))
    if plain:
        assert "plug-in" in found
        in_all = name not in ("coarse_rates", "optimal_training_rate")  # some do not mention it
        assert found == {"plug-in"} or not in_all


def test_variances_that_are_estimates_make_a_law_of_estimates():
    for estimated in ("tau2", "sigma2"):
        given = {"tau2": 1.0, "sigma2": 0.5}
        law = linear.centroid_law([[1.0]], **{**given, estimated: plug_in(given[estimated])})
        assert linear.risk(law, [0.0], inner_lr=0.1, samples=5).standing == "plug-in"
