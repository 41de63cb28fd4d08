"""Training the methods side by side, one core each; numbers do not depend on how many run."""

from __future__ import annotations

import functools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import Any

import torch

from innerloop.runs.launch import interrupts_ignored
from innerloop.studies.sinusoid.checkpoints import checkpoint_path, load, save
from innerloop.studies.sinusoid.settings import Settings
from innerloop.studies.sinusoid.training import Diverged, State, initial_state, train

SAVE_SECONDS = 2.0
_POLL_SECONDS = 0.05
_REPORT_ITERATIONS = 50
_DIVERGED = 3
_WAITING = -1
# Below this many iterations a worker process takes longer to start than to train.
BRIEF_ITERATIONS = 3000

Progress = Callable[[str, int], None]


def train_methods(
    settings: Settings,
    methods: list[str],
    folder: Path,
    key: str,
    threads: int,
    progress: Progress,
) -> Iterator[tuple[str, State]]:
    """Finished states of `methods`, in any order, from their checkpoints on if there are any.

    Args:
        progress: called with a method and its finished iterations from time to time.

    Raises:
        Diverged: the loss of a method is no longer finite.
    """
    if threads > 1 and len(methods) > 1 and settings.iterations > BRIEF_ITERATIONS:
        yield from _in_workers(settings, methods, folder, key, threads, progress)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for method in methods:
            report = functools.partial(progress, method)
            yield method, _train_and_save(settings, method, folder, key, report)
    finally:
        torch.set_num_threads(before)


def _train_and_save(
    settings: Settings, method: str, folder: Path, key: str, progress: Callable[[int], None]
) -> State:
    """Train one method to its end, saving the state every few seconds and at the end."""
    path = checkpoint_path(folder, method)
    state = load(path, key, method) or initial_state(settings)
    saved = time.monotonic()

    def after_iteration(state: State) -> None:
        nonlocal saved
        if state.done % _REPORT_ITERATIONS:
            return
        progress(state.done)
        if time.monotonic() - saved > SAVE_SECONDS:
            save(path, key, method, state)
            saved = time.monotonic()

    progress(state.done)
    train(settings, method, state, until=settings.iterations, after_iteration=after_iteration)
    save(path, key, method, state)
    progress(state.done)
    return state


def _in_workers(
    settings: Settings,
    methods: list[str],
    folder: Path,
    key: str,
    threads: int,
    progress: Progress,
) -> Iterator[tuple[str, State]]:
    context = multiprocessing.get_context("spawn")
    done = context.Array("q", [_WAITING] * len(methods))
    waiting = list(enumerate(methods))
    running: dict[str, SpawnProcess] = {}
    try:
        while waiting or running:
            while waiting and len(running) < threads:
                index, method = waiting.pop(0)
                process = context.Process(
                    target=_work,
                    args=(settings, method, folder, key, done, index),
                    daemon=True,
                )
                with interrupts_ignored():
                    process.start()
                running[method] = process
            time.sleep(_POLL_SECONDS)
            for index, method in enumerate(methods):
                if done[index] != _WAITING:
                    progress(method, done[index])
            for method in [name for name, process in running.items() if not process.is_alive()]:
                process = running.pop(method)
                process.join()
                if process.exitcode == _DIVERGED:
                    raise Diverged(method)
                state = load(checkpoint_path(folder, method), key, method)
                if process.exitcode != 0 or state is None or state.done != settings.iterations:
                    raise RuntimeError(
                        f"training of {method} ended in a worker process with exit code "
                        f"{process.exitcode} (its message is above; killed, or out of memory?)"
                    )
                yield method, state
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _work(
    settings: Settings,
    method: str,
    folder: Path,
    key: str,
    done: SynchronizedArray[Any],
    index: int,
) -> None:
    """A worker's life: one method from its checkpoint to its end, or to the parent's."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def progress(count: int) -> None:
        done[index] = count
        if parent is not None and not parent.is_alive():
            sys.exit(1)

    try:
        _train_and_save(settings, method, folder, key, progress)
    except Diverged:
        sys.exit(_DIVERGED)
