"""The sampler: what it records is what the environment did, for every way of giving parameters."""

import numpy as np
import pytest
import torch

import innerloop as il
from innerloop import rl

pytest.importorskip("mujoco", reason="needs innerloop[rl]")


def made(name="HopperRandParams", *, tasks=3, rollouts=2, horizon=25, threads=1):
    env = rl.make(name, tasks=tasks, rollouts=rollouts, horizon=horizon, threads=threads)
    env.set_tasks(env.sample_tasks(tasks, 0))
    model = il.GaussianMLP([env.observation_size, 8, 8, env.action_size])
    params = model.init(torch.Generator().manual_seed(0))
    params["log_std"] += torch.linspace(1.0, 2.0, env.action_size)
    return env, model, params


def per_task(params, tasks):
    """Parameters of every task, all different."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: leaf + 0.3 * torch.randn(tasks, *leaf.shape, generator=generator)
        for name, leaf in params.items()
    }


def same(a, b):
    for name in ("observation", "reward", "end", "next_observation", "action", "mean", "log_std"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampling", ["lanes", "published"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per task"])
def test_replay(shared, sampling, dtype):
    """Its actions, given to the environment again, give its observations, rewards and ends; its
    means are the network's."""
    env, model, params = made()
    params = {name: leaf.to(dtype) for name, leaf in params.items()}
    if not shared:
        params = per_task(params, 3)
    data = rl.collect(env, params, model=model, seed=5, sampling=sampling)
    wanted = np.dtype(str(dtype).removeprefix("torch."))
    assert data.observation.dtype == data.action.dtype == data.reward.dtype == wanted
    observation = env.reset(5)
    for row in range(len(data.reward)):
        seen = observation.astype(wanted).reshape(3, 2, -1)
        np.testing.assert_array_equal(data.observation[row], seen)
        mean = il.predict(params, torch.from_numpy(seen), model=model)
        np.testing.assert_allclose(data.mean[row], mean, rtol=0, atol=1e-6)
        observation, reward, terminated, truncated = env.step(data.action[row].reshape(6, -1))
        np.testing.assert_array_equal(data.reward[row].ravel(), reward.astype(wanted))
        np.testing.assert_array_equal(data.end[row].ravel(), terminated | truncated)
    last = observation.astype(wanted).reshape(3, 2, -1)
    np.testing.assert_array_equal(data.next_observation, last)
    assert data.steps == data.reward.size
    if sampling == "lanes":
        assert data.reward.shape == (25, 3, 2)
        assert data.weight is None


def test_published_rule():
    """Rows until finished episodes hold T E H steps, and weights that leave out the rest."""
    env, model, params = made()
    data = rl.collect(env, params, model=model, seed=0, sampling="published")
    rows = len(data.end)
    finished, total = np.zeros((3, 2), int), []
    clock = np.zeros((3, 2), int)
    for row in range(rows):
        clock += 1
        finished += np.where(data.end[row], clock, 0)
        clock[data.end[row]] = 0
        total.append(finished.sum())
    assert total[-1] >= 3 * 2 * 25 > total[-2]
    assert rows > 25
    np.testing.assert_array_equal((data.weight > 0).sum(0), finished)
    np.testing.assert_allclose(data.weight.sum((0, 2)), 1, rtol=1e-5)
    assert len(np.unique(data.weight[data.weight > 0])) > 1, "tasks have equal counts"


def test_noise_has_the_policys_size():
    env, model, params = made("HalfCheetahRandVel", tasks=2, rollouts=40, horizon=50)
    params = per_task(params, 2)
    params["log_std"][0, 0] = -100.0  # below the floor
    data = rl.collect(env, params, model=model, seed=0)
    floor = np.log(1e-6)
    np.testing.assert_allclose(data.log_std, params["log_std"].numpy().clip(floor), rtol=1e-6)
    z = (data.action - data.mean) / np.exp(data.log_std)[:, None]
    z = np.moveaxis(z, 1, 0)[:, ..., 1:].reshape(2, 2000, 5)  # float32 hides noise of size 1e-6
    assert np.abs(z.mean(1)).max() < 5 / np.sqrt(2000)
    assert np.abs(z.var(1) - 1).max() < 5 * np.sqrt(2 / 2000)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads):
    env, model, params = made()
    other, _, _ = made(threads=threads)
    params = per_task(params, 3)
    first = rl.collect(env, params, model=model, seed=2)
    torch.set_num_threads(2)
    same(first, rl.collect(other, params, model=model, seed=2))
    assert torch.get_num_threads() == 2, "the number of threads is not put back"


def test_seed_decides():
    env, model, params = made()
    first = rl.collect(env, params, model=model, seed=2)
    rl.collect(env, params, model=model, seed=3, sampling="published")
    same(first, rl.collect(env, params, model=model, seed=2))
    other = rl.collect(env, params, model=model, seed=3)
    assert not np.array_equal(first.observation[0], other.observation[0])
    assert not np.array_equal(first.action, other.action)


def test_threads_are_put_back_after_an_error():
    env, model, params = made()
    torch.set_num_threads(2)
    params["0.weight"][:] = np.nan
    with pytest.raises(ValueError, match="action must be finite"):
        rl.collect(env, params, model=model, seed=0)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": il.GaussianMLP([10, 3])}, ValueError, "have 11 inputs for HopperRandParams"),
        ({"model": il.GaussianMLP([11, 2])}, ValueError, "have 3 outputs for HopperRandParams"),
        ({"model": il.MLP([11, 3])}, TypeError, "be an innerloop.GaussianMLP"),
        (
            {"model": il.GaussianMLP([11, 8, 3])},
            ValueError,
            r"params\['1.weight'\] must have shape",
        ),
        ({"seed": -1}, ValueError, "seed must lie"),
        ({"sampling": "all"}, ValueError, "sampling must be one of lanes, published"),
        ({"params": None}, TypeError, "be a dict of tensors"),
    ],
)
def test_refuses(change, error, text):
    env, model, params = made()
    arguments = {"params": params, "model": model, "seed": 0, **change}
    with pytest.raises(error, match=text):
        rl.collect(env, arguments.pop("params"), **arguments)


def test_refuses_parameters_of_other_shapes_and_dtypes():
    env, model, params = made()
    for name, leaf, error in (
        ("0.weight", torch.zeros(8, 10), ValueError),
        ("log_std", torch.zeros(2, 3), ValueError),
        ("log_std", torch.zeros(3, dtype=torch.float64), TypeError),
    ):
        with pytest.raises(error, match="params"):
            rl.collect(env, {**params, name: leaf}, model=model, seed=0)
    for dtype in (torch.float16, torch.bfloat16):
        half = {name: leaf.to(dtype) for name, leaf in params.items()}
        with pytest.raises(TypeError, match="float32 or float64"):
            rl.collect(env, half, model=model, seed=0)
