"""innerloop with `allow_tf32=True` in a CUDA graph: less exact than everything else that is timed.

It is shown beside the others and takes no part in any comparison.
"""

from __future__ import annotations

from typing import Any

from baselines import innerloop_baseline, innerloop_graph_baseline
from baselines.cuda_graph import captured
from cases.nine import Problem

TITLE = "innerloop in a CUDA graph, tf32"
LIBRARY = False
# Products are rounded by 2^-10, and the norm of a leaf's error grows with steps and layers.
TOLERANCE = 5e-2
missing = innerloop_graph_baseline.missing
unfit = innerloop_graph_baseline.unfit
settings = innerloop_graph_baseline.settings


def formulations(problem: Problem) -> dict[str, Any]:
    """The public call with tf32 allowed, captured."""
    return {
        f"{name}, captured": lambda build=build: captured(build(allow_tf32=True))
        for name, build in innerloop_baseline.formulations(problem).items()
    }
