"""What ends a command whose standard output is full or closed: one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def run_printing(name: str, command: Callable[[], object]) -> None:
    """Run what prints on standard output. If that cannot be written, say so in one line and exit
    with code 2; if its reader has gone (as head does), exit with code 1 and say nothing.
    """
    if sys.stdout is None:  # closed before the start
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        sys.exit(1)
    except OSError as error:
        _discard_output()
        place = "standard output" if error.filename is None else repr(error.filename)
        reason = error.strerror or type(error).__name__
        print(f"{name}: {place} cannot be written ({reason})", file=sys.stderr)
        sys.exit(2)


def _discard_output() -> None:
    """Send what is still waiting nowhere, or the interpreter would complain at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
