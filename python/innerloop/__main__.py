"""`python -m innerloop` prints the environment report."""

from innerloop.diagnostics import report

if __name__ == "__main__":
    print(report())
