"""`python benchmarks/run.py contact ...`: what `first_contact.sh` calls."""

from __future__ import annotations

import sys
from pathlib import Path

from contact import place, record

USAGE = "run.py contact: see benchmarks/first_contact.sh, which calls it"


def main(arguments: list[str]) -> int:
    """Takes one step, or does what the script needs between steps."""
    if len(arguments) < 1:
        raise SystemExit(USAGE)
    what, rest = arguments[0], arguments[1:]
    if what in record.STEPS and what not in ("tests", "alone"):  # these are pytest's
        take(record.Step(Path(rest[0]), what), *map(float, rest[1:]))
    elif what == "references":
        place.enter()
        from contact import references

        references.run()
    elif what == "rival":
        place.enter()
        from contact import rivals

        rivals.serve(rest[0], rest[1:])
    elif what == "await":
        place.enter()
        from contact import rivals

        rivals.await_end(Path(rest[0]), int(rest[1]))
    elif what == "under-a-tool":
        place.enter()
        from contact import smoke

        smoke.under_a_tool(float(rest[0]))
    elif what == "once":
        place.enter()
        from contact import tools

        tools.once(rest[0])
    elif what == "finished":
        print(*finished(Path(rest[0])))
    elif what == "built":
        from contact import build

        print("yes" if build.is_here() else "no")
    elif what == "close":
        record.close(Path(rest[0]), rest[1], rest[2], rest[3], int(rest[4]))
    elif what == "summary":
        from contact import summary

        print(*summary.lines(Path(rest[0])), sep="\n")
    else:
        raise SystemExit(USAGE)
    return 0


def finished(folder: Path) -> list[str]:
    """Steps that an earlier visit completed. A build counts where it still lies on this machine."""
    from contact import build

    done = [step for step in record.STEPS if record.is_done(folder, step)]
    return [step for step in done if step != "build" or build.is_here()]


def take(step: record.Step, limit_s: float = 60.0) -> None:
    """Takes a step, whose result grows in its file."""
    if step.name in ("card", "smoke", "ours", "rivals", "schedules"):  # others compute elsewhere
        place.enter()
    if step.name in ("memcheck", "racecheck", "synccheck"):
        from contact import tools

        tools.sanitize(step, limit_s)
    elif step.name == "ncu":
        from contact import tools

        tools.profile(step, limit_s)
    else:
        import importlib

        importlib.import_module(f"contact.{step.name}").run(step)
    print(f"{step.name}: {len(step.result)} entries", file=sys.stderr)
