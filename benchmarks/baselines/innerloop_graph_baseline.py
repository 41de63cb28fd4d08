"""innerloop's public call captured in a CUDA graph, as a training loop with fixed shapes may."""

from __future__ import annotations

from typing import Any

from baselines import innerloop_baseline
from baselines.cuda_graph import captured
from cases.nine import Case, Problem

TITLE = "innerloop in a CUDA graph"
LIBRARY = False
missing = innerloop_baseline.missing


def unfit(case: Case, device: str) -> str | None:
    """CUDA graphs hold calls on a GPU."""
    return None if device == "cuda" else "CUDA graphs need a GPU"


def settings(device: str) -> dict[str, dict[str, Any]]:
    """There is nothing to choose."""
    return {"fused": {}}


def formulations(problem: Problem) -> dict[str, Any]:
    """The public call, captured."""
    return {
        f"{name}, captured": lambda build=build: captured(build())
        for name, build in innerloop_baseline.formulations(problem).items()
    }
