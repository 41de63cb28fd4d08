"""The four task families on MuJoCo's walkers: model, law of the tasks, reward and end of an
episode. Everything is a function of arrays over lanes; `simulated.py` steps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innerloop.rl.seeds import stream

Array = NDArray[np.float64]
Task = float | dict[str, Array]

# MjModel's fields that a task of the RandParams families changes, and the base of their factors:
# value = nominal value * base**u with u ~ Uniform(-3, 3) for every entry
FACTORS: Mapping[str, float] = {
    "body_mass": 1.5,
    "body_inertia": 1.5,
    "dof_damping": 1.3,
    "geom_friction": 1.5,
}
SPREAD = 3.0


@dataclass(frozen=True)
class Noise:
    """The state after a reset is the nominal one plus Uniform(-position, position) on qpos and,
    on qvel, Uniform(-velocity, velocity) or velocity * N(0, 1)."""

    position: float
    velocity: float
    is_normal: bool


@dataclass(frozen=True)
class Family:
    """One family of tasks.

    Members:
        name: as `rl.make` takes it.
        model: file among gymnasium's MuJoCo assets.
        timestep: seconds of a physics step.
        frame_skip: physics steps of a control step.
        clips_velocity: whether the observation clips qvel to [-10, 10].
        noise: of the state after a reset.
        goal: a goal velocity is Uniform(0, goal); None where tasks change the model's parameters.
        reward: (forward velocity [B], ||a||^2 [B] of the scaled action, goal [B]) -> [B].
        healthy: (qpos [B, nq], qvel [B, nv]) after the step -> [B], whether the episode goes on.
    """

    name: str
    model: str
    timestep: float
    frame_skip: int
    clips_velocity: bool
    noise: Noise
    goal: float | None
    reward: Callable[[Array, Array, Array], Array]
    healthy: Callable[[Array, Array], NDArray[np.bool_]]

    @property
    def dt(self) -> float:
        """Seconds of a control step."""
        return self.timestep * self.frame_skip

    def sample_tasks(self, count: int, seed: int, split: int, model: Any) -> list[Task]:
        """Returns tasks drawn independently; the first ones do not depend on how many follow."""
        random = stream(seed, split)
        if self.goal is not None:
            return [float(goal) for goal in random.uniform(0.0, self.goal, count)]
        nominal = {name: np.asarray(getattr(model, name), np.float64) for name in FACTORS}
        tasks: list[Task] = []
        for _ in range(count):
            task = {}
            for name, base in FACTORS.items():
                power = random.uniform(-SPREAD, SPREAD, nominal[name].shape)
                task[name] = nominal[name] * base**power
            tasks.append(task)
        return tasks


def _walker_is_up(qpos: Array, qvel: Array) -> NDArray[np.bool_]:
    """Height inside (0.8, 2.0) and |angle| below 1; false where either is not a number."""
    height, angle = qpos[:, 1], qpos[:, 2]
    up: NDArray[np.bool_] = (height > 0.8) & (height < 2.0) & (np.abs(angle) < 1.0)
    return up


def _hopper_is_up(qpos: Array, qvel: Array) -> NDArray[np.bool_]:
    """Finite, every state after the first two below 100 in magnitude, height above 0.7, |angle|
    below 0.2."""
    state = np.concatenate([qpos, qvel], axis=1)
    calm = np.isfinite(state).all(1) & (np.abs(state[:, 2:]) < 100.0).all(1)
    up: NDArray[np.bool_] = calm & (qpos[:, 1] > 0.7) & (np.abs(qpos[:, 2]) < 0.2)
    return up


def _always(qpos: Array, qvel: Array) -> NDArray[np.bool_]:
    """The cheetah cannot fall."""
    return np.ones(len(qpos), dtype=np.bool_)


def _forward(velocity: Array, effort: Array, goal: Array) -> Array:
    """Forward velocity + 1 - 1e-3 ||a||^2."""
    return velocity + 1.0 - 1e-3 * effort


def _walk_at(velocity: Array, effort: Array, goal: Array) -> Array:
    """15 - |v - goal| - 1e-3 ||a||^2."""
    return 15.0 - np.abs(velocity - goal) - 1e-3 * effort


def _run_at(velocity: Array, effort: Array, goal: Array) -> Array:
    """-|v - goal| - 0.05 ||a||^2."""
    return -np.abs(velocity - goal) - 0.05 * effort


_LEGS = Noise(position=0.005, velocity=0.005, is_normal=False)
_CHEETAH = Noise(position=0.1, velocity=0.1, is_normal=True)

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        # 0.004 s is the step of the published RandParams models (gymnasium's files say 0.002)
        Family(
            name="Walker2DRandParams",
            model="walker2d.xml",
            timestep=0.004,
            frame_skip=4,
            clips_velocity=True,
            noise=_LEGS,
            goal=None,
            reward=_forward,
            healthy=_walker_is_up,
        ),
        Family(
            name="HopperRandParams",
            model="hopper.xml",
            timestep=0.004,
            frame_skip=4,
            clips_velocity=True,
            noise=_LEGS,
            goal=None,
            reward=_forward,
            healthy=_hopper_is_up,
        ),
        Family(
            name="Walker2DRandVel",
            model="walker2d.xml",
            timestep=0.002,
            frame_skip=8,
            clips_velocity=True,
            noise=_LEGS,
            goal=10.0,
            reward=_walk_at,
            healthy=_walker_is_up,
        ),
        Family(
            name="HalfCheetahRandVel",
            model="half_cheetah.xml",
            timestep=0.01,
            frame_skip=5,
            clips_velocity=False,
            noise=_CHEETAH,
            goal=3.0,
            reward=_run_at,
            healthy=_always,
        ),
    )
}
