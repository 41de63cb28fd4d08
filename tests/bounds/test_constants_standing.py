"""What a report knows, it knows for certain, from its caller or by estimate; and nothing that goes
through it, or through it twice, comes out as more than it was."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import innerloop as il
from innerloop import bounds
from innerloop.bounds import Quantities, Quantity, constants, nonconvex, plug_in
from innerloop.bounds._standing import STANDINGS
from innerloop.bounds.constants import Estimate
from innerloop.bounds.constants.kinks import kink_of
from innerloop.bounds.nonconvex import Constants

MODEL = il.MLP([1, 4, 1], activation="tanh")
START = MODEL.init(torch.Generator().manual_seed(0), dtype=torch.float64)
NAMES = [field.name for field in dataclasses.fields(Constants) if field.name != "standing"]
rank = STANDINGS.index


def sinusoids(count, generator):
    amplitude = 0.1 + 4.9 * torch.rand(count, 1, 1, generator=generator)
    phase = math.pi * torch.rand(count, 1, 1, generator=generator)
    x = 10 * torch.rand(count, 8, 1, generator=generator) - 5
    return x, amplitude * torch.sin(x + phase)


def make(model=MODEL, params=START, **options):
    options = {"inner_lr": 0.01, "samples": 4, "tasks": 6, "probes": 2, "seed": 2, **options}
    return bounds.report(model, params, sinusoids, **options)


def flat(made):
    """The text without line breaks."""
    return " ".join(str(made).split())


@pytest.fixture(scope="module")
def found():
    return make(trajectory=[{name: 1.2 * leaf for name, leaf in START.items()}])


@pytest.fixture(scope="module")
def generous():
    """Plain numbers that no sample refutes."""
    return dict.fromkeys(NAMES, 1e6)


def numbers(value, path=""):
    """(path, number) of every number in a report: fields, members, entries, origins."""
    if isinstance(value, (Quantity, Quantities)):
        yield path, value
        if isinstance(value, Estimate):
            yield from numbers(value.origin, f"{path}.origin")
    elif isinstance(value, (float, int, np.floating)) and not isinstance(value, bool):
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


# what the caller chose, and what was spent: no knowledge of the problem
CHOSEN = (".setting[", ".updates", ".budget", ".cost[", ".confidence")


def ways_in(number):
    """Every way in but the report itself: as each constant, as each argument, computed with."""
    for name in NAMES:
        known = Constants(**{"L_plus": 1.0, "ell": 1.0, name: number + 0.5})
        yield known.standing_of(name)
        yield nonconvex.elasticities(lambda c: c.L_plus + c.ell, known)["ell"].standing
    several = {"smoothness": 1.0, "gap": 1.0, "variance": 1.0}
    for name in several:
        yield nonconvex.sgd_bound(updates=9, **{**several, name: number + 0.5}).standing
        yield nonconvex.best_rate(updates=9, **{**several, name: [number + 0.5, 1.0]}).standing
    yield nonconvex.updates_needed(epsilon=1.0, slope=number, **several).standing
    yield nonconvex.updates_needed(epsilon=1.0, bias=0.0 * number, **several).standing
    yield constants.logistic_constants(number + 0.5).rho.standing
    yield constants.tanh_constants(1.0, target=number).known()["sigma_g"].standing
    yield plug_in(number).standing
    yield np.maximum(number, Quantity(1e9, name="x", source="s", standing="certified")).standing
    yield (number * 0.0).standing
    yield pickle.loads(pickle.dumps(number)).standing
    yield copy.deepcopy(number).standing
    yield Quantity(number, name="G", source="me", standing="certified").standing


def test_no_number_of_a_report_comes_back_as_more_than_it_is(found):
    count = 0
    for path, number in numbers(found):
        if any(part in path for part in CHOSEN) and not isinstance(number, Quantity):
            continue
        assert isinstance(number, Quantity), f"{path} has lost its standing"
        assert number.standing == "plug-in", path
        if not math.isfinite(number):
            continue  # no function takes it
        for standing in ways_in(abs(number)):
            assert rank(standing) >= rank("plug-in"), path
        count += 1
    assert count > 100


WAYS = ("estimate", "constant", "marked", "computed")


def back_through_known(found, generous, name, way):
    """One constant is an estimate, the others are given: the certificate says so."""
    number = {
        "estimate": found.problem.estimates[name],
        "constant": getattr(found.problem.constants, name),
        "marked": plug_in(1e6),
        "computed": 0.5 * plug_in(2e6),
    }[way]
    again = make(known={**generous, name: number})
    assert again.problem.constants.standing_of(name) == "plug-in"
    assert again.problem.estimates[name].standing == "plug-in"
    assert name in again.trust.rests_on
    assert again.standing == "plug-in"
    assert f"PLUG-IN, not certified: they rest on estimates ({name})" in flat(again)
    assert "CERTIFIED." not in flat(again)


@pytest.mark.parametrize(("k", "name"), list(enumerate(NAMES)))
def test_estimates_that_come_back_through_known_stay_estimates(found, generous, k, name):
    back_through_known(found, generous, name, WAYS[k % len(WAYS)])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_estimates_stay_estimates_in_every_form(found, generous, name, way):
    back_through_known(found, generous, name, way)


def test_the_whole_report_comes_back(found):
    for known in (found.problem.estimates, found.problem.constants.known()):
        again = make(known=known)
        assert again.standing == "plug-in"
        assert set(again.problem.constants.standing.values()) == {"plug-in"}
        assert "PLUG-IN, not certified" in flat(again)


def test_plain_numbers_are_the_word_of_their_giver(generous):
    made = make(known=generous)
    assert made.standing == made.comparison.standing == "assumed"
    assert not made.certified
    assert "ASSUMED, not certified: they hold if the constants you gave hold" in flat(made)
    assert "your word stands for" in flat(made)
    assert "CERTIFIED." not in flat(made)
    document = json.loads(json.dumps(made.to_dict()))
    assert document["standing"] == "assumed"
    assert set(document["rests_on"].values()) == {"assumed"}
    assert document["comparison"]["maml"]["standing"] == "assumed"
    assert document["problem"]["constants"]["standing"]["rho"] == "assumed"


def test_nothing_known_by_a_sampler_is_certified(generous):
    """Not even what is certified for another problem: that it applies is the caller's word."""
    family = nonconvex.TanhRegression(np.full((2, 3, 1), 40.0), np.zeros((2, 3)))
    known = {**generous, **family.constants(start=[1.0]).known()}
    assert known["rho"].standing == "certified"
    made = make(known=known)
    assert made.standing == "assumed"
    assert made.problem.constants.standing_of("rho") == "assumed"
    local = constants.curvature(MODEL, START, sinusoids(6, torch.Generator().manual_seed(0)))
    assert local.L_plus.trust == "certified"  # for six tasks, at one point
    made = make(known={**generous, "L_plus": local.L_plus})
    assert made.problem.constants.standing_of("L_plus") == made.standing == "plug-in"
    run = constants.smoothness_along(
        MODEL, [START, {name: 2 * leaf for name, leaf in START.items()}],
        sinusoids(6, torch.Generator().manual_seed(0)),
    )  # fmt: skip
    assert (run.largest.trust, run.largest.origin.side) == ("certified", "lower bound")
    made = make(known={**generous, "L_plus": run.largest})
    assert made.standing == "plug-in"


def test_families_stand_as_the_radius_that_was_stated():
    said, guessed = constants.logistic_constants(2.0), constants.logistic_constants(plug_in(2.0))
    for family, word in ((said, "assumed"), (guessed, "plug-in")):
        for number in family.known().values():
            assert number.standing == word
            assert set(number.rests_on.values()) == {word}
    assert said.rho.rests_on == {"radius": "assumed"}
    assert constants.tanh_constants(1.0, plug_in(1.0)).L.standing == "plug-in"
    assert constants.tanh_constants(plug_in(1.0)).G.standing == "plug-in"
    assert "holds if the numbers you gave hold; given: radius" in said.explain()


def relu_call(x):
    return torch.relu(x)


class Functional(nn.Module):
    """A network with an operation in its forward that no layer shows."""

    def __init__(self, operation):
        super().__init__()
        self.first, self.last = nn.Linear(1, 4), nn.Linear(4, 1)
        self.operation = operation

    def forward(self, x):
        return self.last(self.operation(self.first(x)))


KINKED = {
    "relu": torch.relu,
    "leaky relu": nn.functional.leaky_relu,
    "hardtanh": nn.functional.hardtanh,
    "hardswish": nn.functional.hardswish,
    "clamp": lambda z: z.clamp(min=0.0),
    "absolute": torch.abs,
    "maximum": lambda z: torch.maximum(z, -z),
    "largest": lambda z: z - z.max(-1, keepdim=True)[0],
    "relu inside of a layer": nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
    "prelu": nn.PReLU(),
}
SMOOTH = {
    "tanh": torch.tanh,
    "softplus": nn.functional.softplus,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "sine": torch.sin,
    "softmax": lambda z: z.softmax(-1),
    "normalised": lambda z: nn.functional.layer_norm(z, (4,)),
}
ROWS = torch.linspace(-2.0, 2.0, 16).reshape(2, 8, 1)


@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_found_wherever_they_are(name):
    module = Functional(KINKED[name])
    state = {key: leaf.clone() for key, leaf in module.state_dict().items()}
    kink = kink_of(module, ROWS, "mse")
    assert kink is not None
    assert kink.first
    assert all(torch.equal(leaf, state[key]) for key, leaf in module.state_dict().items())
    assert all(leaf.grad is None for leaf in module.parameters())


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_networks_have_none(name):
    assert kink_of(Functional(SMOOTH[name]), ROWS, "mse") is None
    only_third = kink_of(Functional(SMOOTH[name]), ROWS, "huber")
    assert only_third is not None
    assert only_third.broken == "B3"


def test_looking_for_kinks_draws_no_random_numbers():
    module = Functional(nn.Dropout(0.5))
    before = torch.random.get_rng_state()
    kink_of(module, ROWS, "mse")
    assert torch.equal(torch.random.get_rng_state(), before)


BROKEN = {
    "relu": (il.MLP([1, 4, 1], activation="relu"), "mse", "L_plus ell rho L_plus_s ell_s rho_s"),
    "leaky relu": (il.MLP([1, 4, 1], activation="leaky_relu"), "mse",
                   "L_plus ell rho L_plus_s ell_s rho_s"),
    "huber": (MODEL, "huber", "rho rho_s"),
    "torch's huber": (MODEL, nn.SmoothL1Loss(), "rho rho_s"),
    "relu in a function": (Functional(relu_call), "mse", "L_plus ell rho L_plus_s ell_s rho_s"),
}  # fmt: skip


GIVEN = ("nothing", "smoothness", "everything", "certified elsewhere")
PAIRS = [
    pytest.param(name, given, marks=[pytest.mark.slow] * ("function" in name and given != GIVEN[2]))
    for name in BROKEN
    for given in GIVEN
]


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize(("name", "given"), PAIRS)
def test_without_smoothness_nothing_through_known_helps(name, given, generous):
    model, loss, broken = BROKEN[name]
    if isinstance(model, nn.Module):
        params = {key: leaf.detach().double() for key, leaf in model.named_parameters()}
    else:
        params = model.init(torch.Generator().manual_seed(1), dtype=torch.float64)
    known = {
        "nothing": {},
        "smoothness": {key: generous[key] for key in ("L_plus", "ell", "rho")},
        "everything": generous,
        "certified elsewhere": {
            **generous,
            **{key: Quantity(1e6, name=key, source="a proof", standing="certified")
               for key in ("L_plus", "ell", "rho", "L_plus_s", "ell_s", "rho_s")},
        },
    }[given]  # fmt: skip
    made = make(model, params, known=known, loss=loss)
    assert made.standing == "heuristic"
    assert "HEURISTIC, not certified" in flat(made)
    assert "CERTIFIED." not in flat(made)
    assert "heuristic, whatever the constants are" in flat(made)
    standing = made.problem.constants.standing
    assert {key for key, word in standing.items() if word == "heuristic"} == set(broken.split())
    # nor does taking the constants out of the report and computing by hand
    by_hand = nonconvex.compare(
        made.problem.constants, budget=1e6, inner_lr=0.01, samples=4, queries=4
    )
    assert by_hand.standing == by_hand.crossover.budget.standing == "heuristic"
    again = make(known=made.problem.constants.known())  # in the report of a smooth network
    assert again.standing == "heuristic"


def test_an_estimator_gives_estimates(found):
    """Arrays of single measurements too."""
    x, y = sinusoids(5, torch.Generator().manual_seed(0))
    batch = x.double(), y.double()
    curved = constants.curvature(MODEL, START, batch)
    third = constants.third_order(MODEL, START, batch, starts=1, iterations=2)
    spread = constants.variance_components(MODEL, START, batch, probes=1)
    single = constants.sample_constants(MODEL, START, batch, rows=4)
    gaps = constants.initial_gaps(MODEL, START, batch)
    run = constants.smoothness_along(MODEL, [START, {k: 2 * v for k, v in START.items()}], batch)
    count = 0
    for record in (curved, third, spread, single, gaps, run):
        for path, number in numbers(record):
            chosen = (".eps", ".delta", ".products", ".size", ".tasks", ".samples", ".probes",
                      ".inflation", ".rows", ".cost[", ".confidence")  # fmt: skip
            if path.endswith(chosen) or ".cost[" in path:
                continue
            assert isinstance(number, (Quantity, Quantities)), path
            assert number.standing == "plug-in", path
            count += 1
    assert count > 30


def test_failure_probabilities_hold_for_every_matrix():
    for function in (constants.lanczos_failure, constants.power_failure):
        assert function(0.1, 20, 400).standing == "certified"
        assert function([0.1, 0.2], 20, 400).standing == "certified"
        for k in range(3):
            arguments = [0.1, 20.0, 400.0]
            arguments[k] = plug_in(arguments[k])
            assert function(*arguments).standing == "plug-in"
