"""`python -m innerloop` is the program `innerloop`; without arguments it prints the report of
`innerloop info`, which needs no extra."""

import sys

from innerloop.cli import app

if __name__ == "__main__":
    app(sys.argv[1:] or ["info"])
