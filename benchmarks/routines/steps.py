"""Time against inner steps 1..64: a straight line, because no graph is walked again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cases.nine import CASES
from measure.worker import Request
from routines.sweep import sweep

RIVALS = ("innerloop", "torch_func")  # compilers unroll the steps and take minutes at 64


def run(request: Request) -> dict[str, Any]:
    """Seconds per call at each number of steps, for a small and a wide network."""
    sizes = [1, 4, 16] if request.quick else [1, 2, 4, 8, 16, 24, 32, 48, 64]
    rows = []
    for name in ("sinusoid", "omniglot-fc"):
        # A rate small enough for 64 steps keeps float32 comparable with the reference.
        # Few tasks keep the graphs of the rival, which grow with the steps, within memory.
        start = CASES[name]
        start = replace(start, tasks=min(start.tasks, 8), inner_lr=min(start.inner_lr, 0.01))
        cases = [replace(start, steps=size) for size in sizes]
        rows += [{"case": name, **row} for row in sweep(request, "steps", sizes, cases, RIVALS)]
    return {"kind": "steps", "rows": rows}
