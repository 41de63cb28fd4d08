"""Running units in this process or in worker processes; a unit's numbers are the same wherever it
runs.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from innerloop.compare.config import Config
from innerloop.compare.problem import Problem
from innerloop.compare.tables import Tasks
from innerloop.compare.training import run_unit
from innerloop.compare.units import Unit
from innerloop.runs.launch import interrupts_ignored

# Units times rows times parameters; a core does this much in about ten seconds.
BRIEF_WORK = 200_000_000

Result = tuple[Unit, dict[str, Any]]


def run_units(problem: Problem, units: Iterable[Unit], threads: int) -> Iterator[Result]:
    """Finished units, in any order.

    A unit is a long chain of small calls, so cores are used by running units side by side, each
    on one thread, in one worker process per core; numbers then cannot depend on the thread count.
    Work of a few seconds is done here, since a worker takes as long to start.
    """
    pending = list(units)
    if threads > 1 and len(pending) > 1 and not _is_brief(problem, len(pending)):
        yield from _run_in_workers(problem, pending, min(threads, len(pending)))
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for unit in pending:
            yield unit, run_unit(problem, unit)
    finally:
        torch.set_num_threads(before)


def _is_brief(problem: Problem, units: int) -> bool:
    """Whether exact solutions over all the draws are a matter of seconds."""
    rows = len(problem.tasks.x) * problem.config.draws
    return problem.exact and units * rows * problem.parameters < BRIEF_WORK


def _run_in_workers(problem: Problem, pending: list[Unit], count: int) -> Iterator[Result]:
    workers = _start(problem, count)
    try:
        queue = iter(pending)
        waiting = len(pending)
        for connection in workers:
            _hand_out(connection, queue)
        while waiting:
            for ready in wait(list(workers)):
                assert isinstance(ready, Connection)
                try:
                    unit, result, failure = ready.recv()
                except EOFError:
                    raise RuntimeError(
                        "a worker process ended without an answer (killed, or out of memory?)"
                    ) from None
                if failure is not None:
                    raise RuntimeError(f"{unit.name} failed in a worker process:\n{failure}")
                _hand_out(ready, queue)
                waiting -= 1
                yield unit, result
    finally:
        for connection, process in workers.items():
            connection.close()
            process.terminate()
        for process in workers.values():
            process.join()


def _start(problem: Problem, count: int) -> dict[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    workers = {}
    with interrupts_ignored():
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, problem.tasks, problem.config), daemon=True
            )
            process.start()
            theirs.close()
            workers[ours] = process
    return workers


def _hand_out(connection: Connection, queue: Iterator[Unit]) -> None:
    unit = next(queue, None)
    if unit is not None:
        connection.send(unit)


def _work(connection: Connection, tasks: Tasks, config: Config) -> None:
    """A worker's life: units in, results out, until the other end of the pipe closes (also when
    the parent was killed).
    """
    torch.set_num_threads(1)
    problem = Problem(tasks, config)
    try:
        while True:
            unit = connection.recv()
            result: dict[str, Any] = {}
            failure = None
            try:
                result = run_unit(problem, unit)
            except Exception:
                failure = traceback.format_exc()
            connection.send((unit, result, failure))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
