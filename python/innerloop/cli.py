"""The `innerloop` command. What the subcommands need is imported only when the command runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

EXTRA = ("typer", "rich", "pandas", "scipy", "matplotlib")


def build() -> typer.Typer:
    """The command with all its subcommands."""
    import typer

    from innerloop.compare.command import HELP, compare
    from innerloop.studies.command import study

    application = typer.Typer(
        name="innerloop",
        help="Batched gradient-based meta-learning: commands.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @application.callback()
    def innerloop() -> None:
        """Batched gradient-based meta-learning: commands."""

    application.command("compare", help=HELP)(compare)
    application.add_typer(study())
    return application


def app() -> None:
    """Run the command; a missing package of the extra gives one line instead of a traceback."""
    try:
        build()()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        sys.exit(f'innerloop: package {error.name!r} is missing; run pip install "innerloop[cli]"')
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    app()
