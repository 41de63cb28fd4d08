"""Times every schedule of the CUDA kernels: how good the model's choices are, and better constants.

For each case a grid of strategies, tasks per block and threads is fixed in turn by
`innerloop.fixed_plan` and timed in a CUDA graph, so that launches from Python do not hide the
kernels. The regret of a choice is its time over the grid's best.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import cost_model
import flops
from cases import Case
from worker import Request

GROUPS = (1, 2, 4, 8, 16, 32)
THREADS = (32, 64, 128, 256)
CLUSTERS = {"cluster": (2, 3, 4, 6, 8), "tiled": (1, 2, 3, 4, 6, 8)}
HOPELESS = 8.0  # times the best so far: not measured again
Entry = dict[str, Any]


def run(request: Request) -> dict[str, Any]:
    """Every case's grid with times, regrets, and the constants fitted to all of them."""
    from innerloop import _native

    import gpu
    from baselines import innerloop_baseline
    from cuda_cases import CUDA_CASES

    reason = innerloop_baseline.missing()
    if reason is not None:
        raise RuntimeError(reason)
    names = ("sinusoid", "wide") if request.quick else tuple(CUDA_CASES)
    rows = [measured_row(CUDA_CASES[name], _timer(CUDA_CASES[name], request)) for name in names]
    clock = gpu.state().get("sm_mhz")
    facts = _native.cuda().device_facts(0)
    return summary(rows, facts, (clock or 1500.0) * 1e6, gpu.launch_seconds()["graph_launch_s"])


def grid(case: Case, **options: Any) -> Iterator[Entry]:
    """Schedules of a case that fit, one for each combination that differs from all before.

    Args:
        case: the case.
        options: `facts` of another GPU than the present one.
    """
    import innerloop as il
    from innerloop.schedule import STRATEGIES

    from baselines.innerloop_baseline import schedule

    seen = set()
    groups = [size for size in GROUPS if size <= case.tasks]
    for strategy in STRATEGIES[1:]:
        clusters = CLUSTERS.get(strategy, (0,))
        for group, threads, cluster in itertools.product(groups, THREADS, clusters):
            cut = {"tasks_per_block": group, "threads": threads, "cluster": cluster}
            try:
                with il.fixed_plan(strategy, **cut):
                    entry = schedule(case, **options)
            except RuntimeError:  # does not fit
                continue
            if identity(entry) not in seen:
                seen.add(identity(entry))
                yield entry


def identity(entry: Entry) -> tuple[Any, ...]:
    """What distinguishes schedules."""
    names = ("strategy", "tasks_per_block", "threads", "blocks", "cluster")
    return tuple(entry[name] for name in names)


def measured_row(case: Case, seconds: Callable[[Entry, float], float], **options: Any) -> Entry:
    """A case's grid with times, the model's choice and its regret.

    Args:
        case: the case.
        seconds: times a schedule, given the best time so far.
        options: see `grid`.
    """
    from baselines.innerloop_baseline import schedule

    entries, best = [], float("inf")
    chosen = schedule(case, **options)
    for entry in [chosen, *(e for e in grid(case, **options) if identity(e) != identity(chosen))]:
        try:
            entry["seconds"] = seconds(entry, best)
            best = min(best, entry["seconds"])
        except RuntimeError as error:  # such as too little memory beside the rest
            entry["failed"] = str(error)[:300]
        entries.append(entry)
    if best == float("inf"):
        raise RuntimeError(f"{case.name}: no schedule ran: {entries[0]['failed']}")
    return {
        "case": case.name,
        "describe": case.describe(),
        "flops": {"structured": flops.structured(case)},
        "entries": entries,
        "chosen": identity(chosen),
        "best": identity(min(entries, key=_seconds)),
        "regret": _seconds(entries[0]) / best,
    }


def _seconds(entry: Entry) -> float:
    return float(entry.get("seconds", float("inf")))


def summary(
    rows: list[Entry], facts: Sequence[int], hertz: float, launch_s: float
) -> dict[str, Any]:
    """The routine's result: rows, and what fitted constants would have chosen."""
    from cuda_cases import CUDA_CASES

    cases = [CUDA_CASES[row["case"]] for row in rows]
    pairs = [(case, row["entries"]) for case, row in zip(cases, rows, strict=True)]
    constants, misses_by = cost_model.fit(pairs, facts, hertz, launch_s)
    for case, row in zip(cases, rows, strict=True):
        row["regret_fitted"] = _regret(case, row["entries"], facts, constants)
    return {
        "kind": "calibration",
        "rows": rows,
        "facts": list(facts),
        "hertz": hertz,
        "launch_s": launch_s,
        "constants": asdict(cost_model.Constants()),
        "fitted": asdict(constants),
        "fitted_misses_by": misses_by,
    }


def _regret(
    case: Case, entries: list[Entry], facts: Sequence[int], constants: cost_model.Constants
) -> float:
    """Regret of the rule of schedule.h, resident before all others, with other constants."""
    modelled = [e for e in entries if e["strategy"] in cost_model.MODELLED]
    resident = [e for e in modelled if e["strategy"] == "resident"]
    if not modelled:
        return float("nan")
    best = min(resident or modelled, key=lambda e: cost_model.cycles(case, e, facts, constants))
    return _seconds(best) / min(map(_seconds, entries))


def _timer(case: Case, request: Request) -> Callable[[Entry, float], float]:
    """Times schedules of a case on the GPU."""
    import innerloop as il
    import torch

    from baselines import innerloop_baseline
    from baselines.cuda_graph import captured
    from cases import make_problem
    from device_timing import EventClock
    from timing import rough_seconds

    dtype = getattr(torch, request.dtype)
    problem = make_problem(case, dtype, request.seed, "cuda")
    call = next(iter(innerloop_baseline.formulations(problem).values()))()
    clock = EventClock()

    def seconds(entry: Entry, best: float) -> float:
        gc.collect()
        torch.cuda.empty_cache()  # of the graph before
        fixed = {key: entry[key] for key in ("tasks_per_block", "threads")}
        with il.fixed_plan(entry["strategy"], **fixed):
            clock.block(call, 1)
            once = clock.block(call, 1)
            if once > HOPELESS * best and once > 1e-3:  # shorter ones may be launches only
                return once
            return rough_seconds(captured(call), 0.05, clock)

    return seconds
