"""The one exception that the command line turns into a single line and exit code 2."""


class InputError(ValueError):
    """What the user gave cannot be used; the text states the argument, the requirement, the value
    and a remedy.
    """
