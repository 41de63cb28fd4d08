"""How far the MAML objective lies from the joint objective in value (Result 22)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from innerloop.bounds._arguments import array, counts
from innerloop.bounds._results import Quantity, Record
from innerloop.bounds.nonconvex._checks import claimed
from innerloop.bounds.nonconvex.constants import (
    Constants,
    Numbers,
    bound,
    conditions,
    require,
    rms_gradient,
)


@dataclasses.dataclass(frozen=True)
class ValueInterval(Record):
    """R_maml(theta) - R_drs(theta) lies between `lower` and `upper` (Result 22)."""

    lower: Any
    upper: Any

    def explain(self) -> str:
        """Both ends in plain words."""
        if not isinstance(self.lower, Quantity):
            return (
                "MAML objective minus joint objective: between "
                f"{np.array2string(self.lower)} and {np.array2string(self.upper)}  (Result 22)"
            )
        return f"{self.lower.explain()}\n{self.upper.explain()}"


def value_interval(
    constants: Constants, *, inner_lr: Any, gradient_square: Any, samples: Any = None
) -> ValueInterval:
    """An interval that contains R_maml(theta) - R_drs(theta), one inner step.

    Population step: [-a (1 + a ell / 2) g2, -a (1 - a L_plus / 2) g2] with g2 the mean over tasks
    of the squared gradient norms at theta. N samples widen it by [-ell, L_plus] a^2 sigma_g^2/(2N).

    Args:
        constants: needs L_plus, ell; with `samples` also sigma_g.
        inner_lr: number or array, any sign.
        gradient_square: g2 at this theta (not a bound over a region).
        samples: support size N; None for the population step.

    Returns:
        ValueInterval of Quantities or float64 arrays.

    Raises:
        ValueError: sigma_g is missing, or an argument is out of range.

    Assumes:
        B2; with samples also B6. Checked: the constants needed are given and in range. Not
        checked: that they hold.

    Source:
        Result 22 (own); the noise term keeps the two signs of the curvature apart, which is
        sharper than the symmetric L a^2 sigma_g^2 / (2N).

    >>> c = Constants(L_plus=1.0, ell=0.5)
    >>> interval = value_interval(c, inner_lr=0.1, gradient_square=1.0)
    >>> print(f"{interval.lower:.4f} {interval.upper:.4f}")
    -0.1025 -0.0950
    """
    function = "value_interval"
    numbers, rate = Numbers(constants), array(inner_lr, function=function, name="inner_lr")
    square = claimed(gradient_square, function=function, name="gradient_square")
    low = -rate * (1.0 + rate * numbers.ell / 2.0) * square
    high = -rate * (1.0 - rate * numbers.L_plus / 2.0) * square
    known: tuple[str, ...] = ("B2",)
    if samples is not None:
        spread = _sampling_variance(numbers, rate, samples, function) / 2.0
        low, high = low - numbers.ell * spread, high + numbers.L_plus * spread
        known = ("B2", "B6g")
    ends = [
        bound(
            value,
            name=f"MAML objective minus joint objective, at {side}",
            source="Result 22",
            assumptions=conditions(constants, value, *known),
        )
        for value, side in ((low, "least"), (high, "most"))
    ]
    return ValueInterval(*ends)


def sampling_gap(constants: Constants, *, inner_lr: Any, samples: Any) -> Any:
    """A bound on |R_maml(theta; N samples) - R_maml(theta; population step)|, one inner step.

    L a^2 sigma_g^2 / (2N).

    Args:
        constants: needs L_plus, ell, sigma_g.
        inner_lr: number or array, any sign.
        samples: support size N.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: sigma_g is missing, or an argument is out of range.

    Assumes:
        B2 and B6. Checked: the constants needed are given and in range. Not checked: that they
        hold.

    Source:
        Result 22 (own).

    >>> c = Constants(L_plus=1.0, ell=0.5, sigma_g=0.5)
    >>> round(sampling_gap(c, inner_lr=0.1, samples=4), 9)
    0.0003125
    """
    numbers, rate = Numbers(constants), array(inner_lr, function="sampling_gap", name="inner_lr")
    variance = _sampling_variance(numbers, rate, samples, "sampling_gap")
    value = numbers.L * variance / 2.0
    return bound(
        value,
        name="change of the MAML objective due to finite supports",
        source="Result 22",
        assumptions=conditions(constants, value, "B2", "B6g"),
    )


def maml_gap(constants: Constants, *, inner_lr: Any, samples: Any = None) -> Any:
    """The initial gap of the MAML objective: `gap_maml` if given, else a bound from `gap_drs`.

    With a lower bound R_low common to both objectives, R_maml - R_low is at most
    gap_drs + max(0, -a (1 - a L_plus / 2)) G2^2 + L_plus a^2 sigma_g^2 / (2N); the middle term
    vanishes for 0 <= a <= 2 / L_plus. `gap_drs` must then be measured from R_low.

    Args:
        constants: needs gap_maml, or gap_drs, L_plus and (where a term is present) G2, sigma_g.
        inner_lr: number or array, any sign.
        samples: support size N; None for the population step.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: a constant that is needed is missing, or an argument is out of range.

    Assumes:
        B1 and B2; with samples also B6. Checked: the constants needed are given and in range. Not
        checked: that they hold.

    Source:
        Result 22 (own).

    >>> maml_gap(Constants(L_plus=1.0, ell=0.5, gap_drs=2.0), inner_lr=0.1)
    2.0
    """
    function, result = "maml_gap", "Result 22"
    numbers, rate = Numbers(constants), array(inner_lr, function=function, name="inner_lr")
    known: tuple[str, ...] = ("B1",)
    if numbers.gap_maml is not None:
        value = numbers.gap_maml + np.zeros(np.shape(rate))
    else:
        rise = np.maximum(0.0, -rate * (1.0 - rate * numbers.L_plus / 2.0))
        value = require(numbers, "gap_drs", function=function, result=result) + 0.0 * rise
        known = ("B1", "B2")
        if np.any(rise > 0.0) or constants.G is not None or constants.G2 is not None:
            value = value + rise * rms_gradient(numbers, function=function, result=result) ** 2
            known = (*known, "B4")
        if samples is not None:
            noise = _sampling_variance(numbers, rate, samples, function)
            value = value + numbers.L_plus * noise / 2.0
            known = (*known, "B6g")
    return bound(
        value,
        name="initial gap of the MAML objective",
        source=result,
        assumptions=conditions(constants, value, *known),
    )


def _sampling_variance(numbers: Numbers, rate: Any, samples: Any, function: str) -> Any:
    """a^2 sigma_g^2 / N, the mean squared displacement by sampling noise."""
    size = counts(samples, function=function, name="samples")
    noise = require(numbers, "sigma_g", function=function, result="Result 22")
    return (rate * noise) ** 2 / size
