"""One unit of work: a training, tested at every stop on the fixed test tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from innerloop import rl
from innerloop.rl.meta_world import BENCHMARKS
from innerloop.rl.ranks import shared_object
from innerloop.runs.errors import InputError
from innerloop.runs.files import reason, write_bytes
from innerloop.studies.meta_rl.settings import Settings
from innerloop.studies.meta_rl.together import ALONE, Ranks
from innerloop.studies.meta_rl.unfinished import Progress, load, path_of, save
from innerloop.studies.meta_rl.units import Unit

LOGS, EVENTS, POLICIES = "logs", "tensorboard", "policies"
SAVE_SECONDS = 5.0
# places below the study's seed; a training's own places come below the seed of the unit
_TEST_TASKS, _TEST_EPISODES = 2, 3


class Kept(NamedTuple):
    """What else is written of a training: events for TensorBoard, and its last policy."""

    tensorboard: bool = False
    policies: bool = False


def environment(
    settings: Settings, name: str, threads: int, ranks: Ranks = ALONE
) -> rl.Environment:
    """The environment of a unit, or one process's part of it."""
    version = settings.reward_version if name in BENCHMARKS else None
    sizes = settings.sizes_of(name)
    if sizes["tasks"] % ranks.world:
        raise InputError(
            f"--tasks must be a multiple of the {ranks.world} processes of torchrun (got "
            f"{sizes['tasks']})"
        )
    sizes["tasks"] //= ranks.world
    env = rl.make(name, **sizes, threads=threads, reward_version=version)
    env.share(ranks.rank, ranks.world)
    return env


def planned_steps(settings: Settings, unit: Unit) -> tuple[int, int]:
    """Control steps of training and of testing in a unit."""
    sizes = settings.sizes_of(unit.environment)
    phase = sizes["tasks"] * sizes["rollouts"] * sizes["horizon"]
    per_task = sizes["rollouts"] * sizes["horizon"] * (settings.updates + 1)
    tested = (settings.checkpoints + 1) * len(unit.tests) * settings.test_tasks * per_task
    return 2 * settings.iterations_of(unit.environment) * phase, tested


def run_unit(
    settings: Settings,
    unit: Unit,
    folder: Path,
    key: str,
    threads: int = 1,
    report: Callable[[int], None] = lambda steps: None,
    ranks: Ranks = ALONE,
    kept: Kept = Kept(),  # noqa: B008  (it never changes)
) -> None:
    """Does what is missing of a unit, keeping it on disk; at the end its file says `finished`.

    Args:
        folder: of the study.
        key: of the study.
        threads: of the simulator. Numbers do not depend on it.
        report: called with the control steps done so far, again and again.
        ranks: the processes that do the unit together; the first one keeps it on disk.
        kept: what else is written.

    Raises:
        InputError: the folder cannot be written, or what was kept in it cannot be used.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of torch's own may depend on the number of threads
    try:
        with environment(settings, unit.environment, threads, ranks) as env:
            _Work(settings, unit, folder, key, env, report, kept).finish()
    except OSError as error:
        raise InputError(f"--out {str(folder)!r} cannot be written ({reason(error)})") from None
    finally:
        torch.set_num_threads(before)


class _Work:
    """A unit that is being done."""

    def __init__(
        self,
        settings: Settings,
        unit: Unit,
        folder: Path,
        key: str,
        env: rl.Environment,
        report: Callable[[int], None],
        kept: Kept,
    ) -> None:
        self._settings, self._unit, self._env = settings, unit, env
        self._folder, self._key, self._report = folder, key, report
        self._kept, self._events = kept, None
        if kept.tensorboard and env.rank == 0:
            self._events = rl.TensorBoard(folder / EVENTS / unit.name)
        chosen: dict[str, Any] = dict(unit.changed)
        for name in ("sampling", "discount", "gae_lambda"):
            chosen[name] = getattr(settings, name)
        if settings.hidden is not None:
            chosen["hidden"] = settings.hidden
        self._training = rl.Training(env, unit.algorithm, seed=unit.seed, **chosen)
        self._progress = Progress()
        self._path = path_of(folder, unit.name)
        found = load(self._path, key, unit.name) if env.rank == 0 else None
        found = shared_object(found, env.world)
        if found is not None:
            self._progress, state = found
            self._training.load_state(state)
        self._saved = time.monotonic()
        self._tasks = env.sample_tasks(
            settings.test_tasks, rl.derived(settings.seed, _TEST_TASKS), split="test"
        )

    def finish(self) -> None:
        """Trains and tests, stop by stop."""
        progress = self._progress
        stops = self._settings.stops(self._unit.environment, self._unit.algorithm)
        for iterations in stops[progress.stop :]:
            self._train(iterations)
            for test, rate in self._unit.tests.items():
                self._test(test, rate)
            progress.steps.append(self._steps())
            progress.stop += 1
            self._keep(iterations == stops[-1])
        progress.finished = True
        if self._kept.policies and self._env.rank == 0:
            (self._folder / POLICIES).mkdir(exist_ok=True)
            path = self._folder / POLICIES / f"{self._unit.name}.safetensors"
            rl.save_policy(path, self._training.params, model=self._training.model)
        self._keep(True)

    def _steps(self) -> int:
        """Control steps of training so far."""
        history = self._training.history
        return int(history[-1]["steps"]) if history else 0

    def _train(self, iterations: int) -> None:
        """Takes iterations until there are so many, or none can be taken."""
        training, progress = self._training, self._progress
        while len(training.history) < iterations and progress.diverged is None:
            try:
                training.step()
            except FloatingPointError:
                progress.diverged = len(training.history)
            self._keep()

    def _test(self, test: str, rate: float) -> None:
        """Tests the present policy on the tasks that are left, as many at a time as the environment
        holds. Episodes depend on the place among the tasks alone: they are the same for every
        algorithm, seed and checkpoint."""
        settings, held = self._settings, self._env.world * self._env.tasks
        stops = self._progress.returns.setdefault(test, [])
        if len(stops) == self._progress.stop:
            stops.append([])
        done = stops[-1]
        while len(done) < len(self._tasks):
            first = len(done)
            returns = rl.evaluate(
                self._env,
                self._training.params,
                model=self._training.model,
                tasks=self._tasks[first : first + held],
                updates=settings.updates,
                inner_lr=rate,
                seed=rl.derived(settings.seed, _TEST_EPISODES, first),
                optimizer=settings.test_optimizer,
                discount=settings.discount,
                gae_lambda=settings.gae_lambda,
                sampling=settings.sampling,
                tester=settings.tester,
            )
            done.extend(returns.tolist())
            self._keep()

    def _keep(self, now: bool = False) -> None:
        """Reports, and saves if the last time is some seconds ago."""
        progress, settings = self._progress, self._settings
        tasks = sum(len(stop) for stops in progress.returns.values() for stop in stops)
        per_task = self._env.rollouts * self._env.horizon * (settings.updates + 1)
        self._report(self._steps() + tasks * per_task)
        if self._env.rank:
            return
        if not now and time.monotonic() - self._saved < SAVE_SECONDS:
            return
        if self._events is not None:
            self._events(self._training)
        lines = [json.dumps(row) + "\n" for row in self._training.history]
        (self._folder / LOGS).mkdir(exist_ok=True)
        write_bytes(self._folder / LOGS / f"{self._unit.name}.jsonl", "".join(lines).encode())
        save(self._path, self._key, self._unit.name, progress, self._training.state())
        self._saved = time.monotonic()


def result_of(folder: Path, key: str, unit: Unit) -> dict[str, Any] | None:
    """What a finished unit gave, or None if it is not finished."""
    found = load(path_of(folder, unit.name), key, unit.name)
    if found is None or not found[0].finished:
        return None
    progress = found[0]
    return {
        "steps": progress.steps,
        "returns": progress.returns,
        "diverged": progress.diverged,
    }
