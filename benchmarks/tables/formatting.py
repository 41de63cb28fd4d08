"""How numbers and tables are written: units, digits, markdown, and the order of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cases.names import CASE_NAMES

SPEED_ORDER = CASE_NAMES["cpu"]
SHORT = {
    "innerloop": "innerloop",
    "innerloop_graph": "innerloop in a CUDA graph",
    "innerloop_tf32": "innerloop with tf32",
    "torch_func": "torch.func",
    "torch_compile": "torch.compile",
    "jax_jit": "JAX",
    "bmm": "bmm by hand",
    "autograd_loop": "autograd loop",
    "higher": "higher",
    "learn2learn": "learn2learn",
}
Run = dict[str, Any]


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


def times(value: float | None) -> str:
    return "-" if value is None else ratio(value)


def median(rival: dict[str, Any]) -> str:
    return milliseconds(rival["median_s"]) if "median_s" in rival else "-"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, all columns but the first right-aligned; empty without rows."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def speed_runs(runs: Sequence[Run], threads: int | None = None) -> list[Run]:
    """float32 speed runs in table order; of the largest thread count unless one is given."""
    speed = [r for r in runs if r["kind"] == "speed" and r["environment"]["dtype"] == "float32"]
    if threads is None:
        threads = max((r["environment"]["threads"] for r in speed), default=0)
    speed = [r for r in speed if r["environment"]["threads"] == threads]
    return sorted(speed, key=lambda r: SPEED_ORDER.index(r["case"]))


def of_kind(runs: Sequence[Run], kind: str) -> list[Run]:
    found = [run for run in runs if run["kind"] == kind]
    return sorted(found, key=lambda run: (run["environment"]["threads"], str(run.get("case"))))


def ratio_to(run: Run, rival: str | None) -> float | None:
    found = run["rivals"].get(rival, {}).get("ratio") if rival else None
    return None if found is None else float(found["median"])


def again(run: Run) -> str:
    """What measures anew what is no time."""
    return f"python benchmarks/run.py {run['kind']}"
