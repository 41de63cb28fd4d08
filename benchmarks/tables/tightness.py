"""The table of measured over bound, from the result file of `run.py tightness`."""

from __future__ import annotations

from collections.abc import Sequence

from tables.formatting import Run, again, markdown, of_kind


def number(value: float) -> str:
    """Two significant digits."""
    return f"{value:.2f}" if value >= 0.0995 else f"{value:.2g}"


def tightness(runs: Sequence[Run]) -> str:
    """Largest and median ratio of each inequality, for both kinds of families."""
    found = of_kind(runs, "tightness")
    if not found:
        return ""
    run = found[0]
    rows = []
    for row in run["rows"]:
        line = [row["result"], row["inequality"]]
        for kind in run["kinds"]:
            item = row.get(kind)
            line += ["-", "-"] if item is None else [number(item["max"]), number(item["median"])]
        cases = sum(row[kind]["cases"] for kind in run["kinds"] if kind in row)
        violations = sum(row[kind]["violations"] for kind in run["kinds"] if kind in row)
        rows.append([*line, f"{cases:,}", str(violations)])
    header = ["Result", "inequality"]
    for kind in run["kinds"]:
        header += [f"{kind}: max", "median"]
    return (
        f"{run['families']} random families of each kind; commit {run['environment']['commit']}, "
        f"`{again(run)}`.\n\n" + markdown([*header, "cases", "violations"], rows)
    )
