"""One study from settings to files: train what is missing, measure, write, and show."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from innerloop.runs.document import digest
from innerloop.runs.errors import InputError, Interrupted
from innerloop.runs.files import write_json
from innerloop.runs.launch import RUN, Clock, usable_threads
from innerloop.runs.methods import LABELS, METHODS
from innerloop.runs.progress import progress_bars, report_resumed
from innerloop.runs.report import figure_files
from innerloop.runs.store import RESULTS, Store
from innerloop.studies.sinusoid.certificates import (
    FILE,
    certificates_sentence,
    certify,
    write_certificates,
)
from innerloop.studies.sinusoid.checkpoints import PATTERN, checkpoint_path, load
from innerloop.studies.sinusoid.document import (
    ARRAYS,
    FORMAT,
    describe_run,
    results_document,
    write_arrays,
)
from innerloop.studies.sinusoid.measuring import measure
from innerloop.studies.sinusoid.pool import train_methods
from innerloop.studies.sinusoid.report import introduction, print_report
from innerloop.studies.sinusoid.settings import Settings
from innerloop.studies.sinusoid.summary import rows
from innerloop.studies.sinusoid.training import Diverged
from innerloop.studies.sinusoid.verdict import conclude

# Everything that a run may write beside its journal.
OUTPUTS = (
    RESULTS,
    ARRAYS,
    FILE,
    RUN,
    PATTERN,
    *figure_files("error_by_steps", "example_fits"),
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
        Interrupted: Ctrl-C; finished methods and the latest checkpoints are kept.
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
        trained = {
            method: torch.tensor(store.units[method]["parameters"], dtype=torch.float32)
            for method in METHODS
        }
        before = torch.get_num_threads()
        try:
            with errors.status("Measuring on new tasks") as status:
                torch.set_num_threads(threads)
                measured = measure(settings, trained)
                status.update("Estimating the constants of the bounds")
                torch.set_num_threads(1)  # sums of torch's own may depend on the number of threads
                certificates = certify(settings, trained)
        except KeyboardInterrupt:
            raise _interrupted(store) from None
        finally:
            torch.set_num_threads(before)
        same = rows(measured.errors, settings.level)
        picked = rows(measured.picked_errors, settings.level)
        verdict = conclude(settings, same, picked, certificates_sentence(settings, certificates))
        traces = {method: store.units[method]["training_loss"] for method in METHODS}
        document = results_document(
            settings, measured, same, picked, verdict, traces, certificates, key
        )
        paths = [folder / RESULTS]
        try:
            write_json(paths[0], document)
            paths.append(write_arrays(folder, measured, trained))
            paths.append(write_certificates(folder, certificates))
            if with_figures:
                # Imported here: matplotlib is slow to load and not needed for numbers alone.
                from innerloop.studies.sinusoid.figures import draw_figures

                paths += draw_figures(settings, measured, same, picked, trained, folder)
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
        print_report(console, settings, measured, same, picked, certificates, verdict, paths)
        total = clock.seconds()
        console.print(
            f"Trained {trained_now} iterations in {trained_seconds:.0f} s, {total:.0f} s in all.",
            highlight=False,
        )
    return folder


def _train(
    settings: Settings, store: Store, key: str, threads: int, fresh: bool, errors: Console
) -> int:
    """Fill the store with every method that it lacks; returns the iterations done for that."""
    pending = [method for method in METHODS if method not in store.units]
    report_resumed(errors, store, store.resumed, len(METHODS), "methods are trained")
    first: dict[str, int] = {}
    trained = 0
    try:
        for method in METHODS:
            path = checkpoint_path(store.folder, method)
            if fresh:
                path.unlink(missing_ok=True)
            elif method in pending:
                load(path, key, method)  # a bad one is refused before anything is trained
        with progress_bars(errors, shown=bool(pending)) as progress:
            bars = {m: progress.add_task(LABELS[m], total=settings.iterations) for m in pending}

            def show(method: str, done: int) -> None:
                first.setdefault(method, done)
                progress.update(bars[method], completed=done)

            for method, state in train_methods(settings, pending, store.folder, key, threads, show):
                trained += state.done - first.get(method, 0)
                store.add(
                    method,
                    {"parameters": state.theta.tolist(), "training_loss": state.trace},
                )
                checkpoint_path(store.folder, method).unlink(missing_ok=True)
    except KeyboardInterrupt:
        raise _interrupted(store) from None
    except Diverged as divergence:
        raise InputError(
            f"training of {LABELS[str(divergence)]} diverged; lower --outer-lr "
            f"({settings.outer_lr:g}) or --inner-lr ({settings.inner_lr:g})"
        ) from None
    except OSError as error:
        raise InputError(
            f"--out {str(store.folder)!r} cannot be written ({error.strerror})"
        ) from None
    return trained


def _interrupted(store: Store) -> Interrupted:
    return Interrupted(
        f"Interrupted: {len(store.units)} of {len(METHODS)} methods are trained, and the latest "
        f"checkpoints are kept in {store.folder}; run the same command again to go on."
    )
