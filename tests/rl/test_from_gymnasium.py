"""Task families made of other people's environments, in this process and in workers."""

import numpy as np
import pytest

from innerloop import rl

pytest.importorskip("gymnasium", reason="needs innerloop[rl]")

import lane_cases as cases


def made(make_env=cases.Counter, *, tasks=3, rollouts=2, horizon=8, threads=1, **options):
    return rl.from_gymnasium(
        make_env,
        sample_tasks=cases.sample_tasks,
        set_task=cases.set_task,
        tasks=tasks,
        rollouts=rollouts,
        horizon=horizon,
        threads=threads,
        **options,
    )


def run(env, steps=12, seed=3):
    tasks = env.sample_tasks(env.tasks, 0)
    env.set_tasks(tasks)
    shown = [env.reset(seed)]
    random = np.random.default_rng(0)
    for _ in range(steps):
        shown += [*env.step(random.normal(size=(env.lanes, env.action_size))), env.success]
    return shown


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
@pytest.mark.parametrize("horizon", [3, 5, 8])
def test_clock_rewards_and_resets(kind, horizon):
    make_env = cases.Counter if kind == "terminated" else cases.truncating
    with made(make_env, horizon=horizon) as env:
        tasks = env.sample_tasks(3, 0)
        assert tasks == cases.sample_tasks(3, 0)
        env.set_tasks(tasks)
        lane_tasks = np.repeat(tasks, 2)
        observation = env.reset(1)
        np.testing.assert_array_equal(observation[:, 0], lane_tasks)
        clock = np.zeros(6, int)
        draws = [observation[:, 1]]
        for _ in range(17):
            action = np.full((6, 2), 0.25)
            observation, reward, terminated, truncated = env.step(action)
            clock += 1
            np.testing.assert_allclose(reward, lane_tasks + 0.5)
            own = clock == 5
            assert (terminated == (own if kind == "terminated" else False)).all()
            limit = clock == horizon
            assert (truncated == (limit if kind == "terminated" else limit | own)).all()
            assert (env.success == (clock == 3)).all()
            clock[terminated | truncated] = 0
            np.testing.assert_array_equal(observation[:, 2], clock)
            if (clock == 0).all():
                draws.append(observation[:, 1])
        assert len(draws) > 2
        assert len(np.unique(draws)) == np.size(draws), "starts repeat"


@pytest.mark.parametrize("threads", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_workers_change_no_bit(threads):
    """Two, and more than there are lanes; they end with the environment."""
    with made() as here, made(threads=threads) as there:
        for a, b in zip(run(here), run(there), strict=True):
            np.testing.assert_array_equal(a, b)
        processes = [group._process for group in there._groups]
        assert len(processes) == min(threads, there.lanes)
    assert not any(process.is_alive() for process in processes)


def test_one_object_repeats_itself():
    with made() as env:
        first = run(env)
        for a, b in zip(first, run(env), strict=True):
            np.testing.assert_array_equal(a, b)
        assert not np.array_equal(first[0], run(env, seed=4)[0])


def test_actions_are_clipped_or_mapped_onto_the_bounds():
    action = np.array([[0.5, -9.0], [30.0, 1.0]])
    for action_range, sums in ((None, [-1.5, 3.0]), (10.0, [0.1 - 1.8, 2.0 + 0.2])):
        with made(tasks=1, action_range=action_range) as env:
            env.set_tasks([0.0])
            env.reset(0)
            np.testing.assert_allclose(env.step(action)[1], sums, rtol=1e-14)


def test_test_tasks_are_others():
    with made() as env:
        assert env.sample_tasks(3, 5) == env.sample_tasks(3, 5, split="train")
        assert not set(env.sample_tasks(9, 5)) & set(env.sample_tasks(9, 5, split="test"))


def test_tasks_need_a_reset():
    with made() as env:
        run(env)
        env.set_tasks(env.sample_tasks(3, 1))
        with pytest.raises(RuntimeError, match="call reset"):
            env.step(np.zeros((6, 2)))


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_error_of_a_lane_is_told(threads):
    env = made(cases.Failing, threads=threads)
    env.set_tasks([1.0, 1.0, 1.0])
    env.reset(0)
    env.step(np.zeros((6, 2)))
    with pytest.raises((KeyError, RuntimeError), match="broken joint"):
        env.step(np.zeros((6, 2)))
    with pytest.raises(RuntimeError, match="is closed"):  # lanes no longer agree
        env.step(np.zeros((6, 2)))


def test_death_of_a_worker_is_told():
    env = made(cases.Failing, threads=2)
    env.set_tasks([1.0, 1.0, -1.0])
    env.reset(0)
    env.step(np.zeros((6, 2)))
    with pytest.raises(RuntimeError, match=r"Counter|Failing"):
        env.step(np.zeros((6, 2)))
    assert all(not group._process.is_alive() for group in env._groups)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"make_env": cases.Discrete}, TypeError, "action_space must be a gymnasium.spaces.Box"),
        ({"make_env": 3}, TypeError, "make_env must be a function"),
        ({"make_env": lambda: 3}, TypeError, "make_env must make a gymnasium environment"),
        ({"tasks": 0}, ValueError, "tasks must lie"),
        ({"tasks": 10**4, "rollouts": 10**4}, ValueError, r"tasks \* rollouts must lie between"),
        ({"threads": 1.5}, TypeError, "threads must be an int"),
        ({"action_range": -1.0}, ValueError, "action_range must be"),
        ({"make_env": lambda: cases.Counter(), "threads": 2}, ValueError, "must be picklable"),
    ],
)
def test_refuses(change, error, text):
    with pytest.raises(error, match=text):
        made(**change)


def test_observations_that_are_not_finite_are_told():
    env = made(cases.Broken)
    env.set_tasks([1.0, -1.0, 1.0])
    with pytest.raises(ValueError, match=r"reset: observations of Broken must be finite .*lane 2"):
        env.reset(0)
    env.set_tasks([1.0, 1.0, -2.0])
    env.reset(0)
    with pytest.raises(ValueError, match=r"step: observations of Broken must be finite .*lane 4"):
        env.step(np.zeros((6, 2)))


def test_refuses_a_sampler_that_gives_another_number():
    env = rl.from_gymnasium(
        cases.Counter, sample_tasks=lambda n, seed: [1.0], set_task=cases.set_task
    )
    with pytest.raises(ValueError, match="return 2 tasks"):
        env.sample_tasks(2, 0)


def test_has_no_state_to_set():
    with made() as env:
        for call in (lambda: env.qpos, lambda: env.qvel, lambda: env.set_state(0, 0)):
            with pytest.raises(NotImplementedError, match="four MuJoCo families"):
                call()


def test_action_range_needs_bounds():
    class Unbounded(cases.Counter):
        action_space = cases.gymnasium.spaces.Box(-np.inf, np.inf, (2,))

    with pytest.raises(ValueError, match="None for actions without bounds"):
        made(Unbounded, action_range=10.0)
    with made(Unbounded, tasks=1) as env:
        env.set_tasks([0.0])
        env.reset(0)
        np.testing.assert_allclose(env.step(np.full((2, 2), 1e3))[1], 2e3)


def test_environments_that_are_batches_already_are_refused():
    gymnasium = pytest.importorskip("gymnasium", reason="needs innerloop[rl]")
    with pytest.raises(TypeError, match=r"make one environment \(got SyncVectorEnv"):
        rl.from_gymnasium(
            lambda: gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * 2),
            sample_tasks=lambda n, seed: [1.0] * n,
            set_task=lambda env, task: None,
        )


def test_one_environment_for_all_lanes_is_refused():
    one = cases.Counter()
    with made(lambda: one) as env:
        tasks = env.sample_tasks(3, seed=0)
        with pytest.raises(ValueError, match="make_env must make a new environment at each call"):
            env.set_tasks(tasks)


def test_what_was_not_made_here_is_refused_as_an_environment():
    with pytest.raises(TypeError, match=r"env must be made by rl.make or rl.from_gymnasium"):
        rl.train("HalfCheetahRandVel", "promp", iterations=1, seed=0)


@pytest.mark.parametrize("tasks", [1.0, "abc", {"a": 1}, None])
def test_tasks_are_a_sequence(tasks):
    with made() as env, pytest.raises(TypeError, match="set_tasks: tasks must be a sequence"):
        env.set_tasks(tasks)


@pytest.mark.parametrize("cut", [3, 4])
def test_steps_of_an_older_form_are_refused(cut):
    class Older(cases.Counter):
        def step(self, action):
            """Leaves something out."""
            return super().step(action)[:cut]

    with made(Older) as env:
        env.set_tasks(env.sample_tasks(3, seed=0))
        env.reset(0)
        with pytest.raises(Exception, match=f"step must return observation.*got {cut} values"):
            env.step(np.zeros((6, env.action_size)))
