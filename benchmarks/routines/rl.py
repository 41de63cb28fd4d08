"""Meta-RL: control steps a second beside gymnasium's vector environments, the share of physics in
sampling, and iterations of the four algorithms split in sampling and learning.

Everything of a family runs in one process and takes turns. All sides have the same models (file,
time step, frame skip, parameters of the tasks), episodes of the same length and the same actions.
gymnasium has no batched MuJoCo: its vector environments hold single ones, in this process or a
process each, pinned to the same cores. How many is their user's choice: several are tried.
"""

from __future__ import annotations

import importlib.metadata
import time
from functools import partial
from importlib import resources
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from innerloop import GaussianMLP, rl
from innerloop.rl.families import FAMILIES, Family
from innerloop.rl.simulated import ACTION_RANGE, load_model
from numpy.typing import NDArray

from measure import timing
from measure.worker import Request

TASKS, ROLLOUTS, HORIZON = 20, 10, 100
IDS = {
    "walker2d.xml": "Walker2d-v5",
    "hopper.xml": "Hopper-v5",
    "half_cheetah.xml": "HalfCheetah-v5",
}
ALGORITHMS = ("drs-ppo", "promp", "drs-trpo", "trpo-maml")
ALIKE = 1e-6  # gymnasium keeps the solver's warm starts, which move a step by about 1e-9
Array = NDArray[np.float64]


def run(request: Request) -> dict[str, Any]:
    """Seconds per control step of every family, and of the parts of an iteration."""
    versions = {name: importlib.metadata.version(name) for name in ("mujoco", "gymnasium")}
    return {
        "kind": "rl",
        "versions": versions,
        "sizes": {"tasks": TASKS, "rollouts": ROLLOUTS, "horizon": HORIZON},
        "sampling": [_sampling(request, family) for family in FAMILIES.values()],
        "iterations": _iterations(request),
    }


def _effort(rounds: int) -> timing.Effort:
    """One call a round, whatever it takes."""
    return timing.Effort(
        rounds=rounds, block_s=0.0, budget_s=np.inf, settle_s=0.0, fewest_rounds=rounds
    )


# ---------------------------------------------------------------- sampling


def _sampling(request: Request, family: Family) -> dict[str, Any]:
    """One family: seconds per control step of each side, and ratios within rounds."""
    horizon = 20 if request.quick else HORIZON
    with rl.make(
        family.name, tasks=TASKS, rollouts=ROLLOUTS, horizon=horizon, threads=request.threads
    ) as env:
        tasks = env.sample_tasks(TASKS, request.seed)
        env.set_tasks(tasks)
        model = GaussianMLP([env.observation_size, 64, 64, env.action_size])
        params = model.init(torch.Generator().manual_seed(request.seed))
        action = rl.collect(env, params, model=model, seed=request.seed).action
        assert action is not None, "collect records actions"
        action = action.reshape(horizon, env.lanes, -1)

        def step() -> None:
            env.reset(request.seed)
            for row in action:
                env.step(row)

        def collect() -> None:
            rl.collect(env, params, model=model, seed=request.seed)

        apart = difference(env, family, tasks[0], action[0], request.seed)
        if not apart < ALIKE:
            raise RuntimeError(f"{family.name}: gymnasium's states are {apart:.0e} from ours")
        models = [with_parameters(load_model(family), task) for task in tasks]
        states, control = _trajectory(env, models[0], action, request.seed)
        rivals: dict[str, timing.Rival] = {
            "step": timing.LocalRival(step),
            "collect": timing.LocalRival(collect),
        }
        steps = {"step": env.lanes * horizon, "collect": env.lanes * horizon}
        if request.threads == 1:
            rivals["physics"] = Physics(
                [models[lane // ROLLOUTS] for lane in range(env.lanes)],
                family.frame_skip,
                states,
                control,
            )
            steps["physics"] = env.lanes * horizon
        vectors = _vectors(family, tasks, horizon, request.threads)
        try:
            for name, (vector, lanes) in vectors.items():
                play = partial(_play, vector, control[:, lanes], request.seed)
                rivals[name] = timing.LocalRival(play)
                steps[name] = len(lanes) * horizon
            found = timing.interleave(rivals, _effort(2 if request.quick else 3))
        finally:
            for vector, _ in vectors.values():
                vector.close()
    samples = {name: [s / steps[name] for s in taken] for name, (taken, _) in found.items()}
    row: dict[str, Any] = {
        "family": family.name,
        "seconds_per_step": {name: timing.spread(taken) for name, taken in samples.items()},
        "best": min(vectors, key=lambda name: float(np.median(samples[name]))),
    }
    row["times"] = {
        ours: {
            rival: timing.paired_ratio(samples[rival], samples[ours])["median"] for rival in vectors
        }
        for ours in ("step", "collect")
    }
    if "physics" in samples:
        row["physics_share"] = {
            ours: timing.paired_ratio(samples["physics"], samples[ours])["median"]
            for ours in ("step", "collect")
        }
    return row


def with_parameters(model: mujoco.MjModel, task: Any) -> mujoco.MjModel:
    """A model with the parameters of a task, where tasks have some."""
    if isinstance(task, dict):
        for name, value in task.items():
            getattr(model, name)[:] = value
    return model


def single(family: Family, task: Any, horizon: int) -> gymnasium.Env[Any, Any]:
    """gymnasium's environment of a task."""
    file = resources.files("gymnasium") / "envs" / "mujoco" / "assets" / family.model
    env = gymnasium.make(
        IDS[family.model],
        xml_file=str(file),
        frame_skip=family.frame_skip,
        max_episode_steps=horizon,
    )
    model = env.unwrapped.model  # type: ignore[attr-defined]
    model.opt.timestep = family.timestep
    with_parameters(model, task)
    return env


def _vectors(
    family: Family, tasks: list[Any], horizon: int, threads: int
) -> dict[str, tuple[VectorEnv[Any, Any, Any], list[int]]]:
    """gymnasium's vector environments by name, each with the lanes of ours that it holds."""
    found: dict[str, tuple[VectorEnv[Any, Any, Any], list[int]]] = {}
    for kind, count in (
        (AsyncVectorEnv, threads),
        (AsyncVectorEnv, TASKS),
        (SyncVectorEnv, TASKS),
    ):
        lanes = [place * TASKS // count * ROLLOUTS for place in range(count)]
        makers = [partial(single, family, tasks[lane // ROLLOUTS], horizon) for lane in lanes]
        vector = kind(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        found[f"{kind.__name__}, {count}"] = (vector, lanes)
    return found


def _play(vector: VectorEnv[Any, Any, Any], control: Array, seed: int) -> None:
    """Steps a vector environment through recorded actions, from new episodes on."""
    vector.reset(seed=seed)
    for row in control.astype(np.float32):
        vector.step(row)


def _trajectory(
    env: rl.Environment, model: mujoco.MjModel, action: NDArray[Any], seed: int
) -> tuple[tuple[Array, Array], Array]:
    """States before each step (qpos [H, B, nq], qvel [H, B, nv]) and controls [H, B, k]."""
    qpos, qvel = [], []
    env.reset(seed)
    for row in action:
        qpos.append(env.qpos)
        qvel.append(env.qvel)
        env.step(row)
    return (np.stack(qpos), np.stack(qvel)), _control(action, *model.actuator_ctrlrange.T)


def _control(action: NDArray[Any], low: Array, high: Array) -> Array:
    """What the actuators get of actions."""
    found = low + (action + ACTION_RANGE) * (high - low) / (2 * ACTION_RANGE)
    return np.clip(found, low, high)


def difference(env: rl.Environment, family: Family, task: Any, action: Array, seed: int) -> float:
    """How far gymnasium's environment and ours are apart after a step of lane 0 from one state,
    relative to the state.

    Args:
        action: [B, k], of the first step.
    """
    env.reset(seed)
    qpos, qvel = env.qpos[0], env.qvel[0]
    env.step(action)
    ours = np.concatenate([env.qpos[0], env.qvel[0]])
    theirs = single(family, task, HORIZON)
    theirs.reset()
    inside: Any = theirs.unwrapped
    inside.set_state(qpos, qvel)
    low, high = inside.model.actuator_ctrlrange.T
    theirs.step(_control(action[0], low, high))
    found = np.concatenate([inside.data.qpos, inside.data.qvel])
    theirs.close()
    return float(np.abs(found - ours).max() / np.abs(ours).max())


class Physics:
    """`mj_step` alone along a trajectory, one lane after another: its own seconds, without those of
    calling it from Python and of setting states."""

    def __init__(
        self,
        models: list[mujoco.MjModel],
        frame_skip: int,
        states: tuple[Array, Array],
        control: Array,
    ) -> None:
        self._models, self._skip, self._control = models, frame_skip, control
        self._qpos, self._qvel = states
        self._data = mujoco.MjData(models[0])

    def estimate(self) -> float:
        """See `timing.Rival`."""
        return self.block(1, 0.0)

    def block(self, calls: int, settle_s: float) -> float:
        """See `timing.Rival`."""
        data, skip, clock = self._data, self._skip, time.perf_counter
        seconds = 0.0
        for row in range(len(self._control)):
            for lane, model in enumerate(self._models):
                data.qpos[:], data.qvel[:] = self._qpos[row, lane], self._qvel[row, lane]
                data.ctrl[:] = self._control[row, lane]
                start = clock()
                mujoco.mj_step(model, data, 0)  # a call that steps nothing
                called = clock()
                mujoco.mj_step(model, data, skip)
                seconds += clock() - called - (called - start)
        return seconds


# ---------------------------------------------------------------- iterations


def _iterations(request: Request) -> list[dict[str, Any]]:
    """Seconds of an iteration of each algorithm on the cheetah, in sampling and in learning."""
    dtype = getattr(torch, request.dtype)
    name = "HalfCheetahRandVel"
    with rl.make(
        name, tasks=TASKS, rollouts=ROLLOUTS, horizon=HORIZON, threads=request.threads
    ) as env:
        model = GaussianMLP([env.observation_size, 64, 64, env.action_size])
        params = model.init(torch.Generator().manual_seed(request.seed), dtype)
        trainings = {
            algorithm: rl.Training(env, algorithm, seed=request.seed, model=model, params=params)
            for algorithm in ALGORITHMS
        }
        rounds = 1 if request.quick else 4
        for _ in range(1 + rounds):  # the first one warms up
            for training in trainings.values():
                training.step()
    parts = ("sampling_seconds", "learning_seconds")
    return [
        {
            "family": name,
            "algorithm": algorithm,
            **{part: timing.spread([row[part] for row in training.history[1:]]) for part in parts},
            "seconds": timing.spread(
                [sum(row[part] for part in parts) for row in training.history[1:]]
            ),
        }
        for algorithm, training in trainings.items()
    ]
