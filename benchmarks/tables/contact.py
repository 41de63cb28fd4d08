"""The table of evidence: what has been seen of each operation and case on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cases.names import CASE_NAMES
from contact.summary import best_of, best_rival, floor_seconds
from tables.formatting import SHORT, Run, markdown, milliseconds, ratio

NOT_RUN = "not run"
HEADER = [
    "kernel or operation",
    "commit",
    "card",
    "tests passed",
    "sanitizers",
    "accuracy",
    "time",
    "against the best rival",
    "share of the floor",
]
# Which files of tests/cuda hold a row to its promises.
TESTS = {"allow_tf32": ("test_cuda_tf32.py",), "regression study": ("test_cuda_regression.py",)}
OPERATION_TESTS = ("test_cuda_operations.py", "test_cuda_surroundings.py")
SANITIZERS = ("memcheck", "racecheck", "synccheck")


def evidence(runs: Sequence[Run]) -> str:
    """One row for each operation and each case, and for each card that was visited."""
    from innerloop.schedule import OPERATIONS

    visits = sorted(
        (run for run in runs if run["kind"] == "first-contact"), key=_ended, reverse=True
    )
    names = [*OPERATIONS, *TESTS, *(f"`{case}`" for case in CASE_NAMES["cuda"])]
    rows = [row for name in names for row in _rows(name, visits)]
    return markdown(HEADER, rows)


def _ended(visit: Run) -> str:
    return max(step.get("ended") or step["started"] for step in visit["steps"].values())


def _rows(name: str, visits: Sequence[Run]) -> Iterator[list[str]]:
    """A row for each card, from its newest visit that saw something of `name`."""
    cards: dict[str, list[str]] = {}
    for visit in visits:
        cells = _cells(name, visit)
        if visit["card"] not in cards and any(cell != NOT_RUN for cell in cells):
            cards[visit["card"]] = [name, f"`{visit['commit']}`", visit["card"], *cells]
    yield from cards.values() or [[name, *[NOT_RUN] * (len(HEADER) - 1)]]


def _cells(name: str, visit: Run) -> list[str]:
    results = {step: entry.get("result", {}) for step, entry in visit["steps"].items()}
    case = name.strip("`") if name.startswith("`") else ""
    operation = ("hvp" if case.startswith("hvp") else "meta_grad") if case else name
    tests = _tests(TESTS.get(name, OPERATION_TESTS), results)
    if name in TESTS:
        return [tests, *[NOT_RUN] * 5]
    sanitizers = _sanitizers(results)
    if not case:
        return [tests, sanitizers, _accuracy(operation, results), *[NOT_RUN] * 3]
    timed = _timed(case, results)
    return [tests, sanitizers, *timed] if timed[0] != NOT_RUN else [NOT_RUN] * 6


def _tests(files: tuple[str, ...], results: dict[str, Any]) -> str:
    """Passed of those that ran, in the given files."""
    total: dict[str, int] = {}
    complete = True
    for step in ("tests", "alone"):
        found = results.get(step, {})
        complete &= found.get("complete", False)
        for file, counts in found.get("files", {}).items():
            for outcome, count in counts.items() if file in files else ():
                total[outcome] = total.get(outcome, 0) + count
    ran = sum(count for outcome, count in total.items() if outcome != "skipped")
    if not ran:
        return NOT_RUN
    return f"{total.get('passed', 0)} of {ran}" + ("" if complete else ", cut off")


def _sanitizers(results: dict[str, Any]) -> str:
    found = {tool: results.get(tool, {}).get("errors") for tool in SANITIZERS}
    if all(errors is None for errors in found.values()):
        return NOT_RUN
    return ", ".join(
        f"{tool} {NOT_RUN if errors is None else errors}" for tool, errors in found.items()
    )


def _accuracy(operation: str, results: dict[str, Any]) -> str:
    """The worst relative error of an operation in each precision, over schedules and networks."""
    parts = []
    for dtype in ("float32", "float64"):
        cells = [
            cell
            for key, cell in results.get("smoke", {}).items()
            if key.split(" | ")[0::2] == [operation, dtype] and "unfit" not in cell
        ]
        wrong = sum(not cell.get("ok", False) for cell in cells)
        if wrong:
            parts.append(f"{dtype}: {wrong} of {len(cells)} wrong")
        elif cells:
            parts.append(f"{dtype} {max(cell['error'] for cell in cells):.0e}")
    return ", ".join(parts) or NOT_RUN


def _timed(case: str, results: dict[str, Any]) -> list[str]:
    """Accuracy, time, ratio and share of a case."""
    found = results.get("ours", {}).get(case)
    if found is None:
        return [NOT_RUN] * 4
    if "plain" not in found:
        return [found["failed"].replace("|", "/"), *[NOT_RUN] * 3]
    ways = [f"{milliseconds(found['plain']['median_s'])} plain"]
    if "graph" in found:
        ways.append(f"{milliseconds(found['graph']['median_s'])} in a graph")
    best = best_of(found)
    assert best is not None
    rival = best_rival(results.get("rivals", {}).get(case, {}))
    gain = f"{ratio(rival[1] / best)} ({SHORT[rival[0]]})" if rival else NOT_RUN
    limits = results.get("card", {}).get("environment", {}).get("gpu", {}).get("limits")
    share = f"{floor_seconds(found, limits) / best:.1%}" if limits else NOT_RUN
    return [f"float32 {found['disagreement']:.0e}", ", ".join(ways), gain, share]
