"""`python benchmarks/run.py merge FOLDER`: keeps what a visit to a GPU found, as a result file.

The files come from a machine that need not have git, so what was measured is known by the digest of
its sources; the commit is the newest one that has these very files. Files that are not whole, or of
sources that no commit has, are refused with a line that says which.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contact.record import FILES, FORMAT, SOURCES, STATES, sources_of
from measure.environment import ROOT

RESULTS = ROOT / "benchmarks/results"
COMMITS = 300  # of those that touch the sources, the newest first
Visit = dict[str, Any]  # {"format", "sources", "commit", "card", "steps"}


class Refused(Exception):
    """A file that cannot be kept; the text is one line that names it."""


def main(arguments: list[str]) -> int:
    """Merges a folder's files and brings the table of evidence up to date."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        raise SystemExit("run.py merge: name the FOLDER with the files of first_contact.sh")
    try:
        changed = merge(Path(arguments[0]), RESULTS, commit_of)
    except Refused as why:
        raise SystemExit(f"run.py merge: {why}") from None
    from tables import pages

    for path in [*changed, *pages.update_page(ROOT / "docs/cuda.md", RESULTS)]:
        print(f"updated: {os.path.relpath(path)}")
    if not changed:
        print("nothing new")
    return 0


def merge(folder: Path, results: Path, commit_of: Callable[[str], str | None]) -> list[Path]:
    """Brings the files of a folder into the result files, one for each card and set of sources.

    Args:
        folder: with the files of `record.FILES`, some or all.
        results: where result files lie.
        commit_of: the commit of a digest of sources, or None.

    Returns:
        The result files that changed.

    Raises:
        Refused: a file is broken, none is there, or no commit has the sources. Nothing is written.
    """
    steps = checked_steps(folder)
    card = next((s["result"]["name"] for s in steps if s["step"] == "card"), None)
    if card is None:
        raise Refused(f"{folder.name}: machine.json does not say which card it was")
    changed = {}
    for sources in sorted({step["sources"] for step in steps}):
        commit = commit_of(sources)
        if commit is None:
            raise Refused(
                f"{folder.name}: no commit has the sources that were measured ({sources}): commit "
                "them as they were, then merge"
            )
        name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
        target = results / f"first-contact-{name}-{sources}.json"
        text = target.read_text() if target.exists() else ""
        known = json.loads(text)["steps"] if text else {}
        for step in steps:
            if step["sources"] == sources:
                entry = {
                    key: value for key, value in step.items() if key not in ("step", "sources")
                }
                known[step["step"]] = better(known.get(step["step"]), entry)
        visit = {"format": FORMAT, "sources": sources, "commit": commit, "card": card}
        new = json.dumps({**visit, "steps": dict(sorted(known.items()))}, indent=1) + "\n"
        if new != text:
            changed[target] = new
    results.mkdir(parents=True, exist_ok=True)
    for target, new in changed.items():
        target.write_text(new)
    return list(changed)


def better(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Of two records of a step, the one that came further; the later one of equals."""
    rank = {"done": 2, "failed": 1, "running": 1, "skipped": 0}
    if old is None or (rank[new["state"]], new["started"]) >= (rank[old["state"]], old["started"]):
        return new
    return old


def commit_of(sources: str) -> str | None:
    """The newest commit of this branch whose files have a digest."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "log", f"-{COMMITS}", "--format=%H", "HEAD", "--", *SOURCES],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return next((commit[:12] for commit in listed if sources_of(commit) == sources), None)


# ---------------------------------------------------------------- what a file must be


def checked_steps(folder: Path) -> list[dict[str, Any]]:
    """The records of all files in a folder that hold a result, each with its step's name."""
    found = []
    for name, steps in FILES.items():
        path = folder / f"{name}.json"
        if path.exists():
            try:
                document = json.loads(path.read_text())
                need(document.get("format") == FORMAT, f"its format is not {FORMAT}")
                for step, entry in document["steps"].items():
                    need(step in steps, f"it has no place for the step {step!r}")
                    need(entry["state"] in STATES, f"{step} is in no known state")
                    need(re.fullmatch("[0-9a-f]{12}", entry["sources"]), f"{step} has no sources")
                    if entry.get("result"):
                        CHECKS[step](entry["result"])
                        need(isinstance(entry["started"], str), f"{step} began at no time")
                        found.append({**entry, "step": step})
            except Refused as why:
                raise Refused(f"{path.name}: {why}") from None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                text = " ".join(f"{type(error).__name__}: {error}".split())
                raise Refused(f"{path.name}: broken ({text})") from None
    if not found:
        raise Refused(f"{folder.name}: there is no file of first_contact.sh in it")
    return found


def need(condition: object, text: str) -> None:
    """Refuses unless the condition holds."""
    if not condition:
        raise Refused(text)


def check_number(value: Any, what: str) -> None:
    """A positive number: seconds, counts of operations, rates."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    need(
        is_number and math.isfinite(value) and value > 0, f"{what} is no positive number: {value!r}"
    )


def check_count(value: Any, what: str) -> None:
    """A number of things."""
    need(type(value) is int and value >= 0, f"{what} is no count: {value!r}")


def check_time(found: dict[str, Any], what: str) -> None:
    """A spread of seconds."""
    for key in ("median_s", "q1_s", "q3_s"):
        check_number(found[key], f"{what}, {key}")


def check_card(result: dict[str, Any]) -> None:
    need(isinstance(result["name"], str) and result["name"], "the card has no name")
    if "environment" in result:
        limits = result["environment"]["gpu"]["limits"]
        for key in ("gemm_gflops", "copy_gbytes_per_s"):
            check_number(limits[key], key)
        if "fma_gflops" in limits:
            check_number(limits["fma_gflops"], "fma_gflops")


def check_smoke(result: dict[str, Any]) -> None:
    for key, cell in result.items():
        need(len(key.split(" | ")) == 4, f"{key!r} is no cell")
        need(
            isinstance(cell.get("unfit"), str)
            or isinstance(cell.get("failed"), str)
            or (type(cell["ok"]) is bool and type(cell["error"]) is float and cell["error"] >= 0),
            f"{key}: neither an error nor why there is none",
        )


def check_ours(result: dict[str, Any]) -> None:
    for case, found in result.items():
        need("plain" in found or isinstance(found["failed"], str), f"{case}: no time and no reason")
        if "plain" in found:
            check_number(found["flops"], f"{case}, flops")
            check_number(found["least_bytes"], f"{case}, least_bytes")
        for way in ("plain", "graph"):
            if way in found:
                check_time(found[way], f"{case}, {way}")
        if "plain" in found:
            check_number(found["disagreement"] or 1e-300, f"{case}, disagreement")


def check_rivals(result: dict[str, Any]) -> None:
    for case, rivals in result.items():
        for name, found in rivals.items():
            if not isinstance(found.get("failed") or found.get("skipped"), str):
                check_time(found, f"{case}, {name}")


def check_tests(result: dict[str, Any]) -> None:
    need(type(result["complete"]) is bool, "complete is neither true nor false")
    for file, counts in result["files"].items():
        for outcome, count in counts.items():
            check_count(count, f"{file}, {outcome}")


def check_sanitizer(result: dict[str, Any]) -> None:
    check_count(result["cells"], "cells")
    if "errors" in result:
        check_count(result["errors"], "errors")


def check_schedules(result: dict[str, Any]) -> None:
    for case, found in result.items():
        need("schedules" in found or isinstance(found["failed"], str), f"{case}: nothing")
        for each in found.get("schedules", []):
            check_count(each["schedule"]["threads"], f"{case}, threads")
            if "failed" not in each:
                check_time(each, case)


def check_any(result: dict[str, Any]) -> None:
    need(isinstance(result, dict), "a result is no object")


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "card": check_card,
    "build": check_any,
    "smoke": check_smoke,
    "ours": check_ours,
    "rivals": check_rivals,
    "tests": check_tests,
    "alone": check_tests,
    "memcheck": check_sanitizer,
    "racecheck": check_sanitizer,
    "synccheck": check_sanitizer,
    "schedules": check_schedules,
    "ncu": check_any,
}
