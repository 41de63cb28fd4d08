"""All constants of a problem from a sampler: every kind of sampler, trajectories, what is known,
and the measured counterparts of the bounds."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import innerloop as il
from innerloop.bounds import constants, nonconvex

MODEL = il.MLP([1, 6, 1], activation="tanh")
START = MODEL.init(torch.Generator().manual_seed(0))
SETTING = {"inner_lr": 0.05, "samples": 4}


def sinusoids(count, generator, rows=8):
    amplitude = 0.1 + 4.9 * torch.rand(count, 1, 1, generator=generator)
    phase = math.pi * torch.rand(count, 1, 1, generator=generator)
    x = 10 * torch.rand(count, rows, 1, generator=generator) - 5
    return x, amplitude * torch.sin(x + phase)


def by_seed(count, seed):
    return sinusoids(count, torch.Generator().manual_seed(seed))


def by_rng(count, rng):
    x = rng.uniform(-5, 5, size=(count, 8, 1))
    return x, rng.uniform(0.1, 5, size=(count, 1, 1)) * np.sin(x)


@pytest.fixture(scope="module")
def found():
    return constants.problem_constants(MODEL, START, sinusoids, tasks=24, seed=3, **SETTING)


def test_every_constant_is_there_and_labelled(found):
    names = [f.name for f in dataclasses.fields(nonconvex.Constants) if f.name != "standing"]
    assert sorted(found.estimates) == sorted(names)
    for name, estimate in found.estimates.items():
        assert estimate == getattr(found.constants, name)
        assert estimate.trust == estimate.standing == found.constants.standing_of(name) == "plug-in"
        assert estimate.confidence is None
        assert estimate > 0
    assert "no trajectory" in found.caveats[0]
    assert found.setting["rows"] == 8
    assert found.setting["queries"] == 4
    assert "caveat" in found.explain()


def test_constants_are_ordered_as_they_must_be(found):
    """Tasks average samples; the root mean square is below the maximum."""
    c = found.constants
    assert c.G2 <= c.G
    assert c.mean_gradient <= c.G2
    assert c.sigma_gamma <= c.G2
    assert c.sigma_Hgamma <= 2 * math.sqrt(19) * c.L  # Frobenius norm of 19 eigenvalues


@pytest.mark.parametrize("sampler", [by_seed, by_rng])
def test_samplers_with_other_sources(sampler):
    found = constants.problem_constants(MODEL, START, sampler, tasks=6, probes=1, **SETTING)
    again = constants.problem_constants(MODEL, START, sampler, tasks=6, probes=1, **SETTING)
    assert found.constants == again.constants
    other = constants.problem_constants(MODEL, START, sampler, tasks=6, probes=1, seed=1, **SETTING)
    assert other.constants.sigma_g != found.constants.sigma_g


def test_a_generator_is_used_as_it_is():
    first = constants.problem_constants(
        MODEL, START, sinusoids, tasks=6, generator=torch.Generator().manual_seed(7), **SETTING
    )
    second = constants.problem_constants(MODEL, START, sinusoids, tasks=6, seed=7, **SETTING)
    assert first.constants == second.constants


def test_a_run_only_adds_points(found):
    """Estimates are maxima over points, the start among them; smoothness needs a run."""
    run = [START, {k: 1.5 * v for k, v in START.items()}, {k: 2 * v for k, v in START.items()}]
    longer = constants.problem_constants(
        MODEL, START, sinusoids, tasks=24, seed=3, trajectory=run, points=2, **SETTING
    )
    for name in ("L_plus", "rho", "sigma_g", "sigma_H", "G", "G2", "L_plus_s"):
        assert longer.estimates[name] >= found.estimates[name]
    assert longer.estimates["L_plus"] > found.estimates["L_plus"]
    assert longer.estimates["gap_maml"] == found.estimates["gap_maml"]
    assert longer.setting["points"] == 3
    assert not longer.caveats
    assert 0 < longer.measured["smoothness_drs"] <= longer.constants.L
    assert "1 point" in found.measured["smoothness_drs"].origin.how
    assert "2 chords of the run" in longer.measured["smoothness_drs"].origin.how
    assert "at the start" in longer.estimates["L_plus"].explain()


def test_long_runs_are_thinned():
    run = {k: torch.stack([v * (1 + j / 50) for j in range(50)]) for k, v in START.items()}
    made = constants.problem_constants(
        MODEL, START, sinusoids, tasks=4, probes=0, trajectory=run, points=3, **SETTING
    )
    assert made.setting["points"] == 4  # the start, given and in the run, counts once
    assert made.constants.sigma_H is None


def test_measured_gradients_are_what_training_would_use():
    """The variance of the joint gradient splits exactly as Result 34 says; MAML's by hand."""
    found = constants.problem_constants(MODEL, START, sinusoids, tasks=6, seed=3, **SETTING)
    e, m = found.estimates, found.measured
    x, y = sinusoids(6, torch.Generator().manual_seed(3))
    x, y = x.double(), y.double()
    params = {k: v.double() for k, v in START.items()}
    local = constants.variance_components(MODEL, params, (x, y), probes=0)
    assert m["variance_drs"] == pytest.approx(local.sigma_gamma2 + local.sigma_g2 / 8, rel=1e-9)
    assert m["gradient2_drs_start"] == pytest.approx(local.gradient2, rel=1e-9)
    assert e["sigma_gamma"] == pytest.approx(math.sqrt(local.sigma_gamma2), rel=1e-9)
    rows = []
    for t in range(6):
        one = slice(t, t + 1)
        made = il.meta_grad(
            params, (x[one, :4], y[one, :4]), (x[one, 4:], y[one, 4:]), model=MODEL,
            inner_lr=0.05, steps=1, backend="torch",
        )  # fmt: skip
        rows.append(torch.cat([g.reshape(-1) for g in made.grad.values()]))
    rows = torch.stack(rows)
    variance = rows.var(0).sum().item()
    assert m["variance_maml"] == pytest.approx(variance, rel=1e-9)
    assert m["gradient2_maml_start"] == pytest.approx(
        rows.mean(0).square().sum().item() - variance / 6, rel=1e-9
    )


def test_known_constants_replace_estimates():
    family = constants.logistic_constants(20.0)
    made = constants.problem_constants(
        MODEL, START, sinusoids, tasks=4, probes=0, known={**family.known(), "gap_drs": 3},
        **SETTING,
    )  # fmt: skip
    assert made.constants.rho == family.rho
    assert made.constants.standing_of("rho") == "assumed"
    assert made.constants.gap_drs == 3.0
    assert made.estimates["gap_drs"].trust == "assumed"
    assert made.constants.standing_of("gap_maml") == "plug-in"


def test_one_sample_refutes_what_was_said_of_all():
    """A constant of single samples that is too small is broken, and only that one."""
    said = {"L_plus_s": 0.01, "ell_s": 1e9, "rho_s": 0.0, "L_plus": 0.01}
    made = constants.problem_constants(
        MODEL, START, sinusoids, tasks=4, probes=0, known=said, **SETTING
    )
    for name, word in (("L_plus_s", "heuristic"), ("rho_s", "heuristic"), ("ell_s", "assumed"),
                       ("L_plus", "assumed"), ("ell", "plug-in")):  # fmt: skip
        assert made.constants.standing_of(name) == word, name
    text = " ".join(made.caveats)
    assert "L_plus_s was given as 0.01, but a sample that was drawn has" in text
    assert "rho_s was given as 0, but" in text
    assert "ell_s" not in text


def test_kinks_are_named_and_judged_over_the_inner_steps():
    """Across a kink a difference quotient of any small step is meaningless."""
    model = il.MLP([1, 6, 1], activation="relu")
    params = model.init(torch.Generator().manual_seed(0))
    made = constants.problem_constants(model, params, sinusoids, tasks=8, **SETTING)
    assert "relu activations" in made.caveats[0]
    for name in ("L_plus", "ell", "rho", "L_plus_s", "ell_s", "rho_s"):
        assert made.constants.standing_of(name) == "heuristic"
    assert made.constants.standing_of("G") == "plug-in"
    assert "secants" in made.estimates["rho"].origin.how
    assert "secants" in made.estimates["rho_s"].origin.how


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_modules_without_a_description():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(1, 1)

        def forward(self, x):
            return torch.sin(self.inner(x))

    module = Shifted()
    made = constants.problem_constants(
        module, dict(module.named_parameters()), sinusoids, tasks=4, probes=1, **SETTING
    )
    assert made.setting["parameters"] == 2
    assert "Shifted was looked through for kinks" in made.caveats[0]
    assert all(p.grad is None for p in module.parameters())


def test_no_difference_between_tasks_is_said():
    def same(count, generator):
        x = torch.randn(count, 8, 1, generator=generator)
        return x, torch.randn(count, 8, 1, generator=generator)

    caveats = [
        constants.problem_constants(
            MODEL, START, same, tasks=4, probes=0, seed=s, **SETTING
        ).caveats
        for s in range(4)
    ]
    assert any("sigma_gamma was estimated as 0" in " ".join(c) for c in caveats)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples must be"),
        ({"samples": 7}, ValueError, r"samples \+ 2 = 9 rows"),
        ({"queries": 5}, ValueError, r"samples \+ queries = 9 rows"),
        ({"queries": 0}, ValueError, "queries must be"),
        ({"steps": 0}, ValueError, "steps must be"),
        ({"tasks": 3}, ValueError, "tasks must be an integer >= 4"),
        ({"points": 0}, ValueError, "points must be"),
        ({"inner_lr": math.nan}, ValueError, "inner_lr must be one finite number"),
        ({"inner_lr": 1e30, "steps": 20}, ValueError, "inner loop must stay finite"),
        ({"known": {"L": 1.0}}, ValueError, "known must name constants"),
        ({"sampler": 3}, TypeError, "sampler must be callable"),
        ({"sampler": lambda c, g: None}, TypeError, r"must return \(x, y\)"),
        ({"sampler": lambda c, g: ([1], [2])}, TypeError, "must return tensors or arrays"),
        ({"sampler": lambda c, g: (torch.ones(3, 8, 1), torch.ones(3, 8))}, ValueError, "6, rows"),
        ({"sampler": lambda c, g: (torch.ones(c, 8, 1), torch.ones(c, 7))}, ValueError, "equally"),
        ({"sampler": lambda c, g: (torch.ones(c, 8, 1) * math.nan, torch.ones(c, 8))}, ValueError,
         "x must be finite"),
        ({"params": {k: v * math.inf for k, v in START.items()}}, ValueError, "must be finite"),
    ],
)  # fmt: skip
def test_bad_input(change, error, message):
    call = {"model": MODEL, "params": START, "sampler": sinusoids, "tasks": 6, **SETTING, **change}
    with pytest.raises(error, match=message):
        constants.problem_constants(**call)
