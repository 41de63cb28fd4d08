"""The command line of `innerloop study sinusoid`: options in, exit codes out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from innerloop.runs.options import (
    Figures,
    Seed,
    Threads,
    exit_codes,
    folder_option,
    listed,
    parse_floats,
    parse_ints,
    resume_option,
)
from innerloop.studies.sinusoid.settings import Settings

DEFAULT = Settings()
TASK, TRAIN, MEASURE = "Task", "Training", "Measuring"

HELP = (
    "MAML's sine-wave regression: MAML, first-order MAML and joint training.\n\n"
    "Trains the three methods several times with the fused operations, measures their error on new "
    "tasks after 0, 1, 5 and 10 fine-tuning steps beside an oracle's, draws figures, and sets the "
    "certificates of innerloop.bounds beside them."
)


def sinusoid(
    iterations: Annotated[
        int, typer.Option(help="Meta-iterations of every method.", rich_help_panel=TRAIN)
    ] = DEFAULT.iterations,
    meta_batch: Annotated[
        int, typer.Option(help="Tasks per meta-iteration.", rich_help_panel=TRAIN)
    ] = DEFAULT.meta_batch,
    inner_lr: Annotated[
        float, typer.Option(help="Inner rate in training.", rich_help_panel=TRAIN)
    ] = DEFAULT.inner_lr,
    steps: Annotated[
        int, typer.Option(help="Inner steps in MAML's training.", rich_help_panel=TRAIN)
    ] = DEFAULT.steps,
    outer_lr: Annotated[
        float, typer.Option(help="Adam's rate.", rich_help_panel=TRAIN)
    ] = DEFAULT.outer_lr,
    hidden: Annotated[
        str, typer.Option(help="Widths of the hidden relu layers.", rich_help_panel=TASK)
    ] = listed(DEFAULT.hidden),
    shots: Annotated[
        int, typer.Option(help="Support points of a task.", rich_help_panel=TASK)
    ] = DEFAULT.shots,
    test_tasks: Annotated[
        int, typer.Option(help="Tasks that the intervals rest on.", rich_help_panel=MEASURE)
    ] = DEFAULT.test_tasks,
    validation_tasks: Annotated[
        int,
        typer.Option(help="Tasks that pick fine-tuning rates.", rich_help_panel=MEASURE),
    ] = DEFAULT.validation_tasks,
    query_rows: Annotated[
        int,
        typer.Option(help="Points that measure the error of a task.", rich_help_panel=MEASURE),
    ] = DEFAULT.query_rows,
    rates: Annotated[
        str, typer.Option(help="Fine-tuning rates to pick from.", rich_help_panel=MEASURE)
    ] = listed(DEFAULT.rates),
    level: Annotated[
        float, typer.Option(help="Coverage of the intervals.", rich_help_panel=MEASURE)
    ] = DEFAULT.level,
    runs: Annotated[
        int,
        typer.Option(
            help="Trainings of every method, with successive seeds.", rich_help_panel=TRAIN
        ),
    ] = DEFAULT.runs,
    seed: Seed = DEFAULT.seed,
    threads: Threads = None,
    out: Annotated[Path | None, folder_option("innerloop-study/sinusoid-<key of settings>")] = None,
    figures: Figures = True,
    resume: Annotated[bool, resume_option("training")] = True,
) -> None:
    """Train and measure MAML, first-order MAML and joint training on sine waves."""
    # Imported here so that --help does not wait for scipy.
    from innerloop.studies.sinusoid.run import run_study

    with exit_codes("innerloop study sinusoid"):
        settings = Settings(
            iterations=iterations,
            shots=shots,
            meta_batch=meta_batch,
            inner_lr=inner_lr,
            steps=steps,
            outer_lr=outer_lr,
            hidden=parse_ints("--hidden", hidden),
            test_tasks=test_tasks,
            validation_tasks=validation_tasks,
            query_rows=query_rows,
            rates=parse_floats("--rates", rates),
            runs=runs,
            seed=seed,
            level=level,
        )
        run_study(settings, out=out, threads=threads, fresh=not resume, with_figures=figures)
