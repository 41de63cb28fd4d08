"""Peak memory on a GPU in a fresh process, beside what `innerloop.plan` and the docs state."""

from __future__ import annotations

import contextlib
import gc
import io
from dataclasses import replace
from typing import Any

import baselines
from measure.worker import Request, WorkerFailed, measure

RIVALS = ("innerloop", "torch_func", "torch_compile", "bmm", "jax_jit")
POINTS = (
    ("sinusoid-1000", 1),
    ("sinusoid-1000", 20),
    ("sinusoid-16384", 1),
    ("omniglot-fc", 1),
    ("omniglot-fc", 5),
    ("wide", 5),
    ("policy", 1),
)
ROUNDED = 512  # torch's allocator hands out multiples


def run(request: Request) -> dict[str, Any]:
    """One row per case, number of steps and rival."""
    rows = []
    for case, steps in POINTS[:1] if request.quick else POINTS:
        for rival in RIVALS:
            if rival not in request.baselines or baselines.load(rival).missing() is not None:
                continue
            row: dict[str, Any] = {"case": case, "steps": steps, "rival": rival}
            rows.append({**row, "title": baselines.load(rival).TITLE})
            try:
                rows[-1].update(measure(request.of(**row)))
            except WorkerFailed as error:
                rows[-1]["failed"] = str(error)[-300:]
    return {"kind": "device-memory", "rows": rows}


def formula_bytes(case: Any, schedule: dict[str, Any], element: int = 4) -> int:
    """What a meta-gradient takes by the documentation: scratch memory as `innerloop.plan` states
    it, and results (loss [T], support loss [T, S], gradients [P], the rate's gradient), each array
    rounded up by the allocator.

    Args:
        case: the case.
        schedule: of `baselines.innerloop_baseline.schedule`.
        element: bytes of a number of the dtype.
    """
    arrays = (case.tasks, case.tasks * case.steps, case.parameters(), 1)
    sizes = [int(schedule["scratch_bytes"]), *(element * count for count in arrays)]
    return sum(-(-size // ROUNDED) * ROUNDED for size in sizes)


def measure_part(request: Request) -> dict[str, Any]:
    """Peak growth of one rival in this process, with what building the call allocates."""
    import torch

    from baselines.innerloop_baseline import schedule
    from cases.cuda import CUDA_CASES
    from cases.nine import make_problem
    from measure.device_timing import clock_of

    start = CUDA_CASES[request.part["case"]]
    case = replace(start, steps=request.part["steps"], inner_lr=min(start.inner_lr, 0.01))
    problem = make_problem(case, getattr(torch, request.dtype), request.seed, "cuda")
    module = baselines.load(request.part["rival"])
    clock = clock_of(module, "cuda")
    with contextlib.redirect_stderr(io.StringIO()):
        # A small call first: libraries load and compilers start, and none of that is counted.
        clock.wait(_plain(module, problem.rows(0, 2))())
        gc.collect()
        peak = (
            _jax_peak(module, problem) if hasattr(module, "wait") else _torch_peak(module, problem)
        )
    element = problem.support[0].element_size()
    result: dict[str, Any] = {"sizes": case.sizes(), "peak_bytes": peak}
    if request.part["rival"] == "innerloop":
        cut = schedule(case, request.dtype == "float64")
        result.update(schedule=cut, formula_bytes=formula_bytes(case, cut, element))
    return result


def _plain(module: Any, problem: Any) -> Any:
    """The call of the first formulation at the plain settings."""
    options = next(iter(module.settings("cuda").values()))
    return next(iter(module.formulations(problem).values()))(**options)


def _torch_peak(module: Any, problem: Any) -> int | None:
    from measure.device_timing import peak_growth_bytes

    built: list[Any] = []

    def build_and_call() -> None:
        if not built:
            built.append(_plain(module, problem))
        built[0]()

    return peak_growth_bytes(build_and_call, "cuda")


def _jax_peak(module: Any, problem: Any) -> int | None:
    """JAX's peak cannot be reset: the growth of its highest mark over what it held before."""
    import jax

    call = _plain(module, problem)
    before = (jax.devices("gpu")[0].memory_stats() or {}).get("bytes_in_use")
    module.wait(call())
    peak = (jax.devices("gpu")[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if before is None or peak is None else max(0, peak - before)
