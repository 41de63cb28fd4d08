"""`evaluate` against its definition by public parts; pairing, chunks, refusals."""

import warnings

import numpy as np
import pytest
import torch

import innerloop as il
from innerloop import rl
from innerloop.rl.seeds import derived

pytest.importorskip("mujoco", reason="needs innerloop[rl]")


def made(name="HalfCheetahRandVel", tasks=3, **options):
    env = rl.make(name, **{"tasks": tasks, "rollouts": 2, "horizon": 12, "threads": 1, **options})
    model = il.GaussianMLP([env.observation_size, 8, env.action_size])
    return env, model, model.init(torch.Generator().manual_seed(0))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["HalfCheetahRandVel", "HopperRandParams"])
def test_equals_its_definition(name, optimizer):
    """Task by task for the optimiser: Adam's moments are a task's own and start at zero."""
    env, model, params = made(name)
    tasks = env.sample_tasks(3, 9)
    found = rl.evaluate(
        env, params, model=model, tasks=tasks, updates=2, inner_lr=0.05, seed=1, optimizer=optimizer
    )
    env.set_tasks(tasks)
    own = [{k: v.clone().requires_grad_() for k, v in params.items()} for _ in range(3)]
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    optimizers = [kind(list(p.values()), lr=0.05) for p in own]
    for update in range(3):
        together = {k: torch.stack([p[k].detach() for p in own]) for k in params}
        data = rl.collect(env, together, model=model, seed=derived(1, 1, 0, update))
        expected = rl.episode_returns(data).mean(1)
        np.testing.assert_allclose(found[:, update], expected, rtol=1e-4)
        batch = rl.policy_batch(data, rl.advantages(data))
        grads = il.loss_and_grad(together, batch, model=model, loss="pg_ratio")[1]
        for t in range(3):
            for name_, leaf in own[t].items():
                leaf.grad = grads[name_][t].clone()
            optimizers[t].step()


def test_more_tasks_than_the_environment_holds():
    """Whole chunks and a rest; the first chunk does not depend on what follows."""
    env, model, params = made()
    tasks = env.sample_tasks(7, 0)
    options = {"model": model, "updates": 1, "inner_lr": 0.1, "seed": 2}
    found = rl.evaluate(env, params, tasks=tasks, **options)
    assert found.shape == (7, 2)
    assert found.dtype == np.float64
    assert len(np.unique(found)) == 14
    np.testing.assert_array_equal(found[:3], rl.evaluate(env, params, tasks=tasks[:3], **options))
    np.testing.assert_array_equal(found[:2], rl.evaluate(env, params, tasks=tasks[:2], **options))
    few, _, _ = made(tasks=3, threads=2)
    np.testing.assert_array_equal(found, rl.evaluate(few, params, tasks=tasks, **options))


def test_results_of_two_policies_are_paired():
    """The same tasks, starts and noise: a policy against itself differs by nothing, and a rate of 0
    leaves only the noise of another round."""
    env, model, params = made()
    options = {"model": model, "tasks": 5, "updates": 1, "seed": 2}
    a = rl.evaluate(env, params, inner_lr=0.0, **options)
    b = rl.evaluate(env, params, inner_lr=0.1, **options)
    np.testing.assert_array_equal(a[:, 0], b[:, 0])
    assert (a[:, 1] != b[:, 1]).all()
    c = rl.evaluate(env, params, inner_lr=-0.1, **options)
    np.testing.assert_array_equal(a[:, 0], c[:, 0])
    assert (b[:, 1] != c[:, 1]).all()


def test_tasks_by_number_are_test_tasks():
    env, model, params = made()
    options = {"model": model, "updates": 0, "seed": 6}
    tasks = env.sample_tasks(4, derived(6, 0), split="test")
    np.testing.assert_array_equal(
        rl.evaluate(env, params, tasks=4, **options),
        rl.evaluate(env, params, tasks=tasks, **options),
    )


@pytest.mark.parametrize("option", [{"tester": "published"}, {"sampling": "published"}])
def test_public_rules(option):
    """Short episodes finish first: the public tester sees lower returns of a hopper that falls."""
    env, model, params = made("HopperRandParams", tasks=8, rollouts=10, horizon=60)
    options = {"model": model, "tasks": 8, "updates": 1, "inner_lr": 0.01, "seed": 0}
    plain = rl.evaluate(env, params, **options)
    public = rl.evaluate(env, params, **options, **option)
    assert np.isfinite(public).all()
    if "tester" in option:
        assert public[:, 0].mean() < plain[:, 0].mean()
    else:
        np.testing.assert_array_equal(public[:, 0], plain[:, 0])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"inner_lr": None}, TypeError, "inner_lr must be given"),
        ({"inner_lr": np.nan}, ValueError, "inner_lr must"),
        ({"updates": -1}, ValueError, "updates must lie"),
        ({"tasks": 0}, ValueError, "tasks must lie"),
        ({"tasks": []}, ValueError, "the number of tasks must lie"),
        ({"tasks": "two"}, TypeError, "tasks must be an int"),
        ({"optimizer": "adamw"}, ValueError, "did you mean 'adam'"),
        ({"tester": "x"}, ValueError, "tester must be one of"),
        ({"seed": -1}, ValueError, "seed must lie"),
        ({"model": il.GaussianMLP([17, 5])}, ValueError, "have 6 outputs"),
    ],
)
def test_refuses(change, error, text):
    env, model, params = made()
    arguments = {"model": model, "tasks": 2, "updates": 1, "inner_lr": 0.1, "seed": 0, **change}
    with pytest.raises(error, match=text):
        rl.evaluate(env, params, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("rate", [1e6, 1e15, 1e30, 1e38])
def test_rates_that_diverge_are_an_error_and_no_warning(rate, sign, dtype):
    env, model, params = made()
    params = {name: leaf.to(dtype) for name, leaf in params.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(4):
            arguments = {"tasks": 3, "updates": 2, "inner_lr": sign * rate, "seed": seed}
            with pytest.raises(ValueError, match="must be finite"):
                rl.evaluate(env, params, model=model, **arguments)
