"""Argument checks of the non-convex bounds, on top of those shared by all of `innerloop.bounds`."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds._arguments import Array, array


def nonnegative(value: Any, *, function: str, name: str) -> Array:
    """`value` as finite float64 numbers of at least zero.

    Raises:
        TypeError: not real numbers.
        ValueError: NaN, infinite or negative entries.
    """
    made = array(value, function=function, name=name)
    if (made < 0.0).any():
        raise ValueError(f"{function}: {name} must be at least 0 (got {float(made.min()):g})")
    return made


def positive(value: Any, *, function: str, name: str) -> Array:
    """`value` as finite float64 numbers above zero.

    Raises:
        TypeError: not real numbers.
        ValueError: NaN, infinite, zero or negative entries.
    """
    made = array(value, function=function, name=name)
    if (made <= 0.0).any():
        raise ValueError(f"{function}: {name} must be positive (got {float(made.min()):g})")
    return made


def geometric_sum(ratio: Array, terms: Array) -> Array:
    """1 + ratio + ... + ratio^(terms - 1) for ratio >= 1, accurate also next to 1."""
    excess = np.asarray(ratio - 1.0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        quotient = np.expm1(terms * np.log1p(excess)) / excess
    return np.asarray(np.where(excess == 0.0, terms, quotient), dtype=np.float64)
