"""One study from settings to files: train and test what is missing, write, and show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from innerloop.rl import _checks
from innerloop.runs.document import digest
from innerloop.runs.errors import InputError, Interrupted
from innerloop.runs.files import reason, write_bytes, write_json
from innerloop.runs.launch import RUN, Clock, usable_threads
from innerloop.runs.progress import progress_bars, report_resumed
from innerloop.runs.report import REPORT, Report, figure_files, print_ending, write_report
from innerloop.runs.store import RESULTS, Store
from innerloop.studies.meta_rl.document import (
    BASE,
    FORMAT,
    describe_run,
    results_document,
    simulators,
)
from innerloop.studies.meta_rl.launching import (
    JOBS,
    Cluster,
    Show,
    follow,
    run_here,
    run_together,
    submit,
)
from innerloop.studies.meta_rl.report import (
    CURVES,
    MAPS,
    MARKDOWN,
    introduction,
    make_report,
    markdown,
)
from innerloop.studies.meta_rl.settings import Settings
from innerloop.studies.meta_rl.summary import comparisons
from innerloop.studies.meta_rl.together import Ranks, torchrun
from innerloop.studies.meta_rl.unfinished import FOLDER as UNFINISHED
from innerloop.studies.meta_rl.unfinished import path_of
from innerloop.studies.meta_rl.units import Unit, all_units
from innerloop.studies.meta_rl.work import (
    EVENTS,
    LOGS,
    POLICIES,
    Kept,
    environment,
    planned_steps,
    result_of,
)

# Everything that a run may write beside its journal.
OUTPUTS = (
    RESULTS,
    REPORT,
    MARKDOWN,
    RUN,
    *figure_files(MAPS, CURVES),
    *(f"{name}/" for name in (UNFINISHED, LOGS, EVENTS, POLICIES, JOBS)),
)


def run_study(
    settings: Settings,
    *,
    out: Path | None = None,
    threads: int | None = None,
    cluster: Cluster | None = None,
    fresh: bool = False,
    with_figures: bool = True,
    only_report: bool = False,
    kept: Kept = Kept(),  # noqa: B008  (it never changes)
) -> Path:
    """Run or resume a study, print its verdicts, and return the folder that holds its files.

    Under torchrun its processes do every training together, each with a share of the tasks.
    Results, report and figures are written whenever a comparison is complete, and at the end.

    Args:
        cluster: where units become jobs; they run here if None.
        only_report: write what the finished units give, and compute nothing.
        kept: what else is written of every training.

    Raises:
        InputError: bad input, an extra that is missing, or an unusable output folder.
        Interrupted: Ctrl-C; finished units and the latest state of the others are kept.
    """
    threads = usable_threads(threads)
    _check_packages(settings, kept, cluster)
    describe = describe_run(settings)
    key = digest(describe)
    folder = out if out is not None else Path("innerloop-study") / f"meta-rl-{key[:8]}"
    with torchrun() as ranks:
        _check_environments(settings, ranks)
        if ranks.rank == 0:
            places = _Places(threads, cluster, ranks, kept)
            _lead(settings, folder, key, describe, fresh, with_figures, only_report, places)
        elif not only_report:
            follow(settings, folder, key, threads, ranks)
    return folder


class _Places(NamedTuple):
    """Where units run, and what they keep."""

    threads: int
    cluster: Cluster | None
    ranks: Ranks
    kept: Kept


def _lead(
    settings: Settings,
    folder: Path,
    key: str,
    describe: dict[str, Any],
    fresh: bool,
    with_figures: bool,
    only_report: bool,
    places: _Places,
) -> None:
    """The study in the process that reads and writes its folder."""
    clock = Clock()
    console, errors = Console(), Console(stderr=True)
    with Store(folder, key, describe, fresh, FORMAT, OUTPUTS) as store:
        for line in introduction(settings):
            console.print(line, highlight=False, soft_wrap=True)
        units = all_units(settings)
        report_resumed(errors, store, _count(units, store), len(units), "trainings are done")
        try:
            for unit in units:
                if fresh or unit.name in store.units:
                    path_of(folder, unit.name).unlink(missing_ok=True)
            if not only_report:
                for unit in _train(settings, store, key, places, errors):
                    if _completes(unit, units, store):
                        _write(settings, store, key, with_figures)
            report = _write(settings, store, key, with_figures)
            clock.write(folder, threads=places.threads, units=len(store.units) - store.resumed)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted: {_count(units, store)} of {len(units)} trainings are done, and the "
                f"latest state of the others is kept in {folder}; run the same command again to "
                "go on."
            ) from None
        except OSError as error:
            raise InputError(f"--out {str(folder)!r} cannot be written ({reason(error)})") from None
        for line in report.reasons:
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        print_ending(console, report, folder)


def _check_packages(settings: Settings, kept: Kept, cluster: Cluster | None) -> None:
    """Refuse what needs a package that is missing."""
    try:
        for name in simulators(settings):
            _checks.package("--environments", name, "rl" if name in BASE else name)
        if cluster is not None:
            _checks.package(f"--launcher {cluster.kind}", "submitit", "cluster")
        if kept.tensorboard:
            _checks.package("--tensorboard", "tensorboard", "tensorboard")
        if kept.policies:
            _checks.package("--policies", "safetensors", "safetensors")
    except ModuleNotFoundError as error:
        raise InputError(str(error)) from None


def _check_environments(settings: Settings, ranks: Ranks) -> None:
    """Refuse environments that cannot be made here, before anything is written."""
    for name in settings.environments:
        try:
            environment(settings, name, 1, ranks).close()
        except InputError:
            raise
        except (ValueError, TypeError) as error:
            raise InputError(f"--environments {name}: {error}") from None


def _train(
    settings: Settings, store: Store, key: str, places: _Places, errors: Console
) -> Iterator[Unit]:
    """Fill the store with every unit that it lacks; yields each as it is there."""
    folder = store.folder
    pending = [unit for unit in all_units(settings) if unit.name not in store.units]
    planned = {unit.name: sum(planned_steps(settings, unit)) for unit in pending}
    with progress_bars(errors, counted=False, shown=bool(pending)) as progress:
        bar = progress.add_task("control steps", total=sum(planned.values()))
        done: dict[str, int] = {}

        def show(unit: str, steps: int) -> None:
            done[unit] = max(steps, done.get(unit, 0))
            progress.update(bar, completed=sum(done.values()))

        for unit in _finished(settings, pending, folder, key, places, show):
            found = result_of(folder, key, unit)
            if found is None:
                raise RuntimeError(f"{unit.name} ended without a result")
            store.add(unit.name, found)
            path_of(folder, unit.name).unlink(missing_ok=True)
            show(unit.name, planned[unit.name])
            progress.update(bar, description=f"control steps ({unit.name} is done)")
            yield unit


def _finished(
    settings: Settings,
    pending: list[Unit],
    folder: Path,
    key: str,
    places: _Places,
    show: Show,
) -> Iterator[Unit]:
    """Units as they are finished; first those that already were, when the last run ended."""
    there = [unit for unit in pending if result_of(folder, key, unit) is not None]
    yield from there
    left = [unit for unit in pending if unit not in there]
    threads, cluster, ranks, kept = places
    if ranks.world > 1:
        yield from run_together(settings, left, folder, key, threads, show, ranks, kept)
    elif left and cluster is not None:
        yield from submit(settings, left, folder, key, cluster, kept)
    elif left:
        yield from run_here(settings, left, folder, key, threads, show, kept)


def _count(units: list[Unit], store: Store) -> int:
    """How many of these are finished; the folder may hold others."""
    return sum(unit.name in store.units for unit in units)


def _completes(unit: Unit, units: list[Unit], store: Store) -> bool:
    """Whether all trainings of a unit's environment and pair are there."""
    return all(
        other.name in store.units
        for other in units
        if (other.environment, other.pair) == (unit.environment, unit.pair)
    )


def _write(settings: Settings, store: Store, key: str, with_figures: bool) -> Report:
    """Write results, figures and reports of what is finished; returns the report."""
    folder = store.folder
    made = comparisons(settings, store.units)
    drawn = with_figures and bool(made)
    write_json(folder / RESULTS, results_document(settings, store.units, key))
    if drawn:
        # Imported here: matplotlib is slow to load and not needed for numbers alone.
        from innerloop.studies.meta_rl.figures import draw_figures

        draw_figures(made, settings.level, folder)
    report = make_report(settings, made, _count(all_units(settings), store), folder, drawn)
    write_bytes(folder / MARKDOWN, markdown(report).encode())
    write_report(folder, report)
    return report
