"""The `innerloop` command. What the subcommands need is imported only when the command runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from innerloop import __version__
from innerloop._standard_output import run_printing

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

    def print_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"innerloop {__version__}")
            raise typer.Exit

    @application.callback()
    def innerloop(
        version: bool = typer.Option(
            False, "--version", callback=print_version, is_eager=True, help="Print the version."
        ),
    ) -> None:
        """Batched gradient-based meta-learning: commands."""

    @application.command("info")
    def info() -> None:
        """What was built, what is in use on this machine, and how to have the rest."""
        _print_report()

    @application.command("demo")
    def demo() -> None:
        """Time the plain PyTorch loop and innerloop on sine regression, and compare gradients."""
        from innerloop.demo import show

        show()

    application.command("compare", help=HELP)(compare)
    application.add_typer(study())
    return application


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code; an option that cannot be used gives one line."""
    try:
        if arguments == ["info"]:  # it names the extras that are missing, so it needs none
            _print_report()
            return 0
        application = build()
        if arguments == ["compare"]:  # the first command of the README: what this is for, first
            from innerloop.demo import show

            show()
            print(flush=True)
        return int(application(arguments, prog_name="innerloop", standalone_mode=False) or 0)
    except Exception as error:
        if type(error).__name__ == "Abort":  # Ctrl-C outside of a command
            return 130
        say = getattr(error, "format_message", None)  # only usage errors have it
        if say is None:
            raise
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return 2
        name = context.command_path if context else "innerloop"
        text = " ".join(str(say()).split())
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        print(f"{name}: {line[:1000].rstrip('.')}; see {name} --help", file=sys.stderr)
        return 2


def app(arguments: list[str] | None = None) -> None:
    """Run the command (of this process, unless arguments are given); a missing package of the extra
    gives one line instead of a traceback.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        run_printing("innerloop", lambda: sys.exit(run(given)))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        sys.exit(f'innerloop: package {error.name!r} is missing; run pip install "innerloop[cli]"')
    except KeyboardInterrupt:
        sys.exit(130)


def _print_report() -> None:
    from innerloop.diagnostics import report

    print(report())
