"""Meta-World's benchmarks against its own objects: tasks, rewards, success, horizon."""

import numpy as np
import pytest

from innerloop import rl

metaworld = pytest.importorskip("metaworld", reason="needs innerloop[metaworld]")


def made(name="ML1-Push", **options):
    return rl.make(name, **{"tasks": 2, "rollouts": 2, "horizon": 6, "threads": 1, **options})


@pytest.fixture(scope="module")
def benchmark():
    """The same ML1 as the environment's."""
    return metaworld.ML1("push-v3", seed=0)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_equals_metaworlds_own_objects(benchmark, version):
    """Observations, rewards and success of a plain loop, with the action mapped from [-10, 10]."""
    with made(reward_version=version) as env:
        tasks = benchmark.train_tasks[:2]
        env.set_tasks(tasks)
        observation = env.reset(0)
        kind = benchmark.train_classes["push-v3"]
        single = [kind(reward_function_version=version) for _ in range(4)]
        for lane, one in enumerate(single):
            one.set_task(tasks[lane // 2])
            np.testing.assert_array_equal(observation[lane], one.reset()[0])
        random = np.random.default_rng(0)
        for step in range(6):
            action = random.normal(size=(4, 4)) * 8
            observation, reward, terminated, truncated = env.step(action)
            for lane, one in enumerate(single):
                scaled = np.clip(-1 + (action[lane] + 10) * 2 / 20, -1, 1)
                seen, expected, _, _, info = one.step(scaled)
                assert reward[lane] == expected
                assert env.success[lane] == bool(info["success"])
                if step < 5:
                    np.testing.assert_array_equal(observation[lane], seen)
            assert not terminated.any()
            assert (truncated == (step == 5)).all()
        assert env.reward_version == version


def test_reward_versions_differ():
    rewards = []
    for version in ("v1", "v2"):
        with made(reward_version=version) as env:
            env.set_tasks(env.sample_tasks(2, 0))
            env.reset(0)
            rewards.append(env.step(np.zeros((4, 4)))[1])
    assert not np.isclose(*rewards).any()


def test_success_is_seen():
    """Reach: a hand that is driven to the goal succeeds, whatever the episode's end."""
    with made("ML1-Reach", horizon=150, tasks=1, rollouts=1) as env:
        env.set_tasks(env.sample_tasks(1, 0))
        observation = env.reset(0)
        goal = env._groups[0]._group._lanes[0]._target_pos
        won = []
        for _ in range(100):
            action = np.append(100 * (goal - observation[0, :3]), 0.0)
            observation, *_ = env.step(10 * action[None])
            won.append(bool(env.success[0]))
        assert not won[0]
        assert won[-1]


def test_train_and_test_tasks_are_disjoint():
    """50 of each, in the order of the seed, without repetition while there are enough."""
    with made() as env:
        train = [task.data for task in env.sample_tasks(50, 0)]
        test = [task.data for task in env.sample_tasks(50, 0, split="test")]
        assert len(set(train)) == len(set(test)) == 50
        assert not set(train) & set(test)
        assert train != [task.data for task in env.sample_tasks(50, 1)]
        assert train == [task.data for task in env.sample_tasks(50, 0)]
        assert len(env.sample_tasks(120, 0)) == 120


@pytest.mark.slow
@pytest.mark.parametrize(("name", "train", "test"), [("ML10", 10, 5), ("ML45", 45, 5)])
def test_classes_of_train_and_test_are_disjoint(name, train, test):
    with made(name) as env:
        found = {
            split: {task.env_name for task in env.sample_tasks(50 * count, 0, split=split)}
            for split, count in (("train", train), ("test", test))
        }
        assert (len(found["train"]), len(found["test"])) == (train, test)
        assert not found["train"] & found["test"]
        for split in ("test", "train"):  # objects of other classes in the same lanes
            env.set_tasks(env.sample_tasks(2, 1, split=split))
            assert env.reset(0).shape == (4, 39)
            assert np.isfinite(env.step(np.zeros((4, 4)))[1]).all()


def test_a_task_has_one_start_whatever_came_before():
    with made() as env:
        tasks = env.sample_tasks(2, 0)
        env.set_tasks(tasks)
        first = env.reset(0)
        for _ in range(9):
            observation, _, _, truncated = env.step(np.full((4, 4), 3.0))
            if truncated.all():
                np.testing.assert_array_equal(observation, first)
        np.testing.assert_array_equal(env.reset(5), first)
        env.set_tasks(tasks[::-1])
        np.testing.assert_array_equal(env.reset(0), first[[2, 3, 0, 1]])


def test_workers_change_no_bit():
    shown = []
    for threads in (1, 2):
        with made(threads=threads) as env:
            env.set_tasks(env.sample_tasks(2, 0))
            random = np.random.default_rng(0)
            shown.append([env.reset(0)])
            for _ in range(8):
                shown[-1] += [*env.step(random.normal(size=(4, 4)) * 8), env.success]
    for a, b in zip(*shown, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: made(horizon=501), ValueError, "horizon must be at most 500"),
        (lambda: made(reward_version="v3"), ValueError, "reward_version must be one of v1, v2"),
        (lambda: made().set_tasks([1.0, 2.0]), TypeError, "be a metaworld.Task"),
        (lambda: made().qpos, NotImplementedError, "four MuJoCo families"),
    ],
)
def test_refuses(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_trains():
    """One iteration of each pair's members, through adaptation on lanes of their own."""
    with made(tasks=2, rollouts=1, horizon=20) as env:
        for algorithm in ("drs-ppo", "promp"):
            (row,) = rl.train(env, algorithm, iterations=1, seed=0).history
            assert np.isfinite(row["return"])
            assert row["success"] == 0.0
