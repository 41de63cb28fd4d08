"""Bias of stochastic MAML gradients for the population objective (Result 23)."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds._arguments import array, counts
from innerloop.bounds.nonconvex._checks import claimed, positive
from innerloop.bounds.nonconvex.constants import (
    Constants,
    Numbers,
    bound,
    conditions,
    require,
    rms_gradient,
    task_kappa,
)


def gradient_bias(
    constants: Constants,
    *,
    inner_lr: Any,
    samples: Any,
    same_batch: bool = True,
    order: int = 2,
) -> Any:
    """A bound on the bias of the N-sample MAML gradient as an estimate of the population one.

    kappa min(|a| L sigma_g / sqrt(N), rho a^2 sigma_g^2 / (2N)), plus
    a^2 L sigma_H sigma_g / N if the Hessian is taken on the support that gave the step. It is of
    order 1/N. For the objective with N-sample inner steps the estimate has no bias at all.

    Args:
        constants: needs L_plus, ell, sigma_g; rho makes the bound O(1/N) (without it, it is
            O(1/sqrt(N))); `same_batch` needs sigma_H; first order needs G2 (or G).
        inner_lr: number or array, any sign.
        samples: support size N; None for population steps (no sampling bias).
        same_batch: the Hessian factor uses the same support, as automatic differentiation does.
        order: 2 for MAML, 1 for first-order MAML, whose bias has the further term
            |a| L kappa G2 that no number of samples removes.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: a constant that is needed is missing, or an argument is out of range.

    Assumes:
        B2, B3 and B6; order 1 also B4. Checked: the constants needed are given and in range. Not
        checked: that they hold.

    Source:
        Result 23 (own); Fallah, Mokhtari and Ozdaglar (2020) have a bound of order 1/sqrt(N).

    >>> b0 = Constants(L_plus=1.0, ell=0.5, rho=2.0, sigma_g=0.5, sigma_H=0.8)
    >>> round(gradient_bias(b0, inner_lr=0.1, samples=4), 12)
    0.00165625
    """
    function, result = "gradient_bias", "Result 23"
    if order not in (1, 2):
        raise ValueError(f"{function}: order must be 1 or 2 (got {order!r})")
    numbers, rate = Numbers(constants), array(inner_lr, function=function, name="inner_lr")
    size = counts(samples, function=function, name="samples", none=np.inf)
    noise = require(numbers, "sigma_g", function=function, result=result)
    stretch = task_kappa(numbers, rate)
    shift = np.abs(rate) * numbers.L * noise / np.sqrt(size)
    known = ["B2", "B6g"]
    if numbers.rho is not None:
        shift = np.minimum(shift, numbers.rho * (rate * noise) ** 2 / (2.0 * size))
        known.append("B3")
    if order == 1:
        slope = rms_gradient(numbers, function=function, result=result)
        value = shift + np.abs(rate) * numbers.L * stretch * slope
        known.append("B4")
    else:
        value = stretch * shift
        if same_batch:
            curved = require(numbers, "sigma_H", function=function, result=result)
            value = value + rate**2 * numbers.L * curved * noise / size
            known.append("B6H")
    return bound(
        value,
        name="bias of the MAML gradient" if order == 2 else "bias of the first-order MAML gradient",
        source=result,
        assumptions=conditions(constants, value, *known),
    )


def difference_error(constants: Constants, *, inner_lr: Any, step: Any, vector_norm: Any) -> Any:
    """A bound on what a finite-difference Hessian-vector product adds to a MAML gradient.

    |a| rho h |v|^2 / 2, for the forward difference (g(theta + h v) - g(theta)) / h and for the
    central one alike: with a Lipschitz Hessian and no more, both have the same worst case.

    Args:
        constants: needs rho.
        inner_lr: number or array, any sign.
        step: h, positive.
        vector_norm: norm of v.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: rho is missing, or an argument is out of range.

    Assumes:
        B3. Checked: the constants needed are given and in range. Not checked: that they hold.

    Source:
        Result 23 (own).

    >>> c = Constants(L_plus=1.0, ell=0.5, rho=2.0)
    >>> round(difference_error(c, inner_lr=0.1, step=0.01, vector_norm=3.0), 9)
    0.009
    """
    function = "difference_error"
    rate = array(inner_lr, function=function, name="inner_lr")
    length = positive(step, function=function, name="step")
    norm = claimed(vector_norm, function=function, name="vector_norm")
    rho = require(Numbers(constants), "rho", function=function, result="Result 23")
    value = np.abs(rate) * rho * length * norm**2 / 2.0
    return bound(
        value,
        name="error of a finite-difference Hessian-vector product in the MAML gradient",
        source="Result 23",
        assumptions=conditions(constants, value, "B3"),
    )
