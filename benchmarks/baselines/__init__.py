"""The rivals, one module each, behind one small interface.

A module states `TITLE`, `LIBRARY` (it competes for "fastest library") and provides
- `missing() -> str | None`: why it cannot run here, or None;
- `unfit(case, device) -> str | None`: why it does not apply to a case there, or None;
- `formulations(problem) -> {name: build}`: different ways to write the same computation;
- `settings(device) -> {name: options}`: ways to compile a formulation, the plain one first;
- `TOLERANCE`, if it is allowed a larger error in float32 than the others;
- `wait(result)`, if on a GPU it works in a queue that torch's events do not see.

`build(**options)` returns a call without arguments that computes `(loss [T] or None, leaves)`, the
gradient of the mean query loss leaf by leaf in the order of `Case.shapes` (or the Hessian-vector
products, `[T, ...]` leaves). On the CPU it returns when the numbers are there, on a GPU when they
are queued. `tune` tries formulations and settings and keeps the fastest, so each rival runs at
its best on each case.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

NAMES = (
    "innerloop",
    "innerloop_graph",
    "innerloop_tf32",
    "torch_func",
    "torch_compile",
    "jax_jit",
    "bmm",
    "autograd_loop",
    "higher",
    "learn2learn",
)
# The rivals of each device. On a GPU the loops over tasks say the same thing three times.
NAMES_ON = {
    "cpu": tuple(name for name in NAMES if name not in ("innerloop_graph", "innerloop_tf32")),
    "cuda": tuple(name for name in NAMES if name not in ("higher", "learn2learn")),
}


def load(name: str) -> ModuleType:
    """The module of one rival; `innerloop` is treated like the others."""
    if name not in NAMES:
        raise ValueError(f"run.py: --baseline must be one of {', '.join(NAMES)} (got {name!r})")
    return importlib.import_module(f"baselines.{name}_baseline")


def facts(name: str, device: str) -> dict[str, Any]:
    """What every report of a rival starts with: its title, and whether it counts as a library."""
    module = load(name)
    library = module.LIBRARY or (device == "cuda" and getattr(module, "LIBRARY_ON_CUDA", False))
    return {"title": module.TITLE, "library": library}
