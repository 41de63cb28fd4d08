"""What stochastic gradient descent reaches in a given number of updates (Result 25)."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds._arguments import array, counts
from innerloop.bounds._results import Assumption
from innerloop.bounds.nonconvex._checks import claimed, positive
from innerloop.bounds.nonconvex.constants import bound

_SMOOTH = (
    Assumption("the objective has the given smoothness on the segments between iterates"),
    Assumption("the initial gap bounds the objective at the start minus its infimum"),
    Assumption("given the iterate, gradients have at most the given variance (of one task)"),
)
_UNBIASED = (*_SMOOTH, Assumption("stochastic gradients are unbiased"))


def best_rate(
    *,
    smoothness: Any,
    gap: Any,
    variance: Any,
    updates: Any,
    batch: Any = 1,
    slope: Any = 0.0,
    bias: Any = None,
) -> Any:
    """The constant learning rate for which the SGD bound is smallest.

    Unbiased: 1 / (c + sqrt(c^2 + Lambda V^2 T / (2 B gap))) with c = Lambda (1 + slope / B) / 2.
    Biased: min(1 / Lambda, sqrt(2 gap B / (Lambda V^2 T))).

    Args:
        smoothness: Lambda of the objective, positive.
        gap: objective at the start minus its infimum (or a lower bound of it).
        variance: V^2, variance of one task's gradient.
        updates: T, a whole number of updates.
        batch: B, tasks per update.
        slope: V_1, if the variance is at most V^2 + V_1 |gradient|^2; unbiased gradients only.
        bias: bound on the bias of the gradients; None for unbiased ones. Its size does not matter
            here.

    Returns:
        Quantity or float64 array; 0 where the gap is 0 and gradients are noisy (do not move).

    Raises:
        ValueError: an argument is out of range, or `slope` together with `bias`.

    Assumes:
        The objective has this smoothness on the segments between iterates, gap bounds its value at
        the start above its infimum, and gradients have at most this variance given the iterate and
        no (or the stated) bias. Checked: ranges.

    Source:
        Result 25 (b), (d), (e).

    >>> round(best_rate(smoothness=1.0, gap=2.0, variance=0.39125, updates=1000, batch=8), 12)
    0.248002477208
    """
    given = _checked("best_rate", smoothness, gap, variance, updates, batch, slope)
    _not_both("best_rate", slope, bias)
    value = _unbiased_rate(*given) if bias is None else _biased_rate(*given[:4])
    return bound(
        value,
        name="best constant learning rate",
        source="Result 25 (d)" if bias is not None else "Result 25 (b)",
        assumptions=_SMOOTH if bias is not None else _UNBIASED,
    )


def sgd_bound(
    *,
    smoothness: Any,
    gap: Any,
    variance: Any,
    updates: Any,
    batch: Any = 1,
    slope: Any = 0.0,
    bias: Any = None,
    rate: Any = None,
) -> Any:
    """A bound on the mean over T updates of the expected squared gradient norm.

    Unbiased gradients, best constant rate: y + sqrt(y^2 + 2 x V^2 / B) with x = Lambda gap / T and
    y = x (1 + slope / B). Given rate h: (gap / (h T) + Lambda h V^2 / (2B)) /
    (1 - Lambda h (1 + slope / B) / 2). Biased gradients: 2 gap / (h T) + h Lambda V^2 / B + bias^2.

    Args:
        smoothness, gap, variance, updates, batch, slope, bias: as in `best_rate`.
        rate: constant learning rate; None for the best one.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: an argument is out of range; in particular a rate of 2 / (Lambda (1 + slope/B))
            or more, or above 1 / Lambda with biased gradients, for which the result says nothing.

    Assumes:
        As for `best_rate`. Checked: ranges, and a rate for which the result says something.

    Source:
        Result 25: (a), (b) and (e) in the form of Ghadimi and Lan (2013) with every constant
        explicit, (d) for biased gradients.

    >>> round(sgd_bound(smoothness=1.0, gap=2.0, variance=0.39125, updates=1000, batch=8), 12)
    0.016128871151
    """
    given = _checked("sgd_bound", smoothness, gap, variance, updates, batch, slope)
    _not_both("sgd_bound", slope, bias)
    offset = None if bias is None else claimed(bias, function="sgd_bound", name="bias")
    step = None if rate is None else positive(rate, function="sgd_bound", name="rate")
    if offset is not None:
        value, source = _biased_bound(*given[:4], offset, step), "Result 25 (d)"
    elif step is not None:
        value, source = _given_rate(*given, step), "Result 25 (a)"
    else:
        curvature, height, noise, count, growth = given
        x = curvature * height / count
        y = x * (1.0 + growth)
        value, source = y + np.sqrt(y**2 + 2.0 * x * noise), "Result 25 (b)"
    return bound(
        value,
        name="mean expected squared gradient norm of SGD",
        source=source,
        assumptions=_UNBIASED if offset is None else _SMOOTH,
    )


def updates_needed(
    *,
    epsilon: Any,
    smoothness: Any,
    gap: Any,
    variance: Any,
    batch: Any = 1,
    slope: Any = 0.0,
    bias: Any = None,
) -> Any:
    """The number of updates after which the SGD bound with its best rate is at most epsilon^2.

    Unbiased: 2 Lambda gap (epsilon^2 (1 + slope / B) + V^2 / B) / epsilon^4, the exact inverse of
    `sgd_bound`. Biased: the exact inverse as well, infinite for epsilon <= bias. Where the inverse
    is below one update, one update suffices.

    Args:
        epsilon: target for the root mean square gradient norm, positive.
        smoothness, gap, variance, batch, slope, bias: as in `best_rate`.

    Returns:
        Quantity or float64 array of at least 1, not rounded: every whole number from there on
        suffices, and the first of them, its `numpy.ceil`, is what `sgd_bound` takes as `updates`.

    Raises:
        ValueError: an argument is out of range, or `slope` together with `bias`.

    Assumes:
        As for `best_rate`. Checked: ranges; infinite where epsilon does not exceed the bias.

    Source:
        Result 25 (c); the inverses of (d) and (e) are this project's own.

    >>> round(updates_needed(epsilon=0.1, smoothness=1.0, gap=2.0, variance=0.39125, batch=8), 9)
    2356.25
    """
    function = "updates_needed"
    target = positive(epsilon, function=function, name="epsilon") ** 2
    curvature, height, noise, _, growth = _checked(
        function, smoothness, gap, variance, 1, batch, slope
    )
    _not_both(function, slope, bias)
    reason = None
    if bias is None:
        value = 2.0 * curvature * height * (target * (1.0 + growth) + noise) / target**2
    else:
        room = target - claimed(bias, function=function, name="bias") ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            noisy = 8.0 * curvature * height * noise / room**2
            quiet = 2.0 * curvature * height / (room - noise)
        value = np.where(room <= 2.0 * noise, noisy, quiet)
        value = np.where(room <= 0.0, np.inf, value)
        if np.ndim(value) == 0 and not np.isfinite(value):
            reason = "the bias alone is at least epsilon: no number of updates is known to suffice"
    value = np.maximum(value, 1.0)
    return bound(
        value,
        name="updates until the root mean square gradient norm is at most epsilon",
        source="Result 25 (c)",
        assumptions=_UNBIASED if bias is None else _SMOOTH,
        reason=reason,
    )


def _checked(
    function: str, smoothness: Any, gap: Any, variance: Any, updates: Any, batch: Any, slope: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """Lambda, gap, V^2 / B, T and V_1 / B."""
    tasks = counts(batch, function=function, name="batch")
    count = counts(updates, function=function, name="updates")
    return (
        claimed(smoothness, function=function, name="smoothness", above_zero=True),
        claimed(gap, function=function, name="gap"),
        claimed(variance, function=function, name="variance") / tasks,
        count,
        _growth(function, slope) / tasks,
    )


def _growth(function: str, slope: Any) -> Any:
    """V_1; left at 0 it is nobody's constant, the variance is bounded."""
    if type(slope) in (int, float) and slope == 0:
        return np.zeros(())
    return claimed(slope, function=function, name="slope")


def _not_both(function: str, slope: Any, bias: Any) -> None:
    """Result 25 (d) has no affine version."""
    if bias is not None and array(slope, function=function, name="slope").any():
        raise ValueError(
            f"{function}: slope must be 0 when bias is given; Result 25 (d) needs bounded variance"
        )


def _unbiased_rate(curvature: Any, height: Any, noise: Any, count: Any, growth: Any) -> Any:
    """Best rate for unbiased gradients; 0 where only noise is left."""
    half = curvature * (1.0 + growth) / 2.0
    with np.errstate(divide="ignore", invalid="ignore"):
        extra = curvature * noise * count / (2.0 * height)
    extra = np.where(noise == 0.0, 0.0, extra)
    return 1.0 / (half + np.sqrt(half**2 + extra))


def _biased_rate(curvature: Any, height: Any, noise: Any, count: Any) -> Any:
    """Best rate not above 1 / Lambda for biased gradients."""
    with np.errstate(divide="ignore", invalid="ignore"):
        free = np.sqrt(2.0 * height / (curvature * noise * count))
    return np.minimum(1.0 / curvature, np.where(noise == 0.0, np.inf, free))


def _biased_bound(curvature: Any, height: Any, noise: Any, count: Any, bias: Any, rate: Any) -> Any:
    """Result 25 (d) at the given or the best rate."""
    if rate is None:
        step = _biased_rate(curvature, height, noise, count)
    else:
        step = rate
        if (step * curvature > 1.0 + 1e-12).any():
            raise ValueError(
                "sgd_bound: rate must be at most 1 / smoothness; Result 25 (d) needs it"
            )
    with np.errstate(divide="ignore", invalid="ignore"):
        travel = np.where(height == 0.0, 0.0, 2.0 * height / (step * count))
    return travel + step * curvature * noise + bias**2


def _given_rate(curvature: Any, height: Any, noise: Any, count: Any, growth: Any, rate: Any) -> Any:
    """Result 25 (a), with affine variance."""
    left = 1.0 - curvature * rate * (1.0 + growth) / 2.0
    if (left <= 0.0).any():
        raise ValueError(
            "sgd_bound: rate must be below 2 / (smoothness (1 + slope / batch)); "
            "Result 25 (a) needs it"
        )
    return (height / (rate * count) + curvature * rate * noise / 2.0) / left
