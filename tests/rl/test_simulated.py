"""Batched stepping against MuJoCo's own loop, bit for bit; resets, threads, states, refusals."""

import pickle

import numpy as np
import pytest

from innerloop import rl
from innerloop.rl.families import FAMILIES

mujoco = pytest.importorskip("mujoco", reason="needs innerloop[rl]")


def made(name, *, tasks=3, rollouts=4, horizon=20, threads=1, seed=0):
    env = rl.make(name, tasks=tasks, rollouts=rollouts, horizon=horizon, threads=threads)
    env.set_tasks(env.sample_tasks(tasks, seed))
    return env


def actions(env, steps, seed=1, size=6.0):
    random = np.random.default_rng(seed)
    return random.normal(size=(steps, env.lanes, env.action_size)) * size


def run(env, steps, seed=0):
    """Everything that an environment shows over some steps."""
    shown = [env.reset(seed), env.qpos, env.qvel]
    for action in actions(env, steps):
        shown += [*env.step(action), env.qpos, env.qvel]
    return shown


def plain_model(name, task):
    """The model of a task, put together here from the published facts alone."""
    from importlib import resources

    files = {"Walker": "walker2d.xml", "Hopper": "hopper.xml", "HalfCh": "half_cheetah.xml"}
    path = resources.files("gymnasium") / "envs" / "mujoco" / "assets" / files[name[:6]]
    model = mujoco.MjModel.from_xml_path(str(path))
    if name.endswith("RandParams"):
        model.opt.timestep = 0.004
        for field, value in task.items():
            getattr(model, field)[...] = value
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_WARMSTART
    return model


SKIP = {"Walker2DRandParams": 4, "HopperRandParams": 4, "Walker2DRandVel": 8}
SKIP["HalfCheetahRandVel"] = 5


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_plain_loop(name, threads):
    """mj_step called frame_skip times with the clipped control, one MjData a lane."""
    with made(name, threads=threads) as env:
        tasks = env.sample_tasks(3, 7)
        env.set_tasks(tasks)
        env.reset(3)
        models = [plain_model(name, task) for task in tasks for _ in range(env.rollouts)]
        data = [mujoco.MjData(model) for model in models]
        ends = 0
        for action in actions(env, 40):
            qpos, qvel = env.qpos, env.qvel
            after_qpos, after_qvel = np.empty_like(qpos), np.empty_like(qvel)
            for lane, (model, one) in enumerate(zip(models, data, strict=True)):
                one.qpos[:], one.qvel[:] = qpos[lane], qvel[lane]
                low, high = model.actuator_ctrlrange.T
                scaled = low + (action[lane] + 10.0) * (high - low) / 20.0
                one.ctrl[:] = np.clip(scaled, low, high)
                for _ in range(SKIP[name]):
                    mujoco.mj_step(model, one)
                after_qpos[lane], after_qvel[lane] = one.qpos, one.qvel
            observation, reward, terminated, truncated = env.step(action)
            going = ~(terminated | truncated)
            ends += int((~going).sum())
            np.testing.assert_array_equal(env.qpos[going], after_qpos[going])
            np.testing.assert_array_equal(env.qvel[going], after_qvel[going])
            clip = 10.0 if name != "HalfCheetahRandVel" else np.inf
            seen = np.concatenate([after_qpos[:, 1:], np.clip(after_qvel, -clip, clip)], axis=1)
            np.testing.assert_array_equal(observation[going], seen[going])
            dt = model.opt.timestep * SKIP[name]
            velocity = (after_qpos[:, 0] - qpos[:, 0]) / dt
            effort = np.square(np.clip(action / 10.0, -1, 1)).sum(1)
            goal = np.repeat(tasks, env.rollouts) if name.endswith("Vel") else 0.0
            np.testing.assert_allclose(
                reward, FAMILIES[name].reward(velocity, effort, goal), rtol=1e-13
            )
        assert ends >= env.lanes, "no episode ended, so resets were not looked at"


@pytest.mark.parametrize("name", FAMILIES)
def test_threads_change_no_bit(name):
    shown = []
    for threads in (1, 2, 3):
        with made(name, threads=threads) as env:
            shown.append(run(env, 60))
    for other in shown[1:]:
        for a, b in zip(shown[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_object_repeats_itself(name):
    with made(name) as env:
        first = run(env, 45)
        for a, b in zip(first, run(env, 45), strict=True):
            np.testing.assert_array_equal(a, b)
        assert not np.array_equal(first[0], env.reset(1))


@pytest.mark.parametrize("name", ["HopperRandParams", "HalfCheetahRandVel"])
def test_a_lane_does_not_depend_on_other_lanes(name):
    """The first task alone, and among others whose episodes end at other times."""
    with made(name, tasks=1) as alone, made(name, tasks=3) as together:
        together.set_tasks([*alone.sample_tasks(1, 0), *alone.sample_tasks(2, 9)])
        action = actions(together, 50)
        np.testing.assert_array_equal(alone.reset(5), together.reset(5)[:4])
        for row in action:
            for a, b in zip(alone.step(row[:4]), together.step(row), strict=True):
                np.testing.assert_array_equal(a, b[:4])


def test_starts_differ_between_lanes_and_episodes():
    with made("HopperRandParams") as env:
        starts = [env.reset(0)]
        for action in actions(env, 60, size=10):
            observation, _, terminated, truncated = env.step(action)
            starts.append(observation[terminated | truncated])
        rows = np.concatenate(starts)
        assert len(rows) > 40
        assert len(np.unique(rows, axis=0)) == len(rows)


def test_horizon_counts_steps_of_the_episode():
    """A hopper that falls begins a new count."""
    with made("HopperRandParams", horizon=7) as env:
        env.reset(0)
        clock = np.zeros(env.lanes, int)
        seen = set()
        for action in actions(env, 60, size=10):
            _, _, terminated, truncated = env.step(action)
            clock += 1
            np.testing.assert_array_equal(truncated, clock == 7)
            seen |= {(bool(a), bool(b)) for a, b in zip(terminated, truncated, strict=True)}
            clock[terminated | truncated] = 0
    with made("HalfCheetahRandVel", horizon=7) as env:
        env.reset(0)
        for step, action in enumerate(actions(env, 15)):
            _, _, terminated, truncated = env.step(action)
            assert not terminated.any()
            assert (truncated == (step % 7 == 6)).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_end_of_an_episode_everything_is_of_the_new_one(name):
    with made(name, horizon=3) as env:
        env.reset(0)
        for action in actions(env, 3, size=0.1):
            observation, _, _, truncated = env.step(action)
        assert truncated.all()
        clip = 10.0 if name != "HalfCheetahRandVel" else np.inf
        expected = np.concatenate([env.qpos[:, 1:], np.clip(env.qvel, -clip, clip)], axis=1)
        np.testing.assert_array_equal(observation, expected)
        limit = 0.1 if name == "HalfCheetahRandVel" else 0.005
        assert (np.abs(env.qpos - env._nominal.qpos0) <= limit).all()


def test_states_are_copies():
    with made("HopperRandParams") as env:
        env.reset(0)
        env.qpos[:] = 7
        env.qvel[:] = 7
        assert not (env.qpos == 7).any()
        qpos, qvel = env.qpos, env.qvel
        env.set_state(qpos + 0.01, qvel)
        np.testing.assert_array_equal(env.qpos, qpos + 0.01)
        qpos[:] = 7
        assert not (env.qpos == 7).any()


def test_results_are_new_arrays():
    with made("HalfCheetahRandVel") as env:
        first = env.reset(0)
        kept = first.copy()
        shown = [env.step(action) for action in actions(env, 3)]
        copies = [[part.copy() for part in step] for step in shown]
        env.step(actions(env, 1)[0])
        np.testing.assert_array_equal(first, kept)
        for step, copy in zip(shown, copies, strict=True):
            for a, b in zip(step, copy, strict=True):
                np.testing.assert_array_equal(a, b)
        assert [part.dtype for part in shown[0]] == [np.float64, np.float64, np.bool_, np.bool_]


def test_actions_are_not_narrowed():
    """A change that float32 does not see."""
    with made("HalfCheetahRandVel") as env:
        env.reset(0)
        action = np.ones((env.lanes, 6))
        first = env.step(action)[1]
        env.reset(0)
        assert (env.step(action + 1e-12)[1] != first).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_tasks_travel(name):
    """Plain data: through pickle and made by hand."""
    with made(name, tasks=2) as env:
        tasks = env.sample_tasks(2, 0)
        expected = run(env, 5)
        env.set_tasks(pickle.loads(pickle.dumps(tasks)))
        for a, b in zip(expected, run(env, 5), strict=True):
            np.testing.assert_array_equal(a, b)
        swapped = tasks[::-1]
        env.set_tasks(swapped)
        other = run(env, 5)
        assert not np.array_equal(expected[-5], other[-5])  # rewards


def test_setting_tasks_leaves_nothing_of_the_last_ones():
    with made("Walker2DRandParams", tasks=2) as env:
        expected = run(env, 5)
        env.set_tasks(env.sample_tasks(2, 50))
        run(env, 5)
        env.set_tasks(env.sample_tasks(2, 0))
        for a, b in zip(expected, run(env, 5), strict=True):
            np.testing.assert_array_equal(a, b)


def test_no_renderer_is_loaded():
    """gymnasium's own MuJoCo environments would load one."""
    import subprocess
    import sys

    code = (
        "import sys\nfrom innerloop import rl\n"
        "env = rl.make('HopperRandParams', tasks=1, rollouts=1)\n"
        "assert not [m for m in sys.modules if m.startswith(('gymnasium.envs.mujoco', 'imageio', "
        "'pygame', 'OpenGL'))]\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, env={"PATH": "", **_env()}
    )


def _env():
    """The environment without a display."""
    import os

    return {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: rl.make("HopperRandParam"), ValueError, "did you mean 'HopperRandParams'"),
        (lambda: rl.make("halfcheetahrandvel"), ValueError, "did you mean 'HalfCheetahRandVel'"),
        (lambda: rl.make("ML1-push"), ValueError, "did you mean 'ML1-Push'"),
        (lambda: rl.make("zzz"), ValueError, "must be one of Walker2DRandParams, .* 'zzz'"),
        (lambda: rl.make(3), ValueError, "got 3"),
        (lambda: rl.make("HopperRandParams", tasks=0), ValueError, "tasks must lie between 1"),
        (lambda: rl.make("HopperRandParams", rollouts=-1), ValueError, "rollouts must lie"),
        (lambda: rl.make("HopperRandParams", horizon=0), ValueError, "horizon must lie"),
        (lambda: rl.make("HopperRandParams", threads=0), ValueError, "threads must lie"),
        (lambda: rl.make("HopperRandParams", tasks=2.0), TypeError, "tasks must be an int"),
        (lambda: rl.make("HopperRandParams", horizon=True), TypeError, "horizon must be an int"),
        (lambda: rl.make("HopperRandParams", reward_version="v1"), ValueError, "must be None for"),
    ],
)
def test_refuses_to_make(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (np.zeros((12, 4)), ValueError, r"action must have shape \[lanes, k\] = \[12, 3\]"),
        (np.zeros((11, 3)), ValueError, "got \\[11, 3\\]"),
        (np.zeros(36), ValueError, "got \\[36\\]"),
        (np.zeros((12, 3), complex), TypeError, "hold real numbers"),
        (np.full((12, 3), "a"), TypeError, "hold real numbers"),
        (np.zeros((12, 3), bool), TypeError, "hold real numbers"),
        (None, TypeError, "hold real numbers"),
        (np.full((12, 3), np.nan), ValueError, "must be finite .* in lane 0"),
        (np.full((12, 3), np.inf), ValueError, "must be finite"),
    ],
)
def test_refuses_actions(action, error, text):
    with made("HopperRandParams") as env:
        env.reset(0)
        before = env.qpos
        with pytest.raises(error, match=text):
            env.step(action)
        np.testing.assert_array_equal(env.qpos, before)


def test_refuses_tasks():
    with made("HopperRandParams", tasks=2) as env:
        good = env.sample_tasks(2, 0)
        before = run(env, 3)

        def changed(**entries):
            return [good[0], {**good[1], **entries}]

        cases = [
            ([good[0]], ValueError, "hold 2 tasks"),
            ([1.0, 2.0], TypeError, "a task must be a dict"),
            (changed(body_mas=1), ValueError, "did you mean 'body_mass'"),
            ([good[0], {"body_mass": good[0]["body_mass"]}], ValueError, "no body_inertia"),
            (changed(body_mass=np.ones(3)), ValueError, "have shape MjModel's shape"),
            (changed(body_mass=-good[0]["body_mass"]), ValueError, "finite and at least 0"),
            (changed(dof_damping=np.full(6, np.nan)), ValueError, "finite and at least 0"),
            (changed(body_mass="heavy"), TypeError, "hold real numbers"),
        ]
        for tasks, error, text in cases:
            with pytest.raises(error, match=text):
                env.set_tasks(tasks)
        for a, b in zip(before, run(env, 3), strict=True):  # nothing was half set
            np.testing.assert_array_equal(a, b)
    with made("HalfCheetahRandVel", tasks=2) as env:
        for tasks, error in (([1.0, "2"], TypeError), ([1.0, np.nan], ValueError)):
            with pytest.raises(error, match="a goal must"):
                env.set_tasks(tasks)


def test_refuses_use_out_of_order():
    env = rl.make("HalfCheetahRandVel", tasks=2, rollouts=1, threads=2)
    with pytest.raises(RuntimeError, match="has no tasks yet"):
        env.reset(0)
    env.set_tasks([1.0, 2.0])
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros((2, 6)))
    for seed, error in ((-1, ValueError), (1.5, TypeError), (None, TypeError), (2**63, ValueError)):
        with pytest.raises(error, match="reset: seed"):
            env.reset(seed)
    env.reset(0)
    for wrong in (env.qpos[:1], env.qpos[:, 1:]):
        with pytest.raises(ValueError, match="set_state: qpos must have shape"):
            env.set_state(wrong, env.qvel)
    with pytest.raises(ValueError, match="split must be one of train, test"):
        env.sample_tasks(1, 0, split="valid")
    with pytest.raises(ValueError, match="n must lie between 1"):
        env.sample_tasks(0, 0)
    env.close()
    env.close()
    for call in (lambda: env.reset(0), lambda: env.step(np.zeros((2, 6)))):
        with pytest.raises(RuntimeError, match="is closed"):
            call()
