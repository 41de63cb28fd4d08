"""How far a stationary point of joint training is from stationary for MAML (Result 27)."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds._arguments import array, counts
from innerloop.bounds.nonconvex._checks import claimed
from innerloop.bounds.nonconvex.constants import (
    Constants,
    Numbers,
    bound,
    conditions,
    overflow_reason,
    require,
    rms_gradient,
    sample_curvature,
    task_kappa,
)


def modelling_gradient(constants: Constants, *, inner_lr: Any) -> Any:
    """e_mod: the MAML gradient that can be left at a stationary point of joint training.

    sigma_gamma (2 |a| kappa sigma_Hgamma + kappa a^2 rho G2 / 2), for one population inner step. It
    vanishes when the tasks' gradients agree, or (up to the rho term) when their curvature does.

    Args:
        constants: needs L_plus, ell, rho, sigma_gamma, sigma_Hgamma, G2 (or G).
        inner_lr: number or array, any sign.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: a constant that is needed is missing, or `inner_lr` is not finite.

    Assumes:
        B2, B3, B4 and B5, one population inner step. Checked: the constants needed are given and
        in range. Not checked: that they hold.

    Source:
        Result 27, refined form (own).

    >>> b0 = Constants(L_plus=1.0, ell=0.5, rho=2.0, G=1.0, sigma_gamma=0.6, sigma_Hgamma=0.3)
    >>> round(modelling_gradient(b0, inner_lr=0.1), 12)
    0.0441
    """
    function, result = "modelling_gradient", "Result 27"
    numbers, rate = Numbers(constants), array(inner_lr, function=function, name="inner_lr")
    rho, between, between_H = (
        require(numbers, name, function=function, result=result)
        for name in ("rho", "sigma_gamma", "sigma_Hgamma")
    )
    rms = rms_gradient(numbers, function=function, result=result)
    stretch = task_kappa(numbers, rate)
    curved = 2.0 * np.abs(rate) * stretch * between_H + stretch * rate**2 * rho * rms / 2.0
    value = between * curved
    return bound(
        value,
        name="MAML gradient at a stationary point of joint training",
        source=result,
        assumptions=conditions(constants, value, "B2", "B3", "B4", "B5g", "B5H"),
    )


def gradient_gap(
    constants: Constants,
    *,
    inner_lr: Any,
    steps: Any = 1,
    samples: Any = None,
    gradient_norm: Any = None,
) -> Any:
    """A bound on |gradient of the MAML objective - gradient of the joint objective|, any K.

    Population steps: ((1 + |a| L)^2K - 1) g with g the mean over tasks of the gradient norms.
    N-sample steps, u = (1 + |a| L_s)^K: (u - 1) g + u (u - 1) sqrt(g^2 + sigma_g^2 / N), where g is
    the root mean square.

    Args:
        constants: needs L_plus, ell; with `samples` also L_plus_s, ell_s, sigma_g; G2 (or G)
            unless `gradient_norm` is given.
        inner_lr: number or array, any sign.
        steps: inner steps K, at least 1.
        samples: support size N; None for population inner steps.
        gradient_norm: g at this point, instead of the bound G2.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: a constant that is needed is missing, or an argument is out of range.

    Assumes:
        B2, and B4 or the gradient norm given; with samples also B6 and B7. Checked: the constants
        needed are given and in range. Not checked: that they hold.

    Source:
        Result 27, crude form (own); the N-sample form follows from the proof of Result 24.

    >>> b0 = Constants(L_plus=1.0, ell=0.5, G=1.0)
    >>> round(gradient_gap(b0, inner_lr=0.1), 12)
    0.21
    """
    function, result = "gradient_gap", "Result 27"
    numbers, rate = Numbers(constants), array(inner_lr, function=function, name="inner_lr")
    depth = counts(steps, function=function, name="steps")
    known = ["B2"]
    if gradient_norm is None:
        slope = rms_gradient(numbers, function=function, result=result)
        known.append("B4")
    else:
        slope = claimed(gradient_norm, function=function, name="gradient_norm")
    with np.errstate(over="ignore", invalid="ignore"):
        if samples is None:
            value = np.expm1(2.0 * depth * np.log1p(np.abs(rate) * numbers.L)) * slope
        else:
            size = counts(samples, function=function, name="samples")
            largest = np.maximum(*sample_curvature(numbers, function=function, result=result))
            noise = require(numbers, "sigma_g", function=function, result=result)
            turn = np.expm1(depth * np.log1p(np.abs(rate) * largest))
            value = turn * (slope + (1.0 + turn) * np.hypot(slope, noise / np.sqrt(size)))
            known += ["B6g", "B7"]
        value = np.where(np.isnan(value), np.inf, value)  # 0 times a power that overflowed
    return bound(
        value,
        name="distance between the MAML gradient and the joint gradient",
        source=result,
        assumptions=conditions(constants, value, *known),
        reason=overflow_reason(value),
    )


def maml_gradient_bound(drs_gradient: Any, constants: Constants, *, inner_lr: Any) -> Any:
    """A bound on the MAML gradient at a point from the joint gradient there, one inner step.

    kappa^2 |joint gradient| + e_mod (see `modelling_gradient`), population inner step. For N-sample
    steps add `gradient_bias`.

    Args:
        drs_gradient: norm of the joint objective's gradient.
        constants: as in `modelling_gradient`.
        inner_lr: number or array, any sign.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: a constant that is needed is missing, or an argument is out of range.

    Assumes:
        B2, B3, B4 and B5, one population inner step. Checked: the constants needed are given and
        in range. Not checked: that they hold.

    Source:
        Result 27, refined form (own).

    >>> b0 = Constants(L_plus=1.0, ell=0.5, rho=2.0, G=1.0, sigma_gamma=0.6, sigma_Hgamma=0.3)
    >>> round(maml_gradient_bound(0.2, b0, inner_lr=0.1), 12)
    0.2646
    """
    slope = claimed(drs_gradient, function="maml_gradient_bound", name="drs_gradient")
    left = modelling_gradient(constants, inner_lr=inner_lr)
    rate = array(inner_lr, function="maml_gradient_bound", name="inner_lr")
    value = task_kappa(Numbers(constants), rate) ** 2 * slope + left
    return bound(
        value,
        name="norm of the MAML gradient",
        source="Result 27",
        assumptions=conditions(constants, value, "B2", "B3", "B4", "B5g", "B5H"),
    )
