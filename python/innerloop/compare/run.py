"""One comparison from files to files: check everything, compute what is missing, write, and
show.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from innerloop.compare.analysis import Analysis
from innerloop.compare.config import Config
from innerloop.compare.document import FORMAT, describe_run, measure_name, results_document
from innerloop.compare.pool import run_units
from innerloop.compare.problem import Problem
from innerloop.compare.reading import read_tasks
from innerloop.compare.report import BY_RATE, BY_STEPS, introduction, make_report, print_report
from innerloop.compare.theory import estimate_theory
from innerloop.compare.units import all_units
from innerloop.compare.verdict import conclude
from innerloop.runs.document import digest
from innerloop.runs.errors import InputError, Interrupted
from innerloop.runs.files import write_json
from innerloop.runs.launch import RUN, Clock, usable_threads
from innerloop.runs.progress import progress_bars, report_resumed
from innerloop.runs.report import REPORT, figure_files, print_ending, write_report
from innerloop.runs.store import RESULTS, Store

# Everything that a run may write beside its journal.
OUTPUTS = (
    RESULTS,
    RUN,
    REPORT,
    *figure_files(BY_STEPS, BY_RATE),
)


def run_comparison(
    config: Config,
    table: Path,
    *,
    out: Path | None = None,
    threads: int | None = None,
    fresh: bool = False,
    with_figures: bool = True,
) -> Path:
    """Run or resume a comparison, print its report, and return the folder that holds its files.

    Raises:
        InputError: bad input or an unusable output folder, before anything is computed.
        Interrupted: Ctrl-C; finished units are kept.
    """
    clock = Clock()
    threads = usable_threads(threads)
    problem = Problem(read_tasks(table, config), config)
    config = problem.config
    describe = describe_run(problem)
    key = digest(describe)
    folder = out if out is not None else Path("innerloop-compare") / f"{table.stem}-{key[:8]}"
    console, errors = Console(), Console(stderr=True)
    with Store(folder, key, describe, fresh, FORMAT, OUTPUTS) as store:
        if not problem.exact:  # minutes of training: say at once what is trained on what
            for line in introduction(problem):
                errors.print(line, highlight=False, markup=False, soft_wrap=True)
        _compute(problem, store, threads, errors)
        analysis = Analysis(config, problem.tasks, store.units, problem.curvature)
        theory = estimate_theory(problem, analysis)
        measure = "cross-entropy" if problem.tasks.classes else "MSE"
        verdict = conclude(analysis, measure, theory)
        report = make_report(problem, analysis, verdict, theory, folder, with_figures)
        try:
            document = results_document(problem, analysis, verdict, theory, store.units, key)
            write_json(folder / RESULTS, document)
            if with_figures:
                # Imported here: matplotlib is slow to load and not needed for numbers alone.
                from innerloop.compare.figures import draw_figures

                draw_figures(analysis, folder, measure_name(problem), table.stem)
            write_report(folder, report)
            clock.write(
                folder,
                threads=threads,
                units=len(store.units),
                resumed_units=store.resumed,
            )
        except OSError as error:
            raise InputError(
                f"--out {str(folder)!r} cannot be written ({error.strerror})"
            ) from None
        print_report(console, problem, analysis, verdict, theory)
        print_ending(console, report, folder)
    return folder


def _compute(problem: Problem, store: Store, threads: int, errors: Console) -> None:
    """Fill the store with every unit that it lacks."""
    units = all_units(problem.config)
    pending = [unit for unit in units if unit.name not in store.units]
    report_resumed(errors, store, len(units) - len(pending), len(units), "units are done")
    try:
        with progress_bars(errors, shown=bool(pending)) as progress:
            bar = progress.add_task(
                "Training and testing", total=len(units), completed=len(units) - len(pending)
            )
            for unit, result in run_units(problem, pending, threads):
                store.add(unit.name, result)
                progress.advance(bar)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted: {len(store.units)} of {len(units)} units are kept in {store.folder}; "
            "run the same command again to go on."
        ) from None
    except OSError as error:
        raise InputError(
            f"--out {str(store.folder)!r} cannot be written ({error.strerror}); "
            f"{len(store.units)} of {len(units)} units are kept"
        ) from None
