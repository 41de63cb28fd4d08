"""How many tasks fit: T doubles until the GPU's memory is full, then the limit is closed in on.

Each rival and case has a process of its own. Data are those of a few tasks, repeated, on the GPU.
"""

from __future__ import annotations

import contextlib
import gc
import io
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import baselines
from measure.worker import Request, WorkerFailed, measure

RIVALS = ("innerloop", "torch_func", "jax_jit")
CASES = ("sinusoid-5", "omniglot-fc-5", "wide")
BASE_TASKS = 64
BISECTIONS = 3
MOST_TASKS = 1 << 24
CALL_LIMIT_S = 4.0  # a call that takes longer is the last one
FULL_MARKS = ("out of memory", "resource_exhausted")


def run(request: Request) -> dict[str, Any]:
    """One row per case and rival: the most tasks that ran, and what ended the search."""
    rows = []
    for case in CASES[:1] if request.quick else CASES:
        for rival in RIVALS:
            if rival not in request.baselines or baselines.load(rival).missing() is not None:
                continue
            row: dict[str, Any] = {"case": case, "rival": rival}
            rows.append({**row, "title": baselines.load(rival).TITLE})
            try:
                found = measure(request.of(**row), XLA_PYTHON_CLIENT_MEM_FRACTION="0.95")
                rows[-1].update(found)
            except WorkerFailed as error:
                rows[-1]["failed"] = str(error)[-300:]
    return {"kind": "capacity", "rows": rows}


def search(seconds: Callable[[int], float | None], start: int = BASE_TASKS) -> dict[str, Any]:
    """The largest number of tasks that runs.

    Args:
        seconds: of a call with that many tasks; None where memory is full.
        start: the first number of tasks.

    Returns:
        tasks (0 if even the first does not fit), its seconds, the smallest number that does not
        fit or None, and `ended`: "memory", "time" or "limit".
    """
    fits, full, last = 0, None, 0.0
    tasks, ended = start, "limit"
    while tasks <= MOST_TASKS:
        taken = seconds(tasks)
        if taken is None:
            full, ended = tasks, "memory"
            break
        fits, last, tasks = tasks, taken, 2 * tasks
        if taken > CALL_LIMIT_S:
            ended = "time"
            break
    for _ in range(BISECTIONS if full is not None and fits else 0):
        assert full is not None
        middle = (fits + full) // 2
        taken = seconds(middle)
        if taken is None:
            full = middle
        else:
            fits, last = middle, taken
    return {"tasks": fits, "seconds": last, "full_at": full, "ended": ended}


def is_full(error: Exception) -> bool:
    """Whether an error of torch or JAX says that memory is full."""
    text = f"{type(error).__name__} {error}".lower()
    return any(mark in text for mark in FULL_MARKS)


def measure_part(request: Request) -> dict[str, Any]:
    """The search of one rival on one case, in this process."""
    import torch

    from cases.cuda import CUDA_CASES
    from cases.nine import make_problem
    from measure.device_timing import clock_of

    module = baselines.load(request.part["rival"])
    clock = clock_of(module, "cuda")
    case = replace(CUDA_CASES[request.part["case"]], tasks=BASE_TASKS)
    base = make_problem(case, getattr(torch, request.dtype), request.seed, "cuda")

    def seconds(tasks: int) -> float | None:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                call = next(iter(module.formulations(repeated(base, tasks)).values()))()
                gc.collect()  # JAX has its own copy of the data by now
                torch.cuda.empty_cache()
                clock.wait(call())
                start = time.perf_counter()
                clock.wait(call())
                return time.perf_counter() - start
        except Exception as error:  # each library has its own
            if not is_full(error):
                raise
            return None
        finally:
            call = None
            gc.collect()
            torch.cuda.empty_cache()

    return search(seconds)


def repeated(problem: Any, tasks: int) -> Any:
    """A problem with more tasks, the given ones over and over; parameters are shared."""
    count = -(-tasks // problem.case.tasks)

    def many(side: Any) -> Any:
        return tuple(v.repeat(count, *(1,) * (v.ndim - 1))[:tasks] for v in side)

    return replace(
        problem,
        case=replace(problem.case, tasks=tasks),
        support=many(problem.support),
        query=many(problem.query),
    )
