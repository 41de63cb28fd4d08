"""What every batched environment is: tasks times rollouts lanes, stepped together, with a clock,
an automatic reset and checks. The kinds of environments say how lanes move and restart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innerloop.rl import _checks

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
SPLITS = ("train", "test")
MOST_LANES = 10**6


class Environment(ABC):
    """A batch of environments: lane t * rollouts + e is rollout e of task t. Built by `rl.make` and
    `rl.from_gymnasium`.

    All arrays are NumPy float64 with the lanes on the first axis. A lane whose episode ends is
    reset within the same step: the observation returned, `qpos` and `qvel` are then those of its
    new episode. The start of a lane's episode is a function of (seed of `reset`, number of its
    episodes since then, lane) alone.

    Members:
        name: of the task family.
        tasks: T, tasks held at a time.
        rollouts: E, lanes of each task.
        lanes: T * E.
        horizon: H, steps after which an episode is truncated.
        observation_size: d.
        action_size: k.
        success: [lanes] bool, whether the last step reported success; None for families without
            such a notion.
        rank, world: which part of how many this is, see `share`; 0 and 1.
    """

    def __init__(
        self,
        name: str,
        *,
        tasks: int,
        rollouts: int,
        horizon: int,
        observation_size: int,
        action_size: int,
    ) -> None:
        self.name = name
        self.tasks = tasks
        self.rollouts = rollouts
        self.lanes = _checks.integer(name, "tasks * rollouts", tasks * rollouts, most=MOST_LANES)
        self.horizon = horizon
        self.observation_size = observation_size
        self.action_size = action_size
        self.success: Flags | None = None
        self.rank, self.world = 0, 1
        self._clock = np.zeros(self.lanes, dtype=np.int64)  # steps of the present episode
        self._resets = np.zeros(self.lanes, dtype=np.int64)  # episodes begun since reset(), less 1
        self._seed = 0
        self._has_tasks = False
        self._is_reset = False
        self._is_closed = False

    # ------------------------------------------------------------ what users call

    @abstractmethod
    def sample_tasks(self, n: int, seed: int, *, split: str = "train") -> list[Any]:
        """Returns tasks of the family, plain and picklable.

        Args:
            n: how many.
            seed: equal seeds give equal tasks.
            split: "train" or "test". Families with one law draw both from it, independently;
                Meta-World has tasks of its own for either.

        Raises:
            ValueError: n is not positive, or the split is unknown.
        """

    def set_tasks(self, tasks: Sequence[Any]) -> None:
        """Gives every lane its task; `reset` begins their episodes.

        Args:
            tasks: T tasks, from `sample_tasks` or made by hand in the same form.

        Raises:
            ValueError: the number of tasks is not `self.tasks`, or a value of a task does not fit.
            TypeError: a task is of another kind.
        """
        self._check_open("set_tasks")
        if not isinstance(tasks, Iterable) or isinstance(tasks, (str, Mapping)):
            _checks.refuse_type(
                "set_tasks", "tasks", "be a sequence of tasks", type(tasks).__name__
            )
        given = list(tasks)
        if len(given) != self.tasks:
            _checks.refuse(
                "set_tasks",
                "tasks",
                f"hold {self.tasks} tasks, as {self.name} was made for",
                len(given),
                "pass tasks= to rl.make",
            )
        self._assign(given)
        self._has_tasks = True

    def share(self, rank: int, world: int) -> None:
        """Makes this one of several parts of a larger environment, each in its own process.

        Together they hold world * T tasks; this part's lanes get the starts, and in `collect` the
        noise, that they have in one environment of that size. `train` and `evaluate` then work
        together over the processes of torch.distributed.

        Args:
            rank: of this part, from 0 on.
            world: how many parts there are, of equal sizes.

        Raises:
            ValueError: rank does not lie in [0, world).
        """
        parts = _checks.integer("share", "world", world)
        self.rank, self.world = _checks.integer("share", "rank", rank, 0, parts - 1), parts
        self._is_reset = False

    @property
    def first_lane(self) -> int:
        """Number of this part's first lane among those of all parts."""
        return self.rank * self.lanes

    def reset(self, seed: int) -> Array:
        """Returns the first observation of a new episode in every lane, [lanes, d].

        Args:
            seed: of the starts of this and all later episodes; it restarts their count, so one
                object repeats itself.

        Raises:
            RuntimeError: no tasks have been set, or the environment is closed.
            ValueError: an observation is not finite.
        """
        self._check_open("reset")
        if not self._has_tasks:
            raise RuntimeError(
                f"reset: {self.name} has no tasks yet; call set_tasks(sample_tasks(n, seed)) first"
            )
        self._seed = _checks.seed("reset", seed)
        self._clock[:] = 0
        self._resets[:] = 0
        if self.success is not None:
            self.success = np.zeros(self.lanes, dtype=np.bool_)
        self._is_reset = True
        return self._finite("reset", self._restart(np.arange(self.lanes), self._resets))

    def step(self, action: object) -> tuple[Array, Array, Flags, Flags]:
        """Moves every lane by one control step.

        Args:
            action: [lanes, k] numbers; what the policy puts out, before any scaling and clipping.

        Returns:
            (observation [lanes, d], reward [lanes], terminated [lanes], truncated [lanes]); an
            observation belongs to the lane's new episode where one of the flags is set.

        Raises:
            ValueError: the shape does not fit, or an action or an observation is not finite.
            TypeError: the action does not hold real numbers.
            RuntimeError: `reset` has not been called, or the environment is closed.

        Cost: one call of the simulator for all lanes; what is not physics is O(lanes * (d + k)).
        """
        self._check_open("step")
        if not self._is_reset:
            raise RuntimeError("step: the lanes have no episode yet; call reset(seed) first")
        moves = _checks.array(
            "step", "action", action, (self.lanes, self.action_size), "[lanes, k]"
        )
        if not np.isfinite(moves).all():
            lane = int(np.flatnonzero(~np.isfinite(moves).all(1))[0])
            _checks.refuse(
                "step",
                "action",
                "be finite",
                f"{moves[lane].tolist()} in lane {lane}",
                "a policy that puts out NaN has diverged; lower its learning rate",
            )
        observation, reward, terminated, truncated = self._advance(moves)
        self._clock += 1
        truncated = truncated | (self._clock >= self.horizon)
        over = np.flatnonzero(terminated | truncated)
        if over.size:
            self._clock[over] = 0
            self._resets[over] += 1
            observation[over] = self._restart(over, self._resets[over])
        return self._finite("step", observation), reward, terminated, truncated

    @property
    def qpos(self) -> Array:
        """[lanes, nq], positions of every lane (a copy)."""
        raise self._has_no_state()

    @property
    def qvel(self) -> Array:
        """[lanes, nv], velocities of every lane (a copy)."""
        raise self._has_no_state()

    def set_state(self, qpos: object, qvel: object) -> None:
        """Puts every lane into a state; clocks and the count of episodes go on.

        Args:
            qpos: [lanes, nq].
            qvel: [lanes, nv].

        Raises:
            ValueError: a shape does not fit.
            NotImplementedError: the family's lanes are not simulated here (Meta-World and
                environments of `rl.from_gymnasium`).
        """
        raise self._has_no_state()

    def render(self, lane: int = 0) -> NDArray[np.uint8]:
        """Returns an image [height, width, 3] of a lane as it is now.

        Raises:
            RuntimeError: nothing here can render; the text says what to try.
        """
        raise RuntimeError(f"render: {self.name} has no renderer")

    @property
    def frames_per_second(self) -> int | None:
        """Control steps in a second of simulated time, rounded; None where that is not known."""
        return None

    def close(self) -> None:
        """Ends threads and processes; may be called twice. Anything else then raises."""
        self._is_closed = True

    def __enter__(self) -> Environment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<{self.name}: {self.tasks} tasks, {self.rollouts} rollouts, horizon {self.horizon}, "
            f"{self.observation_size} observations, {self.action_size} actions>"
        )

    # ------------------------------------------------------------ what a kind of environment says

    @abstractmethod
    def _assign(self, tasks: list[Any]) -> None:
        """Gives the lanes their tasks; there are `self.tasks`."""

    @abstractmethod
    def _advance(self, action: Array) -> tuple[Array, Array, Flags, Flags]:
        """Moves all lanes and returns (observation, reward, terminated, truncated), new arrays."""

    @abstractmethod
    def _restart(self, lanes: NDArray[np.int64], counts: NDArray[np.int64]) -> Array:
        """Begins an episode in some lanes, number `counts` since reset(); returns their first
        observations."""

    def _finite(self, op: str, observation: Array) -> Array:
        """Returns observations, or raises if a policy could not act on them."""
        if not np.isfinite(observation).all():
            lane = int(np.flatnonzero(~np.isfinite(observation).all(1))[0])
            _checks.refuse(
                op,
                f"observations of {self.name}",
                "be finite",
                f"{observation[lane].tolist()} in lane {lane}",
                "end the episode of an environment that has broken down",
            )
        return observation

    def _check_open(self, op: str) -> None:
        """Raises if the environment has been closed."""
        if self._is_closed:
            raise RuntimeError(f"{op}: {self.name} is closed; make a new one")

    def _has_no_state(self) -> NotImplementedError:
        """The refusal of qpos, qvel and set_state."""
        return NotImplementedError(
            f"{self.name}: the states of its lanes live in other objects, so qpos, qvel and "
            "set_state are not there; they are for the four MuJoCo families"
        )


def check_split(split: str) -> int:
    """Returns the number of a split."""
    return SPLITS.index(_checks.choice("sample_tasks", "split", split, SPLITS))
