"""Measures one case: every rival tuned, checked, and timed in turn, each in its own process."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch

import baselines
from cases import flops, traffic
from cases.cuda import CASES_ON
from cases.nine import make_problem
from cases.reference import reference
from measure import timing
from measure.rival import RivalDied, RivalProcess, save_expected
from measure.worker import Request

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
    case = CASES_ON[request.device][request.what]
    problem = make_problem(case, getattr(torch, request.dtype), seed, request.device)
    rivals: dict[str, dict[str, Any]] = {}
    ready: dict[str, RivalProcess] = {}
    samples: dict[str, tuple[list[float], int]] = {}
    with tempfile.TemporaryDirectory(prefix="innerloop-bench-") as folder:
        expected = Path(folder, "expected.npz")
        save_expected(reference(problem), expected)
        del problem  # on a GPU the rivals share the card's memory
        if request.device == "cuda":
            torch.cuda.empty_cache()
        try:
            for name in request.baselines:
                process = RivalProcess(dataclasses.replace(request, seed=seed), name, expected)
                try:
                    rivals[name] = process.prepare()
                except RivalDied as error:
                    facts = baselines.facts(name, request.device)
                    rivals[name] = {**facts, "failed": str(error)}
                if "skipped" in rivals[name] or "failed" in rivals[name]:
                    process.close()
                else:
                    ready[name] = process
            effort = timing.QUICK if request.quick else timing.FULL
            samples = timing.interleave(ready, effort)
        finally:
            for process in ready.values():
                process.close()
    for name, (taken, per_sample) in samples.items():
        rivals[name].update(timing.spread(taken), calls_per_sample=per_sample)
        rivals[name]["tasks_per_s"] = case.tasks / rivals[name]["median_s"]
        rivals[name]["samples_s"] = [round(sample, 9) for sample in taken]
        for ours, label in (("innerloop", "ratio"), ("innerloop_graph", "ratio_to_graph")):
            if name != ours and ours in samples:
                rivals[name][label] = timing.paired_ratio(taken, samples[ours][0])
    return {
        "kind": "speed" if request.device == "cpu" else "cuda-speed",
        "seed": seed,
        "case": case.name,
        "describe": case.describe(),
        "sizes": case.sizes(),
        "reported_elsewhere": case.reported,
        "flops": {"nominal": flops.nominal(case), "structured": flops.structured(case)},
        "least_bytes": traffic.least_bytes(case, 8 if request.dtype == "float64" else 4),
        "rivals": rivals,
        "fastest_library": fastest_library(rivals),
    }


def fastest_library(rivals: dict[str, dict[str, Any]]) -> str | None:
    """The rival that counts as the fastest library in a result, or None if none was timed."""
    timed = {n: r["median_s"] for n, r in rivals.items() if r["library"] and "median_s" in r}
    return min(timed, key=lambda name: timed[name]) if timed else None
