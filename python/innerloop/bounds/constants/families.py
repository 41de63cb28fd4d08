"""Constants known by analysis: one layer of weights with bounded inputs (Result 35)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from innerloop.bounds._quantities import given
from innerloop.bounds._results import Assumption, Record
from innerloop.bounds._standing import joined, weakest
from innerloop.bounds.constants._estimate import Estimate, Origin


@dataclasses.dataclass(frozen=True)
class FamilyConstants(Record):
    """Constants of every sample's loss phi(x.theta; y), hence of every task's risk.

    They are certified for all samples within the radius (and target) given. That yours are, and
    that your model is of this kind, is your word: in a bound they stand as "assumed", or as the
    radius does where it is an estimate.

    Args:
        G: bound of the gradient norm. L_plus, ell: curvature lies in [-ell, L_plus].
        L: max of the two. rho: Lipschitz constant of the Hessian.
    """

    G: Estimate
    L_plus: Estimate
    ell: Estimate
    L: Estimate
    rho: Estimate

    def explain(self) -> str:
        """Every constant and how it was obtained."""
        return "\n".join(c.explain() for c in (self.G, self.L_plus, self.ell, self.L, self.rho))

    def known(self) -> dict[str, Estimate]:
        """Returns a bound for each constant of assumptions B2-B7, under the names that
        `innerloop.bounds.report` takes as `known`, with the standing "assumed".

        Noise and dissimilarity are bounded by the size of what varies: E||X - EX||^2 <= E||X||^2.
        """
        return {
            "L_plus": self.L_plus,
            "ell": self.ell,
            "rho": self.rho,
            "G": self.G,
            "G2": self.G,
            "mean_gradient": self.G,
            "sigma_g": self.G,
            "sigma_gamma": self.G,
            "sigma_H": self.L,
            "sigma_Hgamma": self.L,
            "L_plus_s": self.L_plus,
            "ell_s": self.ell,
            "rho_s": self.rho,
        }


def logistic_constants(radius: float) -> FamilyConstants:
    """Returns the constants of logistic regression: "bce_with_logits" of one logit x.theta.

    Args:
        radius: bound of ||x||, with a 1 among the inputs if the layer has a bias.

    Returns:
        FamilyConstants: G = r, L_plus = r^2/4, ell = 0, rho = r^3/(6 sqrt 3), for every target in
        [0, 1] and every theta.

    Raises:
        ValueError: the radius is not a positive number.

    Assumes:
        One output, one layer of weights, inputs of at most this norm. Checked: the radius is
        positive.

    Source: Result 35.

    Example:
        >>> float(logistic_constants(2.0).L_plus)
        1.0
    """
    third = 1.0 / (6.0 * math.sqrt(3.0))
    return _family("logistic loss", {"radius": radius}, 1.0, 0.25, 0.0, third)


def tanh_constants(radius: float, target: float = 1.0) -> FamilyConstants:
    """Returns the constants of "half_mse" for one output tanh(x.theta).

    Args:
        radius: bound of ||x||, with a 1 among the inputs if the layer has a bias.
        target: bound of |y|.

    Returns:
        FamilyConstants, for every theta: exact suprema over the pre-activation and the target.

    Raises:
        ValueError: the radius is not positive or the target bound negative.

    Assumes:
        One output, one layer of weights, inputs of at most this norm, targets of at most this
        size. Checked: ranges.

    Source: Result 35. With t = tanh u the derivatives of (t - y)^2 / 2 in u are polynomials in t,
        linear in y, so that their extremes are at the roots of a derivative with |y| = target.

    Example:
        >>> round(float(tanh_constants(1.0).G), 12) == round(32 / 27, 12)
        True
    """
    bound = float(target)
    if not (bound >= 0 and math.isfinite(bound)):
        raise ValueError(f"tanh_constants: target must be finite and >= 0 (got {target!r})")
    slopes = np.polynomial.Polynomial([1.0, 0.0, -1.0])  # dt/du = 1 - t^2
    t = np.polynomial.Polynomial([0.0, 1.0])
    ranges = []
    for y in (-bound, bound):
        first = (t - y) * slopes
        second = first.deriv() * slopes
        third = second.deriv() * slopes
        ranges.append([_range(p) for p in (first, second, third)])
    low, high = np.min(ranges, axis=0)[:, 0], np.max(ranges, axis=0)[:, 1]
    size = np.maximum(-low, high)
    said = {"radius": radius, "target": target}
    return _family("half squared error of tanh", said, size[0], high[1], -low[1], size[2])


def _range(polynomial: Any) -> tuple[float, float]:
    """Returns the least and the largest value on [-1, 1]."""
    roots = polynomial.deriv().roots()
    inside = roots.real[(np.abs(roots.imag) < 1e-9) & (np.abs(roots.real) <= 1)]
    values = polynomial(np.concatenate([[-1.0, 1.0], inside]))
    return float(values.min()), float(values.max())


def _family(
    what: str, said: dict[str, float], first: float, above: float, below: float, third: float
) -> FamilyConstants:
    """Returns the labelled constants from the suprema of the derivatives of phi; `said` is what
    the caller says about the data."""
    radius = float(said["radius"])
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"{what}: radius must be positive and finite (got {radius!r})")
    origin = Origin(
        "certified",
        "upper bound",
        f"all parameters and all samples with ||x|| <= {radius:g}",
        f"derivatives of the {what} in its one pre-activation, times powers of ||x||",
        confidence=1.0,
    )
    assumed = (Assumption("one output, one layer of weights, inputs within the radius"),)
    trust = joined(given(value, name) for name, value in said.items())

    def made(name: str, value: float) -> Estimate:
        return Estimate(
            value,
            name=name,
            source="Result 35",
            origin=origin,
            assumptions=assumed,
            standing=weakest(["assumed", trust.standing]),
            rests_on=trust.rests_on,
        )

    square = radius**2
    return FamilyConstants(
        made("G, largest gradient norm", first * radius),
        made("L_plus, largest curvature", above * square),
        made("ell, most negative curvature", max(0.0, below) * square),
        made("L, largest norm of the Hessian", max(above, below) * square),
        made("rho, Lipschitz constant of the Hessian", third * radius * square),
    )
