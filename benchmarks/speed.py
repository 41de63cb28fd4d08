"""Measures one case in this process: every rival tuned, checked, and timed in turn."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
from typing import Any

import torch

import baselines
import flops
import timing
from cases import CASES, make_problem
from reference import TOLERANCE, disagreement, numbers, reference
from tune import NothingRan, tune
from worker import Request

DRAWS = 3  # problems tried before a disagreement counts


def measure_case(request: Request) -> dict[str, Any]:
    """Result of one speed case, ready for JSON.

    A pre-activation of relu that float32 rounds across zero changes a gradient by far more than
    rounding, in any implementation. Where somebody disagrees with the reference, the case is
    therefore drawn again; who disagrees on every draw is wrong and is reported as such.
    """
    result: dict[str, Any] = {}
    for draw in range(DRAWS):
        result = _measure(request, request.seed + draw)
        if not any(rival.get("disagrees") for rival in result["rivals"].values()):
            break
    return result


def _measure(request: Request, seed: int) -> dict[str, Any]:
    case = CASES[request.what]
    dtype = getattr(torch, request.dtype)
    problem = make_problem(case, dtype, seed)
    expected = reference(problem)
    rivals: dict[str, dict[str, Any]] = {}
    calls: dict[str, timing.Call] = {}
    for name in request.baselines:
        module = baselines.load(name)
        rival: dict[str, Any] = {"title": module.TITLE, "library": module.LIBRARY}
        rivals[name] = rival
        reason = module.missing() or module.unfit(case)
        if reason is not None:
            rival["skipped"] = reason
            continue
        if name == "innerloop":
            rival["backend"] = module.backend(problem.rows(0, 1))
            fresh = next(iter(module.formulations(problem).values()))()
            rival["peak_bytes"] = timing.peak_growth_bytes(fresh)  # with its kept workspace
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # autotuning logs
                tuned = tune(module, problem, request.quick)
        except NothingRan as error:
            rival["failed"] = str(error)
            continue
        rival.update(choice=tuned.choice, first_call_s=tuned.first_call_s, trials=tuned.trials)
        if "peak_bytes" not in rival:
            slow = tuned.trials[-1].get("rough_s", 0.0) > timing.SLOW_S
            rival["peak_bytes"] = timing.peak_growth_bytes(tuned.call, calls=1 if slow else 3)
        calls[name] = tuned.call
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    results = timing.time_rivals(
        calls,
        lambda outcome: disagreement(numbers(outcome), expected),
        TOLERANCE[dtype],
        timing.QUICK if request.quick else timing.FULL,
    )
    for name, result in results.items():
        if isinstance(result, timing.Disagreement):
            rivals[name].update(failed=str(result), disagrees=True)
            continue
        rivals[name].update(result.summary(), disagreement=result.disagreement)
        rivals[name]["tasks_per_s"] = case.tasks / rivals[name]["median_s"]
        rivals[name]["samples_s"] = [round(sample, 9) for sample in result.samples_s]
    ours = results.get("innerloop")
    if isinstance(ours, timing.Timing):
        for name, result in results.items():
            if isinstance(result, timing.Timing) and name != "innerloop":
                rivals[name]["ratio"] = timing.paired_ratio(result.samples_s, ours.samples_s)
    return {
        "kind": "speed",
        "seed": seed,
        "case": case.name,
        "describe": case.describe(),
        "sizes": case.sizes(),
        "goal": case.goal,
        "reported_elsewhere": case.reported,
        "flops": {"nominal": flops.nominal(case), "structured": flops.structured(case)},
        "rivals": rivals,
        "fastest_library": fastest_library(rivals),
    }


def fastest_library(rivals: dict[str, dict[str, Any]]) -> str | None:
    """The rival that counts as the fastest library in a result, or None if none was timed."""
    timed = {n: r["median_s"] for n, r in rivals.items() if r["library"] and "median_s" in r}
    return min(timed, key=lambda name: timed[name]) if timed else None
