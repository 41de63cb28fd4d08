"""Variance of the stochastic gradients of both methods (Result 24)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from innerloop.bounds._arguments import array, counts
from innerloop.bounds._quantities import tracked
from innerloop.bounds._standing import CERTAIN
from innerloop.bounds.nonconvex.constants import (
    Constants,
    Numbers,
    bound,
    conditions,
    contraction,
    mean_gradient,
    overflow_reason,
    require,
    rms_gradient,
    sample_curvature,
    task_kappa,
)
from innerloop.bounds.nonconvex.smoothness import drift_factor


class VarianceTerms(NamedTuple):
    """The parts of V^2 = query + min(about_mean, about_zero, about_steps)^2, as `maml_variance`.

    Members:
        query: kappa_s^2K sigma_g^2 / N_o, the noise of the query samples.
        about_mean: c1, spread about the joint gradient.
        about_zero: c2, size of the gradient itself.
        about_steps: c3, spread about the joint gradient seen through the mean inner step; one
            inner step only. A term whose constants are not all given is infinite.
    """

    query: Any
    about_mean: Any
    about_zero: Any
    about_steps: Any


def variance_terms(
    constants: Constants,
    *,
    inner_lr: Any,
    samples: Any,
    queries: Any,
    steps: Any = 1,
    sharp: bool = False,
) -> VarianceTerms:
    """The parts of the variance bound of one task's stochastic MAML gradient.

    Arguments and errors as `maml_variance`.

    Assumes:
        B2-B7, each term its own. Checked: the constants needed are given and in range. Not
        checked: that they hold.

    Source:
        Result 24 (own).

    >>> b0 = Constants(L_plus=1.0, ell=0.5, rho=2.0, G=1.0, sigma_g=0.5, sigma_H=0.8,
    ...                sigma_gamma=0.6, sigma_Hgamma=0.3, L_plus_s=1.0, ell_s=0.5)
    >>> round(float(variance_terms(b0, inner_lr=0.1, samples=4, queries=4).about_steps), 12)
    0.80825
    """
    function, result = "maml_variance", "Result 24"
    numbers, rate = Numbers(constants), array(inner_lr, function=function, name="inner_lr")
    depth = counts(steps, function=function, name="steps")
    size = counts(samples, function=function, name="samples", none=np.inf)
    asked = counts(queries, function=function, name="queries", none=np.inf)
    above, below = sample_curvature(numbers, function=function, result=result)
    largest = np.maximum(above, below)
    noise = require(numbers, "sigma_g", function=function, result=result)
    rms = rms_gradient(numbers, function=function, result=result)
    stretch = contraction(above, below, rate)
    with np.errstate(over="ignore", invalid="ignore"):
        power = stretch**depth
        query = power**2 * noise**2 / asked
        drift = drift_factor(numbers.L, largest, rate, depth, stretch, sharp)
        turn = drift_factor(largest, largest, rate, depth, stretch, sharp)
        outer = power if sharp else 1.0 + turn
        empirical = np.hypot(rms, noise / np.sqrt(size))
        about_zero = power * (rms + drift * empirical)
        about_mean = about_zero + np.inf
        if numbers.sigma_gamma is not None:
            about_mean = numbers.sigma_gamma + turn * rms + outer * drift * empirical
        about_steps = about_zero + np.inf
        if np.any(depth == 1.0) and _known(numbers, *_STEPS):
            single = _about_steps(numbers, rate, size, largest, stretch, sharp)
            about_steps = np.where(depth == 1.0, single, np.inf)
    parts = {"query noise": query, "c1": about_mean, "c2": about_zero, "c3": about_steps}
    shape = np.broadcast_shapes(*map(np.shape, parts.values()))
    return VarianceTerms(
        *(
            bound(
                # 0 times a power that overflowed is no number
                np.broadcast_to(np.where(np.isnan(part), np.inf, part), shape),
                name=f"{name} of the variance of MAML gradients",
                source=result,
            )
            for name, part in parts.items()
        )
    )


_STEPS = ("rho", "sigma_gamma", "sigma_Hgamma", "sigma_g", "sigma_H")


def _known(numbers: Numbers, *names: str) -> bool:
    """Whether all of the constants are given."""
    return all(getattr(numbers, name) is not None for name in names)


def _about_steps(
    numbers: Numbers, rate: Any, size: Any, sample_bound: Any, sampled: Any, sharp: bool
) -> Any:
    """c3, when every constant it needs is given."""
    rho, between, between_H, noise, noise_H = (getattr(numbers, name) for name in _STEPS)
    rms = rms_gradient(numbers, function="maml_variance", result="Result 24")
    mean = mean_gradient(numbers, function="maml_variance", result="Result 24")
    size_of = np.abs(rate)
    stretch = task_kappa(numbers, rate)
    tasks = stretch**2 * between + mean * (
        2.0 * size_of * stretch * between_H + stretch * rate**2 * rho * rms / 2.0
    )
    hessian = size_of * stretch * rms * noise_H
    if sharp:
        moved = size_of * sampled * numbers.L
    else:
        moved = 2.0 * rate**2 * numbers.L * sample_bound + size_of * stretch * numbers.L
    return tasks + (hessian + moved * noise) / np.sqrt(size)


def maml_variance(
    constants: Constants,
    *,
    inner_lr: Any,
    samples: Any,
    queries: Any,
    steps: Any = 1,
    sharp: bool = False,
) -> Any:
    """A bound V^2 on E|g - E g|^2 for the stochastic MAML gradient g of one random task.

    V^2 = kappa_s^2K sigma_g^2 / N_o + min(c1, c2, c3)^2; see `variance_terms`. A step that averages
    B independent tasks has variance V^2 / B.

    Args:
        constants: needs L_plus, ell, L_plus_s, ell_s, sigma_g, G2 (or G). sigma_gamma lets c1
            compete; rho, sigma_Hgamma and sigma_H as well let c3.
        inner_lr: number or array, any sign.
        samples: support size N; None for population steps.
        queries: query samples N_o; None for exact query gradients.
        steps: inner steps K, at least 1.
        sharp: use the smaller forms of c1, c2 and c3 that docs/theory/nonconvex.md proves.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: a constant that is needed is missing, or an argument is out of range.

    Assumes:
        B2-B7, as far as the terms of the minimum need them. Checked: the constants needed are
        given and in range. Not checked: that they hold.

    Source:
        Result 24 (own).

    >>> b0 = Constants(L_plus=1.0, ell=0.5, rho=2.0, G=1.0, sigma_g=0.5, sigma_H=0.8,
    ...                sigma_gamma=0.6, sigma_Hgamma=0.3, L_plus_s=1.0, ell_s=0.5)
    >>> round(maml_variance(b0, inner_lr=0.1, samples=4, queries=4), 10)
    0.7221743125
    """
    terms = variance_terms(
        constants, inner_lr=inner_lr, samples=samples, queries=queries, steps=steps, sharp=sharp
    )
    query, about_mean, about_zero, about_steps = (tracked(term, CERTAIN) for term in terms)
    least = np.minimum(np.minimum(about_mean, about_zero), about_steps)
    with np.errstate(over="ignore"):
        value = query + least**2
    known = ["B2", "B4", "B6g", "B7"]
    if constants.sigma_gamma is not None:
        known.append("B5g")
    if np.isfinite(about_steps).any():
        known += ["B3", "B5H", "B6H"]
    return bound(
        value,
        name="variance of one task's stochastic MAML gradient",
        source="Result 24",
        assumptions=conditions(constants, value, *known),
        reason=overflow_reason(value),
    )


def drs_variance(constants: Constants, *, samples: Any) -> Any:
    """A bound on the variance of the stochastic joint gradient of one random task.

    sigma_gamma^2 + sigma_g^2 / n.

    Args:
        constants: needs sigma_gamma and sigma_g.
        samples: samples n of the task; None for its exact gradient.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: a constant that is needed is missing, or an argument is out of range.

    Assumes:
        B5 and B6. Checked: the constants needed are given and in range. Not checked: that they
        hold.

    Source:
        Result 24 (classical part).

    >>> round(drs_variance(Constants(L_plus=1.0, ell=0.0, sigma_gamma=0.6, sigma_g=0.5),
    ...                    samples=8), 9)
    0.39125
    """
    function, result = "drs_variance", "Result 24"
    size = counts(samples, function=function, name="samples", none=np.inf)
    numbers = Numbers(constants)
    between = require(numbers, "sigma_gamma", function=function, result=result)
    noise = require(numbers, "sigma_g", function=function, result=result)
    value = between**2 + noise**2 / size
    return bound(
        value,
        name="variance of one task's stochastic joint gradient",
        source=result,
        assumptions=conditions(constants, value, "B5g", "B6g"),
    )
