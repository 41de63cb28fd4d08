"""The tables of docs/compare.md: how often Result 36 is right, from the result file of
`run.py crossover-coverage`, and what is said of real tables, from that of `run.py real-tables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tables.formatting import Run, again, markdown, of_kind


def real_tables(runs: Sequence[Run]) -> str:
    """One row for each table: its tasks, the answer, the change with its interval, what to do."""
    found = of_kind(runs, "real-tables")
    if not found:
        return ""
    run = found[0]
    rows = [
        [
            f"`{row['table']}`, {row['about']} ({row['package']})",
            str(row["tasks"]),
            row["answer"],
            change(row["change"]),
            row["action"].removeprefix("Do: ").rstrip("."),
        ]
        for row in run["rows"]
    ]
    return (
        f"Commit {run['environment']['commit']}, `{again(run)}`; the options of each are in "
        f"`benchmarks/results/{run['file']}`.\n\n"
        + markdown(["table", "tasks", "answer", "change", "what to do"], rows)
    )


def change(interval: dict[str, Any]) -> str:
    """A relative change in per cent with its interval."""
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f}% [{low:+.1f}%, {high:+.1f}%]"


def crossover_coverage(runs: Sequence[Run]) -> str:
    """What is said of each law and number of tasks, how much of it is wrong, and coverages."""
    found = of_kind(runs, "crossover-coverage")
    if not found:
        return ""
    run = found[0]
    rows = [
        [
            f"{row['law']}; α = {row['inner_lr']:g}, N = {row['samples']}",
            "∞" if row["crossover"] is None else f"{row['crossover']:.3g}",
            str(row["tasks"]),
            str(row["flagged"]),
            str(row["told_maml"]),
            str(row["told_drs"]),
            str(row["wrong"]),
            f"{row['outside_wrong']} of {row['outside']}",
            _share(row["covered"], row["estimated"]),
            *(f"{share:.2f}" for share in row["standard_errors_cover"].values()),
        ]
        for row in run["rows"]
    ]
    told = sum(row["told_maml"] + row["told_drs"] for row in run["rows"])
    wrong = sum(row["wrong"] for row in run["rows"])
    header = [
        "law",
        "M*",
        "M",
        "tails",
        "MAML",
        "joint",
        "wrong",
        "M outside",
        "M*",
        "Δ",
        "c joint",
    ]
    return (
        f"{run['replications']} replications each; {wrong} of {told} statements are wrong "
        f"({100 * wrong / max(told, 1):.1f}%). Commit {run['environment']['commit']}, "
        f"`{again(run)}`.\n\n" + markdown([*header, "c MAML"], rows)
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else "-"
