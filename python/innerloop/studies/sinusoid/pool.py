"""Training side by side, one core each; numbers do not depend on how many run."""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import Any

import torch

from innerloop.runs.workers import end_with_parent, run_in_processes
from innerloop.studies.sinusoid.checkpoints import checkpoint_path, load, save
from innerloop.studies.sinusoid.settings import Settings
from innerloop.studies.sinusoid.training import Diverged, State, initial_state, train
from innerloop.studies.sinusoid.units import Unit

SAVE_SECONDS = 2.0
_REPORT_ITERATIONS = 50
_WAITING = -1
# Below this many iterations a worker process takes longer to start than to train.
BRIEF_ITERATIONS = 3000

Progress = Callable[[Unit, int], None]


def train_units(
    settings: Settings,
    units: list[Unit],
    folder: Path,
    key: str,
    threads: int,
    progress: Progress,
) -> Iterator[tuple[Unit, State]]:
    """Finished states of `units`, in any order, from their checkpoints on if there are any.

    Args:
        progress: called with a unit and its finished iterations from time to time.

    Raises:
        Diverged: the loss of a unit is no longer finite.
    """
    if threads > 1 and len(units) > 1 and settings.iterations > BRIEF_ITERATIONS:
        yield from _in_workers(settings, units, folder, key, threads, progress)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for unit in units:
            report = functools.partial(progress, unit)
            yield unit, _train_and_save(settings, unit, folder, key, report)
    finally:
        torch.set_num_threads(before)


def _train_and_save(
    settings: Settings, unit: Unit, folder: Path, key: str, progress: Callable[[int], None]
) -> State:
    """Train one unit to its end, saving the state every few seconds and at the end."""
    path = checkpoint_path(folder, unit.name)
    own = settings.of_run(unit.run)
    state = load(path, key, unit.name) or initial_state(own, unit.method)
    saved = time.monotonic()

    def after_iteration(state: State) -> None:
        nonlocal saved
        if state.done % _REPORT_ITERATIONS:
            return
        progress(state.done)
        if time.monotonic() - saved > SAVE_SECONDS:
            save(path, key, unit.name, state)
            saved = time.monotonic()

    progress(state.done)
    train(own, unit.method, state, until=settings.iterations, after_iteration=after_iteration)
    save(path, key, unit.name, state)
    progress(state.done)
    return state


def _in_workers(
    settings: Settings,
    units: list[Unit],
    folder: Path,
    key: str,
    threads: int,
    progress: Progress,
) -> Iterator[tuple[Unit, State]]:
    done = multiprocessing.get_context("spawn").Array("q", [_WAITING] * len(units))

    def watch() -> None:
        for index, unit in enumerate(units):
            if done[index] != _WAITING:
                progress(unit, done[index])

    jobs = [(settings, unit, folder, key, i) for i, unit in enumerate(units)]
    for index in run_in_processes(_work, jobs, threads, watch, (Diverged,), (done,)):
        unit = units[index]
        state = load(checkpoint_path(folder, unit.name), key, unit.name)
        if state is None or state.done != settings.iterations:
            raise RuntimeError(f"training of {unit.name} ended in a worker without its result")
        yield unit, state


def _work(
    settings: Settings,
    unit: Unit,
    folder: Path,
    key: str,
    index: int,
    done: SynchronizedArray[Any],
) -> None:
    """A worker's job: one unit from its checkpoint to its end, or to the parent's."""
    torch.set_num_threads(1)

    def progress(count: int) -> None:
        done[index] = count
        end_with_parent()

    _train_and_save(settings, unit, folder, key, progress)
