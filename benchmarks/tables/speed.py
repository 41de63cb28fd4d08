"""Tables of the nine cases: speed, every rival, threads, nearness to the limit, and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tables.formatting import (
    SHORT,
    SPEED_ORDER,
    Run,
    markdown,
    median,
    megabytes,
    milliseconds,
    ratio,
    ratio_to,
    speed_runs,
    times,
)


def _ours(run: Run) -> dict[str, Any]:
    ours: dict[str, Any] = run["rivals"].get("innerloop", {})
    return ours


def speed(runs: Sequence[Run], threads: int | None = None) -> str:
    """The table of the nine cases: our time, the fastest library's, and the ratio."""
    rows = []
    for run in speed_runs(runs, threads):
        ours, library = _ours(run), run["fastest_library"]
        gain = ratio_to(run, library)
        spread_text = "-"
        if gain is not None:
            found = run["rivals"][library]["ratio"]
            spread_text = f"{ratio(gain)} ({found['q1']:.2g}-{found['q3']:.2g})"
        rows.append(
            [
                f"`{run['case']}`: {run['describe']}",
                median(ours) + ("" if ours.get("backend") == "fused" else " (torch backend)"),
                f"{median(run['rivals'][library])} {SHORT[library]}" if library else "-",
                spread_text,
                times(ratio_to(run, "bmm")),
                times(ratio_to(run, "autograd_loop")),
                f"{ours['tasks_per_s']:,.0f}" if "tasks_per_s" in ours else "-",
            ]
        )
    header = [
        "case",
        "innerloop",
        "fastest library",
        "faster (quartiles)",
        "than bmm by hand",
        "than the autograd loop",
        "tasks/s",
    ]
    return markdown(header, rows)


def in_short(runs: Sequence[Run]) -> str:
    """Our time and each rival's, with how many times longer it takes, and what is not in it."""
    names = list(dict.fromkeys(name for run in runs for name in run["rivals"]))
    others = [name for name in names if name != "innerloop"]
    rows = []
    for run in runs:
        row = [f"`{run['case']}`: {run['describe']}", median(_ours(run))]
        for name in others:
            row += [median(run["rivals"].get(name, {})), times(ratio_to(run, name))]
        rows.append(row)
    header = ["case", "innerloop"]
    for name in others:
        header += [SHORT[name], "faster"]
    note = "Few repeats, and rivals that need no compilation. With torch.compile and JAX, at their"
    return f"{markdown(header, rows)}\n\n{note} best: python benchmarks/run.py all"


def rivals(runs: Sequence[Run]) -> str:
    """Median and quartiles of every rival in every case, with the settings that won."""
    return "\n\n".join(map(rival_block, speed_runs(runs)))


def rival_block(run: Run) -> str:
    """One case with all its rivals."""
    rows = []
    for name, rival in run["rivals"].items():
        if "median_s" not in rival:
            reason = rival.get("skipped") or rival.get("failed") or "not run"
            rows.append([rival["title"], reason.replace("|", "/"), "", "", "", ""])
            continue
        quartiles = f"{milliseconds(rival['q1_s'])} - {milliseconds(rival['q3_s'])}"
        rows.append(
            [
                rival["title"],
                f"{milliseconds(rival['median_s'])} ({quartiles})",
                "1" if name == "innerloop" else times(ratio_to(run, name)),
                f"{rival['disagreement']:.0e}",
                megabytes(rival["peak_bytes"]),
                rival["choice"].replace("|", "/"),
            ]
        )
    header = ["", "median (quartiles)", "ours is faster", "error", "peak memory", "settings"]
    return f"**{run['case']}**: {run['describe']}\n\n" + markdown(header, rows)


def threads(runs: Sequence[Run]) -> str:
    """Our time and the fastest library's at each measured thread count."""
    counts = sorted({r["environment"]["threads"] for r in runs if r["kind"] == "speed"})
    if not counts:
        return ""
    by_key = {(r["case"], c): r for c in counts for r in speed_runs(runs, c)}
    header = ["case"]
    for count in counts:
        plural = "thread" if count == 1 else "threads"
        header += [f"innerloop, {count} {plural}", f"fastest library, {count} {plural}", "faster"]
    rows = []
    for case in SPEED_ORDER:
        row = [f"`{case}`"]
        for count in counts:
            run = by_key.get((case, count))
            if run is None:
                row += ["-", "-", "-"]
                continue
            library = run["fastest_library"]
            theirs = median(run["rivals"][library]) if library else "-"
            row += [median(_ours(run)), theirs, times(ratio_to(run, library))]
        rows.append(row)
    return markdown(header, rows)


def peak(runs: Sequence[Run]) -> str:
    """Rate of floating-point operations against the GEMM rate measured in the same process."""
    rows = []
    for run in speed_runs(runs):
        ours = _ours(run)
        if "median_s" not in ours:
            continue
        limit = run["environment"]["gemm_gflops"]
        library = run["fastest_library"]
        rates = {kind: run["flops"][kind] / ours["median_s"] / 1e9 for kind in run["flops"]}
        theirs = "-"
        if library:
            rate = run["flops"]["nominal"] / run["rivals"][library]["median_s"] / 1e9
            theirs = f"{rate / limit:.0%}"
        rows.append(
            [
                f"`{run['case']}`",
                f"{run['flops']['nominal'] / 1e6:,.1f} M",
                f"{rates['nominal']:.0f}",
                f"{rates['nominal'] / limit:.0%}",
                f"{rates['structured'] / limit:.0%}",
                theirs,
                f"{limit:.0f}",
            ]
        )
    header = [
        "case",
        "operations, dense count",
        "GFLOP/s, dense count",
        "of peak, dense count",
        "of peak, structured count",
        "fastest library, dense count",
        "GEMM peak GFLOP/s",
    ]
    return markdown(header, rows)


def losses(runs: Sequence[Run]) -> str:
    """A list of every rival that is faster in a case."""
    if not speed_runs(runs):
        return ""
    lines = []
    for run in sorted(
        (r for r in runs if r["kind"] == "speed"),
        key=lambda r: (SPEED_ORDER.index(r["case"]), r["environment"]["threads"]),
    ):
        machine = run["environment"]
        place = f"`{run['case']}`, {machine['threads']} thread(s), {machine['dtype']}"
        for name in run["rivals"]:
            found = ratio_to(run, name)
            if found is not None and found < 1.0:
                lines.append(f"- {place}: slower than {SHORT[name]} ({ratio(found)}).")
    return "\n".join(lines) if lines else "No rival is faster in any case."
