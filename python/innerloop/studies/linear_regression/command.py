"""The command line of `innerloop study linear-regression`: options in, exit codes out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from innerloop.runs.options import (
    RUNNING,
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
from innerloop.studies.linear_regression.settings import Settings

DEFAULT = Settings()
TASK, GRID = "Tasks", "Grid"

HELP = (
    "MAML against pooled least squares on random linear-regression tasks.\n\n"
    "Reproduces the sweep of Gao and Sener (2020) over training tasks M, samples N and inner "
    "rates: how often MAML has the lower risk before and after one gradient step on a new task. "
    "Draws the heat maps, the theory's predictions beside them, and a table of how well they agree."
)


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
    ] = listed(DEFAULT.tasks),
    samples: Annotated[
        str,
        typer.Option(help="Numbers N of support and of query samples.", rich_help_panel=GRID),
    ] = listed(DEFAULT.samples),
    inner_lrs: Annotated[
        str,
        typer.Option(help="Inner rates, in training and in the test.", rich_help_panel=GRID),
    ] = listed(DEFAULT.inner_lrs),
    trials: Annotated[
        int, typer.Option(help="Trials of every (M, N).", rich_help_panel=GRID)
    ] = DEFAULT.trials,
    seed: Seed = DEFAULT.seed,
    threads: Threads = None,
    device: Annotated[
        str,
        typer.Option(
            help="Where to simulate: cpu, cuda or cuda:<number>.", rich_help_panel=RUNNING
        ),
    ] = "cpu",
    out: Annotated[Path | None, folder_option("innerloop-study/linear-regression-<key>")] = None,
    theory: Annotated[
        bool, typer.Option(help="Predict the heat maps, too.", rich_help_panel=RUNNING)
    ] = True,
    figures: Figures = True,
    resume: Annotated[bool, resume_option("cells")] = True,
) -> None:
    """Sweep MAML against pooled least squares on random linear-regression tasks."""
    # Imported here so that --help does not wait for scipy.
    from innerloop.studies.linear_regression.run import run_study

    with exit_codes("innerloop study linear-regression"):
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
            device=device,
            fresh=not resume,
            with_theory=theory,
            with_figures=figures,
        )
