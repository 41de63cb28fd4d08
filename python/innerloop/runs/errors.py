"""The exceptions that the command line turns into a single line and an exit code."""

from __future__ import annotations

_BEGINNING, _END = 700, 300


def printable(text: str) -> str:
    """A text with escapes in the place of what a terminal would act on, such as in names from
    files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class InputError(ValueError):
    """What the user gave cannot be used; the text states the argument, the requirement, the value
    and a remedy. It is one printable line, whatever names from files it repeats.
    """

    def __init__(self, text: str) -> None:
        line = printable(text)
        if len(line) > _BEGINNING + _END:
            line = f"{line[:_BEGINNING]} ... {line[-_END:]}"
        super().__init__(line)


class Interrupted(Exception):
    """Ctrl-C arrived; the text says what is kept."""
