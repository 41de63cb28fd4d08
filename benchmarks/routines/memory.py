"""Peak memory in a fresh process, beside the workspace innerloop reports and the formula for it."""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import replace
from typing import Any

import baselines
from measure.worker import Request, WorkerFailed, measure

RIVALS = ("innerloop", "torch_func", "jax_jit")
POINTS = (
    ("sinusoid-1000", 1),
    ("sinusoid-1000", 5),
    ("sinusoid-1000", 20),
    ("omniglot-fc", 1),
    ("omniglot-fc", 5),
    ("omniglot-fc", 20),
    ("wide", 1),
    ("wide", 5),
    ("wide", 20),
)
VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}


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


def formula_bytes(
    sizes: dict[str, int],
    widths: tuple[int, ...],
    *,
    strategy: str,
    threads: int,
    vector_bytes: int,
    element_bytes: int = 4,
    implicit_first: bool = False,
) -> int:
    """Workspace of a second-order meta-gradient of a relu network by the documented formula.

    With H the sum of all layers' outputs, B the parameters stored per task and step, and G tasks in
    flight per thread:

        element * (slots * P + threads * G * (S * (B + 2 N H) + 2 Q H + 2 N H + 2 B + inputs))

    Lanes keep G = vector length, store every layer (B = P), and copy inputs and targets. Rows
    stack G = 32 / N tasks (one to eight), keep B = 2 P when N > 8 (weights and their transposes),
    read inputs in place, and hold two prepared copies of the shared parameters. An implicit first
    layer leaves B and adds 4 N H_1 + N (N + Q). Padding to whole vectors is not counted.
    """
    tasks, n, q, steps, parameters = (sizes[letter] for letter in "TNQSP")
    outputs = sum(widths[1:])
    lanes = vector_bytes // element_bytes
    shared = 0
    if strategy == "lanes":
        group, stored = lanes, parameters
        inputs = (n + q) * (widths[0] + widths[-1]) + parameters  # and one sum per lane
    else:
        group = max(1, min(-(-32 // max(n, 1)), 8, tasks // 8))
        stored = parameters
        inputs, shared = 0, 2 * parameters
    if implicit_first:
        stored -= widths[0] * widths[1]
        inputs += 4 * n * widths[1] + n * (n + q)
    if strategy == "rows" and n > 8:
        stored *= 2
    fit = (64 << 20) // (parameters * element_bytes)
    slots = min(-(-tasks // group), 64, max(fit, 8))
    rows = 2 * outputs * (steps * n + q + n)
    flight = group * (steps * stored + 2 * stored + rows + inputs)
    workers = min(threads, slots)
    return element_bytes * (slots * parameters + shared + workers * flight)


def measure_part(request: Request) -> dict[str, Any]:
    """Peak growth of one rival in this process, its kept memory included."""
    import torch

    from cases.nine import CASES, make_problem
    from measure import timing

    start = CASES[request.part["case"]]
    case = replace(start, steps=request.part["steps"], inner_lr=min(start.inner_lr, 0.01))
    problem = make_problem(case, getattr(torch, request.dtype), request.seed)
    module = baselines.load(request.part["rival"])
    native = _native(request)
    with contextlib.redirect_stderr(io.StringIO()):
        # A small call first: libraries load and compilers start, and none of that is counted.
        next(iter(module.formulations(problem.rows(0, 2)).values()))()()
        call = next(iter(module.formulations(problem).values()))()
        if native is not None:
            native.release_workspace()
        elif request.part["rival"] == "jax_jit":
            call()  # compiles; XLA keeps no buffers between calls
    element = problem.support[0].element_size()
    result: dict[str, Any] = {
        "sizes": case.sizes(),
        "peak_bytes": timing.peak_growth_bytes(call),
        "output_bytes": element * (case.parameters() + case.tasks * (1 + case.steps)),
    }
    if native is not None:
        result["workspace_bytes"] = int(native.workspace_bytes())
        result["strategy"] = _strategy(native, call)
        # The first layer is implicit where that saves products (see csrc/cpu/ops.h).
        n, q, (inputs, first) = case.support, case.query, case.widths[:2]
        saved = case.steps * (4 * inputs - 2 * n) * first
        result["formula_bytes"] = formula_bytes(
            case.sizes(),
            case.widths,
            strategy=result["strategy"],
            threads=request.threads,
            vector_bytes=VECTOR_BYTES.get(str(native.simd_level()), 16),
            element_bytes=element,
            implicit_first=n <= inputs and saved > (n + q) * inputs + q * first,
        )
    return result


def _strategy(native: Any, call: Any) -> str:
    """Which of the two layouts the automatic choice took: the one with the same workspace."""
    found = {}
    for name in ("auto", "lanes", "rows"):
        native.set_strategy(name)
        native.release_workspace()
        call()
        found[name] = native.workspace_bytes()
    native.set_strategy("auto")
    return "lanes" if found["lanes"] == found["auto"] else "rows"


def _native(request: Request) -> Any:
    if request.part["rival"] != "innerloop":
        return None
    try:
        return importlib.import_module("innerloop._cpu")
    except ImportError:
        return None
