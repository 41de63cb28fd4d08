"""Adaptation by ridge regression towards theta (implicit MAML): Result 16."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._results import Record, quantity
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.rules import InnerRule, Ridge, checked_theta
from innerloop.bounds.linear.steps import risks


def ridge_risk(
    law: TaskLaw, theta: Any, *, penalty: Any, samples: Any = None, seed: int = 0
) -> Any:
    """Returns the expected risk of a new task after a ridge fit towards theta on N fresh rows.

    The fit is argmin_u ||y - X u||^2 / (2 N) + penalty ||u - theta||^2 / 2.

    Args:
        law: distribution of tasks.
        theta: [p], initial parameters.
        penalty: lambda, positive.
        samples: N, or None for infinitely many rows. penalty and samples broadcast.
        seed: of the random points (p > 1 and finite N only).

    Returns:
        Quantity, or float64 array of the broadcast shape.

    Raises:
        TypeError: not real numbers, or not a law.
        ValueError: penalty not positive (Result 16 needs it), theta without p entries, N below 1.

    Cost:
        p = 1: a deterministic quadrature with rounding-level error, O(100 G). p > 1: 16
        randomisations of up to 2048 Sobol points, O(G p^3) each; relative standard errors of order
        1e-4 or below, which the result states.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Checked: the
        penalty is in range, and whether averages are exact, which the result states.

    Source:
        Result 16; inner problem of Rajeswaran, Finn, Kakade and Levine 2019.

    >>> from innerloop.bounds.linear import published_law
    >>> ridge_risk(published_law(), [1.0], penalty=[0.5, 2.0], samples=5).round(4)
    array([0.5622, 0.5766])
    """
    function = "ridge_risk"
    checked_theta(law, theta, function)
    pull = _arguments.array(penalty, function=function, name="penalty")
    rows = _arguments.counts(samples, function=function, name="samples", none=np.inf)
    pull, rows = np.broadcast_arrays(pull, rows)
    rules: list[InnerRule] = [Ridge(float(value)) for value in pull.ravel()]
    return risks(law, theta, rules, rows, function, "Result 16", seed)


_LEAST = 1e-300  # of an aspect or a penalty; their inverses are the largest


@dataclasses.dataclass(frozen=True)
class IsotropicRidge(Record):
    """Limits for Q = I as p and N grow with p / N -> aspect.

    Members:
        stieltjes: m(lambda), limit of tr (Qh + lambda I)^-1 / p.
        hessian: limit of lambda^2 tr (Qh + lambda I)^-2 / p: the post-update curvature.
        noise: limit of tr(T Qh T') / N: the share of the noise variance that the fit lets in.
    """

    stieltjes: Any
    hessian: Any
    noise: Any

    def explain(self) -> str:
        """The three limits."""
        return (
            f"as p and N grow: tr (Qh + lambda)^-1 / p -> {np.asarray(self.stieltjes)}, "
            f"post-update curvature -> {np.asarray(self.hessian)}, "
            f"noise share -> {np.asarray(self.noise)} (Result 16)"
        )


def isotropic_ridge_limit(aspect: Any, penalty: Any) -> IsotropicRidge:
    """Returns what ridge adaptation does for Q = I when the dimension grows with the rows.

    Args:
        aspect: c = limit of p / N, from 1e-300 to 1e300.
        penalty: lambda, in the same range. The two broadcast.

    Returns:
        IsotropicRidge: Quantities, or float64 arrays.

    Raises:
        TypeError: not real numbers.
        ValueError: aspect or penalty out of range.

    Cost:
        O(1).

    Assumes:
        Q = I, dimension and rows grow together with their ratio fixed. Checked: ranges.

    Source:
        Result 16; Marchenko and Pastur 1967 for the spectrum of Qh.

    >>> found = isotropic_ridge_limit(0.5, 0.7)
    >>> round(found.stieltjes, 6), round(found.hessian, 6)
    (0.693186, 0.271408)
    """
    c = _arguments.array(aspect, function="isotropic_ridge_limit", name="aspect")
    pull = _arguments.array(penalty, function="isotropic_ridge_limit", name="penalty")
    for name, value in (("aspect", c), ("penalty", pull)):
        if (value <= 0.0).any():
            raise ValueError(
                f"isotropic_ridge_limit: {name} must be positive (got {value.min():g}); "
                "Result 16 needs it"
            )
        bad = (value < _LEAST) | (value > 1.0 / _LEAST)
        if bad.any():
            raise ValueError(
                f"isotropic_ridge_limit: {name} must lie between {_LEAST:g} and {1.0 / _LEAST:g} "
                f"(got {value[bad][0]:g}): beyond, the limits leave float64"
            )
    # m is the positive root of c lambda m^2 + (1 - c + lambda) m = 1, and h = 1 - lambda m the
    # smaller one of c h^2 - (1 + c + lambda) h + 1 = 0, both of discriminant root^2. Neither is
    # written with a difference of nearly equal numbers.
    middle, total = 1.0 - c + pull, 1.0 + c + pull
    root = np.hypot(middle, 2.0 * np.sqrt(c) * np.sqrt(pull))
    kept = np.where(  # lambda m
        middle > 0.0, pull / (np.maximum(middle, 0.0) + root) * 2.0, (root - middle) / c / 2.0
    )
    heard = 2.0 / (total + root)  # h
    values = {
        "stieltjes": (kept / pull, "limit of tr (Qh + lambda)^-1 / p"),
        "hessian": (kept * ((pull + c * kept) / root), "limit of the post-update curvature"),
        "noise": (c / root * heard, "limit of the noise share"),
    }
    return IsotropicRidge(
        **{
            field: quantity(value, name=name, source="Result 16")
            for field, (value, name) in values.items()
        }
    )
