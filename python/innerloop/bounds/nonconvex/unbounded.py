"""The bounds without a global bound on gradients (Result 30)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from innerloop.bounds._arguments import array, counts
from innerloop.bounds._quantities import tracked
from innerloop.bounds._results import Assumption, Quantity, Record
from innerloop.bounds._standing import CERTAIN
from innerloop.bounds.nonconvex._checks import claimed, geometric_sum, positive
from innerloop.bounds.nonconvex.constants import (
    Constants,
    Numbers,
    bound,
    conditions,
    contraction,
    require,
    sample_curvature,
    sample_lipschitz,
)


@dataclasses.dataclass(frozen=True)
class InverseLink(Record):
    """|gradient of R_drs| <= slope |gradient of R_maml| + spread sigma_gamma + noise (Result 30).

    Members:
        slope: C1.
        spread: C2, the factor of sigma_gamma.
        noise: what finite supports add; 0 for population inner steps.
    """

    slope: Any
    spread: Any
    noise: Any

    def explain(self) -> str:
        """The link in plain words."""
        if not isinstance(self.slope, Quantity):
            return f"C1 = {np.array2string(np.asarray(self.slope))}  (Result 30)"
        return "\n".join(
            [
                f"|joint gradient| <= {self.slope:.6g} |MAML gradient| + {self.spread:.6g} "
                f"sigma_gamma + {self.noise:.6g}  (Result 30)",
                *(f"  {item.standing}: {item.text}" for item in self.slope.assumptions),
            ]
        )


def inverse_link(
    constants: Constants, *, inner_lr: Any, steps: Any = 1, samples: Any = None
) -> InverseLink:
    """Bounds the joint gradient by the MAML gradient, which frees Results 21 and 24 of B4.

    With q = (1 + |a| L)^2K - 1 < 1: slope 1 / (1 - q), spread q / (1 - q). For the objective with
    N-sample steps L becomes L_s and noise is u (u - 1) sigma_g / (sqrt(N) (1 - q)),
    u = (1 + |a| L_s)^K.

    Args:
        constants: needs L_plus, ell; with `samples` also L_plus_s, ell_s, sigma_g.
        inner_lr: number or array, any sign.
        steps: inner steps K; one in the literature, any number here.
        samples: support size N; None for population inner steps.

    Returns:
        InverseLink of Quantities or float64 arrays.

    Raises:
        ValueError: q >= 1 (for one step: |a| L >= sqrt(2) - 1), or a constant is missing.

    Assumes:
        B2 and B5, not B4; with samples also B6 and B7. Checked: the inner rate is small enough,
        and the constants needed are given.

    Source:
        Result 30 (own); the constants at K = 1 are those of Fallah, Mokhtari and Ozdaglar (2020).

    >>> link = inverse_link(Constants(L_plus=1.0, ell=0.5), inner_lr=0.1)
    >>> print(f"{link.slope:.12f} {link.spread:.12f}")
    1.265822784810 0.265822784810
    """
    function, result = "inverse_link", "Result 30"
    numbers, rate = Numbers(constants), array(inner_lr, function=function, name="inner_lr")
    depth = counts(steps, function=function, name="steps")
    largest, known = numbers.L, ["B2", "B5g"]
    if samples is not None:
        largest = np.maximum(*sample_curvature(numbers, function=function, result=result))
        known += ["B6g", "B7"]
    with np.errstate(over="ignore"):
        turn = np.expm1(depth * np.log1p(np.abs(rate) * largest))
        growth = turn * (2.0 + turn)
    if not np.all(growth < 1.0):
        raise ValueError(
            f"{function}: (1 + |inner_lr| L)^(2 steps) must be below 2 "
            f"(got {float(np.max(growth)) + 1.0:.4g}); {result} needs it"
        )
    slope = 1.0 / (1.0 - growth)
    noise = 0.0 * slope
    if samples is not None:
        size = counts(samples, function=function, name="samples")
        sigma = require(numbers, "sigma_g", function=function, result=result)
        noise = (1.0 + turn) * turn * slope * sigma / np.sqrt(size)
    small = Assumption("the inner rate is small: (1 + |a| L)^2K < 2", "checked")

    def named(value: Any, name: str) -> Any:
        met = (*conditions(constants, value, *known), small)
        return bound(value, name=name, source=result, assumptions=met)

    return InverseLink(
        named(slope, "factor C1 of the MAML gradient"),
        named(growth * slope, "factor C2 of sigma_gamma"),
        named(noise, "contribution of finite supports"),
    )


@dataclasses.dataclass(frozen=True)
class RelativeConstants(Record):
    """Smoothness and variance of the MAML objective that grow with its gradient u = |gradient|.

    Members:
        smoothness: (L0, L1): Lambda(theta) <= L0 + L1 u, u at either end point.
        variance: (V0^2, V1): V^2(theta) <= V0^2 + V1 u^2.
        least: what Lambda(theta) is at least, kappa_s^2K L.
        assumptions: what both rest on.
    """

    smoothness: tuple[float, float]
    variance: tuple[float, float]
    least: float
    assumptions: tuple[Assumption, ...]

    def explain(self) -> str:
        """Both in plain words."""
        (flat, slope), (base, growth) = self.smoothness, self.variance
        return "\n".join(
            [
                f"with u = |MAML gradient|: smoothness <= {flat:.6g} + {slope:.6g} u, "
                f"variance <= {base:.6g} + {growth:.6g} u^2  (Result 30)",
                *(f"  {item.standing}: {item.text}" for item in self.assumptions),
            ]
        )


def relative_constants(
    constants: Constants, *, inner_lr: float, samples: int, queries: int, steps: int = 1
) -> RelativeConstants:
    """Results 21 and 24 for the N-sample MAML objective, freed of the bound on gradients.

    `inverse_link` gives G2 <= C1 u + (1 + C2) sigma_gamma + noise. With sqrt(x^2 + y^2) <= x + y
    both Lambda_N and c1 of Result 24 are affine in G2; the square of c1 is split by
    (x + y)^2 <= 2 x^2 + 2 y^2.

    Args:
        constants: needs L_plus, ell, rho_s, L_plus_s, ell_s, sigma_g, sigma_gamma.
        inner_lr, samples, queries, steps: as in `maml_variance`, single numbers.

    Returns:
        RelativeConstants.

    Raises:
        ValueError: a constant is missing, or the inner rate is too large for Result 30.

    Assumes:
        B2, B3, B5, B6 and B7, not B4. Checked: the inner rate is small enough, and the constants
        needed are given.

    Source:
        Result 30 (own).

    >>> c = Constants(L_plus=1.0, ell=0.5, sigma_g=0.5, sigma_gamma=0.6, L_plus_s=1.0, ell_s=0.5,
    ...               rho_s=2.0)
    >>> made = relative_constants(c, inner_lr=0.1, samples=4, queries=4)
    >>> print(f"{made.smoothness[0]:.4f} + {made.smoothness[1]:.4f} u")
    1.2743 + 0.2658 u
    """
    function, result = "relative_constants", "Result 30"
    rate = array(inner_lr, function=function, name="inner_lr", ndim=0)
    depth = counts(steps, function=function, name="steps")
    link = inverse_link(constants, inner_lr=rate, steps=depth, samples=samples)
    numbers = Numbers(constants)
    above, below = sample_curvature(numbers, function=function, result=result)
    rho = sample_lipschitz(numbers, function=function, result=result)
    between = require(numbers, "sigma_gamma", function=function, result=result)
    sigma = require(numbers, "sigma_g", function=function, result=result)
    slope, further, noise_of_link = (
        tracked(item, CERTAIN) for item in (link.slope, link.spread, link.noise)
    )
    noise = sigma / np.sqrt(counts(samples, function=function, name="samples"))
    asked = counts(queries, function=function, name="queries")
    size = np.abs(rate)
    stretch = contraction(above, below, rate)
    turn = (1.0 + size * np.maximum(above, below)) ** depth
    reach, drift = (stretch, size * numbers.L) if depth == 1.0 else (turn, turn - 1.0)
    base = (1.0 + further) * between + noise_of_link  # G2 <= C1 u + base
    curved = size * rho * stretch ** (depth - 1.0) * geometric_sum(stretch, depth)
    least = stretch ** (2.0 * depth) * numbers.L
    spread = between + (turn**2 - 1.0) * base + turn * (turn - 1.0) * noise
    flat = least + curved * (drift * noise + reach * base)
    quiet = stretch ** (2.0 * depth) * sigma**2 / asked + 2.0 * spread**2

    def named(value: Any, name: str) -> Any:
        return bound(value, name=name, source=result)

    return RelativeConstants(
        smoothness=(
            named(flat, "smoothness at gradient 0"),
            named(curved * reach * slope, "smoothness per MAML gradient"),
        ),
        variance=(
            named(quiet, "variance at gradient 0"),
            named(2.0 * ((turn**2 - 1.0) * slope) ** 2, "variance per squared MAML gradient"),
        ),
        least=named(least, "least smoothness"),
        assumptions=(
            *conditions(constants, flat + quiet, "B2", "B5g", "B6g", "B7"),
            *link.slope.assumptions[-1:],
        ),
    )


def adaptive_sgd_bound(
    known: RelativeConstants, *, gap: Any, updates: Any, batch: Any = 1, caution: Any = None
) -> Any:
    """A bound on the mean over T updates of E|MAML gradient| without any bound on gradients.

    For SGD with steps 1 / (c Lambda(theta_t)), where Lambda(theta) is Result 21 with the gradient
    norm at theta itself: u <= (r L1 + sqrt(r^2 L1^2 + 4 r L0)) / 2 with
    r = 2 c gap / T + V0^2 / (c B least) for any c >= 1 + V1 / B.

    Args:
        known: from `relative_constants`.
        gap: initial gap of the MAML objective.
        updates: T, a whole number.
        batch: B, tasks per update.
        caution: c; None for the c that makes the bound smallest.

    Returns:
        Quantity or float64 array (of the norm, not of its square).

    Raises:
        ValueError: an argument is out of range, or `caution` is below 1 + V1 / B.

    Assumes:
        Those of `relative_constants` along the iterates; steps are independent of the gradient
        noise. Checked: ranges.

    Source:
        Result 30 (own; proof in docs/theory/nonconvex.md). The idea of steps that follow the local
        smoothness is that of Fallah, Mokhtari and Ozdaglar (2020).

    >>> flat = RelativeConstants((1.0, 0.0), (0.0, 0.0), 1.0, ())
    >>> round(adaptive_sgd_bound(flat, gap=2.0, updates=100), 12)
    0.2
    """
    function = "adaptive_sgd_bound"
    height = claimed(gap, function=function, name="gap")
    count = counts(updates, function=function, name="updates")
    tasks = counts(batch, function=function, name="batch")
    flat, slope, base, growth, least = (
        claimed(value, function=function, name=name)
        for name, value in (
            ("smoothness", known.smoothness[0]),
            ("smoothness", known.smoothness[1]),
            ("variance", known.variance[0]),
            ("variance", known.variance[1]),
            ("least", known.least),
        )
    )
    least_caution = 1.0 + growth / tasks
    floor = base / (tasks * least)
    if caution is None:
        with np.errstate(divide="ignore", invalid="ignore"):
            best = np.sqrt(floor * count / (2.0 * height))
        c = np.maximum(least_caution, np.where(floor == 0.0, 0.0, best))
    else:
        c = positive(caution, function=function, name="caution")
        if np.any(c < least_caution):
            raise ValueError(
                f"{function}: caution must be at least 1 + V1 / batch "
                f"(= {float(np.max(least_caution)):.6g}); Result 30 needs it"
            )
    with np.errstate(invalid="ignore"):
        travel = np.where(height == 0.0, 0.0, 2.0 * c * height / count)
    r = travel + floor / c
    return bound(
        (r * slope + np.sqrt((r * slope) ** 2 + 4.0 * r * flat)) / 2.0,
        name="mean expected norm of the MAML gradient under adaptive steps",
        source="Result 30",
        assumptions=(
            *known.assumptions,
            Assumption("steps are 1 / (c Lambda(theta_t)), independent of the gradient noise"),
        ),
    )
