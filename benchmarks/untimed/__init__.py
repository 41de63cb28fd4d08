"""Measurements of numbers other than times, one module each: `python benchmarks/run.py NAME`."""

from __future__ import annotations

import importlib

NAMES = (
    "compile-first-order",
    "crossover-coverage",
    "meta-rl",
    "real-tables",
    "regression-agreement",
    "tightness",
)


def main(name: str, arguments: list[str]) -> int:
    """Takes one of them with the rest of the command line; returns the exit status."""
    module = importlib.import_module(f"untimed.{name.replace('-', '_')}")
    return int(module.main(arguments))
