"""One study from settings to files: train what is missing, measure, write, and show."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from innerloop.runs.document import digest
from innerloop.runs.errors import InputError, Interrupted
from innerloop.runs.files import write_json
from innerloop.runs.launch import RUN, Clock, usable_threads
from innerloop.runs.progress import progress_bars, report_resumed
from innerloop.runs.report import REPORT, figure_files, print_ending, write_report
from innerloop.runs.store import RESULTS, Store
from innerloop.studies.sinusoid.certificates import (
    FILE,
    Certificates,
    certificates_sentence,
    certify,
    write_certificates,
)
from innerloop.studies.sinusoid.checkpoints import PATTERN, checkpoint_path, load
from innerloop.studies.sinusoid.document import (
    ARRAYS,
    FORMAT,
    Run,
    describe_run,
    find,
    results_document,
    write_arrays,
)
from innerloop.studies.sinusoid.measuring import measure
from innerloop.studies.sinusoid.pool import train_units
from innerloop.studies.sinusoid.report import (
    ERRORS,
    FITS,
    introduction,
    make_report,
    print_tables,
    print_verdict,
)
from innerloop.studies.sinusoid.settings import Settings
from innerloop.studies.sinusoid.training import Diverged
from innerloop.studies.sinusoid.units import NAMES, Unit, all_units
from innerloop.studies.sinusoid.verdict import conclude

# Everything that a run may write beside its journal.
OUTPUTS = (
    RESULTS,
    ARRAYS,
    FILE,
    RUN,
    PATTERN,
    REPORT,
    *figure_files(ERRORS, FITS),
)


def run_study(
    settings: Settings,
    *,
    out: Path | None = None,
    threads: int | None = None,
    fresh: bool = False,
    with_figures: bool = True,
) -> Path:
    """Run or resume a study, print its report, and return the folder that holds its files.

    Raises:
        InputError: bad input, an unusable output folder, or training that diverges.
        Interrupted: Ctrl-C; finished trainings and the latest checkpoints are kept.
    """
    clock = Clock()
    threads = usable_threads(threads)
    describe = describe_run(settings)
    key = digest(describe)
    folder = out if out is not None else Path("innerloop-study") / f"sinusoid-{key[:8]}"
    console, errors = Console(), Console(stderr=True)
    with Store(folder, key, describe, fresh, FORMAT, OUTPUTS) as store:
        for line in introduction(settings):
            console.print(line, highlight=False, soft_wrap=True)
        trained_now = _train(settings, store, key, threads, fresh, errors)
        trained_seconds = clock.seconds()
        try:
            runs, certificates = _measure(settings, store, threads, errors)
        except KeyboardInterrupt:
            raise _interrupted(settings, store) from None
        found = find(settings, runs)
        bounds = certificates_sentence(settings, certificates)
        verdict = conclude(settings, found.over_same, found.over_picked, found.oracle, bounds)
        report = make_report(settings, found, certificates, verdict, folder, with_figures)
        document = results_document(settings, runs, found, verdict, certificates, key)
        try:
            write_json(folder / RESULTS, document)
            write_arrays(folder, runs)
            write_certificates(folder, certificates)
            if with_figures:
                # Imported here: matplotlib is slow to load and not needed for numbers alone.
                from innerloop.studies.sinusoid.figures import draw_figures

                draw_figures(settings, found, runs[0].trained, folder)
            write_report(folder, report)
            clock.write(
                folder,
                training_seconds=round(trained_seconds, 3),
                iterations_trained=trained_now,
                threads=threads,
            )
        except OSError as error:
            raise InputError(
                f"--out {str(folder)!r} cannot be written ({error.strerror})"
            ) from None
        print_tables(console, settings, found, certificates)
        print_verdict(console, verdict)
        total = clock.seconds()
        console.print(
            f"Trained {trained_now} iterations in {trained_seconds:.0f} s, {total:.0f} s in all.",
            highlight=False,
        )
        print_ending(console, report, folder)
    return folder


def _measure(
    settings: Settings, store: Store, threads: int, errors: Console
) -> tuple[list[Run], Certificates]:
    """Every run on the same new tasks, and the bounds along the first."""
    before = torch.get_num_threads()
    try:
        with errors.status("Measuring on new tasks") as status:
            torch.set_num_threads(threads)
            runs = [_run(settings, store, number) for number in range(settings.runs)]
            status.update("Estimating the constants of the bounds")
            torch.set_num_threads(1)  # sums of torch's own may depend on the number of threads
            return runs, certify(settings, runs[0].trained)
    finally:
        torch.set_num_threads(before)


def _run(settings: Settings, store: Store, number: int) -> Run:
    """What the journal holds of one run, measured."""
    units = [unit for unit in all_units(settings) if unit.run == number]
    trained = {
        unit.method: torch.tensor(store.units[unit.name]["parameters"], dtype=torch.float32)
        for unit in units
    }
    traces = {unit.method: store.units[unit.name]["training_loss"] for unit in units}
    return Run(trained, traces, measure(settings, trained))


def _train(
    settings: Settings, store: Store, key: str, threads: int, fresh: bool, errors: Console
) -> int:
    """Fill the store with every unit that it lacks; returns the iterations done for that."""
    units = all_units(settings)
    pending = [unit for unit in units if unit.name not in store.units]
    report_resumed(errors, store, len(units) - len(pending), len(units), "trainings are done")
    first: dict[Unit, int] = {}
    reached = dict.fromkeys(pending, 0)
    trained = 0
    try:
        for unit in units:
            path = checkpoint_path(store.folder, unit.name)
            if fresh:
                path.unlink(missing_ok=True)
            elif unit in pending:
                load(path, key, unit.name)  # a bad one is refused before anything is trained
        with progress_bars(errors, shown=bool(pending)) as progress:
            of = {m: [unit for unit in pending if unit.method == m] for m in NAMES}
            bars = {
                method: progress.add_task(NAMES[method], total=settings.iterations * len(group))
                for method, group in of.items()
                if group
            }

            def show(unit: Unit, done: int) -> None:
                first.setdefault(unit, done)
                reached[unit] = done
                total = sum(reached[each] for each in of[unit.method])
                progress.update(bars[unit.method], completed=total)

            for unit, state in train_units(settings, pending, store.folder, key, threads, show):
                trained += state.done - first.get(unit, 0)
                store.add(
                    unit.name,
                    {"parameters": state.theta.tolist(), "training_loss": state.trace},
                )
                checkpoint_path(store.folder, unit.name).unlink(missing_ok=True)
    except KeyboardInterrupt:
        raise _interrupted(settings, store) from None
    except Diverged as divergence:
        raise InputError(
            f"training of {NAMES[str(divergence)]} diverged; lower --outer-lr "
            f"({settings.outer_lr:g}) or --inner-lr ({settings.inner_lr:g})"
        ) from None
    except OSError as error:
        raise InputError(
            f"--out {str(store.folder)!r} cannot be written ({error.strerror})"
        ) from None
    return trained


def _interrupted(settings: Settings, store: Store) -> Interrupted:
    units = all_units(settings)
    done = sum(unit.name in store.units for unit in units)
    return Interrupted(
        f"Interrupted: {done} of {len(units)} trainings are done; the same command goes on from "
        f"what {store.folder} holds, checkpoints of the others included."
    )
