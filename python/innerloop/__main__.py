"""`python -m innerloop` prints the environment report."""

import sys

from innerloop._standard_output import run_printing
from innerloop.diagnostics import report


def main(arguments: list[str]) -> None:
    """Print the report; the commands have a program of their own."""
    if arguments:
        what = " ".join(map(ascii, arguments))[:200]
        print(
            f"python -m innerloop: takes no arguments (got {what}); the commands are run by the "
            "program innerloop, as in: innerloop compare --help",
            file=sys.stderr,
        )
        sys.exit(2)
    print(report())


if __name__ == "__main__":
    run_printing("python -m innerloop", lambda: main(sys.argv[1:]))
