"""The `innerloop study` group: one subcommand per study."""

from __future__ import annotations

import typer

from innerloop.studies.linear_regression import command as linear_regression
from innerloop.studies.meta_rl import command as meta_rl
from innerloop.studies.sinusoid import command as sinusoid


def study() -> typer.Typer:
    """The group with all studies."""
    group = typer.Typer(
        name="study",
        help="Reproduce published experiments, with the theory beside them.",
        no_args_is_help=True,
    )

    @group.callback()
    def studies() -> None:
        """Reproduce published experiments, with the theory beside them."""

    group.command("linear-regression", help=linear_regression.HELP)(
        linear_regression.linear_regression
    )
    group.command("sinusoid", help=sinusoid.HELP)(sinusoid.sinusoid)
    group.command("meta-rl", help=meta_rl.HELP)(meta_rl.meta_rl)
    return group
