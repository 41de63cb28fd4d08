"""Peak memory of a call in a fresh process, beside the workspace innerloop reports itself."""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import replace
from typing import Any

import baselines
from worker import Request, WorkerFailed, measure

RIVALS = ("innerloop", "torch_func", "jax_jit")
POINTS = (
    ("sinusoid-1000", 1),
    ("sinusoid-1000", 5),
    ("sinusoid-1000", 20),
    ("omniglot-fc", 1),
    ("omniglot-fc", 5),
    ("omniglot-fc", 20),
    ("wide", 5),
    ("wide", 20),
)


def run(request: Request) -> dict[str, Any]:
    """One row per case, number of steps and rival."""
    rows = []
    for case, steps in POINTS[:2] if request.quick else POINTS:
        for rival in RIVALS:
            if rival not in request.baselines or baselines.load(rival).missing() is not None:
                continue
            row: dict[str, Any] = {"case": case, "steps": steps, "rival": rival}
            rows.append({**row, "title": baselines.load(rival).TITLE})
            try:
                rows[-1].update(measure(request.of(**row)))
            except WorkerFailed as error:
                rows[-1]["failed"] = str(error)[-300:]
    return {"kind": "memory", "rows": rows}


def measure_part(request: Request) -> dict[str, Any]:
    """Peak growth of one rival in this process, its kept memory included."""
    import torch

    import timing
    from cases import CASES, make_problem

    start = CASES[request.part["case"]]
    case = replace(start, steps=request.part["steps"], inner_lr=min(start.inner_lr, 0.01))
    problem = make_problem(case, getattr(torch, request.dtype), request.seed)
    module = baselines.load(request.part["rival"])
    with contextlib.redirect_stderr(io.StringIO()):
        # A small call first: libraries load and compilers start, and none of that is counted.
        next(iter(module.formulations(problem.rows(0, 2)).values()))()()
        call = next(iter(module.formulations(problem).values()))()
        native = _native(request)
        if native is not None:
            native.release_workspace()
        elif request.part["rival"] == "jax_jit":
            call()  # compiles; XLA keeps no buffers between calls
    element = problem.support[0].element_size()
    result: dict[str, Any] = {
        "sizes": case.sizes(),
        "peak_bytes": timing.peak_growth_bytes(call),
        "output_bytes": element * (case.parameters() + case.tasks * (1 + case.steps)),
        "steps_times_parameters_bytes": element * case.steps * case.parameters(),
    }
    if native is not None:
        result["workspace_bytes"] = int(native.workspace_bytes())
    return result


def _native(request: Request) -> Any:
    if request.part["rival"] != "innerloop":
        return None
    try:
        return importlib.import_module("innerloop._cpu")
    except ImportError:
        return None
