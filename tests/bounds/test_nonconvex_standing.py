"""An estimate that goes into a bound comes out as an estimate: for every function that takes
constants, every constant that its formula mentions, whatever the constant's value is.

What a formula mentions is written down here from docs/theory/nonconvex.md, by hand and for each
result, and not asked of the code.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import itertools
import pickle

import numpy as np
import pytest
from nonconvex_cases import B0, SIZES, quantity, standing

from innerloop.bounds import Quantities, Quantity, nonconvex
from innerloop.bounds.nonconvex import Constants

ALL = dataclasses.replace(B0, G2=0.9, mean_gradient=0.8)
NO_MAML = dataclasses.replace(ALL, gap_maml=None)
SEVERAL = {**SIZES, "steps": 2}

TASK = "L_plus ell"
SAMPLE = f"{TASK} L_plus_s ell_s"
SMOOTH = f"{TASK} rho G G2"
SMOOTH_N = f"{SMOOTH} {SAMPLE} rho_s sigma_g"
DRS_NOISE = "sigma_gamma sigma_g"
MAML_NOISE_K = f"{SAMPLE} sigma_g sigma_gamma G G2"
MAML_NOISE = f"{MAML_NOISE_K} rho sigma_Hgamma sigma_H mean_gradient"
LINK = f"{TASK} rho sigma_gamma sigma_Hgamma G G2"
BIAS = f"{TASK} rho sigma_g sigma_H"
CRUDE_N = f"{SAMPLE} sigma_g G G2"
DRS_CERTIFICATE = f"{TASK} gap_drs {DRS_NOISE} {LINK} {BIAS}"
MAML_CERTIFICATE = f"{SMOOTH_N} gap_maml {MAML_NOISE}"
BOTH = f"{DRS_CERTIFICATE} {MAML_CERTIFICATE}"
BUDGET = {"budget": 64_000, "batch": 8, **SIZES}

# function, what differs: constants -> a number, and the constants that its formula mentions
OF_CONSTANTS = {
    "kappa": (lambda c: nonconvex.kappa(c, inner_lr=0.1), TASK),
    "kappa, samples": (lambda c: nonconvex.kappa(c, inner_lr=0.1, per_sample=True), SAMPLE),
    "kappa, rates": (lambda c: nonconvex.kappa(c, inner_lr=[0.0, 0.1]), TASK),
    "maml_smoothness": (lambda c: nonconvex.maml_smoothness(c, inner_lr=0.1), SMOOTH),
    "maml_smoothness, rate 0": (lambda c: nonconvex.maml_smoothness(c, inner_lr=0.0), SMOOTH),
    "maml_smoothness, gradient": (
        lambda c: nonconvex.maml_smoothness(
            c, inner_lr=0.1, gradient_norm=quantity(1.0, "g", "certified")
        ),
        f"{TASK} rho",
    ),
    "maml_smoothness, N": (
        lambda c: nonconvex.maml_smoothness(c, inner_lr=0.1, samples=4),
        SMOOTH_N,
    ),
    "maml_smoothness, N, K": (
        lambda c: nonconvex.maml_smoothness(c, inner_lr=0.1, samples=4, steps=2, sharp=True),
        SMOOTH_N,
    ),
    "maml_smoothness, grid": (
        lambda c: nonconvex.maml_smoothness(c, inner_lr=[0.1, -0.1], samples=[[1], [4]]),
        SMOOTH_N,
    ),
    "value_interval": (
        lambda c: (
            nonconvex.value_interval(
                c, inner_lr=0.1, gradient_square=quantity(1.0, "g2", "certified")
            ).lower
        ),
        "ell",
    ),
    "value_interval, upper, N": (
        lambda c: (
            nonconvex.value_interval(
                c, inner_lr=0.1, gradient_square=quantity(0.0, "g2", "certified"), samples=4
            ).upper
        ),
        "L_plus sigma_g",
    ),
    "sampling_gap": (
        lambda c: nonconvex.sampling_gap(c, inner_lr=0.1, samples=4),
        f"{TASK} sigma_g",
    ),
    "maml_gap": (lambda c: nonconvex.maml_gap(c, inner_lr=0.1), "gap_maml"),
    "maml_gap, derived": (
        lambda c: nonconvex.maml_gap(without_gap(c), inner_lr=0.1),
        "gap_drs L_plus G G2",
    ),
    "maml_gap, derived, N": (
        lambda c: nonconvex.maml_gap(without_gap(c), inner_lr=-0.1, samples=4),
        "gap_drs L_plus G G2 sigma_g",
    ),
    "gradient_bias": (lambda c: nonconvex.gradient_bias(c, inner_lr=0.1, samples=4), BIAS),
    "gradient_bias, population": (
        lambda c: nonconvex.gradient_bias(c, inner_lr=0.1, samples=None),
        BIAS,
    ),
    "gradient_bias, other batch": (
        lambda c: nonconvex.gradient_bias(c, inner_lr=0.1, samples=4, same_batch=False),
        f"{TASK} rho sigma_g",
    ),
    "gradient_bias, first order": (
        lambda c: nonconvex.gradient_bias(c, inner_lr=0.1, samples=4, order=1),
        f"{TASK} rho sigma_g G G2",
    ),
    "difference_error": (
        lambda c: nonconvex.difference_error(
            c, inner_lr=0.1, step=0.01, vector_norm=quantity(1.0, "v", "certified")
        ),
        "rho",
    ),
    "maml_variance": (lambda c: nonconvex.maml_variance(c, **SIZES), MAML_NOISE),
    "maml_variance, K": (lambda c: nonconvex.maml_variance(c, **SEVERAL), MAML_NOISE_K),
    "maml_variance, sharp": (lambda c: nonconvex.maml_variance(c, sharp=True, **SIZES), MAML_NOISE),
    "variance_terms, query": (
        lambda c: nonconvex.variance_terms(c, **SIZES).query,
        f"{SAMPLE} sigma_g",
    ),
    "variance_terms, c1": (
        lambda c: nonconvex.variance_terms(c, **SIZES).about_mean,
        f"{SAMPLE} sigma_g sigma_gamma G G2",
    ),
    "variance_terms, c2": (
        lambda c: nonconvex.variance_terms(c, **SIZES).about_zero,
        f"{SAMPLE} sigma_g G G2",
    ),
    "variance_terms, c3": (
        lambda c: nonconvex.variance_terms(c, **SIZES).about_steps,
        f"{SAMPLE} rho sigma_gamma sigma_Hgamma sigma_g sigma_H G G2 mean_gradient",
    ),
    "drs_variance": (lambda c: nonconvex.drs_variance(c, samples=8), DRS_NOISE),
    "drs_variance, exact": (lambda c: nonconvex.drs_variance(c, samples=None), DRS_NOISE),
    "sample_complexity": (
        lambda c: nonconvex.sample_complexity(c, epsilon=0.1, **SIZES).ratio,
        f"{TASK} gap_drs {DRS_NOISE} {MAML_CERTIFICATE}",
    ),
    "sample_complexity, K": (
        lambda c: nonconvex.sample_complexity(c, epsilon=[0.1, 0.2], **SEVERAL).limit,
        f"{TASK} gap_drs {DRS_NOISE} {SMOOTH_N} gap_maml {MAML_NOISE_K}",
    ),
    "gradient_gap": (lambda c: nonconvex.gradient_gap(c, inner_lr=0.1), f"{TASK} G G2"),
    "gradient_gap, N": (lambda c: nonconvex.gradient_gap(c, inner_lr=0.1, samples=4), CRUDE_N),
    "modelling_gradient": (lambda c: nonconvex.modelling_gradient(c, inner_lr=0.1), LINK),
    "maml_gradient_bound": (
        lambda c: nonconvex.maml_gradient_bound(quantity(0.0, "g", "certified"), c, inner_lr=0.1),
        LINK,
    ),
    "modelling_error_bound": (
        lambda c: nonconvex.modelling_error_bound(
            c,
            inner_lr=0.1,
            square_at_maml=quantity(1.0, "m", "certified"),
            square_at_drs=quantity(0.0, "d", "certified"),
        ),
        TASK,
    ),
    "inverse_link": (lambda c: nonconvex.inverse_link(c, inner_lr=0.1).slope, TASK),
    "inverse_link, N": (
        lambda c: nonconvex.inverse_link(c, inner_lr=0.1, samples=4).noise,
        f"{SAMPLE} sigma_g",
    ),
    "relative_constants": (
        lambda c: relative(c).smoothness[0],
        f"{SAMPLE} rho rho_s sigma_gamma sigma_g",
    ),
    "relative_constants, slope": (lambda c: relative(c).smoothness[1], f"{SAMPLE} rho rho_s"),
    "relative_constants, variance": (
        lambda c: relative(c).variance[0],
        f"{SAMPLE} sigma_gamma sigma_g",
    ),
    "relative_constants, growth": (lambda c: relative(c).variance[1], SAMPLE),
    "relative_constants, least": (lambda c: relative(c).least, SAMPLE),
    "adaptive_sgd_bound": (
        lambda c: nonconvex.adaptive_sgd_bound(
            relative(c), gap=quantity(2.0, "gap", "certified"), updates=100
        ),
        f"{SAMPLE} rho rho_s sigma_gamma sigma_g",
    ),
    "crossover_budget": (lambda c: nonconvex.crossover_budget(c, batch=8, **SIZES).budget, BOTH),
    "crossover_budget, level": (
        lambda c: nonconvex.crossover_budget(c, batch=8, **SIZES).level,
        BOTH,
    ),
    "crossover_budget, guaranteed": (
        lambda c: nonconvex.crossover_budget(c, batch=8, **SIZES).guaranteed,
        BOTH,
    ),
    "crossover_budget, derived gap": (
        lambda c: nonconvex.crossover_budget(without_gap(c), batch=8, **SIZES).budget,
        BOTH.replace("gap_maml", "gap_drs"),
    ),
    "crossover_budget, population": (
        lambda c: nonconvex.crossover_budget(c, objective="population", batch=8, **SIZES).budget,
        f"{DRS_CERTIFICATE} {SMOOTH} gap_maml {MAML_NOISE}",
    ),
    "crossover_budget, K": (
        lambda c: nonconvex.crossover_budget(c, batch=8, **SEVERAL).budget,
        f"{TASK} gap_drs {DRS_NOISE} {CRUDE_N} {SMOOTH_N} gap_maml {MAML_NOISE_K}",
    ),
    "compare, joint training": (
        lambda c: nonconvex.compare(c, **BUDGET).drs.maml,
        DRS_CERTIFICATE,
    ),
    "compare, MAML": (lambda c: nonconvex.compare(c, **BUDGET).maml.maml, MAML_CERTIFICATE),
    "compare, both": (lambda c: nonconvex.compare(c, **BUDGET), BOTH),
    "compare, rate": (
        lambda c: nonconvex.compare(c, **BUDGET).drs.rate,
        f"{TASK} gap_drs {DRS_NOISE}",
    ),
    "elasticities": (
        lambda c: nonconvex.elasticities(lambda known: known.L_plus + known.ell, c).popitem()[1],
        " ".join(ALL.known()),
    ),
}


def without_gap(c):
    return dataclasses.replace(c, gap_maml=None)


def relative(c):
    return nonconvex.relative_constants(c, inner_lr=0.05, samples=4, queries=4)


LARGEST = {"smoothness": 1.3, "gap": 2.0, "variance": 0.7}
# the same for functions of single numbers, each with a value
OF_NUMBERS = {
    "best_rate": (lambda **a: nonconvex.best_rate(updates=100, **a), LARGEST),
    "best_rate, slope": (
        lambda **a: nonconvex.best_rate(updates=100, **a),
        {**LARGEST, "slope": 1.0},
    ),
    "best_rate, biased": (
        lambda **a: nonconvex.best_rate(updates=100, bias=0.1, **a),
        LARGEST,
    ),
    "sgd_bound": (lambda **a: nonconvex.sgd_bound(updates=100, **a), LARGEST),
    "sgd_bound, slope": (
        lambda **a: nonconvex.sgd_bound(updates=100, **a),
        {**LARGEST, "slope": 1.0},
    ),
    "sgd_bound, rate": (
        lambda **a: nonconvex.sgd_bound(updates=[10, 100], rate=0.1, **a),
        LARGEST,
    ),
    "sgd_bound, bias": (
        lambda **a: nonconvex.sgd_bound(updates=100, **a),
        {**LARGEST, "bias": 0.1},
    ),
    "updates_needed": (lambda **a: nonconvex.updates_needed(epsilon=0.1, **a), LARGEST),
    "updates_needed, few": (lambda **a: nonconvex.updates_needed(epsilon=100.0, **a), LARGEST),
    "updates_needed, slope": (
        lambda **a: nonconvex.updates_needed(epsilon=0.1, **a),
        {**LARGEST, "slope": 1.0},
    ),
    "updates_needed, bias": (
        lambda **a: nonconvex.updates_needed(epsilon=0.1, **a),
        {**LARGEST, "bias": 0.05},
    ),
    "updates_needed, too much bias": (
        lambda **a: nonconvex.updates_needed(epsilon=0.1, **a),
        {**LARGEST, "bias": 0.5},
    ),
    "adaptive_sgd_bound, gap": (
        lambda gap: nonconvex.adaptive_sgd_bound(
            relative(standing("certified")), gap=gap, updates=100
        ),
        {"gap": 2.0},
    ),
    "maml_smoothness, gradient": (
        lambda **a: nonconvex.maml_smoothness(standing("certified"), inner_lr=0.1, **a),
        {"gradient_norm": 1.0},
    ),
    "gradient_gap, gradient": (
        lambda **a: nonconvex.gradient_gap(standing("certified"), inner_lr=0.1, **a),
        {"gradient_norm": 1.0},
    ),
    "value_interval": (
        lambda **a: nonconvex.value_interval(standing("certified"), inner_lr=0.1, **a).lower,
        {"gradient_square": 1.0},
    ),
    "difference_error": (
        lambda **a: nonconvex.difference_error(standing("certified"), inner_lr=0.1, step=0.1, **a),
        {"vector_norm": 1.0},
    ),
    "maml_gradient_bound": (
        lambda drs_gradient: nonconvex.maml_gradient_bound(
            drs_gradient, standing("certified"), inner_lr=0.1
        ),
        {"drs_gradient": 1.0},
    ),
    "modelling_error_bound": (
        lambda **a: nonconvex.modelling_error_bound(standing("certified"), inner_lr=0.1, **a),
        {"square_at_maml": 1.0, "square_at_drs": 0.2},
    ),
    "modelling_error_from_gradient": (
        lambda maml_gradient, growth: nonconvex.modelling_error_from_gradient(
            maml_gradient, growth=growth
        ),
        {"maml_gradient": 1.0, "growth": 0.5},
    ),
    "quadratic_smoothness": (
        lambda Q: nonconvex.quadratic_smoothness(Q, inner_lr=0.1),
        {"Q": np.diag([2.0, 1.0])},
    ),
    "linear_constants": (
        lambda **a: nonconvex.linear_constants(at=[0.0], **a).L_plus,
        {"weights": [1.0], "Q": [[[2.0]]], "theta": [[1.0]], "sigma2": [0.5]},
    ),
}
WEAKER = ("assumed", "plug-in", "heuristic")


def covered(name):
    return {label.partition(",")[0] for label in (*OF_CONSTANTS, *OF_NUMBERS)} >= {name}


def test_every_function_that_takes_constants_is_here():
    functions = [name for name in nonconvex.__all__ if inspect.isfunction(getattr(nonconvex, name))]
    assert [name for name in functions if not covered(name)] == []


def attempts(value):
    """The value itself, and values at which a constant hides: 0, the smaller one of a pair, the
    larger one."""
    return [value, 0.0 * np.asarray(value), 1e-9 * np.asarray(value), 3.0 * np.asarray(value)]


def assert_marked(label, values, words):
    """Marks each constant in turn, the rest certified, at some of its `attempts`."""
    function, mentioned = OF_CONSTANTS[label]
    mentioned = set(mentioned.split())
    assert function(standing("certified", ALL)).standing == "certified"
    for name, value in ALL.known().items():
        evaluated = 0
        for k, word in itertools.product(values, words):
            number = float(attempts(value)[k])
            try:
                found = function(standing("certified", ALL, **{name: (number, word)}))
            except ValueError:  # the value is outside what the function takes
                continue
            evaluated += 1
            expected = word if name in mentioned else "certified"
            assert found.standing == expected, f"{name} = {number:g}, {word}"
            if isinstance(found, (Quantity, Quantities)):
                assert (name in found.rests_on) == (name in mentioned)
        assert evaluated


@pytest.mark.parametrize("label", [label for label in OF_CONSTANTS if "compare" not in label])
def test_each_constant_that_a_formula_mentions_marks_its_result(label):
    slow = label.startswith("crossover")
    assert_marked(label, [0, 1] if slow else range(4), ["plug-in"] if slow else WEAKER)


@pytest.mark.slow
@pytest.mark.ci
def test_each_constant_that_a_comparison_mentions_marks_it():
    """At 0 where that is allowed; both certificates in one call."""
    parts = {
        "compare, joint training": lambda found: found.drs,
        "compare, MAML": lambda found: found.maml,
        "compare, both": lambda found: found,
        "compare, rate": lambda found: found.drs.rate,
    }
    for name, value in ALL.known().items():
        for number in (0.0, float(value)):
            with contextlib.suppress(ValueError):
                known = standing("certified", ALL, **{name: (number, "plug-in")})
                found = nonconvex.compare(known, **BUDGET)
                break
        for label, part in parts.items():
            mentioned = name in OF_CONSTANTS[label][1].split()
            assert part(found).standing == ("plug-in" if mentioned else "certified"), label


@pytest.mark.slow
@pytest.mark.parametrize("label", OF_CONSTANTS)
def test_each_constant_marks_its_result_at_every_value_with_every_word(label):
    assert_marked(label, range(4), WEAKER)


@pytest.mark.parametrize("label", OF_NUMBERS)
def test_each_number_that_a_formula_mentions_marks_its_result(label):
    function, values = OF_NUMBERS[label]

    def marked(name, value, word):
        if np.ndim(value):
            return np.asarray(value) * quantity(1.0, name, word)
        return quantity(float(value), name, word)

    sure = {name: marked(name, value, "certified") for name, value in values.items()}
    if all(np.ndim(value) == 0 for value in values.values()):
        assert function(**sure).standing == "certified"
    for name, value in values.items():
        evaluated = 0
        for number, word in itertools.product(attempts(value), WEAKER):
            try:
                found = function(**{**sure, name: marked(name, number, word)})
            except ValueError:
                continue
            evaluated += 1
            assert found.standing == word, f"{name} = {number}, {word}"
        assert evaluated >= 3


@pytest.mark.parametrize("label", OF_NUMBERS)
def test_plain_numbers_are_their_givers_word(label):
    function, values = OF_NUMBERS[label]
    found = function(**values)
    assert found.standing == ("certified" if label == "linear_constants" else "assumed")
    if label != "linear_constants":
        assert set(values) <= set(found.rests_on) | set(ALL.known())


@pytest.mark.slow
@pytest.mark.ci
def test_a_certificate_that_hides_an_estimate():
    """Each constant in turn is estimated as 0, below its true value: the certificate is then too
    small, and says what it rests on although its derivative there is 0."""
    true = nonconvex.compare(ALL, **BUDGET).maml.maml
    smaller = 0
    for name in ("ell", "L_plus_s", "ell_s", "sigma_H", "sigma_gamma", "mean_gradient", "rho"):
        found = nonconvex.compare(standing("certified", ALL, **{name: (0.0, "plug-in")}), **BUDGET)
        smaller += found.maml.maml < true
        assert found.maml.standing == found.standing == "plug-in"
        assert not found.maml.certified
        assert name not in found.maml.elasticities
        assert found.maml.maml.rests_on[name] == "plug-in"
        assert "plug-in: computed from estimates" in found.explain()
        assert "estimated: " + name in found.explain()
    assert smaller >= 5


def test_a_certified_number_is_certified_as_what_it_was_proved_to_be():
    family = nonconvex.TanhRegression(np.ones((2, 3, 1)), np.zeros((2, 3)))
    known = family.constants()
    assert set(known.standing.values()) == {"certified"}
    again = Constants(**known.known())
    assert again == known
    swapped = dataclasses.replace(known, L_plus=known.sigma_g, G=known.L_plus)
    halved = dataclasses.replace(known, L_plus=0.5 * known.L_plus)
    assert swapped.standing_of("L_plus") == swapped.standing_of("G") == "assumed"
    assert halved.standing_of("L_plus") == "assumed"
    assert known.scaled(L_plus=0.5).standing_of("L_plus") == "assumed"
    assert known.scaled(L_plus=0.5).standing_of("G") == "certified"
    sized = {"variance": known.sigma_g, "gap": known.L_plus}
    assert nonconvex.sgd_bound(smoothness=known.L, updates=9, **sized).standing == "certified"
    assert nonconvex.sgd_bound(smoothness=known.L / 2, updates=9, **sized).standing == "assumed"


def test_what_holds_at_points_is_the_word_of_who_chose_them():
    family = nonconvex.TanhRegression(np.ones((2, 3, 1)), np.zeros((2, 3)))
    local = family.constants(at=[0.3], start=[0.3])
    for name, word in local.standing.items():
        everywhere = name in ("L_plus", "ell", "rho", "L_plus_s", "ell_s", "rho_s", "gap_drs")
        assert word == ("certified" if everywhere else "assumed"), name
    linear = nonconvex.linear_constants([1.0], [[[2.0]]], [[1.0]], [0.5], at=[0.0], gap_drs=1.0)
    for name, word in linear.standing.items():
        assert word == ("certified" if name in ("L_plus", "ell", "rho") else "assumed"), name


@pytest.mark.parametrize("data", ["x", "y", "chances", "weights"])
def test_a_family_of_estimated_data_has_estimated_constants(data):
    parts = {"x": np.ones((2, 3, 1)), "y": np.full((2, 3), 0.3), "chances": np.full((2, 3), 1 / 3),
             "weights": np.full(2, 0.5)}  # fmt: skip
    parts[data] = parts[data] * quantity(1.0, data, "plug-in")
    known = nonconvex.TanhRegression(**parts).constants(at=[0.1], start=[0.2])
    assert set(known.standing.values()) == {"plug-in"}


@pytest.mark.parametrize("name", ["inner_lr", "samples", "queries", "batch", "budget", "steps"])
def test_a_setting_that_is_an_estimate_marks_the_result_too(name):
    setting = {**BUDGET, "steps": 1}
    setting[name] = quantity(setting[name], name, "plug-in")
    found = nonconvex.compare(standing("certified", ALL), **setting)
    assert found.maml.maml.rests_on[name] == "plug-in"
    assert found.standing == "plug-in"


def numbers(value, path=""):
    """(path, number) of every number in a result: fields, members, entries."""
    if isinstance(value, (Quantity, Quantities)) or type(value) in (float, int, np.float64):
        yield path, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from numbers(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, f"{path}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for k, item in enumerate(value):
            yield from numbers(item, f"{path}[{k}]")


SETTINGS = (".setting[", ".updates", ".budget")  # what the caller chose


def results(c):
    yield nonconvex.compare(c, **BUDGET)
    yield nonconvex.crossover_budget(c, objective="population", batch=8, **SIZES)
    yield nonconvex.sample_complexity(c, epsilon=0.1, **SIZES)
    yield nonconvex.sample_complexity(c, epsilon=[0.1, 1.0], **SIZES)
    yield nonconvex.inverse_link(c, inner_lr=0.1, samples=4)
    yield nonconvex.value_interval(c, inner_lr=[0.1, -0.1], gradient_square=1.0, samples=4)
    yield relative(c)
    yield nonconvex.variance_terms(c, **SIZES)


def ways_in(number):
    """Every way in which a number can come back."""
    plain = {"gap": 1.0, "variance": 1.0, "updates": 10}
    for name in ALL.known():
        known = dataclasses.replace(standing("certified", ALL), **{name: number})
        yield known.standing_of(name)
        yield known.known()[name].standing
    yield nonconvex.sgd_bound(smoothness=1.0 + number, **plain).standing
    yield nonconvex.sgd_bound(smoothness=1.0, **{**plain, "gap": number}).standing
    yield nonconvex.sgd_bound(smoothness=1.0, **{**plain, "variance": [number, 1.0]}).standing
    yield nonconvex.updates_needed(
        smoothness=1.0, gap=1.0, variance=number * np.ones(2), epsilon=1.0
    ).standing
    yield np.maximum(number, quantity(1e9, "large", "certified")).standing
    yield (0.0 * number).standing
    yield pickle.loads(pickle.dumps(number)).standing
    yield copy.deepcopy(number).standing
    yield quantity(number, "renamed", "certified").standing


@pytest.mark.parametrize("word", ["plug-in", "heuristic"])
def test_no_number_of_a_result_comes_back_as_more_than_it_was(word):
    rank = ["certified", "assumed", "plug-in", "heuristic"].index
    count = 0
    for result in results(standing(word, ALL)):
        for path, number in numbers(result):
            if any(part in path for part in SETTINGS) and type(number) in (float, int):
                continue
            assert isinstance(number, (Quantity, Quantities)), path
            single = number if isinstance(number, Quantity) else number.ravel()[0]
            if not 0.0 <= single < np.inf:  # no function takes it
                single = abs(single) if np.isfinite(single) else 1.0 + 0.0 * number.ravel()[0]
            assert rank(single.standing) >= rank(word) or path.endswith(".data"), path
            for again in ways_in(single):
                assert rank(again) >= rank(single.standing), path
            count += 1
    assert count > 70
