"""Lanes of the four MuJoCo families, stepped together by one call of `mujoco.rollout`.

State [lanes, 1 + nq + nv] (time, qpos, qvel) is all there is: with warm starts switched off a step
is a function of (model, state, control), whatever thread takes it. One copy of the model a task,
one MjData a thread."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innerloop.rl import _checks
from innerloop.rl.environment import Array, Environment, Flags, check_split
from innerloop.rl.families import FACTORS, Family

# MuJoCo takes larger numbers for a simulation that has broken down (mjMAXVAL)
BROKEN = 1e10
# a policy's action a in [-10, 10] becomes lo + (a + 10) (hi - lo) / 20, clipped to [lo, hi]
ACTION_RANGE = 10.0
IMAGE = (352, 480)  # height and width of what `render` gives, multiples of 16 for video codecs


class SimulatedEnvironment(Environment):
    """A family of `families.FAMILIES`; see `Environment` for its use.

    A lane whose state is no longer finite (or above 1e10, where MuJoCo gives up) ends its episode
    in every family, with reward 0 for that step.
    """

    def __init__(
        self, family: Family, *, tasks: int, rollouts: int, horizon: int, threads: int
    ) -> None:
        mujoco = _checks.package("rl.make", "mujoco", "rl")
        rollout = _checks.package("rl.make", "mujoco.rollout", "rl")
        model = load_model(family)
        super().__init__(
            family.name,
            tasks=tasks,
            rollouts=rollouts,
            horizon=horizon,
            observation_size=model.nq - 1 + model.nv,
            action_size=model.nu,
        )
        self._family = family
        self._nominal = model
        self._renderer: Any = None
        self._positions, self._velocities = slice(1, 1 + model.nq), slice(1 + model.nq, None)
        self._start = np.concatenate([[0.0], model.qpos0, np.zeros(model.nv)])
        self._state: Array = np.tile(self._start, (self.lanes, 1))
        self._path = np.empty((self.lanes, family.frame_skip, self._start.size))
        self._control = np.empty((self.lanes, family.frame_skip, model.nu))
        self._low, self._high = model.actuator_ctrlrange.T.copy()
        self._goal = np.zeros(self.lanes)
        shared = family.goal is not None
        models = [model] if shared else [copy.copy(model) for _ in range(tasks)]
        self._models = models  # one a task, or one for all
        self._lane_models = [
            models[0 if shared else t] for t in range(tasks) for _ in range(rollouts)
        ]
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._pool = rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._control_spec = int(mujoco.mjtState.mjSTATE_CTRL)

    def sample_tasks(self, n: int, seed: int, *, split: str = "train") -> list[Any]:
        count = _checks.integer("sample_tasks", "n", n)
        number = check_split(split)
        start = _checks.seed("sample_tasks", seed)
        return list(self._family.sample_tasks(count, start, number, self._nominal))

    def _assign(self, tasks: list[Any]) -> None:
        if self._family.goal is not None:
            goals = [_checks.number("set_tasks", "a goal", task, -np.inf) for task in tasks]
            self._goal = np.repeat(np.array(goals), self.rollouts)
            return
        checked = [_parameters(task, self._nominal) for task in tasks]  # before any is changed
        for model, task in zip(self._models, checked, strict=True):
            # derived constants stay those of the nominal model, as in the published tasks
            for name, value in task.items():
                getattr(model, name)[:] = value

    def _advance(self, action: Array) -> tuple[Array, Array, Flags, Flags]:
        scaled = self._low + (action + ACTION_RANGE) * (self._high - self._low) / (2 * ACTION_RANGE)
        scaled = np.clip(scaled, self._low, self._high)
        self._control[:] = scaled[:, None]
        before = self._state
        broken = _broken(before)
        if broken.any():  # MuJoCo would write a log file about each
            before = np.where(broken[:, None], self._start, before)
        self._pool.rollout(
            self._lane_models,
            self._data,
            before,
            self._control,
            control_spec=self._control_spec,
            skip_checks=True,
            nstep=self._family.frame_skip,
            state=self._path,
        )
        self._state = self._path[:, -1].copy()
        self._state[broken] = np.nan
        broken = _broken(self._state)
        qpos, qvel = self.qpos, self.qvel
        velocity = (qpos[:, 0] - before[:, 1]) / self._family.dt
        reward = self._family.reward(velocity, np.square(scaled).sum(1), self._goal)
        terminated = ~self._family.healthy(qpos, qvel) | broken
        reward = np.where(broken, 0.0, reward)
        return self._observe(qpos, qvel), reward, terminated, np.zeros_like(terminated)

    def _restart(self, lanes: NDArray[np.int64], counts: NDArray[np.int64]) -> Array:
        noise, nq = self._family.noise, self._nominal.nq
        nv = self._nominal.nv
        state = np.tile(self._start, (len(lanes), 1))
        for row, (lane, count) in enumerate(zip(lanes.tolist(), counts.tolist(), strict=True)):
            # a counter in place of a history: this lane's draw does not depend on other lanes
            counter = np.array([0, 0, self.first_lane + lane, count], dtype=np.uint64)
            random = np.random.Generator(np.random.Philox(key=self._seed, counter=counter))
            position = random.uniform(-noise.position, noise.position, nq)
            if noise.is_normal:
                velocity = noise.velocity * random.standard_normal(nv)
            else:
                velocity = random.uniform(-noise.velocity, noise.velocity, nv)
            state[row, self._positions] += position
            state[row, self._velocities] += velocity
        self._state[lanes] = state
        return self._observe(state[:, self._positions], state[:, self._velocities])

    def _observe(self, qpos: Array, qvel: Array) -> Array:
        """[B, nq - 1 + nv]: positions without the root's x, then velocities."""
        if self._family.clips_velocity:
            qvel = np.clip(qvel, -10.0, 10.0)
        return np.concatenate([qpos[:, 1:], qvel], axis=1)

    @property
    def qpos(self) -> Array:
        found: Array = self._state[:, self._positions].copy()
        return found

    @property
    def qvel(self) -> Array:
        found: Array = self._state[:, self._velocities].copy()
        return found

    def set_state(self, qpos: object, qvel: object) -> None:
        self._check_open("set_state")
        model = self._nominal
        position = _checks.array("set_state", "qpos", qpos, (self.lanes, model.nq), "[lanes, nq]")
        velocity = _checks.array("set_state", "qvel", qvel, (self.lanes, model.nv), "[lanes, nv]")
        self._state[:, self._positions] = position
        self._state[:, self._velocities] = velocity

    def render(self, lane: int = 0) -> NDArray[np.uint8]:
        self._check_open("render")
        mujoco = _checks.package("render", "mujoco", "rl")
        if self._renderer is None:
            try:
                if _needs_display():  # MuJoCo would find out by a crash
                    raise RuntimeError("there is no display")
                self._renderer = mujoco.Renderer(self._nominal, *IMAGE)
            except Exception as error:  # MuJoCo's back ends each fail in a way of their own
                raise RuntimeError(
                    f"render: MuJoCo finds nothing to render with here ({error}); set the "
                    "environment variable MUJOCO_GL to egl (GPU or Mesa's driver) or osmesa "
                    "(software) before Python starts, or run where there is a display"
                ) from None
        data = mujoco.MjData(self._nominal)
        data.qpos[:], data.qvel[:] = self.qpos[lane], self.qvel[lane]
        mujoco.mj_forward(self._nominal, data)
        self._renderer.update_scene(data, camera="track")
        found: NDArray[np.uint8] = self._renderer.render().copy()
        return found

    @property
    def frames_per_second(self) -> int | None:
        return round(1 / self._family.dt)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if not self._is_closed:
            self._pool.close()
        super().close()


def _needs_display() -> bool:
    """Whether rendering asks for a display that is not there."""
    if not sys.platform.startswith("linux"):
        return False
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    displays = ("DISPLAY", "WAYLAND_DISPLAY")
    return chosen not in ("egl", "osmesa") and not any(os.environ.get(name) for name in displays)


def load_model(family: Family) -> Any:
    """Returns a family's MjModel: gymnasium's file, the published time step, no warm starts (a step
    is then a function of its state) and no automatic reset (a breakdown is seen, not hidden)."""
    mujoco = _checks.package("rl.make", "mujoco", "rl")
    _checks.package("rl.make", "gymnasium", "rl")
    asset = resources.files("gymnasium") / "envs" / "mujoco" / "assets" / family.model
    model = mujoco.MjModel.from_xml_path(str(asset))
    model.opt.timestep = family.timestep
    flags = mujoco.mjtDisableBit
    model.opt.disableflags |= int(flags.mjDSBL_WARMSTART) | int(flags.mjDSBL_AUTORESET)
    assert model.na == 0, "activations are not part of the state"
    assert model.nplugin == 0, "plugin states are not part of the state"
    return model


def _broken(state: Array) -> Flags:
    """Returns which lanes have left the numbers that MuJoCo can go on with."""
    largest = np.abs(state).max(axis=1)  # NaN if there is one
    found: Flags = np.logical_not(largest < BROKEN)
    return found


def _parameters(task: object, model: Any) -> dict[str, Array]:
    """Returns the arrays of one task of a RandParams family, checked against the model."""
    if not isinstance(task, Mapping):
        _checks.refuse_type(
            "set_tasks", "a task", f"be a dict of {', '.join(FACTORS)}", type(task).__name__
        )
    for name in task:
        _checks.choice("set_tasks", "a task's key", name, FACTORS)
    missing = [name for name in FACTORS if name not in task]
    if missing:
        _checks.refuse("set_tasks", "a task", f"hold {', '.join(FACTORS)}", f"no {missing[0]}")
    checked = {}
    for name in FACTORS:
        shape = getattr(model, name).shape
        value = _checks.array("set_tasks", f"a task's {name}", task[name], shape, "MjModel's shape")
        if not (np.isfinite(value).all() and (value >= 0).all()):
            _checks.refuse("set_tasks", f"a task's {name}", "be finite and at least 0", value.min())
        checked[name] = value
    return checked
