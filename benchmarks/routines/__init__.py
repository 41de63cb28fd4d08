"""Measurements other than the speed table, one module each.

A routine has `run(request) -> dict`, called in a pinned process, and may have
`measure_part(request) -> dict` for pieces that need a process of their own.
"""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES_ON = {
    "cpu": (
        "first-call",
        "overhead",
        "kernels",
        "steps",
        "tasks",
        "memory",
        "networks",
        "policies",
        "regression-study",
        "rl",
    ),
    "cuda": ("device-memory", "capacity"),
}


def load(name: str) -> ModuleType:
    """The module of a routine."""
    return importlib.import_module("routines." + name.replace("-", "_"))
