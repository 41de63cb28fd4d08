"""The command line of `innerloop study linear-regression`: options in, exit codes out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from innerloop.compare.config import parse_floats, parse_ints
from innerloop.compare.errors import InputError
from innerloop.studies.linear_regression.settings import Settings

DEFAULT = Settings()
TASK, GRID, OUT = "Tasks", "Grid", "Running"

HELP = (
    "MAML against pooled least squares on random linear-regression tasks.\n\n"
    "Reproduces the sweep of Gao and Sener (2020) over training tasks M, samples N and inner "
    "rates: how often MAML has the lower risk before and after one gradient step on a new task. "
    "Draws the heat maps, the theory's predictions beside them, and a table of how well they agree."
)


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def linear_regression(
    p: Annotated[
        int, typer.Option("--p", help="Dimension of the inputs.", rich_help_panel=TASK)
    ] = DEFAULT.p,
    beta: Annotated[
        float,
        typer.Option(
            help="Eigenvalues, coefficients and noise variances are U(0, beta).",
            rich_help_panel=TASK,
        ),
    ] = DEFAULT.beta,
    tasks: Annotated[
        str, typer.Option(help="Numbers M of training tasks.", rich_help_panel=GRID)
    ] = _listed(DEFAULT.tasks),
    samples: Annotated[
        str,
        typer.Option(help="Numbers N of support and of query samples.", rich_help_panel=GRID),
    ] = _listed(DEFAULT.samples),
    inner_lrs: Annotated[
        str,
        typer.Option(help="Inner rates, in training and in the test.", rich_help_panel=GRID),
    ] = _listed(DEFAULT.inner_lrs),
    trials: Annotated[
        int, typer.Option(help="Trials of every (M, N).", rich_help_panel=GRID)
    ] = DEFAULT.trials,
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
            help="Folder for the results; innerloop-study/linear-regression-<key> by default.",
            show_default=False,
            rich_help_panel=OUT,
        ),
    ] = None,
    theory: Annotated[
        bool, typer.Option(help="Predict the heat maps, too.", rich_help_panel=OUT)
    ] = True,
    figures: Annotated[bool, typer.Option(help="Draw the figures.", rich_help_panel=OUT)] = True,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh",
            help="Go on with cells already in the folder, or forget them.",
            rich_help_panel=OUT,
        ),
    ] = True,
) -> None:
    """Sweep MAML against pooled least squares on random linear-regression tasks."""
    # Imported here so that --help does not wait for scipy.
    from innerloop.compare.run import Interrupted
    from innerloop.studies.linear_regression.run import run_study

    try:
        settings = Settings(
            p=p,
            beta=beta,
            tasks=parse_ints("--tasks", tasks),
            samples=parse_ints("--samples", samples),
            inner_lrs=parse_floats("--inner-lrs", inner_lrs),
            trials=trials,
            seed=seed,
        )
        run_study(
            settings,
            out=out,
            threads=threads,
            fresh=not resume,
            with_theory=theory,
            with_figures=figures,
        )
    except InputError as error:
        typer.echo(f"innerloop study linear-regression: {error}", err=True)
        raise typer.Exit(2) from None
    except Interrupted as interruption:
        typer.echo(str(interruption), err=True)
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted: run the same command again to go on.", err=True)
        raise typer.Exit(130) from None
