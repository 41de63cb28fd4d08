"""How large the numbers of Results 1-20 and 36 may be: powers of them have to stay in float64.

The results hold for any units, but some are of degree twelve in the inputs. Numbers beyond these
limits are refused here rather than turned into infinities and NaN on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array

LARGEST = 1e30  # of entries of Q, theta, sigma2 and data; Q as a whole is at least its inverse
LARGEST_STEP = 1e15  # of a rate times an eigenvalue of Q
_REMEDY = "measure inputs and targets in units that make them of ordinary size"


def array(
    value: Any, *, function: str, name: str, ndim: int | None = None, largest: float = LARGEST
) -> Array:
    """`_arguments.array`, with a ValueError for an entry above `largest` in size."""
    made = _arguments.array(value, function=function, name=name, ndim=ndim)
    size = float(np.abs(made).max(initial=0.0))
    if size > largest:
        raise ValueError(
            f"{function}: {name} must be at most {largest:g} in size (got {size:g}); {_REMEDY}"
        )
    return made


def covariances(value: Any, *, function: str, name: str) -> Array:
    """`_arguments.covariances`, with a ValueError where all of them are tiny or one is huge."""
    made = _arguments.covariances(
        array(value, function=function, name=name), function=function, name=name
    )
    size = float(np.abs(made).max())
    if 0.0 < size < 1.0 / LARGEST:
        raise ValueError(
            f"{function}: the largest entry of {name} must be at least {1.0 / LARGEST:g} "
            f"(got {size:g}); {_REMEDY}"
        )
    return made


def check_steps(rate: Array | float, largest: float, function: str) -> None:
    """Raises ValueError where a rate times `largest`, the largest eigenvalue of Q, is absurd."""
    step = float(np.abs(rate).max(initial=0.0)) * largest
    if step > LARGEST_STEP:
        raise ValueError(
            f"{function}: inner_lr times the largest eigenvalue of Q must be at most "
            f"{LARGEST_STEP:g} in size (got {step:g})"
        )


class OutOfRange(ValueError):
    """A result has left float64."""


def check_finite(values: Array, function: str, what: str) -> None:
    """Raises OutOfRange where a result has left float64."""
    if not np.isfinite(values).all():
        raise OutOfRange(
            f"{function}: {what} leaves the range of float64; take fewer steps, a smaller rate, or "
            "other units"
        )
