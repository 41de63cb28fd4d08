"""The command line of `innerloop compare`: options in, exit codes out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from innerloop.compare.config import AUTO, Config
from innerloop.data import COUNTRIES_LIFE_EXPECTANCY, US_STATES_PRODUCTIVITY
from innerloop.runs.errors import InputError
from innerloop.runs.options import (
    Figures,
    Seed,
    Threads,
    exit_codes,
    folder_option,
    listed,
    parse_floats,
    parse_ints,
    parse_names,
    resume_option,
)


class Demo(NamedTuple):
    """A data set that ships with innerloop, and the columns that a run on it uses."""

    path: Path
    columns: dict[str, Any]


DEMOS = {
    "countries": Demo(
        COUNTRIES_LIFE_EXPECTANCY,
        {
            "task": "country",
            "target": "life_expectancy",
            "features": ("year", "gdp_per_capita"),
            "log": ("gdp_per_capita",),
        },
    ),
    "us-states": Demo(
        US_STATES_PRODUCTIVITY,
        {
            "task": "state",
            "target": "gsp",
            "features": ("public_capital", "private_capital", "employment", "unemployment"),
            "log": ("public_capital", "private_capital", "employment", "gsp"),
        },
    ),
}
DEFAULT_DEMO = "countries"
DEFAULT = Config(task="", target="")
DATA, MODEL, GRID, SPLITS, TRAIN = (
    "Data",
    "Model",
    "Adaptation",
    "Splits and intervals",
    "Training of networks",
)


HELP = (
    "Is MAML worth it on your data, or is joint training plus fine-tuning as good?\n\n"
    "Trains joint training, first-order MAML and MAML on random splits over tasks, picks each "
    "method's settings on validation tasks, measures the risk on held-out tasks after 0 to K "
    "fine-tuning steps, and answers in words. Without a table it runs on the embedded 'countries'; "
    "'us-states' is another."
)


def compare(
    table: Annotated[
        Path | None,
        typer.Argument(
            help="CSV (.csv, .tsv, .txt), Parquet or .npz file, or an embedded table: countries "
            "(the default) or us-states.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str, typer.Option(help="Column that names the task of a row.", rich_help_panel=DATA)
    ] = "",
    target: Annotated[str, typer.Option(help="Column to predict.", rich_help_panel=DATA)] = "",
    features: Annotated[
        str,
        typer.Option(
            help="Columns to predict from, comma-separated; all others by default.",
            rich_help_panel=DATA,
        ),
    ] = "",
    exclude: Annotated[
        str,
        typer.Option(help="Columns to leave out, comma-separated.", rich_help_panel=DATA),
    ] = "",
    log: Annotated[
        str,
        typer.Option(help="Columns to take the natural logarithm of first.", rich_help_panel=DATA),
    ] = "",
    shots: Annotated[
        int, typer.Option(help="Support rows per task.", rich_help_panel=DATA)
    ] = DEFAULT.shots,
    drop_small: Annotated[
        bool,
        typer.Option(
            "--drop-small", help="Leave out tasks with too few rows.", rich_help_panel=DATA
        ),
    ] = False,
    drop_missing: Annotated[
        bool,
        typer.Option(
            "--drop-missing",
            help="Leave out rows with a missing value in a column that is used.",
            rich_help_panel=DATA,
        ),
    ] = False,
    hidden: Annotated[
        str,
        typer.Option(
            help="Widths of hidden layers, such as 32,32; none: a linear model.",
            rich_help_panel=MODEL,
        ),
    ] = "",
    activation: Annotated[
        str, typer.Option(help="Activation of hidden layers.", rich_help_panel=MODEL)
    ] = DEFAULT.activation,
    loss: Annotated[
        str,
        typer.Option(
            help="mse or cross_entropy; auto looks at the target and says what it took.",
            rich_help_panel=MODEL,
        ),
    ] = DEFAULT.loss,
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, float64, or auto: float64 for linear models.", rich_help_panel=MODEL
        ),
    ] = DEFAULT.dtype,
    backend: Annotated[
        str, typer.Option(help="auto, fused or torch.", rich_help_panel=MODEL)
    ] = DEFAULT.backend,
    inner_lrs: Annotated[
        str,
        typer.Option(
            help="Inner rates to choose from; by default as large as curvature allows, for "
            "networks 0.01 to 0.5, for classes 0.05 to 2.",
            show_default=False,
            rich_help_panel=GRID,
        ),
    ] = "",
    steps: Annotated[
        str,
        typer.Option(help="Inner steps in MAML's training to choose from.", rich_help_panel=GRID),
    ] = listed(DEFAULT.steps),
    adapt_steps: Annotated[
        int, typer.Option(help="Most fine-tuning steps on a test task.", rich_help_panel=GRID)
    ] = DEFAULT.adapt_steps,
    draws: Annotated[
        int | None,
        typer.Option(
            help="Random support/query draws per task; by default 20, fewer for over 50 tasks.",
            show_default=False,
            rich_help_panel=GRID,
        ),
    ] = None,
    max_query: Annotated[
        int, typer.Option(help="Most query rows per draw.", rich_help_panel=GRID)
    ] = DEFAULT.max_query,
    splits: Annotated[
        int | None,
        typer.Option(
            help="Random splits of the tasks; by default 30 for a linear model, 10 otherwise.",
            show_default=False,
            rich_help_panel=SPLITS,
        ),
    ] = None,
    test_fraction: Annotated[
        float,
        typer.Option(help="Share of the tasks held out for the test.", rich_help_panel=SPLITS),
    ] = DEFAULT.test_fraction,
    validation_fraction: Annotated[
        float,
        typer.Option(
            help="Share of the other tasks that picks the settings.", rich_help_panel=SPLITS
        ),
    ] = DEFAULT.validation_fraction,
    level: Annotated[
        float, typer.Option(help="Coverage of the intervals.", rich_help_panel=SPLITS)
    ] = DEFAULT.level,
    margin: Annotated[
        float,
        typer.Option(
            help="Relative gain below which MAML is not worth its cost.", rich_help_panel=SPLITS
        ),
    ] = DEFAULT.margin,
    iterations: Annotated[
        int,
        typer.Option(
            help="Meta-iterations of joint training; MAML gets as many sample touches.",
            rich_help_panel=TRAIN,
        ),
    ] = DEFAULT.iterations,
    meta_batch: Annotated[
        int, typer.Option(help="Tasks per meta-iteration.", rich_help_panel=TRAIN)
    ] = DEFAULT.meta_batch,
    outer_lrs: Annotated[
        str,
        typer.Option(
            help="Adam's initial rates to choose from (cosine schedule); by default 0.003,0.01 "
            "with hidden layers, 0.01,0.1 without.",
            show_default=False,
            rich_help_panel=TRAIN,
        ),
    ] = "",
    seed: Seed = DEFAULT.seed,
    threads: Threads = None,
    out: Annotated[
        Path | None, folder_option("innerloop-compare/<table>-<key of settings>")
    ] = None,
    figures: Figures = True,
    resume: Annotated[bool, resume_option("units")] = True,
) -> None:
    """Answer whether MAML is worth it on a table of tasks."""
    # Imported here so that --help does not wait for pandas and scipy.
    from innerloop.compare.run import run_comparison

    with exit_codes("innerloop compare"):
        for option, value in (("--splits", splits), ("--draws", draws)):
            if value == AUTO:
                raise InputError(f"{option} must be at least 1 (got {value})")
        config = Config(
            task=task,
            target=target,
            features=parse_names(features),
            exclude=parse_names(exclude),
            log=parse_names(log),
            shots=shots,
            hidden=parse_ints("--hidden", hidden),
            activation=activation,
            loss=loss,
            inner_lrs=parse_floats("--inner-lrs", inner_lrs),
            steps=parse_ints("--steps", steps),
            adapt_steps=adapt_steps,
            splits=AUTO if splits is None else splits,
            test_fraction=test_fraction,
            validation_fraction=validation_fraction,
            draws=AUTO if draws is None else draws,
            max_query=max_query,
            drop_small=drop_small,
            drop_missing=drop_missing,
            meta_batch=meta_batch,
            iterations=iterations,
            outer_lrs=parse_floats("--outer-lrs", outer_lrs),
            seed=seed,
            dtype=dtype,
            backend=backend,
            level=level,
            margin=margin,
        )
        demo = demo_named(table)
        if demo is not None:
            table, config = demo.path, with_demo_columns(config, demo)
        assert table is not None
        run_comparison(
            config, table, out=out, threads=threads, fresh=not resume, with_figures=figures
        )


def demo_named(table: Path | None) -> Demo | None:
    """The embedded table that an argument means: the default one without it, or one by its name
    unless there is a file of that name.
    """
    if table is None:
        return DEMOS[DEFAULT_DEMO]
    demo = DEMOS.get(str(table))
    return None if demo is None or table.exists() else demo


def with_demo_columns(config: Config, demo: Demo) -> Config:
    """The configuration with an embedded table's columns wherever none were given."""
    changed = {name: value for name, value in demo.columns.items() if not getattr(config, name)}
    if "log" in changed:
        used = {*changed.get("features", config.features), changed.get("target", config.target)}
        used -= set(config.exclude)
        changed["log"] = tuple(name for name in changed["log"] if name in used)
    return dataclasses.replace(config, **changed)
