"""Argument checks of the non-convex bounds, on top of those shared by all of `innerloop.bounds`."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds._arguments import Array, array, covariances
from innerloop.bounds._quantities import Tracked, given, tracked


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


def claimed(value: Any, *, function: str, name: str, above_zero: bool = False) -> Tracked:
    """A constant given as an argument, at least (or above) zero, ready for formulas.

    It has the standing it carries; a plain number is the caller's word, and so is a certified one
    without a name, which the caller computed.

    Raises:
        TypeError: not real numbers.
        ValueError: NaN, infinite or negative entries (or zeros).
    """
    check = positive if above_zero else nonnegative
    return _word(value, check(value, function=function, name=name), name)


def semidefinite(value: Any, *, function: str, name: str) -> Tracked:
    """The same for positive semidefinite matrices [..., p, p].

    Raises:
        TypeError: not real numbers.
        ValueError: not square, not symmetric or with a negative eigenvalue beyond rounding.
    """
    return _word(value, covariances(value, function=function, name=name), name)


def _word(value: Any, made: Array, name: str) -> Tracked:
    """The checked argument with the standing of what was given."""
    return tracked(made, given(value, name))


def geometric_sum(ratio: Any, terms: Any) -> Any:
    """1 + ratio + ... + ratio^(terms - 1) for ratio >= 1, accurate also next to 1."""
    excess = ratio - 1.0
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        quotient = np.expm1(terms * np.log1p(excess)) / excess
    return np.where(excess == 0.0, terms, quotient)
