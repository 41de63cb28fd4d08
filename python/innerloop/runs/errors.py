"""The exceptions that the command line turns into a single line and an exit code."""


class InputError(ValueError):
    """What the user gave cannot be used; the text states the argument, the requirement, the value
    and a remedy.
    """


class Interrupted(Exception):
    """Ctrl-C arrived; the text says what is kept."""
