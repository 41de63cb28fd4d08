"""Smoothness of the MAML objective (Result 21)."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds._arguments import array, counts
from innerloop.bounds.nonconvex._checks import claimed, geometric_sum
from innerloop.bounds.nonconvex.constants import (
    Constants,
    Numbers,
    bound,
    conditions,
    contraction,
    overflow_reason,
    require,
    rms_gradient,
    sample_curvature,
    sample_lipschitz,
    task_kappa,
)


def kappa(constants: Constants, *, inner_lr: Any, per_sample: bool = False) -> Any:
    """The factor kappa by which one inner step can stretch a difference of parameters.

    kappa = max(|1 - inner_lr L_plus|, |1 + inner_lr ell|); it is 1 for convex tasks and
    0 <= inner_lr <= 2 / L_plus, and at least 1 always.

    Args:
        constants: needs the curvature interval.
        inner_lr: number or array, any sign.
        per_sample: use the curvature of single samples (B7), as for steps on a finite support.

    Returns:
        Quantity, or float64 array of the shape of `inner_lr`.

    Raises:
        ValueError: `inner_lr` not finite, or `per_sample` without L_plus_s and ell_s.

    Assumes:
        B2 (per_sample: B7). Checked: the constants needed are given and in range. Not checked:
        that they hold.

    Source:
        Result 21 (own).

    >>> float(kappa(Constants(L_plus=1.0, ell=0.5), inner_lr=0.1))
    1.05
    """
    numbers, rate = Numbers(constants), array(inner_lr, function="kappa", name="inner_lr")
    if per_sample:
        interval = sample_curvature(numbers, function="kappa", result="Result 21")
    else:
        interval = (numbers.L_plus, numbers.ell)
    value = contraction(*interval, rate)
    return bound(
        value,
        name="stretching factor of one inner step",
        source="Result 21",
        assumptions=conditions(constants, value, "B7" if per_sample else "B2"),
    )


def maml_smoothness(
    constants: Constants,
    *,
    inner_lr: Any,
    steps: Any = 1,
    samples: Any = None,
    gradient_norm: Any = None,
    sharp: bool = False,
) -> Any:
    """The Lipschitz constant Lambda of the MAML objective's gradient.

    Population inner steps: kappa^2K L + |a| rho kappa^(2K-1) (sum_{j<K} kappa^j) g, where g bounds
    the mean over tasks of the gradient norms. It may be taken at one of the two end points only.
    N-sample inner steps: the same with the curvature of single samples and a noise term.

    Args:
        constants: needs L_plus, ell, rho, G2 (or G); with `samples` also L_plus_s, ell_s, rho_s,
            sigma_g.
        inner_lr: number or array, any sign.
        steps: inner steps K, at least 1.
        samples: support size N; None for population inner steps.
        gradient_norm: mean over tasks of the gradient norms at one end point, instead of G2; for
            several steps on N samples their root mean square.
        sharp: for several steps on N samples, the smaller noise term that
            docs/theory/nonconvex.md proves; other cases do not change.

    Returns:
        Quantity, or float64 array of the broadcast shape of the arguments.

    Raises:
        ValueError: a constant that is needed is missing, or an argument is out of range.

    Cost:
        A few operations per entry.

    Assumes:
        B2, B3, and B4 or the gradient norms given; with samples also B6 and B7. Checked: the
        constants needed are given and in range. Not checked: that they hold.

    Source:
        Result 21 (own). With kappa = 1 + |a| L it is the form used for one step by Fallah, Mokhtari
        and Ozdaglar (2020) and for K steps by Ji, Yang and Liang (2022).

    >>> b0 = Constants(L_plus=1.0, ell=0.5, rho=2.0, G=1.0)
    >>> round(maml_smoothness(b0, inner_lr=0.1), 12)
    1.3125
    """
    function, result = "maml_smoothness", "Result 21"
    numbers, rate = Numbers(constants), array(inner_lr, function=function, name="inner_lr")
    depth = counts(steps, function=function, name="steps")
    size = counts(samples, function=function, name="samples", none=np.inf)
    if gradient_norm is None:
        slope = rms_gradient(numbers, function=function, result=result)
        known = ["B2", "B3", "B4"]
    else:
        slope = claimed(gradient_norm, function=function, name="gradient_norm")
        known = ["B2", "B3"]
    rho = require(numbers, "rho", function=function, result=result)
    with np.errstate(over="ignore", invalid="ignore"):
        value = _population(numbers, rate, depth, slope, rho)
        if not np.isinf(size).all():
            finite = _finite(numbers, rate, depth, size, slope, sharp)
            value = np.where(np.isinf(size), value, finite)
            known += ["B6g", "B7"]
        value = np.where(np.isnan(value), np.inf, value)  # 0 times a power that overflowed
    return bound(
        value,
        name="smoothness of the MAML objective",
        source=result,
        assumptions=conditions(constants, value, *known),
        reason=overflow_reason(value),
    )


def _population(numbers: Numbers, rate: Any, depth: Any, slope: Any, rho: Any) -> Any:
    """Lambda for population inner steps."""
    stretch = task_kappa(numbers, rate)
    curved = np.abs(rate) * rho * stretch ** (2.0 * depth - 1.0) * geometric_sum(stretch, depth)
    return stretch ** (2.0 * depth) * numbers.L + curved * slope


def _finite(numbers: Numbers, rate: Any, depth: Any, size: Any, slope: Any, sharp: bool) -> Any:
    """Lambda_N for inner steps on `size` samples; one step has its own, smaller form."""
    function, result = "maml_smoothness", "Result 21"
    above, below = sample_curvature(numbers, function=function, result=result)
    rho = sample_lipschitz(numbers, function=function, result=result)
    noise = require(numbers, "sigma_g", function=function, result=result) / np.sqrt(size)
    stretch = contraction(above, below, rate)
    summed = geometric_sum(stretch, depth)
    drift = drift_factor(numbers.L, np.maximum(above, below), rate, depth, stretch, sharp)
    several = slope + drift * np.hypot(slope, noise)
    one = stretch * slope + np.abs(rate) * numbers.L * noise
    reached = np.where(depth == 1.0, one, several)
    curved = np.abs(rate) * rho * stretch ** (depth - 1.0) * summed * reached
    return stretch ** (2.0 * depth) * numbers.L + curved


def drift_factor(
    curvature: Any, sample_bound: Any, rate: Any, depth: Any, stretch: Any, sharp: bool
) -> Any:
    """How much K inner steps change a gradient, over the norm of the first empirical gradient.

    |a| L sum_{j<K} kappa_s^j if `sharp`, else the larger (1 + |a| L_s)^K - 1.
    """
    if sharp:
        return np.abs(rate) * curvature * geometric_sum(stretch, depth)
    return np.expm1(depth * np.log1p(np.abs(rate) * sample_bound))
