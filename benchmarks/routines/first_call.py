"""First-call latency: from "the library is imported" to the first numbers, caches empty.

Every rival runs in a fresh process at its plain settings, since a compiler's best settings take
longer still. The problem's tensors exist already; building the call (model description, jit
wrapper, device transfer) counts, importing does not and is a column of its own.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from typing import Any

import baselines
from measure.worker import Request, WorkerFailed, measure


def run(request: Request) -> dict[str, Any]:
    """First and second call of each rival on two cases."""
    from cases.nine import CASES

    rows = []
    for case in ("sinusoid",) if request.quick else ("sinusoid", "omniglot-fc-5"):
        for name in request.baselines:
            module = baselines.load(name)
            row: dict[str, Any] = {"case": case, "rival": name, "title": module.TITLE}
            rows.append(row)
            reason = module.missing() or module.unfit(CASES[case], "cpu")
            if reason is not None:
                row["skipped"] = reason
                continue
            with tempfile.TemporaryDirectory(prefix="innerloop-bench-") as empty:
                try:
                    row.update(
                        measure(
                            request.of(case=case, rival=name),
                            TORCHINDUCTOR_CACHE_DIR=empty,
                            TORCHINDUCTOR_FORCE_DISABLE_CACHES="1",
                        )
                    )
                except WorkerFailed as error:
                    row["failed"] = str(error)[-300:]
    return {"kind": "first-call", "rows": rows}


def measure_part(request: Request) -> dict[str, Any]:
    """Import, first call and second call of one rival in this fresh process, in seconds."""
    import torch

    from cases.nine import CASES, make_problem
    from cases.reference import TOLERANCE, disagreement, numbers, reference

    dtype = getattr(torch, request.dtype)
    problem = make_problem(CASES[request.part["case"]], dtype, request.seed)
    module = baselines.load(request.part["rival"])
    start = time.perf_counter()
    module.missing()  # imports the rival
    imported = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        call = next(iter(module.formulations(problem).values()))()
        outcome = call()
    first = time.perf_counter()
    call()
    second = time.perf_counter()
    error = disagreement(numbers(outcome), reference(problem))
    if not error <= TOLERANCE[dtype]:
        raise RuntimeError(f"{request.part['rival']} disagrees with the reference: {error:.2e}")
    return {
        "import_s": imported - start,
        "first_call_s": first - imported,
        "second_call_s": second - first,
    }
