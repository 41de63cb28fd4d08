"""The report end to end: a network and a sampler in, an honest text and the same numbers out."""

import importlib
import json
import math

import pytest
import torch

import innerloop as il
from innerloop import bounds
from innerloop.bounds import constants, nonconvex

MODEL = il.MLP([1, 10, 1], activation="tanh")
START = MODEL.init(torch.Generator().manual_seed(0))
SECTIONS = ("ANSWER", "CERTIFICATES", "CROSSOVER", "WHAT DOMINATES", "HOW LOOSE", "CONSTANTS",
            "HOW TO READ THIS")  # fmt: skip


def sinusoids(count, generator):
    amplitude = 0.1 + 4.9 * torch.rand(count, 1, 1, generator=generator)
    phase = math.pi * torch.rand(count, 1, 1, generator=generator)
    x = 10 * torch.rand(count, 20, 1, generator=generator) - 5
    return x, amplitude * torch.sin(x + phase)


def make(**options):
    options = {"inner_lr": 0.01, "samples": 10, "tasks": 32, "seed": 2, **options}
    return bounds.report(MODEL, START, sinusoids, **options)


@pytest.fixture(scope="module")
def found():
    return make(tasks=128)


def test_report_is_a_function_and_no_module_hides_behind_it():
    assert callable(bounds.report)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("innerloop.bounds.report")
    assert callable(bounds.report)


def test_text_has_every_part_and_fits_a_terminal(found):
    text = str(found)
    assert text == found.explain()
    for section in SECTIONS:
        assert f"\n{section}" in text
    assert "PLUG-IN, not certified" in text
    assert "no trajectory was given" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    for name in found.problem.estimates:
        assert f"  {name}" in text


def test_numbers_are_those_of_the_bounds(found):
    budget = found.comparison.setting["budget"]
    assert budget == 10_000 * 8 * 20
    again = nonconvex.compare(
        found.problem.constants, budget=budget, inner_lr=0.01, samples=10, queries=10, batch=8
    )
    assert again == found.comparison
    assert found.crossover == again.crossover.budget
    assert [row.budget for row in found.budgets] == pytest.approx([f * budget for f in
                                                                   (0.1, 1, 10, 100)])  # fmt: skip
    for row in found.budgets:
        made = nonconvex.compare(
            found.problem.constants, budget=row.budget, inner_lr=0.01, samples=10, queries=10,
            batch=8,
        )  # fmt: skip
        assert (row.drs, row.maml) == pytest.approx((made.drs.maml, made.maml.maml), rel=1e-12)
    assert found.budgets[0].maml > found.budgets[3].maml
    assert found.looseness["variance_maml"] == pytest.approx(
        again.maml.variance / found.problem.measured["variance_maml"]
    )
    assert not found.certified


def test_the_same_seed_gives_the_same_report(found):
    assert make(tasks=128).to_dict() == found.to_dict()
    assert make(seed=5).crossover != found.crossover


def test_everything_goes_into_json(found):
    made = json.loads(json.dumps(found.to_dict()))
    assert made["problem"]["estimates"]["rho"]["origin"]["trust"] == "plug-in"
    assert made["comparison"]["drs"]["maml"] == found.comparison.drs.maml
    assert made["text"] == str(found)
    assert made["vacuous"] is found.vacuous


def test_a_certificate_speaks_from_the_budget_that_is_named(found):
    """At that budget it is at most the squared gradient at the start, one update earlier above."""
    start = found.problem.measured["gradient2_maml_start"]
    assert start > 0
    for method in ("drs", "maml"):
        budget = found.informative[method]
        if math.isinf(budget):
            assert found.comparison.crossover.offset**2 >= start
            continue
        assert budget % 160 == 0
        at, before = (
            nonconvex.compare(
                found.problem.constants, budget=spent, inner_lr=0.01, samples=10, queries=10,
                batch=8,
            )
            for spent in (budget, budget - 160)
        )  # fmt: skip
        assert getattr(at, method).maml <= start < getattr(before, method).maml


def test_bounds_that_say_nothing_are_said_to_say_nothing(found):
    early = make(budget=min(found.informative.values()) / 3, tasks=128)
    late = make(budget=3 * found.informative["maml"], tasks=128)
    assert early.vacuous
    assert "the bounds do not decide" in str(early)
    assert "less than standing still" in " ".join(str(early).split())
    assert not late.vacuous
    assert late.says_something("maml")
    assert "the bounds do not decide" not in str(late)


def test_trajectory_adds_smoothness_to_the_looseness():
    moved = {k: 1.2 * v for k, v in START.items()}
    made = make(trajectory=[START, moved], tasks=16)
    assert made.looseness["smoothness_drs"] >= 1.0
    assert made.looseness["smoothness_maml"] >= 1.0
    assert "smoothness of MAML" in str(made)
    assert "1 chord of the run" in flat(made)
    assert "no trajectory" not in str(made)


def flat(made):
    """The text without line breaks."""
    return " ".join(str(made).split())


def logistic(count, generator):
    x = torch.rand(count, 12, 2, generator=generator) - 0.5
    weight = 4 * torch.randn(count, 1, 2, generator=generator)
    return x, (torch.rand(count, 12, generator=generator) < (x * weight).sum(2).sigmoid()).float()


def test_constants_by_analysis_give_bounds_that_rest_on_the_word_of_their_giver():
    """Logistic regression with |x| <= 1/sqrt 2 from zero: every constant is known by analysis, for
    the radius stated; that the sampler keeps within it is nobody's theorem."""
    radius = math.sqrt(0.5)
    rate = 0.5
    known = {
        **constants.logistic_constants(radius).known(),
        "gap_drs": math.log(2),
        "gap_maml": math.log(2) + rate * radius**2,  # a step moves a logit by rate |x|^2 at most
    }
    model = il.MLP([2, 1], bias=False)
    made = bounds.report(
        model, {"0.weight": torch.zeros(1, 2)}, logistic, inner_lr=rate, samples=5, tasks=16,
        loss="bce_with_logits", known=known,
    )  # fmt: skip
    assert made.standing == "assumed"
    assert not made.certified
    assert "ASSUMED, not certified: they hold if the constants you gave hold" in flat(made)
    assert "CERTIFIED." not in str(made)
    assert made.sampling_factor == 1.0
    assert made.looseness["variance_maml"] > 1
    assert made.looseness["variance_drs"] > 1
    estimated = bounds.report(
        model, {"0.weight": torch.zeros(1, 2)}, logistic, inner_lr=rate, samples=5, tasks=16,
        loss="bce_with_logits",
    )  # fmt: skip
    for name in ("L_plus", "G2", "sigma_g", "sigma_gamma", "sigma_H", "gap_drs", "gap_maml"):
        assert estimated.problem.constants.known()[name] <= 1.06 * float(known[name])


def test_kinks_make_it_a_heuristic():
    model = il.MLP([1, 10, 1], activation="relu")
    made = bounds.report(
        model, model.init(torch.Generator().manual_seed(0)), sinusoids, inner_lr=0.01, samples=10,
        tasks=16,
    )  # fmt: skip
    assert made.standing == "heuristic"
    assert "HEURISTIC, not certified" in flat(made)
    assert "Every certificate below is a heuristic, whatever the constants are" in flat(made)


def test_several_steps_and_a_negative_rate():
    for options in ({"steps": 3}, {"inner_lr": -0.01}):
        made = make(tasks=8, **options)
        assert made.crossover >= 0
        assert "ANSWER" in str(made)


def test_no_modelling_term_no_crossover():
    """Without an inner step the objectives agree: nothing is left of joint training's error."""
    made = make(inner_lr=0.0, tasks=8)
    assert math.isinf(made.crossover) or made.crossover == 0.0
    assert "no modelling term" in " ".join(str(made).split()) or made.crossover == 0.0
    assert math.isnan(made.sampling_factor)
    assert "no crossover" in made.sampling_factor.explain()


@pytest.mark.parametrize("budget", [10.0, math.nan, math.inf])
def test_bad_budget(budget):
    with pytest.raises(ValueError, match="budget must be finite and pay for one update"):
        make(budget=budget, tasks=4)


def test_bad_batch():
    with pytest.raises(ValueError, match="batch must be"):
        make(batch=0)


@pytest.mark.slow
def test_the_standard_network_takes_seconds():
    import time

    model = il.MLP([1, 40, 40, 1], activation="tanh")
    before = time.perf_counter()
    made = bounds.report(
        model, model.init(torch.Generator().manual_seed(0)), sinusoids, inner_lr=0.01, samples=10
    )
    assert time.perf_counter() - before < 60
    assert made.problem.setting["parameters"] == 1761
