"""One study from settings to files: simulate what is missing, predict, write, draw, and show."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console

from innerloop import _native
from innerloop.runs.document import digest, versions
from innerloop.runs.errors import InputError, Interrupted
from innerloop.runs.files import write_json
from innerloop.runs.launch import RUN, Clock, usable_threads
from innerloop.runs.progress import progress_bars, report_resumed
from innerloop.runs.report import REPORT, figure_files, print_ending, write_report
from innerloop.runs.sizes import check_memory
from innerloop.runs.store import Store
from innerloop.studies.linear_regression.agreement import Region, agreement
from innerloop.studies.linear_regression.report import (
    AGAINST,
    AGREEMENT,
    CROSSOVER,
    EXACT_DIMENSIONS,
    NUMBERS,
    PAGES,
    SUMMARY,
    introduction,
    make_report,
    notes,
    print_tables,
)
from innerloop.studies.linear_regression.result import FORMAT, Sweep
from innerloop.studies.linear_regression.settings import Settings
from innerloop.studies.linear_regression.simulation import (
    Workers,
    assemble,
    checked_device,
    simulate,
    unpack,
)
from innerloop.studies.linear_regression.theory import predict
from innerloop.studies.linear_regression.verdict import conclude

# The law of the tasks stands for itself as 20000 covariances [p, p], with powers of them beside.
_BYTES_OF_SAMPLED_LAW = 3 * 8 * 20_000
# Everything that a run may write beside its journal.
OUTPUTS = (
    NUMBERS,
    AGREEMENT,
    RUN,
    REPORT,
    *figure_files(SUMMARY, AGAINST, CROSSOVER),
    f"{PAGES}/",
)


def run_study(
    settings: Settings,
    *,
    out: Path | None = None,
    threads: int | None = None,
    device: torch.device | str = "cpu",
    fresh: bool = False,
    with_theory: bool = True,
    with_figures: bool = True,
) -> Path:
    """Run or resume a study, print its report, and return the folder that holds its files.

    Raises:
        InputError: bad input, a device that cannot be used or an unusable output folder.
        Interrupted: Ctrl-C; finished cells are kept.
    """
    clock = Clock()
    threads = usable_threads(threads)
    workers = Workers(checked_device(device), threads)
    if not _native.is_available():
        raise InputError(f"this study needs the native extension ({_native.reason()})")
    if with_theory and settings.p > EXACT_DIMENSIONS:
        check_memory(
            {
                f"the theory at p = {settings.p} (--no-theory leaves it out)": _BYTES_OF_SAMPLED_LAW
                * settings.p**2
            }
        )
    describe = {"study": FORMAT, "config": settings.as_dict(), "versions": versions()}
    key = digest(describe)
    folder = out if out is not None else Path("innerloop-study") / f"linear-regression-{key[:8]}"
    console, errors = Console(), Console(stderr=True)
    with Store(folder, key, describe, fresh, FORMAT, OUTPUTS) as store:
        for line in introduction(settings):
            console.print(line, highlight=False, soft_wrap=True)
        try:
            _simulate(settings, store, workers, errors)
            simulated = clock.seconds()
            sweep = _assembled(settings, store, with_theory, errors)
            regions = agreement(sweep) if with_theory else []
            remarks = notes(sweep)
            _write(sweep, regions, folder)
            if with_figures:
                _draw(sweep, folder, errors)
            verdict = conclude(sweep, regions)
            report = make_report(sweep, regions, verdict, remarks, folder, with_figures)
            write_report(folder, report)
            clock.write(
                folder,
                simulation_seconds=round(simulated, 3),
                threads=threads,
                device=str(workers.device),
                cells=len(store.units),
                resumed_cells=store.resumed,
            )
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted: {len(store.units)} of {len(settings.cells())} cells are kept in "
                f"{folder}; run the same command again to go on."
            ) from None
        except OSError as error:
            raise InputError(
                f"--out {str(folder)!r} cannot be written ({error.strerror}); {len(store.units)} "
                f"of {len(settings.cells())} cells are kept"
            ) from None
        print_tables(console, regions, remarks)
        print_ending(console, report, folder)
    return folder


def _simulate(settings: Settings, store: Store, workers: Workers, errors: Console) -> None:
    """Fill the store with every cell that it lacks."""
    cells = settings.cells()
    pending = [cell for cell in cells if cell.name not in store.units]
    report_resumed(errors, store, len(cells) - len(pending), len(cells), "cells are done")
    with _progress("Simulating", errors, shown=bool(pending)) as advance:
        for cell, summary in simulate(settings, pending, workers, advance):
            store.add(cell.name, summary.pack())


def _assembled(settings: Settings, store: Store, with_theory: bool, errors: Console) -> Sweep:
    """The result from the store, with the prediction if asked for."""
    rates = len(settings.inner_lrs)
    sweep = assemble(
        settings, {cell: unpack(store.units[cell.name], rates) for cell in settings.cells()}
    )
    if not with_theory:
        return sweep
    with _progress("Predicting", errors) as advance:
        try:
            return dataclasses.replace(sweep, prediction=predict(settings, advance))
        except ValueError as error:
            raise InputError(
                f"the theory cannot predict these settings ({error}); --no-theory leaves it out, "
                "and what is simulated is kept"
            ) from None


def _write(sweep: Sweep, regions: list[Region], folder: Path) -> None:
    """The numbers, and the agreement if there is a prediction."""
    sweep.to_npz(folder / NUMBERS)
    if regions:
        document = {
            "settings": sweep.settings.as_dict(),
            "regions": [region.as_dict() for region in regions],
        }
        write_json(folder / AGREEMENT, document)


def _draw(sweep: Sweep, folder: Path, errors: Console) -> None:
    """All figures."""
    # Imported here: matplotlib is slow to load and not needed for numbers alone.
    from innerloop.studies.linear_regression.figures import draw_figures

    number = len(sweep.settings.inner_lrs) + 3
    with _progress("Drawing", errors) as advance:
        for done, _ in enumerate(draw_figures(sweep, folder), 1):
            advance(done / number)


@contextlib.contextmanager
def _progress(text: str, errors: Console, shown: bool = True) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal; yields the function that takes the share of the work done."""
    with progress_bars(errors, counted=False, shown=shown) as progress:
        bar = progress.add_task(text, total=1.0)
        yield lambda share: progress.update(bar, completed=share)
