"""Where units run: in this process, in worker processes, or as jobs of a cluster. A unit's numbers
are the same wherever it runs."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import Any

from innerloop.rl.ranks import shared_object
from innerloop.runs.errors import InputError
from innerloop.runs.workers import end_with_parent, run_in_processes
from innerloop.studies.meta_rl.settings import Settings
from innerloop.studies.meta_rl.together import Ranks
from innerloop.studies.meta_rl.units import Unit
from innerloop.studies.meta_rl.work import Kept, run_unit

LOCAL, SLURM = "local", "slurm"
LAUNCHERS = (LOCAL, SLURM)
JOBS = "jobs"
_POLL_SECONDS = 1.0

Show = Callable[[str, int], None]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How jobs are handed in.

    Args:
        kind: "slurm"; submitit's "local" runs the jobs on this machine.
        partition: of the cluster; its default if None.
        hours: that a job may take; it goes on where it was if it is cut off and started again.
        cores: of a job.
    """

    kind: str = SLURM
    partition: str | None = None
    hours: float = 24.0
    cores: int = 1


def run_here(
    settings: Settings,
    units: list[Unit],
    folder: Path,
    key: str,
    threads: int,
    report: Show,
    kept: Kept,
) -> Iterator[Unit]:
    """Finished units, each trained on one core beside others; cores that are left over go to the
    simulators."""
    processes = min(threads, len(units))
    if processes <= 1:
        for unit in units:
            run_unit(settings, unit, folder, key, threads, _named(report, unit), kept=kept)
            yield unit
        return
    each = threads // processes
    done = multiprocessing.get_context("spawn").Array("q", len(units))

    def watch() -> None:
        for index, unit in enumerate(units):
            report(unit.name, done[index])

    jobs = [(settings, unit, folder, key, each, kept, i) for i, unit in enumerate(units)]
    for index in run_in_processes(_work, jobs, processes, watch, (InputError,), (done,)):
        yield units[index]


def run_together(
    settings: Settings,
    units: list[Unit],
    folder: Path,
    key: str,
    threads: int,
    report: Show,
    ranks: Ranks,
    kept: Kept,
) -> Iterator[Unit]:
    """Finished units, one after the other, each done by all processes of torchrun; called by the
    first one, while the others `follow`."""
    for unit in units:
        shared_object(unit, ranks.world)
        run_unit(settings, unit, folder, key, threads, _named(report, unit), ranks, kept)
        yield unit
    shared_object(None, ranks.world)  # if anything fails before, torchrun ends the others


def follow(settings: Settings, folder: Path, key: str, threads: int, ranks: Ranks) -> None:
    """What the other processes do: unit after unit with the first one."""
    while (unit := shared_object(None, ranks.world)) is not None:
        run_unit(settings, unit, folder, key, threads, ranks=ranks)


def _named(report: Show, unit: Unit) -> Callable[[int], None]:
    return lambda steps: report(unit.name, steps)


def _work(
    settings: Settings,
    unit: Unit,
    folder: Path,
    key: str,
    threads: int,
    kept: Kept,
    index: int,
    done: SynchronizedArray[Any],
) -> None:
    """A unit in a worker process."""

    def report(steps: int) -> None:
        done[index] = steps
        end_with_parent()

    run_unit(settings, unit, folder, key, threads, report, kept=kept)


class Job:
    """A unit as a job: called again after its time is up, it goes on from the file."""

    def __init__(
        self, settings: Settings, unit: Unit, folder: Path, key: str, cores: int, kept: Kept
    ) -> None:
        self._arguments = (settings, unit, folder, key, cores)
        self._kept = kept

    def __call__(self) -> None:
        """Does the unit."""
        run_unit(*self._arguments, kept=self._kept)

    def checkpoint(self) -> Any:
        """What submitit hands in when a job is cut off: the same again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(
    settings: Settings, units: list[Unit], folder: Path, key: str, cluster: Cluster, kept: Kept
) -> Iterator[Unit]:
    """Finished units, each a job of a cluster that shares the folder. What waits here may be
    killed: the jobs go on, and the same command finds what they have finished. (Those that still
    run it would submit twice: their numbers are the same, their work is lost.)

    Raises:
        InputError: there is no such cluster, or jobs have failed; the others are waited for first.
    """
    import submitit

    try:
        executor = submitit.AutoExecutor(folder / JOBS, cluster=cluster.kind)
        executor.update_parameters(
            name="innerloop", timeout_min=int(60 * cluster.hours), cpus_per_task=cluster.cores
        )
        if cluster.kind == SLURM and cluster.partition is not None:
            executor.update_parameters(slurm_partition=cluster.partition)
    except RuntimeError as error:
        raise InputError(f"{error}; --launcher local needs no cluster") from None
    jobs = [
        executor.submit(Job(settings, unit, folder.resolve(), key, cluster.cores, kept))
        for unit in units
    ]
    waiting = list(zip(units, jobs, strict=True))
    failed: dict[str, str] = {}
    while waiting:
        for unit, job in [entry for entry in waiting if entry[1].done()]:
            waiting.remove((unit, job))
            failure = job.exception()
            if failure is None:
                yield unit
            else:
                failed[unit.name] = str(failure).strip().splitlines()[-1]
        if waiting:
            time.sleep(_POLL_SECONDS)
    if failed:
        name, text = next(iter(failed.items()))
        raise InputError(f"{len(failed)} jobs failed, {name} with: {text}; see {folder / JOBS}")
