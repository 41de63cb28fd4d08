"""Where a call's time goes: the whole call, and the native call inside it repeated by itself.

The native call is taken from a public call as it happens and made again with the same arguments, so
it writes into the outputs of that first call. What lies between the two is Python: checks, outputs,
views of results, and the cache misses of doing both in turn. Beside them stand the operations and
bytes that cannot be avoided, for comparison with the machine's limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from baselines import innerloop_baseline
from cases import flops, traffic
from cases.nine import CASES, make_problem
from measure import timing
from measure.worker import Request


def run(request: Request) -> dict[str, Any]:
    """Seconds of the whole call and of the native call of each case."""
    effort = timing.QUICK if request.quick else timing.FULL
    rows = []
    for case in CASES.values():
        problem = make_problem(case, getattr(torch, request.dtype), request.seed)
        call = innerloop_baseline.formulations(problem)["functional"]()
        rivals = {"call": timing.LocalRival(call), "native": timing.LocalRival(native_call(call))}
        row: dict[str, Any] = {
            "case": case.name,
            "structured_flops": flops.structured(case),
            "least_bytes": traffic.least_bytes(case, problem.support[0].element_size()),
        }
        for name, (samples, _) in timing.interleave(rivals, effort).items():
            row[name] = timing.spread(samples)
        rows.append(row)
    return {"kind": "kernels", "rows": rows}


def native_call(call: Callable[[], Any]) -> Callable[[], None]:
    """The one native call that a public call makes, to be made again."""
    from innerloop import _native

    module = _native.native()
    made: list[tuple[Any, tuple[Any, ...]]] = []

    def noting(function: Any) -> Callable[..., None]:
        def noted(*arguments: Any) -> None:
            made.append((function, arguments))
            function(*arguments)

        return noted

    wrapped = {name: noting(getattr(module, name)) for name in ("meta_grad", "hvp")}
    with mock.patch.multiple(module, **wrapped):
        call()
    [(function, arguments)] = made
    return lambda: function(*arguments)
