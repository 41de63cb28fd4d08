"""Worker processes: long jobs side by side, their failures here, no process left behind."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from innerloop.runs.launch import interrupts_ignored

_WATCH_SECONDS = 0.05


def run_in_processes(
    target: Callable[..., None],
    jobs: Sequence[tuple[Any, ...]],
    processes: int,
    watch: Callable[[], None],
    expected: tuple[type[Exception], ...],
    shared: tuple[Any, ...] = (),
) -> Iterator[int]:
    """The number of each job as it ends well, in any order. What a job gives, it writes to a file.

    Args:
        target: at the top of a module; called with a job's arguments and then `shared`.
        jobs: picklable arguments.
        processes: how many run at a time; each process does one job after the other.
        watch: called some times a second, to show progress.
        expected: exceptions of a job that are raised here as they are.
        shared: for every job, also what only starting processes hand on (arrays of the "spawn"
            context).

    Raises:
        RuntimeError: a job raised anything else, or its process was killed; with its traceback.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(enumerate(jobs))
    workers: dict[Connection, SpawnProcess] = {}
    running: dict[Connection, int] = {}
    try:
        with interrupts_ignored():
            for _ in range(min(processes, len(jobs))):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs, target, expected, shared), daemon=True
                )
                process.start()
                theirs.close()
                workers[ours] = process
        for pipe in workers:
            running[pipe], job = waiting.pop(0)
            pipe.send(job)
        while running:
            for ready in wait(list(running), _WATCH_SECONDS):
                assert isinstance(ready, Connection)
                index = running.pop(ready)
                _raise_failure(ready, workers[ready])
                if waiting:
                    running[ready], job = waiting.pop(0)
                    ready.send(job)
                yield index
            watch()
    finally:
        for pipe, process in workers.items():
            pipe.close()
            process.terminate()
        for process in workers.values():
            process.join()


def end_with_parent() -> None:
    """Ends a worker whose parent is gone; long jobs call it now and then."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit(1)


def _raise_failure(pipe: Connection, process: SpawnProcess) -> None:
    """Raises what made a job end, unless it ended well."""
    try:
        failure = pipe.recv()
    except (EOFError, OSError):
        process.join()
        failure = f"exit code {process.exitcode}: killed, or out of memory?"
    if isinstance(failure, Exception):
        raise failure
    if failure is not None:
        raise RuntimeError(f"a job failed in its worker process ({failure})")


def _work(
    pipe: Connection,
    target: Callable[..., None],
    expected: tuple[type[Exception], ...],
    shared: tuple[Any, ...],
) -> None:
    """A worker's life: jobs, and word of how each ended, until the pipe closes."""
    try:
        while True:
            job = pipe.recv()
            failure: Exception | str | None = None
            try:
                target(*job, *shared)
            except expected as error:
                failure = error
            except Exception:
                failure = f"its message:\n{traceback.format_exc()}"
            pipe.send(failure)
    except (EOFError, OSError):
        return
