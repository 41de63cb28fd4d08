"""Three schedules of each case, timed in a graph: the model's choice and the next best that it sees
with other numbers of tasks or threads."""

from __future__ import annotations

import itertools
from typing import Any

from contact import place, survive
from contact.record import Step

MOST = 3  # of each case
CASE_S = 40.0  # a case that takes longer never ends
GROUPS, THREADS = (1, 2, 4, 8, 16, 32), (32, 64, 128, 256)


def run(step: Step) -> None:
    """One entry per case."""
    from cases.cuda import CUDA_CASES

    survive.each(step, CUDA_CASES, outcome, CASE_S)


def outcome(name: str) -> dict[str, Any]:
    """Of one case: its schedules, or what went wrong."""
    place.free()
    try:
        return measured(name)
    except Exception as failure:  # whatever goes wrong is what the visit is for
        return {"failed": place.short(failure)}


def candidates(name: str) -> list[dict[str, Any]]:
    """What is fixed for each schedule, and the schedule that it gives; the model's choice first."""
    import innerloop as il

    from baselines.innerloop_baseline import schedule
    from cases.cuda import CUDA_CASES

    found: list[dict[str, Any]] = []

    def offer(**fixed: Any) -> None:
        try:
            with il.fixed_plan(**fixed):
                given = schedule(CUDA_CASES[name])
        except (NotImplementedError, RuntimeError):  # does not fit
            return
        if all(given != each["schedule"] for each in found):
            found.append({"fixed": fixed, "schedule": given})

    offer()
    for group, threads in itertools.product(GROUPS, THREADS):
        offer(tasks_per_block=group, threads=threads)
    found[1:] = sorted(found[1:], key=lambda each: float(each["schedule"]["cycles"]))
    return found[:MOST]


def measured(name: str) -> dict[str, Any]:
    """The candidates with their seconds; what went wrong with the first of them that failed."""
    import innerloop as il

    from baselines import innerloop_baseline
    from baselines.cuda_graph import captured
    from contact.ours import sampled
    from measure.device_timing import EventClock

    call = next(iter(innerloop_baseline.formulations(place.problem_of(name)).values()))()
    found = candidates(name)
    for each in found:
        try:
            with il.fixed_plan(**each["fixed"]):
                each.update(sampled(captured(call), EventClock()))
        except Exception as failure:  # of one schedule
            each["failed"] = place.short(failure)
        place.free()
    failed = [each["failed"] for each in found if "failed" in each]
    return {"schedules": found, **({"failed": failed[0]} if failed else {})}
