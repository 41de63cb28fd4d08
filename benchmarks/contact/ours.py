"""Our calls on every case in one process: plain, replayed in a graph, and their kernels alone."""

from __future__ import annotations

from typing import Any

from cases import flops, traffic
from contact import place, survive
from contact.record import Step
from contact.references import expected
from measure import timing

CASE_S = 40.0  # a case that takes longer never ends


def run(step: Step) -> None:
    """One entry per case; what an earlier visit found is kept."""
    from cases.cuda import CUDA_CASES

    survive.each(step, CUDA_CASES, measured, CASE_S)


def measured(name: str) -> dict[str, Any]:
    """Of one case: its counts, how far from float64, seconds in each way, or what went wrong."""
    from baselines import innerloop_baseline
    from cases.cuda import CUDA_CASES
    from cases.reference import TOLERANCE, disagreement, numbers

    place.free()
    case = CUDA_CASES[name]
    found: dict[str, Any] = {
        "describe": case.describe(),
        "flops": flops.structured(case),
        "least_bytes": traffic.least_bytes(case),
    }
    try:
        found["schedule"] = innerloop_baseline.schedule(case)
        problem = place.problem_of(name)
        call = next(iter(innerloop_baseline.formulations(problem).values()))()
        found["disagreement"] = disagreement(numbers(call()), expected(name))
        if not found["disagreement"] <= TOLERANCE[problem.support[0].dtype]:
            found["failed"] = f"relative error {found['disagreement']:.1e} against float64"
            return found
        found |= times(call)
    except Exception as failure:  # whatever goes wrong is what the visit is for
        found["failed"] = place.short(failure)
    return found


def times(call: timing.Call) -> dict[str, Any]:
    """Seconds of a call: plain, in a graph (with why not, if it cannot be captured), by kernel."""
    from baselines.cuda_graph import captured
    from measure.device_timing import EventClock, kernel_times

    clock = EventClock()
    found: dict[str, Any] = {"plain": sampled(call, clock)}
    try:
        found["graph"] = sampled(captured(call), clock)
    except Exception as failure:
        found["graph_failed"] = place.short(failure)
    try:
        found["kernels"] = kernel_times(call)[:8]
    except Exception as failure:  # a profiler that may not read this card is no reason to stop
        found["kernels_failed"] = place.short(failure)
    return found


def sampled(call: timing.Call, clock: timing.Clock) -> dict[str, Any]:
    """Median and quartiles of the seconds of a call, over blocks of some calls."""
    once = timing.rough_seconds(call, place.BUDGET_S / 4, clock)
    calls = max(1, int(place.BUDGET_S / 10 / max(once, 1e-7)))
    blocks = max(3, min(9, int(place.BUDGET_S / max(once * calls, 1e-7))))
    return timing.spread([clock.block(call, calls) for _ in range(blocks)])
