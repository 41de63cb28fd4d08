"""Lanes that are single environments, one object each: in this process, or split evenly over worker
processes with one message a step. Meta-World and anybody's gymnasium environments run this way."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Hashable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from innerloop.rl import _checks
from innerloop.rl.environment import Array, Environment, Flags
from innerloop.rl.seeds import derived


class Moved(NamedTuple):
    """What one step of some lanes gives: observation [B, d], and [B] each."""

    observation: Array
    reward: Array
    terminated: Flags
    truncated: Flags
    success: Flags


class Adapter(Protocol):
    """How single environments of one kind are built and used; picklable."""

    def kind(self, task: Any) -> Hashable:
        """What an environment object must be for a task; objects of a kind serve many tasks."""

    def build(self, kind: Hashable) -> Any:
        """A new environment object of a kind."""

    def set_task(self, env: Any, task: Any) -> None:
        """Gives an object its task."""

    def reset(self, env: Any, seed: int) -> Array:
        """Begins an episode; the first observation [d]."""

    def step(self, env: Any, action: Array) -> tuple[Array, float, bool, bool, bool]:
        """(observation [d], reward, terminated, truncated, success) of one step."""

    def close(self, env: Any) -> None:
        """Frees an object."""


class Group:
    """Some lanes, stepped one after another. Objects are built once and kept by kind."""

    def __init__(self, adapter: Adapter, lanes: int, observation_size: int) -> None:
        self._adapter = adapter
        self._lanes: list[Any] = [None] * lanes
        self._objects: dict[Hashable, list[Any]] = {}
        self._size = observation_size

    def assign(self, tasks: Sequence[Any]) -> None:
        """Gives every lane an object of the kind that its task needs, and the task."""
        used: dict[Hashable, int] = {}
        for lane, task in enumerate(tasks):
            kind = self._adapter.kind(task)
            place = used.get(kind, 0)
            used[kind] = place + 1
            objects = self._objects.setdefault(kind, [])
            if place == len(objects):
                objects.append(self._adapter.build(kind))
            self._lanes[lane] = objects[place]
            self._adapter.set_task(objects[place], task)

    def restart(self, lanes: Sequence[int], seeds: Sequence[int]) -> Array:
        """First observations [len(lanes), d] of new episodes."""
        rows = [
            self._observation(self._adapter.reset(self._lanes[lane], seed))
            for lane, seed in zip(lanes, seeds, strict=True)
        ]
        return np.stack(rows) if rows else np.empty((0, self._size))

    def advance(self, action: Array) -> Moved:
        """One step of every lane; action [B, k]."""
        count = len(self._lanes)
        moved = Moved(
            np.empty((count, self._size)), np.empty(count), *np.zeros((3, count), dtype=np.bool_)
        )
        for lane, env in enumerate(self._lanes):
            observation, *rest = self._adapter.step(env, action[lane])
            moved.observation[lane] = self._observation(observation)
            for column, value in zip(moved[1:], rest, strict=True):
                column[lane] = value
        return moved

    def render(self, lane: int) -> Any:
        """What the object of a lane shows."""
        return self._lanes[lane].render()

    def close(self) -> None:
        """Frees every object."""
        for objects in self._objects.values():
            for env in objects:
                self._adapter.close(env)
        self._objects.clear()

    def _observation(self, value: Any) -> Array:
        """One observation as a flat float64 row of the size of all others."""
        row = np.asarray(value, dtype=np.float64).reshape(-1)
        if row.size != self._size:
            _checks.refuse("step", "observations", f"have {self._size} values", row.size)
        return row


class LaneEnvironment(Environment):
    """An environment made of single ones; see `Environment` for its use."""

    def __init__(
        self,
        name: str,
        adapter: Adapter,
        *,
        tasks: int,
        rollouts: int,
        horizon: int,
        threads: int,
        observation_size: int,
        low: Array,
        high: Array,
        action_range: float | None,
    ) -> None:
        super().__init__(
            name,
            tasks=tasks,
            rollouts=rollouts,
            horizon=horizon,
            observation_size=observation_size,
            action_size=low.size,
        )
        self.success = np.zeros(self.lanes, dtype=np.bool_)
        self._low, self._high, self._range = low, high, action_range
        self._parts = np.array_split(np.arange(self.lanes), min(threads, self.lanes))
        sizes = [len(part) for part in self._parts]
        self._groups: list[Here | Worker] = []
        if len(sizes) == 1:
            self._groups = [Here(Group(adapter, sizes[0], observation_size))]
        else:
            frozen = _pickled(name, adapter)
            self._groups = [Worker(name, frozen, size, observation_size) for size in sizes]

    def _assign(self, tasks: list[Any]) -> None:
        self._is_reset = False
        lane_tasks = [task for task in tasks for _ in range(self.rollouts)]
        self._ask("assign", [([lane_tasks[lane] for lane in part],) for part in self._parts])

    def _restart(self, lanes: NDArray[np.int64], counts: NDArray[np.int64]) -> Array:
        observation = np.empty((len(lanes), self.observation_size))
        places, calls = [], []
        for part in self._parts:
            here = np.flatnonzero((lanes >= part[0]) & (lanes <= part[-1]))
            seeds = [
                derived(self._seed, self.first_lane + int(lanes[i]), int(counts[i])) % 2**31
                for i in here.tolist()
            ]
            places.append(here)
            calls.append(((lanes[here] - part[0]).tolist(), seeds) if here.size else None)
        for here, rows in zip(places, self._ask("restart", calls), strict=True):
            if rows is not None:
                observation[here] = rows
        return observation

    def _advance(self, action: Array) -> tuple[Array, Array, Flags, Flags]:
        if self._range is not None:
            span = self._high - self._low
            action = self._low + (action + self._range) * span / (2 * self._range)
        action = np.clip(action, self._low, self._high)
        moved = self._ask("advance", [(action[part],) for part in self._parts])
        joined = Moved(*(np.concatenate(column) for column in zip(*moved, strict=True)))
        self.success = joined.success
        return joined[:4]

    def _ask(self, method: str, calls: Sequence[tuple[Any, ...] | None]) -> list[Any]:
        """Calls a method of every group at once, where there is something to call; an error closes
        the environment, since its lanes no longer agree."""
        pairs = list(zip(self._groups, calls, strict=True))
        try:
            for group, call in pairs:
                if call is not None:
                    group.send(method, call)
            return [None if call is None else group.receive() for group, call in pairs]
        except BaseException:
            self.close()
            raise

    def render(self, lane: int = 0) -> NDArray[np.uint8]:
        self._check_open("render")
        (image,) = self._ask("render", [(lane,)]) if len(self._parts) == 1 else (None,)
        if not (isinstance(image, np.ndarray) and image.ndim == 3):
            raise RuntimeError(
                f"render: {self.name} gives no image; environments do so that are made with "
                'render_mode="rgb_array" and run in this process (threads=1)'
            )
        return image

    def close(self) -> None:
        if not self._is_closed:
            super().close()
            for group in self._groups:
                group.close()


class Here:
    """A group in this process, under the same two calls as a worker."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._answer: Any = None

    def send(self, method: str, call: tuple[Any, ...]) -> None:
        """Runs the method."""
        self._answer = getattr(self._group, method)(*call)

    def receive(self) -> Any:
        """Returns what it gave."""
        return self._answer

    def close(self) -> None:
        """Frees the objects."""
        self._group.close()


class Worker:
    """A group in a process of its own, which ends when this end of the pipe closes."""

    def __init__(self, name: str, adapter: bytes, lanes: int, observation_size: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads
        self._name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, adapter, lanes, observation_size), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, method: str, call: tuple[Any, ...]) -> None:
        """Asks for a method."""
        try:
            self._pipe.send((method, call))
        except OSError:
            raise self._lost() from None

    def receive(self) -> Any:
        """Waits for the answer."""
        try:
            failed, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if failed:
            raise RuntimeError(f"{self._name}: a lane failed in its worker process\n{answer}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _lost(self) -> RuntimeError:
        """The error of a process that is gone."""
        self._process.join(timeout=5)
        return RuntimeError(
            f"{self._name}: a worker process ended (exit code {self._process.exitcode}); "
            "threads=1 runs the lanes in this process and shows why"
        )


def serve(pipe: Connection, adapter: bytes, lanes: int, observation_size: int) -> None:
    """What a worker does until the pipe closes: a method of its group a message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    group = Group(pickle.loads(adapter), lanes, observation_size)
    try:
        while True:
            method, call = pipe.recv()
            try:
                answer: tuple[bool, Any] = (False, getattr(group, method)(*call))
            except Exception:
                answer = (True, traceback.format_exc())
            pipe.send(answer)
    except (EOFError, OSError):
        group.close()


def _pickled(name: str, adapter: Adapter) -> bytes:
    """Returns what workers rebuild the adapter from."""
    try:
        return pickle.dumps(adapter)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{name}: make_env and set_task must be picklable to run in worker processes "
            f"(got {error}); define them at the top of a module, or use threads=1"
        ) from None
