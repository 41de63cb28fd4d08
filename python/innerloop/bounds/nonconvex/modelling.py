"""The modelling error of joint training in value (Result 28)."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds._arguments import array
from innerloop.bounds._results import Assumption
from innerloop.bounds.nonconvex._checks import claimed
from innerloop.bounds.nonconvex.constants import Constants, Numbers, bound, conditions


def modelling_error_bound(
    constants: Constants, *, inner_lr: Any, square_at_maml: Any, square_at_drs: Any
) -> Any:
    """A bound on R_maml(theta_d) - R_maml(theta_m), population objective and one inner step.

    a ((1 + a ell / 2) E|g(theta_m)|^2 - (1 - a L_plus / 2) E|g(theta_d)|^2), where theta_d and
    theta_m are global minimisers of the joint and of the MAML objective.

    Args:
        constants: needs L_plus, ell.
        inner_lr: number or array, any sign.
        square_at_maml: E|g(theta_m)|^2, mean over tasks of the squared gradient norm.
        square_at_drs: E|g(theta_d)|^2.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: an argument is out of range, or the bound is negative, which no pair of global
            minimisers allows.

    Assumes:
        B2; both points are global minimisers of their objectives. Checked: the constants needed
        are given and in range. Not checked: that they hold.

    Source:
        Result 28 (own).

    >>> c = Constants(L_plus=1.0, ell=0.5)
    >>> round(modelling_error_bound(c, inner_lr=0.1, square_at_maml=0.3, square_at_drs=0.2), 12)
    0.01175
    """
    function = "modelling_error_bound"
    numbers, rate = Numbers(constants), array(inner_lr, function=function, name="inner_lr")
    maml = claimed(square_at_maml, function=function, name="square_at_maml")
    drs = claimed(square_at_drs, function=function, name="square_at_drs")
    gain = rate * (1.0 + rate * numbers.ell / 2.0) * maml
    loss = rate * (1.0 - rate * numbers.L_plus / 2.0) * drs
    value = gain - loss
    if (value < -1e-12 * (np.abs(gain) + np.abs(loss))).any():
        raise ValueError(
            f"{function}: square_at_maml and square_at_drs must belong to global minimisers "
            f"(the bound is negative: {float(np.min(value)):.3g}); Result 28 needs it"
        )
    return bound(
        np.maximum(value, 0.0),
        name="modelling error of joint training",
        source="Result 28",
        assumptions=(
            *conditions(constants, value, "B2"),
            Assumption("both points are global minimisers of their objectives"),
        ),
    )


def modelling_error_from_gradient(maml_gradient: Any, *, growth: Any) -> Any:
    """A bound on the modelling error from the MAML gradient at joint training's minimiser.

    |gradient|^2 / (2 mu) for a mu-PL objective: |gradient|^2 >= 2 mu (R_maml - min R_maml)
    everywhere. `modelling_gradient` bounds the gradient.

    Args:
        maml_gradient: norm of the MAML gradient there, or a bound on it.
        growth: mu, positive.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: an argument is out of range.

    Assumes:
        The MAML objective satisfies the PL inequality with this constant, and the point minimises
        the joint objective globally. Checked: ranges.

    Source:
        Result 28 (own), by the Polyak-Lojasiewicz inequality.

    >>> round(modelling_error_from_gradient(0.0441, growth=0.5), 10)
    0.00194481
    """
    function = "modelling_error_from_gradient"
    slope = claimed(maml_gradient, function=function, name="maml_gradient")
    mu = claimed(growth, function=function, name="growth", above_zero=True)
    return bound(
        slope**2 / (2.0 * mu),
        name="modelling error of joint training",
        source="Result 28",
        assumptions=(
            Assumption("the MAML objective satisfies the PL inequality with this mu"),
            Assumption("the gradient is taken at a global minimiser of the joint objective"),
        ),
    )
