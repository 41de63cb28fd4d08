"""Times some rivals over a list of cases that differ in one size, and fits a straight line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

import baselines
from cases.nine import Case, make_problem
from cases.reference import TOLERANCE, disagreement, numbers, reference
from measure import timing
from measure.speed import DRAWS
from measure.tune import NothingRan, tune
from measure.worker import Request
from routines.line import straight_line


def sweep(
    request: Request, name: str, sizes: Sequence[int], cases: Sequence[Case], rivals: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per rival: seconds at every size, and the line through them.

    Args:
        request: thread count, precision, seed and effort.
        name: what the sizes are, for the rows.
        sizes: the sizes swept over.
        cases: the case at each size.
        rivals: baselines to take, as far as they run here and were asked for.
    """
    modules = {
        rival: baselines.load(rival)
        for rival in rivals
        if rival in request.baselines and baselines.load(rival).missing() is None
    }
    points: dict[str, list[dict[str, Any]]] = {rival: [] for rival in modules}
    for size, case in zip(sizes, cases, strict=True):
        for draw in range(DRAWS):  # a relu that rounding flips: see speed.measure_case
            results = _time(replace(request, seed=request.seed + draw), case, modules)
            if not any(isinstance(each, timing.Disagreement) for each in results.values()):
                break
        for rival in modules:
            result = results.get(rival)
            point: dict[str, Any] = {name: size}
            points[rival].append(point)
            if isinstance(result, timing.Timing):
                point.update(result.summary())
            else:
                point["failed"] = str(result)
    rows = []
    for rival, module in modules.items():
        timed = [point for point in points[rival] if "median_s" in point]
        row = {"rival": rival, "title": module.TITLE, "points": points[rival]}
        if len(timed) > 2:
            row["line"] = straight_line(
                [point[name] for point in timed], [point["median_s"] for point in timed]
            )
        rows.append(row)
    return rows


def _time(
    request: Request, case: Case, modules: dict[str, ModuleType]
) -> dict[str, timing.Timing | timing.Disagreement]:
    """One case, every rival that runs on it, checked and timed."""
    dtype = getattr(torch, request.dtype)
    problem = make_problem(case, dtype, request.seed)
    expected = reference(problem)
    calls = {}
    for rival, module in modules.items():
        with contextlib.suppress(NothingRan), contextlib.redirect_stderr(io.StringIO()):
            calls[rival] = tune(module, problem, quick=True).call
    return timing.time_rivals(
        calls,
        lambda outcome: disagreement(numbers(outcome), expected),
        TOLERANCE[dtype],
        timing.QUICK if request.quick else timing.FULL,
    )
