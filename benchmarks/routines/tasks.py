"""Time against tasks, 1 to 100 000: a straight line, because tasks are worked off in blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cases.nine import CASES
from measure.worker import Request
from routines.sweep import sweep

RIVALS = ("innerloop", "jax_jit")


def run(request: Request) -> dict[str, Any]:
    """Seconds per call at each number of tasks of the sinusoid network, one step."""
    sizes = [1, 10, 100, 1000] if request.quick else [1, 3, 10, 30, 100, 1000, 10_000, 100_000]
    cases = [replace(CASES["sinusoid"], tasks=size) for size in sizes]
    rows = sweep(request, "tasks", sizes, cases, RIVALS)
    return {"kind": "tasks", "rows": [{"case": "sinusoid", **row} for row in rows]}
