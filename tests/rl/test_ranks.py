"""Two processes that share the tasks of a training agree with one that has them all."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

import innerloop as il
from innerloop import rl

pytest.importorskip("mujoco", reason="needs innerloop[rl]")
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)

NAMES = ["drs-ppo", "promp", "drs-trpo", "trpo-maml"]
FAMILIES = ["HopperRandParams", "HalfCheetahRandVel"]


# Without damping, conjugate gradients on few rows amplify float32's rounding without bound, and a
# line search may turn on it: TRPO is compared in float64.
DTYPES = {name: torch.float64 if "trpo" in name else torch.float32 for name in NAMES}


def train_and_evaluate(rank, world):
    """What every algorithm gives after an iteration, and what it returns on five test tasks."""
    found = {}
    for family in FAMILIES:
        with rl.make(family, tasks=4 // world, rollouts=3, horizon=15, threads=1) as env:
            env.share(rank, world)
            model = il.GaussianMLP([env.observation_size, 8, env.action_size])
            for name, dtype in DTYPES.items():
                start = model.init(torch.Generator().manual_seed(0), dtype=dtype)
                training = rl.Training(env, name, seed=3, model=model, params=start)
                row = training.step()
                returns = rl.evaluate(
                    env, training.params, model=model, tasks=5, inner_lr=0.1, seed=1
                )
                params = {key: leaf.numpy() for key, leaf in training.params.items()}
                found[family, name] = (row, params, returns)
    return found


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    torch.save(train_and_evaluate(rank, 2), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(one process, first of two, second of two)."""
    folder = str(tmp_path_factory.mktemp("ranks"))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    alone = train_and_evaluate(0, 1)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return alone, *(torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(2))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_agree_with_one(runs, name, family):
    alone, first, second = (run[family, name] for run in runs)
    for row, params, returns in (first, second):
        assert row["steps"] == alone[0]["steps"]
        for key in ("return", "adapted_return", "loss", "kl", "entropy"):
            if alone[0][key] is None:
                assert row[key] is None
            else:
                assert row[key] == pytest.approx(alone[0][key], rel=1e-5, abs=1e-5), key
        for key, leaf in alone[1].items():
            np.testing.assert_allclose(params[key], leaf, rtol=0, atol=1e-5)
        # a rounding of the policy grows over an episode
        np.testing.assert_allclose(returns, alone[2], rtol=1e-2, atol=1e-2)
    for key, leaf in first[1].items():
        np.testing.assert_array_equal(leaf, second[1][key])  # ranks do not drift apart


def test_parts_act_as_in_the_whole():
    """Without any process group: starts, noise and tasks of two parts are those of one."""
    parts = []
    for tasks, rank, world in ((4, 0, 1), (2, 0, 2), (2, 1, 2)):
        with rl.make("HopperRandParams", tasks=tasks, rollouts=2, horizon=30, threads=1) as env:
            env.share(rank, world)
            every = env.sample_tasks(4, seed=0)
            env.set_tasks(every[rank * tasks : (rank + 1) * tasks])
            model = il.GaussianMLP([env.observation_size, 4, env.action_size])
            params = model.init(torch.Generator().manual_seed(0))
            parts.append(rl.collect(env, params, model=model, seed=5))
    whole, *rest = parts
    assert whole.end.any()
    for field in ("observation", "action", "reward", "end", "next_observation"):
        joined = np.concatenate(
            [getattr(part, field) for part in rest], axis=0 if field == "next_observation" else 1
        )
        np.testing.assert_allclose(joined, getattr(whole, field), rtol=1e-6, atol=1e-6)


def test_refusals():
    with rl.make("HalfCheetahRandVel", tasks=2, rollouts=2, horizon=5, threads=1) as env:
        with pytest.raises(ValueError, match=r"share: rank must lie between 0 and 1 \(got 2\)"):
            env.share(2, 2)
        training = rl.Training(env, "drs-ppo", seed=0, hidden=(4,), sampling="published")
        env.share(1, 2)
        with pytest.raises(RuntimeError, match=r"part 1 of 2.*init_process_group"):
            rl.Training(env, "drs-ppo", seed=0)
        with pytest.raises(RuntimeError, match=r"rl.evaluate: .*part 1 of 2"):
            rl.evaluate(env, training.params, model=training.model, tasks=2, updates=0, seed=0)
        env.set_tasks(env.sample_tasks(2, seed=0))
        with pytest.raises(ValueError, match="sampling must be 'lanes'"):
            rl.collect(env, training.params, model=training.model, seed=0, sampling="published")
