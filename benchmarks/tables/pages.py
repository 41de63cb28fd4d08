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

from contact import record
from tables import compare, contact, cuda, meta_rl, rl, routines, speed, study, tightness
from tables.formatting import Run, megabytes, milliseconds, ratio_to, speed_runs, times

DOCUMENTS = (
    "docs/benchmarks.md",
    "docs/compare.md",
    "docs/cuda.md",
    "docs/meta-rl.md",
    "docs/studies.md",
    "docs/torch-compile.md",
    "docs/theory/nonconvex.md",
)
FIGURE = "docs/images/speed.svg"
ROOFLINE = "docs/images/roofline.svg"


def newest_runs(folder: Path, include_quick: bool = False) -> list[Run]:
    """The newest run of each (kind, case, threads, dtype), each with `file` and `command`."""
    newest: dict[tuple[Any, ...], tuple[str, Run]] = {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        if document.get("format") == record.FORMAT:
            newest["first-contact", path.name] = ("", visit(document, path.name))
        if document.get("format") == meta_rl.FORMAT:
            newest[meta_rl.KIND, path.name] = ("", meta_rl.as_run(document, path.name))
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


def visit(document: dict[str, Any], file: str) -> Run:
    """A first visit to a GPU as a run, of which nothing but the table of evidence is made."""
    environment = {"threads": 0, "dtype": "float32"}
    command = "bash benchmarks/first_contact.sh"
    return {
        **document,
        "kind": "first-contact",
        "environment": environment,
        "file": file,
        "command": command,
    }


TABLES: dict[str, Callable[[Sequence[Run]], str]] = {
    "speed": speed.speed,
    "rivals": speed.rivals,
    "threads": speed.threads,
    "peak": speed.peak,
    "losses": speed.losses,
    "cuda-speed": cuda.speed,
    "cuda-limits": cuda.limits,
    "cuda-roofline": cuda.roofline,
    "cuda-losses": cuda.losses,
    "cuda-rivals": cuda.rivals,
    "cuda-machine": cuda.machine,
    "cuda-evidence": contact.evidence,
    "device-memory": cuda.memory,
    "capacity": cuda.capacity,
    "first-call": routines.first_call,
    "overhead": routines.overhead,
    "kernels": routines.kernels,
    "steps": routines.steps,
    "tasks": routines.tasks,
    "memory": routines.memory,
    "networks": routines.networks,
    "policies": routines.policies,
    "compile-first-order": routines.compile_first_order,
    "machine": routines.machine,
    "regression-study": study.speed,
    "regression-trials": study.trials,
    "regression-agreement": study.agreement,
    "regression-verdict": study.verdict,
    "rl": rl.rl,
    "meta-rl-verdict": meta_rl.verdict,
    "meta-rl-differences": meta_rl.differences,
    "meta-rl-gains": meta_rl.gains,
    "tightness": tightness.tightness,
    "crossover-coverage": compare.crossover_coverage,
    "real-tables": compare.real_tables,
}


def fill(text: str, runs: Sequence[Run]) -> str:
    """The document with every marked table replaced by the runs' numbers."""

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in TABLES:
            raise ValueError(
                f"run.py --table: a marker must name one of {', '.join(TABLES)} (got {name!r})"
            )
        text = TABLES[name](runs)
        text += "\n" if text else ""
        return f"<!-- table:{name} -->\n{text}<!-- /table:{name} -->"

    return re.sub(r"<!-- table:([\w-]+) -->.*?<!-- /table:\1 -->", replacement, text, flags=re.S)


def update_page(path: Path, results: Path) -> list[Path]:
    """Rewrites the tables of one page from the result files; returns it if it changed."""
    before = path.read_text()
    after = fill(before, newest_runs(results))
    if after == before:
        return []
    path.write_text(after)
    return [path]


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
    shown = speed_runs(runs)
    if shown:
        from tables import figure

        changed.append(figure.draw(shown, root / FIGURE))
    on_gpu = [run for run in runs if "gpu" in run["environment"]]
    if on_gpu:
        from tables import roofline

        if roofline.points(on_gpu):
            changed.append(roofline.draw(on_gpu, root / ROOFLINE))
    return changed


def plain(run: Run) -> str:
    """A run for the terminal."""
    machine_line = run["environment"]
    limits = machine_line["gpu"]["limits"] if "gpu" in machine_line else machine_line
    head = (
        f"\n{run.get('case', run['kind'])} | {machine_line['threads']} thread(s), "
        f"{machine_line['dtype']}, GEMM {limits['gemm_gflops']:.1f} GFLOP/s, "
        f"load {machine_line['load_average'][0]} to {machine_line['load_average_after'][0]}, "
        f"{run['measured_in_s']} s"
    )
    if "rivals" not in run:
        return head + "\n" + TABLES[run["kind"]]([run])
    lines = [head, f"  {run['describe']}"]
    for name, rival in run["rivals"].items():
        if "median_s" not in rival:
            reason = rival.get("skipped") or rival.get("failed")
            lines.append(f"  {name:14s} {reason}")
            continue
        gain = times(ratio_to(run, name))
        lines.append(
            f"  {name:14s} {milliseconds(rival['median_s']):>9s}"
            f"  [{milliseconds(rival['q1_s'])}, {milliseconds(rival['q3_s'])}]"
            f"  {gain:>7s}  error {rival['disagreement']:.0e}  {megabytes(rival['peak_bytes'])}"
            f"  {rival['choice']}" + (f" ({rival['backend']})" if "backend" in rival else "")
        )
    return "\n".join(lines)
