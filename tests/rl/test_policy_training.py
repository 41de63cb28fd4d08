"""`train`: settings, history, repetition, resumption, and each algorithm's step against its
definition."""

import io
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import innerloop as il
from helpers import assert_close
from innerloop import rl
from innerloop.rl import algorithms
from innerloop.rl.algorithms import ALGORITHMS, adapted_coefficient
from innerloop.rl.seeds import derived
from innerloop.rl.settings import KINDS

pytest.importorskip("mujoco", reason="needs innerloop[rl]")

NAMES = list(KINDS)


def made(name="HalfCheetahRandVel", *, tasks=3, rollouts=2, horizon=12, threads=1):
    return rl.make(name, tasks=tasks, rollouts=rollouts, horizon=horizon, threads=threads)


def numbers(history):
    """The rows without what the clock decides."""
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in history]


@pytest.mark.parametrize("sampling", ["lanes", "published"])
@pytest.mark.parametrize("family", ["HalfCheetahRandVel", "HopperRandParams"])
@pytest.mark.parametrize("algorithm", NAMES)
def test_history(algorithm, family, sampling):
    env = made(family)
    seen = []
    training = rl.train(
        env,
        algorithm,
        iterations=3,
        seed=0,
        hidden=(8,),
        sampling=sampling,
        callback=lambda t: seen.append(len(t.history)),
    )
    phases = 1 if algorithm.startswith("drs") else 2
    rows = training.history
    assert seen == [1, 2, 3]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    steps = [row["steps"] for row in rows]
    if sampling == "lanes":
        assert steps == [phases * 72 * (i + 1) for i in range(3)]
    else:
        assert all(b - a >= phases * 72 for a, b in zip([0, *steps[:-1]], steps, strict=True))
    for row in rows:
        wanted = {"return", "loss", "kl", "entropy", "sampling_seconds", "learning_seconds"}
        assert all(np.isfinite(row[name]) for name in wanted)
        assert (row["adapted_return"] is None) == (phases == 1)
        assert row["success"] is None
    assert training.model == il.GaussianMLP([env.observation_size, 8, env.action_size])
    assert set(training.params) == set(training.model.names)


@pytest.mark.parametrize("algorithm", NAMES)
def test_threads_and_repetition_change_no_bit(algorithm):
    runs = []
    for threads, torch_threads in ((1, 1), (3, 2), (1, 1)):
        torch.set_num_threads(torch_threads)
        with made(threads=threads) as env:
            runs.append(rl.train(env, algorithm, iterations=2, seed=4, hidden=(8,)))
    for other in runs[1:]:
        assert numbers(runs[0].history) == numbers(other.history)
        for name, leaf in runs[0].params.items():
            assert torch.equal(leaf, other.params[name])
    with made() as env:
        other = rl.train(env, algorithm, iterations=1, seed=5, hidden=(8,))
    assert other.history[0]["return"] != runs[0].history[0]["return"]


@pytest.mark.parametrize("algorithm", NAMES)
def test_resumption_changes_no_bit(algorithm):
    """Through a file, in a new object: optimiser and coefficients go on."""
    options = {"seed": 1, "hidden": (8,)}
    if algorithm == "promp":
        options |= {"kl_target": 1e-3, "kl_coefficient": 0.5}
    whole = rl.train(made(), algorithm, iterations=4, **options)
    first = rl.train(made(), algorithm, iterations=2, **options)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    first.step()  # what was saved does not move along
    second = rl.Training(made(), algorithm, **options)
    second.load_state(torch.load(file, weights_only=True))
    assert len(second.history) == 2
    second.step()
    second.step()
    assert numbers(whole.history) == numbers(second.history)
    for name, leaf in whole.params.items():
        assert torch.equal(leaf, second.params[name])


OTHERS = {
    "algorithm": {"algorithm": "drs-ppo"},
    "seed": {"seed": 2},
    "inner_lr": {"inner_lr": 0.5},
    "widths": {"hidden": (4,)},
    "tasks": {"tasks": 4},
    "environment": {"name": "Walker2DRandVel"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_state_of_another_training_is_refused(name):
    options = {"algorithm": "promp", "seed": 1, "hidden": (8,)}
    state = rl.Training(made(), **options).state()
    changed = dict(OTHERS[name])
    env = made(**{k: changed.pop(k) for k in ("tasks", "name") if k in changed})
    other = rl.Training(env, **{**options, **changed})
    with pytest.raises(ValueError, match=f"state must be that of a training with {name} "):
        other.load_state(state)


def sampled(env, training, params, seed, pooled):
    """The rows that an algorithm samples, by the public parts."""
    data = rl.collect(env, params, model=training.model, seed=seed)
    return rl.policy_batch(data, rl.advantages(data), pooled=pooled)


def first_phase(algorithm, **settings):
    """(training before its first iteration, rows before adaptation, rows after it or None)."""
    env = made()
    training = rl.Training(env, algorithm, seed=3, hidden=(8,), **settings)
    seed = derived(3, 1, 0)
    env.set_tasks(env.sample_tasks(3, derived(seed, 0)))
    pooled = algorithm.startswith("drs")
    before = sampled(env, training, training.params, derived(seed, 1), pooled)
    if pooled:
        return training, before, None
    loss = "pg_ratio" if algorithm == "promp" else "pg_loglik"
    adapted = il.adapt(
        training.params,
        before,
        model=training.model,
        steps=1,
        loss=loss,
        inner_lr=training.settings["inner_lr"],
    )
    return training, before, sampled(env, training, adapted, derived(seed, 2), False)


@pytest.mark.parametrize("algorithm", ["drs-ppo", "promp"])
def test_adams_epochs(algorithm):
    """The parameters after one iteration are Adam's on the objective written out."""
    options = {"learning_rate": 0.01, "epochs": 4, "clip": 0.2}
    if algorithm == "promp":
        options |= {"inner_lr": 0.05, "kl_coefficient": 0.1}
    training, before, after = first_phase(algorithm, **options)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in training.params.items()}
    adam = torch.optim.Adam(list(leaves.values()), lr=0.01)
    for _ in range(4):
        adam.zero_grad()
        if algorithm == "drs-ppo":
            sides, inner = (before, before), {"inner_lr": 0.0, "steps": 0, "loss": "pg_clipped"}
        else:
            sides, inner = (before, after), {"inner_lr": 0.05, "steps": 1, "loss": "pg_ratio"}
            inner |= {"query_loss": "pg_clipped", "kl_coefficient": 0.1}
        value = il.meta_loss(
            leaves, *sides, model=training.model, clip=0.2, backend="torch", **inner
        )
        value.mean().backward()
        adam.step()
    row = training.step()
    # float32: Adam divides by the root of squares that are small where gradients cancel
    assert_close(training.params, leaves, 1e-4)
    kl = il.kl(training.params, before, model=training.model).mean()
    assert row["kl"] == pytest.approx(float(kl), rel=1e-5)


@pytest.mark.parametrize("algorithm", ["drs-trpo", "trpo-maml"])
def test_trust_region(algorithm):
    """The step lowers the surrogate and keeps the true KL within its bound, near it."""
    training, before, after = first_phase(algorithm, max_kl=0.02)
    model, start = training.model, training.params
    row = training.step()
    rate, options = training.settings.get("inner_lr"), {"model": model, "backend": "torch"}

    def measured(params):
        if after is None:
            rows, moved = before, params
        else:
            rows = after
            moved = il.adapt(params, before, inner_lr=rate, steps=1, loss="pg_loglik", **options)
        loss, _ = il.loss_and_grad(moved, rows, loss="pg_ratio", **options)
        return float(loss.mean()), float(il.kl(moved, rows, **options).mean())

    (loss, kl), (new_loss, new_kl) = measured(start), measured(training.params)
    assert row["accepted"]
    assert (row["loss"], row["kl"]) == pytest.approx((new_loss, new_kl), rel=1e-4)
    assert new_loss < loss
    assert abs(kl) < 1e-6
    assert new_kl <= 0.02
    if row["tried"] == 1:  # the quadratic model's length, within its error
        assert new_kl > 0.01


def test_adaptive_coefficient():
    """Halved under target / 1.5, doubled above 1.5 target, and not otherwise."""
    for kl, factor in ((0.0066, 0.5), (0.0067, 1.0), (0.015, 1.0), (0.0151, 2.0)):
        assert adapted_coefficient(0.3, kl, 0.01) == pytest.approx(0.3 * factor)
        assert adapted_coefficient(0.3, kl, None) == 0.3
    with made() as env:
        rows = rl.train(
            env, "promp", iterations=3, seed=0, hidden=(8,), kl_target=1e3, kl_coefficient=0.8
        ).history
    assert [row["kl_coefficient"] for row in rows] == [0.8, 0.4, 0.2]


def test_float64_parameters_train_in_float64():
    with made() as env:
        model = il.GaussianMLP([17, 8, 6])
        params = model.init(torch.Generator().manual_seed(0), torch.float64)
        training = rl.train(env, "promp", iterations=1, seed=0, model=model, params=params)
    assert {leaf.dtype for leaf in training.params.values()} == {torch.float64}
    assert not torch.equal(training.params["0.weight"], params["0.weight"])
    assert torch.equal(params["log_std"], torch.zeros(6, dtype=torch.float64)), "given ones moved"


# ---------------------------------------------------------------- settings

PUBLISHED = {  # PPO; ProMP, its inner; TRPO; TRPO-MAML, its inner (Gao and Sener 2020)
    "Walker2DRandParams": (1e-3, 1e-3, 1e-2, 0.1, 0.1, 1e-2),
    "Walker2DRandVel": (1e-3, 1e-3, 1e-2, 0.01, 0.1, 1e-2),
    "HalfCheetahRandVel": (1e-2, 1e-4, 1e-2, 0.01, 0.001, 1e-2),
    "HopperRandParams": (1e-3, 1e-3, 1e-2, 0.1, 0.1, 1e-2),
    "ML1-Push": (1e-4, 1e-4, 1e-4, 0.1, 0.1, 1e-4),
    "ML1-Reach": (1e-4, 1e-4, 1e-4, 0.001, 0.001, 1e-5),
    "ML10": (1e-4, 1e-4, 1e-3, 0.001, 0.01, 1e-3),
    "ML45": (1e-4, 1e-4, 1e-5, 0.01, 0.1, 1e-3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    ppo, promp, trpo, maml = (rl.published_settings(name, algorithm) for algorithm in NAMES)
    found = (ppo["learning_rate"], promp["learning_rate"], promp["inner_lr"])
    assert (*found, trpo["max_kl"], maml["max_kl"], maml["inner_lr"]) == PUBLISHED[name]
    random_params = name.endswith("RandParams")
    assert ppo["epochs"] == promp["epochs"] == (3 if random_params else 5)
    penalty = (1e-3, 1e-2) if random_params else (5e-4, None)
    assert (promp["kl_coefficient"], promp["kl_target"]) == penalty
    for settings in (ppo, promp, trpo, maml):
        assert settings["hidden"] == ((100, 100) if name.startswith("ML") else (64, 64))
        assert (settings["discount"], settings["gae_lambda"]) == (0.99, 1.0)
    assert ppo["clip"] == promp["clip"] == 0.3
    search = [maml[key] for key in ("cg_iterations", "line_search_steps", "line_search_ratio")]
    assert search == [10, 15, 0.8]


def test_defaults_are_the_published_ones():
    with made() as env:
        training = rl.train(env, "promp", iterations=0, seed=0)
        assert training.settings == rl.published_settings("HalfCheetahRandVel", "promp")
        assert training.model == il.GaussianMLP([17, 64, 64, 6])
        assert training.history == []
    assert rl.published_iterations("HopperRandParams", "trpo-maml") == 1001
    assert rl.published_iterations("HopperRandParams", "drs-trpo") == 2001


@pytest.mark.parametrize("algorithm", NAMES)
def test_every_setting_counts(algorithm):
    """Each setting changes the parameters or the history of three iterations."""
    kind = KINDS[algorithm]
    other = {
        "hidden": (5,),
        "discount": 0.5,
        "gae_lambda": 0.5,
        "sampling": "published",
        "learning_rate": 0.1,
        "clip": 1e-3,
        "epochs": 1,
        "inner_lr": 0.5,
        "kl_coefficient": 5.0,
        "kl_target": 1e3,
        "order": 1,
        "max_kl": 1e-4,
        "cg_iterations": 1,
    }
    base = {"hidden": (8,), "seed": 0, "iterations": 3}
    if algorithm in ("drs-ppo", "promp"):
        base["learning_rate"] = 0.05
    with made("HopperRandParams") as env:
        plain = rl.train(env, algorithm, **base)
        for field in fields(kind):
            if field.name.startswith("line_search"):
                continue  # tests/rl/test_trust_region.py
            changed = rl.train(env, algorithm, **{**base, field.name: other[field.name]})
            assert numbers(changed.history) != numbers(plain.history), field.name


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"algorithm": "drs-pro"}, ValueError, "did you mean 'drs-ppo'"),
        ({"algorithm": "maml-trpo"}, ValueError, "algorithm must be one of drs-ppo, promp"),
        ({"learning_rat": 1}, TypeError, "has no setting 'learning_rat'; did you mean 'learning_"),
        ({"max_kl": 0.1}, TypeError, "promp has no setting 'max_kl'"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be a number"),
        ({"epochs": 0}, ValueError, "epochs must lie"),
        ({"order": 3}, ValueError, "order must lie between 1 and 2"),
        ({"discount": 1.5}, ValueError, r"discount must lie in \[0, 1\]"),
        ({"sampling": "x"}, ValueError, "sampling must be one of"),
        ({"hidden": 8}, TypeError, "hidden must be a sequence"),
        ({"hidden": (0,)}, ValueError, "a hidden size must lie"),
        ({"seed": -1}, ValueError, "seed must lie"),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
        ({"iterations": -1}, ValueError, "iterations must lie"),
        ({"model": il.GaussianMLP([3, 6])}, ValueError, "model must have 17 inputs"),
        ({"model": il.GaussianMLP([17, 6]), "hidden": (8,)}, TypeError, "hidden must not be given"),
        ({"model": torch.nn.Linear(17, 6)}, TypeError, "be a GaussianMLP"),
    ],
)
def test_refuses(change, error, text):
    arguments = {"algorithm": "promp", "seed": 0, "iterations": 1, **change}
    with made() as env, pytest.raises(error, match=text):
        rl.train(env, arguments.pop("algorithm"), **arguments)


@pytest.mark.parametrize("algorithm", NAMES)
def test_gradient_that_is_not_finite_stops_before_the_step(algorithm, monkeypatch):
    with made() as env:
        training = rl.train(env, algorithm, iterations=1, seed=0, hidden=(8,))
        before, history = training.params, numbers(training.history)
        bad = {name: torch.full_like(leaf, torch.nan) for name, leaf in before.items()}
        single = {name: leaf[None] for name, leaf in bad.items()}
        monkeypatch.setattr(algorithms, "loss_and_grad", lambda *a, **k: (torch.zeros(1), single))
        result = SimpleNamespace(loss=torch.zeros(3), grad=bad)
        monkeypatch.setattr(algorithms, "meta_grad", lambda *a, **k: result)
        with pytest.raises(FloatingPointError, match=r"gradient of .* is not finite"):
            training.step()
        for name, leaf in training.params.items():
            assert torch.equal(leaf, before[name])
        assert numbers(training.history) == history


def test_every_algorithm_is_there():
    assert list(ALGORITHMS) == NAMES
