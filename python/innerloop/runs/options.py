"""What the subcommands share: the options on running, and how errors become exit codes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from innerloop.runs.errors import InputError, Interrupted

RUNNING = "Running"

Seed = Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel=RUNNING)]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Cores to use; all (at most 8) by default. Numbers do not depend on it.",
        show_default=False,
        rich_help_panel=RUNNING,
    ),
]
Figures = Annotated[bool, typer.Option(help="Draw the figures.", rich_help_panel=RUNNING)]


def folder_option(default: str) -> Any:
    """The option --out of a command that writes to `default` without it."""
    return typer.Option(
        parser=_folder,
        metavar="FOLDER",
        help=f"Folder for the results; {default} by default.",
        show_default=False,
        rich_help_panel=RUNNING,
    )


def _folder(text: str) -> Path:
    """A folder's name; an empty one would be the working directory."""
    if not text.strip():
        raise typer.BadParameter("must be a folder's name (got an empty text)")
    return Path(text)


def resume_option(kept: str) -> Any:
    """The switch --resume/--fresh of a command that keeps `kept` in its folder."""
    return typer.Option(
        "--resume/--fresh",
        help=f"Go on with {kept} already in the folder, or start anew.",
        rich_help_panel=RUNNING,
    )


def listed(values: tuple[Any, ...]) -> str:
    """Numbers as a comma-separated option takes them."""
    return ",".join(f"{value:g}" for value in values)


def parse_floats(option: str, text: str) -> tuple[float, ...]:
    """Numbers from a comma-separated list."""
    return tuple(_parse(option, part, float, "numbers") for part in _parts(text))


def parse_ints(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers from a comma-separated list."""
    return tuple(_parse(option, part, int, "whole numbers") for part in _parts(text))


def parse_names(text: str) -> tuple[str, ...]:
    """Names from a comma-separated list."""
    return tuple(_parts(text))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parse(option: str, part: str, kind: Any, what: str) -> Any:
    try:
        return kind(part)
    except ValueError:
        raise InputError(f"{option} must be {what} separated by commas (got {part!r})") from None


@contextlib.contextmanager
def exit_codes(command: str) -> Iterator[None]:
    """Ends the command with one line, not a traceback: code 2 for bad input, 130 for Ctrl-C."""
    try:
        yield
    except InputError as error:
        typer.echo(f"{command}: {error}", err=True)
        raise typer.Exit(2) from None
    except MemoryError as error:
        what = str(error).splitlines()[0] if str(error) else "an allocation failed"
        typer.echo(f"{command}: not enough memory ({what}); use smaller settings", err=True)
        raise typer.Exit(2) from None
    except Interrupted as interruption:
        typer.echo(str(interruption), err=True)
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted: run the same command again to go on.", err=True)
        raise typer.Exit(130) from None
