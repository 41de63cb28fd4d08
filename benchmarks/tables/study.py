"""Tables of the linear-regression study: its speed, and its agreement with the theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tables.formatting import Run, markdown, milliseconds, of_kind

KIND = "regression-study"
AGREEMENT = "regression-agreement"


def speed(runs: Sequence[Run]) -> str:
    """Seconds of the sweep beside the extrapolated hours of the NumPy programs."""
    rows = []
    for run in of_kind(runs, KIND):
        for row in run["rows"]:
            rows.append(
                [
                    f"p = {row['p']}, {run['environment']['threads']} thread(s)",
                    milliseconds(row["sweep_s"]),
                    *(_hours(row, name) for name in ("twin", "authors")),
                ]
            )
    return markdown(["the published sweep", "fused", "NumPy twin", "authors' program"], rows)


def _hours(row: dict[str, Any], name: str) -> str:
    """Extrapolated hours, how many times the fused sweep, and the error on the held-out cell."""
    if name not in row:
        return "-"
    hours, error = row[name]["sweep_hours"], row[name]["held_out_error"]
    times = hours * 3600 / row["sweep_s"]
    return f"{hours:.1f} h ({times:,.0f}×; held-out cell {error:+.0%})"


def trials(runs: Sequence[Run]) -> str:
    """Measured times of single trials, from which the hours are extrapolated."""
    rows = []
    for run in of_kind(runs, KIND):
        for row in run["rows"]:
            for name, title in (("twin", "NumPy twin"), ("authors", "authors' program")):
                if name in row:
                    shown = ", ".join(
                        f"({cell['tasks']}, {cell['samples']}): {milliseconds(cell['seconds'])}"
                        for cell in row[name]["trial_s"]
                    )
                    threads = run["environment"]["threads"]
                    rows.append([f"p = {row['p']}, {threads} thread(s)", title, shown])
    return markdown(["", "", "a trial with all rates, at (M, N)"], rows)


def agreement(runs: Sequence[Run]) -> str:
    """Mean and largest |theory - simulation| by region for every p; both maps for the smallest."""
    found: dict[int, dict[str, Any]] = {}
    for run in of_kind(runs, AGREEMENT):
        for each in run["agreement"]:
            found[each["settings"]["p"]] = each
    parts = []
    maps = ((True, "after the update"), (False, "before any update"))
    for p, each in sorted(found.items()):
        for after_update, title in maps if p == min(found) else maps[:1]:
            regions = [r for r in each["regions"] if r["after_update"] is after_update]
            parts.append(f"p = {p}, {title}:\n\n{_regions(regions)}")
    return "\n\n".join(parts)


def verdict(runs: Sequence[Run]) -> str:
    """For every p the mean distance of theory from simulation, what chance makes, and winners."""
    rows = [
        [
            f"p = {each['settings']['p']}",
            f"{each['mean']:.4f}",
            f"{each['noise']:.4f}",
            f"{each['named']:,} of {each['called']:,}",
        ]
        for run in of_kind(runs, AGREEMENT)
        for each in run["agreement"]
    ]
    header = [
        "",
        "mean distance",
        "of chance alone",
        "winners named, of the cells that trials decide",
    ]
    return markdown(header, rows)


def _regions(regions: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(r["tasks"] for r in regions))
    cells = {(r["steps"], r["samples"], r["tasks"]): _cell(r) for r in regions}
    places = list(dict.fromkeys((r["steps"], r["samples"]) for r in regions))
    return markdown(
        ["αβ", "N", *(f"M = {tasks}" for tasks in columns)],
        [[a, n, *(cells[a, n, tasks] for tasks in columns)] for a, n in places],
    )


def _cell(region: dict[str, Any]) -> str:
    share = region["same_side"]
    side = "" if share is None else f", {100 * share:.0f} %"
    return f"{region['mean']:.3f} ({region['worst']:.2f}){side}"
