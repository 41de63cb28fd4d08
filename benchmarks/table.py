"""Tables from result files: markdown between markers in the documentation, plain on the terminal.

A table lives between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; whatever stands between is
replaced. For each case and thread count the newest run wins; every table names its files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DOCUMENTS = ("docs/benchmarks.md", "docs/torch-compile.md", "README.md")
FIGURE = "docs/images/speed.svg"
SPEED_ORDER = (
    "sinusoid",
    "sinusoid-5",
    "sinusoid-1000",
    "omniglot-fc",
    "omniglot-fc-5",
    "linear",
    "wide",
    "hvp",
    "hvp-omniglot",
)
SHORT = {
    "torch_func": "torch.func",
    "torch_compile": "torch.compile",
    "jax_jit": "JAX",
    "bmm": "bmm by hand",
    "autograd_loop": "autograd loop",
    "higher": "higher",
    "learn2learn": "learn2learn",
}
Run = dict[str, Any]


def newest_runs(folder: Path, include_quick: bool = False) -> list[Run]:
    """The newest run of each (kind, case, threads, dtype), each with `file` and `command`."""
    newest: dict[tuple[Any, ...], tuple[str, Run]] = {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        if document.get("format") != 1 or (document["quick"] and not include_quick):
            continue
        for run in document["runs"]:
            machine = run["environment"]
            key = (run["kind"], run.get("case"), machine["threads"], machine["dtype"])
            labelled = {**run, "file": path.name, "command": document["command"]}
            when = document["started"]
            if key not in newest or when >= newest[key][0]:
                newest[key] = (when, labelled)
    return [run for _, run in newest.values()]


def milliseconds(seconds: float) -> str:
    """Three significant digits, in the unit that reads best."""
    if seconds >= 1.0:
        return f"{seconds:.3g} s"
    if seconds >= 1e-4:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def megabytes(count: int | None) -> str:
    """Bytes as MB with three significant digits."""
    return "-" if count is None else f"{count / 1e6:.3g} MB"


def ratio(value: float) -> str:
    """A speed ratio: two significant digits below ten, whole numbers above."""
    return f"{value:.2g}×" if value < 10 else f"{value:,.0f}×"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; all columns but the first are right-aligned."""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _speed_runs(runs: Sequence[Run], threads: int | None = None) -> list[Run]:
    """float32 speed runs in table order; of the largest thread count unless one is given."""
    speed = [r for r in runs if r["kind"] == "speed" and r["environment"]["dtype"] == "float32"]
    if threads is None:
        threads = max((r["environment"]["threads"] for r in speed), default=0)
    speed = [r for r in speed if r["environment"]["threads"] == threads]
    return sorted(speed, key=lambda r: SPEED_ORDER.index(r["case"]))


def _ours(run: Run) -> dict[str, Any]:
    ours: dict[str, Any] = run["rivals"].get("innerloop", {})
    return ours


def _ratio_to(run: Run, rival: str | None) -> float | None:
    found = run["rivals"].get(rival, {}).get("ratio") if rival else None
    return None if found is None else float(found["median"])


def _times(value: float | None) -> str:
    return "-" if value is None else ratio(value)


def speed(runs: Sequence[Run], threads: int | None = None) -> str:
    """The table of the nine cases: our time, the fastest library's, the ratio and the goal."""
    rows = []
    for run in _speed_runs(runs, threads):
        ours, library = _ours(run), run["fastest_library"]
        gain = _ratio_to(run, library)
        spread_text = "-"
        if gain is not None:
            found = run["rivals"][library]["ratio"]
            met = gain >= run["goal"]
            shown = f"**{ratio(gain)}**" if met else ratio(gain)
            spread_text = f"{shown} ({found['q1']:.2g}-{found['q3']:.2g})"
        rows.append(
            [
                f"`{run['case']}`: {run['describe']}",
                _median(ours) + ("" if ours.get("backend") == "fused" else " (torch backend)"),
                f"{_median(run['rivals'][library])} {SHORT[library]}" if library else "-",
                spread_text,
                ratio(run["goal"]),
                _times(_ratio_to(run, "bmm")),
                _times(_ratio_to(run, "autograd_loop")),
                f"{ours['tasks_per_s']:,.0f}" if "tasks_per_s" in ours else "-",
            ]
        )
    header = [
        "case",
        "innerloop",
        "fastest library",
        "faster (quartiles)",
        "goal",
        "than bmm by hand",
        "than the autograd loop",
        "tasks/s",
    ]
    return markdown(header, rows)


def _median(rival: dict[str, Any]) -> str:
    return milliseconds(rival["median_s"]) if "median_s" in rival else "-"


def speed_short(runs: Sequence[Run]) -> str:
    """The speed table for the README: times and two ratios."""
    rows = []
    for run in _speed_runs(runs):
        library = run["fastest_library"]
        rows.append(
            [
                f"`{run['case']}`: {run['describe']}",
                _median(_ours(run)),
                f"{_median(run['rivals'][library])} ({SHORT[library]})" if library else "-",
                _times(_ratio_to(run, library)),
                _times(_ratio_to(run, "autograd_loop")),
            ]
        )
    header = ["case", "innerloop", "fastest library", "faster", "than the autograd loop"]
    return markdown(header, rows)


def rivals(runs: Sequence[Run]) -> str:
    """Median and quartiles of every rival in every case, with the settings that won."""
    blocks = []
    for run in _speed_runs(runs):
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
                    "1" if name == "innerloop" else _times(_ratio_to(run, name)),
                    f"{rival['disagreement']:.0e}",
                    megabytes(rival["peak_bytes"]),
                    rival["choice"].replace("|", "/"),
                ]
            )
        header = ["", "median (quartiles)", "ours is faster", "error", "peak memory", "settings"]
        blocks.append(f"**{run['case']}**: {run['describe']}\n\n" + markdown(header, rows))
    return "\n\n".join(blocks)


def threads(runs: Sequence[Run]) -> str:
    """Our time and the fastest library's at each measured thread count."""
    counts = sorted({r["environment"]["threads"] for r in runs if r["kind"] == "speed"})
    by_key = {(r["case"], c): r for c in counts for r in _speed_runs(runs, c)}
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
            theirs = _median(run["rivals"][library]) if library else "-"
            row += [_median(_ours(run)), theirs, _times(_ratio_to(run, library))]
        rows.append(row)
    return markdown(header, rows)


def peak(runs: Sequence[Run]) -> str:
    """Rate of floating-point operations against the GEMM rate measured in the same process."""
    rows = []
    for run in _speed_runs(runs):
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
    """A list of every case where a rival is as fast, and of every goal missed."""
    lines = []
    for run in sorted(
        (r for r in runs if r["kind"] == "speed"),
        key=lambda r: (SPEED_ORDER.index(r["case"]), r["environment"]["threads"]),
    ):
        machine = run["environment"]
        place = f"`{run['case']}`, {machine['threads']} thread(s), {machine['dtype']}"
        for name in run["rivals"]:
            found = _ratio_to(run, name)
            if found is not None and found < 1.0:
                lines.append(f"- {place}: slower than {SHORT[name]} ({ratio(found)}).")
        gain = _ratio_to(run, run["fastest_library"])
        if gain is not None and gain < run["goal"]:
            lines.append(
                f"- {place}: {ratio(gain)} against {SHORT[run['fastest_library']]}, "
                f"goal {ratio(run['goal'])}."
            )
    return "\n".join(lines) if lines else "No rival is faster in any case, and no goal is missed."


def _of_kind(runs: Sequence[Run], kind: str) -> list[Run]:
    found = [run for run in runs if run["kind"] == kind]
    return sorted(found, key=lambda run: (run["environment"]["threads"], str(run.get("case"))))


def first_call(runs: Sequence[Run]) -> str:
    """Import, first call and second call of each rival."""
    rows = []
    for run in _of_kind(runs, "first-call"):
        for row in run["rows"]:
            if "first_call_s" not in row:
                continue
            rows.append(
                [
                    f"`{row['case']}`, {run['environment']['threads']} thread(s)",
                    row["title"],
                    milliseconds(row["import_s"]),
                    milliseconds(row["first_call_s"]),
                    milliseconds(row["second_call_s"]),
                ]
            )
    return markdown(["case", "", "import", "first call", "second call"], rows)


def overhead(runs: Sequence[Run]) -> str:
    """Microseconds per call of the smallest problem."""
    rows = []
    for run in _of_kind(runs, "overhead"):
        for row in run["rows"]:
            if "median_s" in row:
                spread_text = f"{row['q1_s'] * 1e6:.3g} - {row['q3_s'] * 1e6:.3g}"
                median = f"{row['median_s'] * 1e6:.3g}"
                count = str(run["environment"]["threads"])
                rows.append([row["call"], count, median, spread_text])
    return markdown(["call", "threads", "median µs", "quartiles µs"], rows)


def _sweep(runs: Sequence[Run], kind: str, unit: str) -> str:
    rows = []
    for run in _of_kind(runs, kind):
        for row in run["rows"]:
            points = [p for p in row["points"] if "median_s" in p]
            shown = ", ".join(f"{p[kind]}: {milliseconds(p['median_s'])}" for p in points)
            line = row.get("line")
            fitted = "-"
            if line is not None:
                fixed, each = milliseconds(max(line["fixed_s"], 0)), milliseconds(line["each_s"])
                fitted = f"{fixed} + {each} per {unit}"
            deviation = "-" if line is None else f"{line['worst_deviation']:.0%}"
            where = f"`{row['case']}`, {run['environment']['threads']} thread(s)"
            rows.append([where, row["title"], shown, fitted, deviation])
    return markdown(["case", "", kind, "fitted line", "largest deviation"], rows)


def steps(runs: Sequence[Run]) -> str:
    """Time against the number of inner steps."""
    return _sweep(runs, "steps", "step")


def tasks(runs: Sequence[Run]) -> str:
    """Time against the number of tasks."""
    return _sweep(runs, "tasks", "task")


def memory(runs: Sequence[Run]) -> str:
    """Peak memory in fresh processes beside the workspace and the size of S x P numbers."""
    rows = []
    for run in _of_kind(runs, "memory"):
        where = f"{run['environment']['threads']} thread(s)"
        for row in run["rows"]:
            if "peak_bytes" not in row:
                continue
            rows.append(
                [
                    f"`{row['case']}`, {row['steps']} steps, {where}",
                    row["title"],
                    megabytes(row["peak_bytes"]),
                    megabytes(row["workspace_bytes"]) if "workspace_bytes" in row else "",
                    megabytes(row["output_bytes"]),
                    megabytes(row["steps_times_parameters_bytes"]),
                ]
            )
    header = ["case", "", "peak", "workspace reported", "outputs", "S × P numbers, one task"]
    return markdown(header, rows)


def compile_first_order(runs: Sequence[Run]) -> str:
    """Which gradient each way of writing MAML returns under torch.compile."""
    rows = []
    found = {run["environment"]["dtype"]: run for run in _of_kind(runs, "compile-first-order")}
    if not found:
        return ""
    wide, narrow = found["float64"], found["float32"]
    for row, other in zip(wide["rows"], narrow["rows"], strict=True):
        errors = [
            f"{r['error_to_full']:.0e}" if "error_to_full" in r else "-" for r in (row, other)
        ]
        same = row["gradient"] == other["gradient"]
        returned = row["gradient"] if same else f"{row['gradient']}; {other['gradient']} in float32"
        rows.append([row["way"], returned, *errors, str(len(row["warnings"]) or "none")])
    versions = wide["environment"]["versions"]
    header = ["", "returns", "error, float64", "error, float32", "warnings"]
    return (
        f"torch {versions['torch']}, Python {versions['python']}, a linear model with "
        f"{wide['parameters']} parameters and {wide['steps']} inner steps; the first-order "
        f"gradient differs from the full one by {wide['difference']:.2f} (relative).\n\n"
        + markdown(header, rows)
    )


def machine(runs: Sequence[Run]) -> str:
    """Where the numbers were taken: one row per result file and thread count."""
    rows: dict[tuple[str, ...], None] = {}
    for run in runs:
        if "processor" not in run["environment"]:
            continue  # nothing in it is a timing
        here, versions = run["environment"], run["environment"]["versions"]
        native = here.get("innerloop_native") or {}
        row = (
            f"[`{run['file']}`](../benchmarks/results/{run['file']})",
            f"{here['processor']['model']}, {here['cpus_visible']} cores",
            str(here["threads"]),
            f"torch {versions['torch']}, jax {versions['jax']}",
            f"{here['commit'] or '-'} {native.get('simd_level', '')}".strip(),
            f"{here['gemm_gflops']:.0f} GFLOP/s, {here['copy_gbytes_per_s']:.0f} GB/s",
            "/".join(str(value) for value in here["load_average"]),
        )
        # The limits are measured anew in each process: the first one stands for the file.
        if not any(known[0] == row[0] and known[2] == row[2] for known in rows):
            rows[row] = None
    header = [
        "result file",
        "processor",
        "threads",
        "versions",
        "innerloop",
        "GEMM peak, copy",
        "load average",
    ]
    return markdown(header, [list(row) for row in sorted(rows)])


TABLES: dict[str, Callable[[Sequence[Run]], str]] = {
    "speed": speed,
    "speed-short": speed_short,
    "rivals": rivals,
    "threads": threads,
    "peak": peak,
    "losses": losses,
    "first-call": first_call,
    "overhead": overhead,
    "steps": steps,
    "tasks": tasks,
    "memory": memory,
    "compile-first-order": compile_first_order,
    "machine": machine,
}


def fill(text: str, runs: Sequence[Run]) -> str:
    """The document with every marked table replaced by the runs' numbers."""

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in TABLES:
            raise ValueError(
                f"table.py: a marker must name one of {', '.join(TABLES)} (got {name!r})"
            )
        return f"<!-- table:{name} -->\n{TABLES[name](runs)}\n<!-- /table:{name} -->"

    return re.sub(r"<!-- table:([\w-]+) -->.*?<!-- /table:\1 -->", replacement, text, flags=re.S)


def update(root: Path, results: Path, include_quick: bool = False) -> list[Path]:
    """Rewrites the documents and the figure from the result files; returns what changed."""
    runs = newest_runs(results, include_quick)
    if not runs:
        raise SystemExit(f"run.py: --table needs result files in {results.name}/ (found none)")
    changed = []
    for name in DOCUMENTS:
        path = root / name
        if not path.exists():
            continue
        before = path.read_text()
        after = fill(before, runs)
        if after != before:
            path.write_text(after)
            changed.append(path)
    speed_runs = _speed_runs(runs)
    if speed_runs:
        import figure

        changed.append(figure.draw(speed_runs, root / FIGURE))
    return changed


def plain(run: Run) -> str:
    """A run for the terminal."""
    machine_line = run["environment"]
    head = (
        f"\n{run.get('case', run['kind'])} | {machine_line['threads']} thread(s), "
        f"{machine_line['dtype']}, GEMM {machine_line['gemm_gflops']} GFLOP/s, "
        f"load {machine_line['load_average'][0]} to {machine_line['load_average_after'][0]}, "
        f"{run['measured_in_s']} s"
    )
    if run["kind"] != "speed":
        return head + "\n" + TABLES[run["kind"]]([run])
    lines = [head, f"  {run['describe']}"]
    for name, rival in run["rivals"].items():
        if "median_s" not in rival:
            reason = rival.get("skipped") or rival.get("failed")
            lines.append(f"  {name:14s} {reason}")
            continue
        gain = _times(_ratio_to(run, name))
        lines.append(
            f"  {name:14s} {milliseconds(rival['median_s']):>9s}"
            f"  [{milliseconds(rival['q1_s'])}, {milliseconds(rival['q3_s'])}]"
            f"  {gain:>7s}  error {rival['disagreement']:.0e}  {megabytes(rival['peak_bytes'])}"
            f"  {rival['choice']}" + (f" ({rival['backend']})" if "backend" in rival else "")
        )
    return "\n".join(lines)
