"""Rewards and ends of episodes on both sides of every threshold; laws of tasks and starts."""

import numpy as np
import pytest

from innerloop import rl
from innerloop.rl.families import FAMILIES

mujoco = pytest.importorskip("mujoco", reason="needs innerloop[rl]")
stats = pytest.importorskip("scipy.stats", reason="needs scipy")

SIZES = {"Walker2DRandParams": (9, 9), "Walker2DRandVel": (9, 9)}
SIZES |= {"HopperRandParams": (6, 6), "HalfCheetahRandVel": (9, 9)}


def state(name, **entries):
    """A standing state (qpos [1, nq], qvel [1, nv]) with some entries changed: z, angle, q3, v0"""
    nq, nv = SIZES[name]
    qpos, qvel = np.zeros((1, nq)), np.zeros((1, nv))
    qpos[0, 1] = 1.25
    for key, value in entries.items():
        if key == "z":
            qpos[0, 1] = value
        elif key == "angle":
            qpos[0, 2] = value
        elif key.startswith("q"):
            qpos[0, int(key[1:])] = value
        else:
            qvel[0, int(key[1:])] = value
    return qpos, qvel


def above(x):
    return np.nextafter(x, np.inf)


def below(x):
    return np.nextafter(x, -np.inf)


WALKER = [
    ({}, True),
    ({"z": 0.8}, False),
    ({"z": above(0.8)}, True),
    ({"z": 2.0}, False),
    ({"z": below(2.0)}, True),
    ({"angle": 1.0}, False),
    ({"angle": below(1.0)}, True),
    ({"angle": -1.0}, False),
    ({"angle": above(-1.0)}, True),
    ({"z": np.nan}, False),
    ({"angle": np.nan}, False),
    ({"v3": 1e6}, True),
]
HOPPER = [
    ({}, True),
    ({"z": 0.7}, False),
    ({"z": above(0.7)}, True),
    ({"z": 5.0}, True),
    ({"angle": 0.2}, False),
    ({"angle": below(0.2)}, True),
    ({"angle": -0.2}, False),
    ({"angle": above(-0.2)}, True),
    *[
        ({key: sign * size}, alive)
        for key in ("q3", "q5", "v0", "v5")
        for sign in (-1, 1)
        for size, alive in ((100.0, False), (below(100.0), True))
    ],
    ({"q0": 1e6}, True),  # the first two states have no such bound
    ({"q0": np.nan}, False),
    ({"v2": np.inf}, False),
    ({"v2": np.nan}, False),
]
CHEETAH = [({}, True), ({"z": -5.0}, True), ({"angle": 3.0}, True), ({"v1": 1e5}, True)]
CASES = [
    *[("Walker2DRandParams", *case) for case in WALKER],
    *[("Walker2DRandVel", *case) for case in WALKER],
    *[("HopperRandParams", *case) for case in HOPPER],
    *[("HalfCheetahRandVel", *case) for case in CHEETAH],
]


@pytest.mark.parametrize(("name", "entries", "alive"), CASES, ids=str)
def test_episode_goes_on_exactly_inside_the_thresholds(name, entries, alive):
    assert FAMILIES[name].healthy(*state(name, **entries)).tolist() == [alive]


@pytest.mark.parametrize(
    ("name", "velocity", "effort", "goal", "expected"),
    [
        ("Walker2DRandParams", 1.5, 4.0, 0.0, 1.5 + 1 - 0.004),
        ("HopperRandParams", -2.0, 3.0, 0.0, -2.0 + 1 - 0.003),
        ("Walker2DRandVel", 1.5, 6.0, 4.0, 15 - 2.5 - 0.006),
        ("Walker2DRandVel", 5.5, 6.0, 4.0, 15 - 1.5 - 0.006),
        ("HalfCheetahRandVel", 2.0, 6.0, 0.5, -1.5 - 0.3),
        ("HalfCheetahRandVel", 0.5, 0.0, 2.0, -1.5),
    ],
)
def test_reward(name, velocity, effort, goal, expected):
    found = FAMILIES[name].reward(*(np.array([x]) for x in (velocity, effort, goal)))
    assert found == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", FAMILIES)
def test_step_uses_velocity_scaled_action_and_goal(name):
    """From a state set by hand, against the formula on the states before and after."""
    with rl.make(name, tasks=2, rollouts=2, horizon=9, threads=1) as env:
        tasks = env.sample_tasks(2, 3)
        env.set_tasks(tasks)
        env.reset(0)
        action = np.random.default_rng(0).normal(size=(4, env.action_size)) * 8
        before = env.qpos[:, 0]
        _, reward, terminated, _ = env.step(action)
        assert not terminated.any()
        velocity = (env.qpos[:, 0] - before) / FAMILIES[name].dt
        effort = np.square(np.clip(action / 10, -1, 1)).sum(1)
        goal = np.repeat(tasks, 2) if name.endswith("Vel") else np.zeros(4)
        expected = FAMILIES[name].reward(velocity, effort, goal)
        np.testing.assert_allclose(reward, expected, rtol=1e-12)
        assert (np.abs(action) > 10).any(), "no action was clipped"


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("HopperRandParams", {"v2": np.nan}),
        ("HopperRandParams", {"q3": np.inf}),
        ("Walker2DRandVel", {"q4": np.nan}),
        ("HalfCheetahRandVel", {"v0": np.nan}),
        ("HalfCheetahRandVel", {"v0": 1e11}),
    ],
)
def test_broken_state_ends_the_episode_with_reward_zero(name, entries, tmp_path, monkeypatch):
    """In its own lane alone, without a trace in later numbers or a log file."""
    monkeypatch.chdir(tmp_path)
    with rl.make(name, tasks=1, rollouts=3, horizon=50, threads=1) as env:
        env.set_tasks(env.sample_tasks(1, 0))
        env.reset(0)
        qpos, qvel = env.qpos, env.qvel
        healthy = env.step(np.zeros((3, env.action_size)))
        env.reset(0)
        bad_qpos, bad_qvel = state(name, **entries)
        qpos[1], qvel[1] = bad_qpos[0], bad_qvel[0]
        env.set_state(qpos, qvel)
        observation, reward, terminated, _ = env.step(np.zeros((3, env.action_size)))
        assert terminated.tolist() == [False, True, False]
        assert reward[1] == 0.0
        assert np.isfinite(observation).all()
        for lane in (0, 2):
            assert (observation[lane] == healthy[0][lane]).all()
            assert reward[lane] == healthy[1][lane]
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- laws


def draws(name, count=2000):
    with rl.make(name, tasks=1, rollouts=1, horizon=2, threads=1) as env:
        return env.sample_tasks(count, 5), env._nominal


@pytest.mark.parametrize(("name", "top"), [("Walker2DRandVel", 10), ("HalfCheetahRandVel", 3)])
def test_goals_are_uniform(name, top):
    goals, _ = draws(name)
    assert all(type(goal) is float for goal in goals)
    assert stats.kstest(goals, stats.uniform(0, top).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["Walker2DRandParams", "HopperRandParams"])
def test_factors_are_powers_of_a_uniform(name):
    """log_base(value / nominal) is Uniform(-3, 3), independently for every entry, and entries that
    are 0 stay 0."""
    tasks, model = draws(name)
    bases = {"body_mass": 1.5, "body_inertia": 1.5, "dof_damping": 1.3, "geom_friction": 1.5}
    columns = []
    for field, base in bases.items():
        nominal = getattr(model, field)
        values = np.stack([task[field] for task in tasks])
        assert values.shape[1:] == nominal.shape
        zero = nominal == 0
        assert (values[:, zero] == 0).all()
        columns.append(np.log(values[:, ~zero] / nominal[~zero]) / np.log(base))
    power = np.concatenate(columns, axis=1)
    assert np.abs(power).max() <= 3 + 1e-12
    # 5 standard errors of the mean (sd sqrt 3) and of the variance (sd of u^2: 9 * sqrt(4 / 45))
    assert np.abs(power.mean(0)).max() < 5 * np.sqrt(3 / len(power))
    assert np.abs(power.var(0) - 3).max() < 5 * 9 * np.sqrt(4 / 45 / len(power))
    correlation = np.corrcoef(power.T) - np.eye(power.shape[1])
    assert np.abs(correlation).max() < 6 / np.sqrt(len(power))


@pytest.mark.parametrize("name", FAMILIES)
def test_number_of_random_entries(name):
    """Walker: 65 numbers, floor and world body included."""
    (task,), model = draws(name, 1)
    if name.endswith("Params"):
        assert sum(value.size for value in task.values()) == {9: 65, 6: 41}[model.nq]


@pytest.mark.parametrize("name", FAMILIES)
def test_starts(name):
    with rl.make(name, tasks=1, rollouts=2000, horizon=2, threads=1) as env:
        env.set_tasks(env.sample_tasks(1, 0))
        env.reset(1)
        qpos = env.qpos - env._nominal.qpos0
        qvel = env.qvel
    if name == "HalfCheetahRandVel":
        assert stats.kstest(qpos.ravel() / 0.1, stats.uniform(-1, 2).cdf).pvalue > 1e-3
        assert stats.kstest(qvel.ravel() / 0.1, stats.norm.cdf).pvalue > 1e-3
    else:
        for value in (qpos, qvel):
            assert stats.kstest(value.ravel() / 0.005, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    both = np.concatenate([qpos, qvel], axis=1)
    correlation = np.corrcoef(both.T) - np.eye(both.shape[1])
    assert np.abs(correlation).max() < 6 / np.sqrt(len(both))


@pytest.mark.parametrize("name", FAMILIES)
def test_tasks_depend_on_seed_and_split_alone(name):
    with rl.make(name, tasks=1, rollouts=1, horizon=2, threads=1) as env:

        def flat(*arguments, **options):
            return [
                np.concatenate([v.ravel() for v in t.values()]) if isinstance(t, dict) else [t]
                for t in env.sample_tasks(*arguments, **options)
            ]

        first = flat(3, 0)
        np.testing.assert_array_equal(first, flat(3, 0))
        np.testing.assert_array_equal(first, flat(5, 0)[:3])
        assert not np.isin(first, flat(3, 1)).all()
        if name.endswith("Vel"):
            assert not np.isin(first, flat(3, 0, split="test")).any()
