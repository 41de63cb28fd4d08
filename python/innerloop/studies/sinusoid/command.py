"""The command line of `innerloop study sinusoid`: options in, exit codes out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from innerloop.compare.config import parse_floats, parse_ints
from innerloop.compare.errors import InputError
from innerloop.studies.sinusoid.settings import Settings

DEFAULT = Settings()
TASK, TRAIN, MEASURE, OUT = "Task", "Training", "Measuring", "Running"

HELP = (
    "MAML's sine-wave regression: MAML, first-order MAML and joint training.\n\n"
    "Trains the three methods with the fused operations, measures their error on new tasks after "
    "0, 1, 5 and 10 fine-tuning steps with intervals, draws figures, and sets the certificates of "
    "innerloop.bounds beside them."
)


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


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
    ] = _listed(DEFAULT.hidden),
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
    ] = _listed(DEFAULT.rates),
    level: Annotated[
        float, typer.Option(help="Coverage of the intervals.", rich_help_panel=MEASURE)
    ] = DEFAULT.level,
    seed: Annotated[
        int, typer.Option(help="Seed of everything random.", rich_help_panel=OUT)
    ] = DEFAULT.seed,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Cores to use; all (at most 8) by default. Numbers do not depend on it.",
            show_default=False,
            rich_help_panel=OUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; innerloop-study/sinusoid-<key of settings> by default.",
            show_default=False,
            rich_help_panel=OUT,
        ),
    ] = None,
    figures: Annotated[bool, typer.Option(help="Draw the figures.", rich_help_panel=OUT)] = True,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh",
            help="Go on with training already in the folder, or forget it.",
            rich_help_panel=OUT,
        ),
    ] = True,
) -> None:
    """Train and measure MAML, first-order MAML and joint training on sine waves."""
    # Imported here so that --help does not wait for scipy.
    from innerloop.compare.run import Interrupted
    from innerloop.studies.sinusoid.run import run_study

    try:
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
            seed=seed,
            level=level,
        )
        run_study(settings, out=out, threads=threads, fresh=not resume, with_figures=figures)
    except InputError as error:
        typer.echo(f"innerloop study sinusoid: {error}", err=True)
        raise typer.Exit(2) from None
    except Interrupted as interruption:
        typer.echo(str(interruption), err=True)
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted: run the same command again to go on.", err=True)
        raise typer.Exit(130) from None
