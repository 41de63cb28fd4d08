"""The rivals, one module each, behind one small interface.

A module states `TITLE`, `LIBRARY` (it competes for "fastest library") and provides
- `missing() -> str | None`: why it cannot run here, or None;
- `unfit(case) -> str | None`: why it does not apply to a case, or None;
- `formulations(problem) -> {name: build}`: different ways to write the same computation;
- `settings(name) -> {name: options}`: ways to compile a formulation, the plain one first.

`build(**options)` returns a call without arguments that computes `(loss [T] or None, leaves)`, the
gradient of the mean query loss leaf by leaf in the order of `Case.shapes` (or the Hessian-vector
products, `[T, ...]` leaves), and returns when the numbers are there. `tune.py` tries them and
keeps the fastest, so each rival runs at its best on each case.
"""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = (
    "innerloop",
    "torch_func",
    "torch_compile",
    "jax_jit",
    "bmm",
    "autograd_loop",
    "higher",
    "learn2learn",
)


def load(name: str) -> ModuleType:
    """The module of one rival; `innerloop` is treated like the others."""
    if name not in NAMES:
        raise ValueError(f"run.py: --baseline must be one of {', '.join(NAMES)} (got {name!r})")
    return importlib.import_module(f"baselines.{name}_baseline")
