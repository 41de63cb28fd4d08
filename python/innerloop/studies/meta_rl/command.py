"""The command line of `innerloop study meta-rl`: options in, exit codes out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from innerloop.runs.options import (
    RUNNING,
    Figures,
    Threads,
    exit_codes,
    folder_option,
    parse_ints,
    parse_names,
    resume_option,
)

SIZE, TEST, WHAT = "Size (the preset's by default)", "Testing", "What is compared"

HELP = (
    "Joint training (DRS) against ProMP and TRPO-MAML on MuJoCo and Meta-World tasks.\n\n"
    "Trains matched pairs over seeds at equal numbers of environment steps, tests every checkpoint "
    "on fixed tasks after 0 to K policy-gradient updates, and draws trade-off maps and learning "
    "curves, with controls for what the published step sizes decide. Presets: tiny (three minutes "
    "on two cores), small (an hour), medium (a night), published (months)."
)


def _size(text: str) -> int | None:
    return typer.Option(help=text, rich_help_panel=SIZE, show_default=False)  # type: ignore[no-any-return]


def meta_rl(
    preset: Annotated[
        str, typer.Option(help="tiny, small, medium or published.", rich_help_panel=WHAT)
    ] = "small",
    environments: Annotated[
        str | None,
        typer.Option(
            help="Task families, separated by commas.", rich_help_panel=WHAT, show_default=False
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            help="ppo (DRS+PPO, ProMP), trpo (DRS+TRPO, TRPO-MAML).",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    controls: Annotated[
        bool, typer.Option(help="Run the control arms too.", rich_help_panel=WHAT)
    ] = True,
    seeds: Annotated[int | None, _size("Trainings of every algorithm.")] = None,
    iterations: Annotated[
        int | None, _size("Of ProMP and TRPO-MAML; DRS takes twice as many.")
    ] = None,
    checkpoints: Annotated[int | None, _size("Tests of a training, beside its start.")] = None,
    tasks: Annotated[int | None, _size("Tasks of an iteration.")] = None,
    rollouts: Annotated[int | None, _size("Episodes of a task.")] = None,
    horizon: Annotated[int | None, _size("Steps of an episode.")] = None,
    hidden: Annotated[
        str | None,
        typer.Option(
            help="Widths of the policy's hidden layers.", rich_help_panel=SIZE, show_default=False
        ),
    ] = None,
    test_tasks: Annotated[
        int | None,
        typer.Option(help="Fixed test tasks.", rich_help_panel=TEST, show_default=False),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option(help="Updates on a test task.", rich_help_panel=TEST, show_default=False),
    ] = None,
    test_optimizer: Annotated[
        str, typer.Option(help="Of these updates: sgd or adam.", rich_help_panel=TEST)
    ] = "sgd",
    tester: Annotated[
        str, typer.Option(help="Which episodes count: lanes or published.", rich_help_panel=TEST)
    ] = "lanes",
    sampling: Annotated[
        str, typer.Option(help="Which steps are used: lanes or published.", rich_help_panel=WHAT)
    ] = "lanes",
    reward_version: Annotated[
        str | None,
        typer.Option(
            help="Of Meta-World's rewards: v1 or v2.", rich_help_panel=WHAT, show_default=False
        ),
    ] = None,
    level: Annotated[
        float, typer.Option(help="Coverage of the intervals.", rich_help_panel=TEST)
    ] = 0.95,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of everything random; the preset's by default.",
            rich_help_panel=RUNNING,
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    launcher: Annotated[
        str,
        typer.Option(
            help="local: on this machine; slurm: every training a job (needs the extra cluster).",
            rich_help_panel=RUNNING,
        ),
    ] = "local",
    partition: Annotated[
        str | None,
        typer.Option(help="Slurm's.", rich_help_panel=RUNNING, show_default=False),
    ] = None,
    hours: Annotated[float, typer.Option(help="Of a job.", rich_help_panel=RUNNING)] = 24.0,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard", help="Write events too (extra tensorboard).", rich_help_panel=RUNNING
        ),
    ] = False,
    policies: Annotated[
        bool,
        typer.Option(
            "--policies",
            help="Keep the last policies (extra safetensors).",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    out: Annotated[Path | None, folder_option("innerloop-study/meta-rl-<key of settings>")] = None,
    figures: Figures = True,
    resume: Annotated[bool, resume_option("trainings")] = True,
    only_report: Annotated[
        bool,
        typer.Option(
            "--only-report", help="Write what is finished; run nothing.", rich_help_panel=RUNNING
        ),
    ] = False,
) -> None:
    """Train and test pairs of joint training and meta-learning."""
    # Imported here so that --help does not wait for torch and scipy.
    from innerloop.runs.sizes import check_rate
    from innerloop.studies.meta_rl.launching import LAUNCHERS, LOCAL, Cluster
    from innerloop.studies.meta_rl.run import run_study
    from innerloop.studies.meta_rl.settings import check_choice, preset_settings
    from innerloop.studies.meta_rl.work import Kept

    with exit_codes("innerloop study meta-rl"):
        settings = preset_settings(
            preset,
            environments=None if environments is None else parse_names(environments),
            pairs=None if pairs is None else parse_names(pairs),
            controls=controls,
            seeds=seeds,
            iterations=iterations,
            checkpoints=checkpoints,
            tasks=tasks,
            rollouts=rollouts,
            horizon=horizon,
            hidden=None if hidden is None else parse_ints("--hidden", hidden),
            test_tasks=test_tasks,
            updates=updates,
            test_optimizer=test_optimizer,
            tester=tester,
            sampling=sampling,
            reward_version=reward_version,
            level=level,
            seed=seed,
        )
        check_choice("--launcher", launcher, LAUNCHERS)
        check_rate("--hours", hours)
        cluster = None
        if launcher != LOCAL:
            cluster = Cluster(launcher, partition, hours, threads or 1)
        run_study(
            settings,
            out=out,
            threads=threads,
            cluster=cluster,
            fresh=not resume,
            with_figures=figures,
            only_report=only_report,
            kept=Kept(tensorboard, policies),
        )
