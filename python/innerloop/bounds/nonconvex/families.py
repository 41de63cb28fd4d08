"""Families of tasks whose constants are known by analysis: tanh regression and logistic loss.

Every task is a finite set of samples with probabilities, so expectations are finite sums and each
inequality of this package can be checked exactly (`enumeration`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from innerloop.bounds._arguments import Array, array
from innerloop.bounds._quantities import computed
from innerloop.bounds._results import Quantity
from innerloop.bounds._standing import CERTAIN
from innerloop.bounds.nonconvex.constants import Constants

_ROUNDING = 1.0 + 1e-12  # suprema are maxima of polynomials found in floating point


class Suprema(NamedTuple):
    """Largest |f'|, f'', -f'' (at least 0) and |f'''| over all arguments, per sample: [G, A]."""

    slope: Array
    above: Array
    below: Array
    third: Array


@dataclasses.dataclass(frozen=True)
class Family:
    """Tasks with losses f(x . theta, y) on finitely many samples each; a base class.

    Shapes: G tasks, A samples per task, p parameters. Methods that take `theta` accept
    [..., 1, p] (the same parameters for all tasks) or [..., G, p] (parameters per task).

    Args:
        x: [G, A, p] inputs.
        y: [G, A] targets.
        chances: [G, A] probability of each sample in its task; equal by default.
        weights: [G] probability of each task; equal by default.

    Raises:
        ValueError: shapes that do not fit, probabilities that are not, targets out of range.
    """

    x: Array
    y: Array
    chances: Any = None
    weights: Any = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        x = array(self.x, function=name, name="x", ndim=3)
        tasks, atoms = x.shape[:2]
        y = array(self.y, function=name, name="y", ndim=2)
        if y.shape != (tasks, atoms):
            raise ValueError(f"{name}: y must have shape {(tasks, atoms)} (got {y.shape})")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)
        self._set("chances", (tasks, atoms))
        self._set("weights", (tasks,))
        self._check_targets()

    def _set(self, field: str, shape: tuple[int, ...]) -> None:
        """Stores probabilities, equal ones where none are given."""
        name, given = type(self).__name__, getattr(self, field)
        made = np.full(shape, 1.0 / shape[-1])
        if given is not None:
            made = array(given, function=name, name=field)
        right = made.shape == shape and (made >= 0.0).all()
        if not right or (abs(made.sum(-1) - 1.0) > 1e-9).any():
            raise ValueError(
                f"{name}: {field} must be probabilities of shape {shape} with sum 1 over the last "
                "axis"
            )
        object.__setattr__(self, field, made)

    def _check_targets(self) -> None:
        """Refuses targets that the loss is not made for."""

    def loss(self, u: Array) -> Array:
        """f(u, y) for u [..., G, A]."""
        raise NotImplementedError

    def slope(self, u: Array) -> Array:
        """f'(u, y)."""
        raise NotImplementedError

    def curvature(self, u: Array) -> Array:
        """f''(u, y)."""
        raise NotImplementedError

    def suprema(self) -> Suprema:
        """Suprema of the derivatives of f over all u."""
        raise NotImplementedError

    def scores(self, theta: Array) -> Array:
        """x . theta of every sample, [..., G, A]."""
        return np.asarray(np.einsum("...gp,gap->...ga", self._wide(theta), self.x))

    def _wide(self, theta: Array) -> Array:
        """theta with the task axis written out."""
        return np.broadcast_to(theta, (*theta.shape[:-2], *self.x.shape[::2]))

    def risks(self, theta: Array) -> Array:
        """R(theta; task), [..., G]."""
        return np.asarray((self.chances * self.loss(self.scores(theta))).sum(-1))

    def sample_gradients(self, theta: Array) -> Array:
        """Gradient of each sample's loss, [..., G, A, p]."""
        return np.asarray(self.slope(self.scores(theta))[..., None] * self.x)

    def gradients(self, theta: Array, chances: Array | None = None) -> Array:
        """Gradient of each task's risk, [..., G, p]; `chances` [..., G, A] reweights samples."""
        share = self.chances if chances is None else chances
        return np.asarray(
            np.einsum("...ga,gap->...gp", share * self.slope(self.scores(theta)), self.x)
        )

    def hessians(self, theta: Array, chances: Array | None = None) -> Array:
        """Hessian of each task's risk, [..., G, p, p]; `chances` as in `gradients`."""
        share = self.chances if chances is None else chances
        bent = share * self.curvature(self.scores(theta))
        return np.asarray(np.einsum("...ga,gap,gaq->...gpq", bent, self.x, self.x))

    def gradient_noise(self, theta: Array) -> Array:
        """Mean squared deviation of one sample's gradient, [..., G]."""
        away = self.sample_gradients(theta) - self.gradients(theta)[..., None, :]
        return np.asarray((self.chances * (away**2).sum(-1)).sum(-1))

    def hessian_noise(self, theta: Array) -> Array:
        """Mean squared Frobenius deviation of one sample's Hessian, [..., G]."""
        square = self.curvature(self.scores(theta)) ** 2 * (self.x**2).sum(-1) ** 2
        mean = self.hessians(theta)
        return np.asarray((self.chances * square).sum(-1) - (mean**2).sum((-2, -1)))

    def constants(self, at: Any = None, start: Any = None) -> Constants:
        """The constants of B1-B7, certified by analysis.

        Args:
            at: [p] or [points, p]: take gradients, spreads and noises at these points, exactly;
                None for bounds that hold for all parameters. Curvature bounds always do.
            start: [p]: adds gap_drs = R_drs(start), as both losses are at least 0.

        Returns:
            Constants, certified for all parameters. Those taken at points are "assumed": they
            hold if training stays at these points.

        Cost:
            O(G A p^2) per point.

        Source:
            Result 35 (own), tightened: curvature bounds of a task are eigenvalues of the weighted
            second moment of its inputs instead of means of squared norms.
        """
        proved = dict(self._curvature_bounds(), **self._bounds_everywhere())
        claimed: dict[str, float] = {}
        data = [self.x, self.y, self.chances, self.weights]  # which may be estimates themselves
        if at is not None:
            points = np.atleast_2d(array(at, function="constants", name="at"))
            claimed = self._values_at(points)
            data.append(points)
        if start is not None:
            point = array(start, function="constants", name="start", ndim=1)
            proved["gap_drs"] = float(self.weights @ self.risks(point[None]))
            data.append(point)
        known = {
            name: Quantity(
                computed(value, CERTAIN, *data),
                name=name,
                source="Result 35",
                standing="assumed" if name in claimed else "certified",
            )
            for name, value in {**proved, **claimed}.items()
        }
        return Constants(**known)

    def _curvature_bounds(self) -> dict[str, float]:
        """B2, B3 and B7 for all parameters."""
        most = self.suprema()
        length = np.linalg.norm(self.x, axis=-1)

        def largest(weight: Array) -> float:
            """Largest eigenvalue over tasks of the inputs' second moment with these weights."""
            moment = np.einsum("ga,gap,gaq->gpq", self.chances * weight, self.x, self.x)
            return float(np.linalg.eigvalsh(moment).max()) * _ROUNDING

        return {
            "L_plus": max(0.0, largest(most.above)),
            "ell": max(0.0, largest(most.below)),
            "rho": largest(most.third * length),
            "L_plus_s": float((most.above * length**2).max()) * _ROUNDING,
            "ell_s": float((most.below * length**2).max()) * _ROUNDING,
            "rho_s": float((most.third * length**3).max()) * _ROUNDING,
        }

    def _bounds_everywhere(self) -> dict[str, float]:
        """B4-B6 for all parameters."""
        most = self.suprema()
        length = np.linalg.norm(self.x, axis=-1)
        share = self.chances
        moment = np.einsum("ga,gap,gaq->gpq", share * most.slope**2, self.x, self.x)
        norm = np.minimum(
            np.sqrt(np.linalg.eigvalsh(moment)[:, -1]), (share * most.slope * length).sum(-1)
        )
        rms = float(np.sqrt(self.weights @ norm**2))
        bends = np.maximum(most.above, most.below)
        top, bottom = (
            np.linalg.eigvalsh(np.einsum("ga,gap,gaq->gpq", share * side, self.x, self.x))[:, -1]
            for side in (most.above, most.below)
        )
        # |H - EH| by the two intervals, or by Frobenius norms, for which E|H - EH|^2 <= E|H|^2.
        apart = np.maximum(top + self.weights @ bottom, bottom + self.weights @ top)
        frobenius = (share * bends * length**2).sum(-1)
        spread = float(np.sqrt(min(self.weights @ apart**2, self.weights @ frobenius**2)))
        alone = len(self.weights) == 1
        return {
            "G": float(norm.max()) * _ROUNDING,
            "G2": rms * _ROUNDING,
            "sigma_gamma": 0.0 if alone else rms * _ROUNDING,
            "sigma_Hgamma": 0.0 if alone else spread * _ROUNDING,
            "sigma_g": float(np.sqrt((share * (most.slope * length) ** 2).sum(-1).max()))
            * _ROUNDING,
            "sigma_H": float(np.sqrt((share * (bends * length**2) ** 2).sum(-1).max())) * _ROUNDING,
        }

    def _values_at(self, points: Array) -> dict[str, float]:
        """B4-B6 at points [m, p]: the largest over the points, which are exact values."""
        theta = points[:, None, :]
        slopes, bends = self.gradients(theta), self.hessians(theta)
        mean = np.einsum("g,mgp->mp", self.weights, slopes)
        mean_bend = np.einsum("g,mgpq->mpq", self.weights, bends)
        squares = (slopes**2).sum(-1)
        apart = np.linalg.norm(bends - mean_bend[:, None], ord=2, axis=(-2, -1)) ** 2
        spread = ((slopes - mean[:, None]) ** 2).sum(-1)
        return {
            "G": float(np.sqrt(squares.max())),
            "G2": float(np.sqrt((squares @ self.weights).max())),
            "mean_gradient": float(np.linalg.norm(mean, axis=-1).max()),
            "sigma_gamma": float(np.sqrt((spread @ self.weights).max())),
            "sigma_Hgamma": float(np.sqrt((apart @ self.weights).max())),
            "sigma_g": float(np.sqrt(self.gradient_noise(theta).max())),
            "sigma_H": float(np.sqrt(max(0.0, self.hessian_noise(theta).max()))),
        }


class TanhRegression(Family):
    """Squared loss (tanh(x . theta) - y)^2 / 2: smooth, bounded, and not convex.

    With t = tanh(u) the derivatives are polynomials in t on (-1, 1), so their suprema are maxima of
    polynomials: f' = (t - y)(1 - t^2), f'' = (1 - t^2)(1 - 3 t^2 + 2 t y),
    f''' = (1 - t^2)(12 t^3 - 6 y t^2 - 8 t + 2 y).

    >>> family = TanhRegression(np.ones((1, 1, 1)), np.ones((1, 1)))
    >>> round(family.constants().G * 27, 9)
    32.0
    """

    def loss(self, u: Array) -> Array:
        """(tanh(u) - y)^2 / 2."""
        return np.asarray((np.tanh(u) - self.y) ** 2 / 2.0)

    def slope(self, u: Array) -> Array:
        """(t - y)(1 - t^2)."""
        t = np.tanh(u)
        return np.asarray((t - self.y) * (1.0 - t**2))

    def curvature(self, u: Array) -> Array:
        """(1 - t^2)(1 - 3 t^2 + 2 t y)."""
        t = np.tanh(u)
        return np.asarray((1.0 - t**2) * (1.0 - 3.0 * t**2 + 2.0 * t * self.y))

    def suprema(self) -> Suprema:
        """Maxima of the three polynomials, one triple per target value."""
        values, where = np.unique(self.y, return_inverse=True)
        table = np.array([_tanh_suprema(float(y)) for y in values])
        parts = table[where.reshape(self.y.shape)]
        return Suprema(*np.moveaxis(parts, -1, 0))


class LogisticLoss(Family):
    """log(1 + exp(-y x . theta)) with y = -1 or 1: convex.

    |f'| < 1, 0 < f'' <= 1/4, |f'''| <= 1 / (6 sqrt 3).

    >>> family = LogisticLoss(np.full((1, 1, 1), 2.0), np.ones((1, 1)))
    >>> round(family.constants().L_plus_s, 9)
    1.0
    """

    def _check_targets(self) -> None:
        """Only -1 and 1."""
        if not (np.abs(self.y) == 1.0).all():
            raise ValueError("LogisticLoss: y must be -1 or 1 everywhere")

    def loss(self, u: Array) -> Array:
        """log(1 + exp(-y u)), without overflow."""
        return np.asarray(np.logaddexp(0.0, -self.y * u))

    def slope(self, u: Array) -> Array:
        """-y / (1 + exp(y u))."""
        return np.asarray(-self.y * np.exp(-np.logaddexp(0.0, self.y * u)))

    def curvature(self, u: Array) -> Array:
        """s (1 - s) with s the logistic function of u."""
        return np.asarray(np.exp(-np.logaddexp(0.0, u) - np.logaddexp(0.0, -u)))

    def suprema(self) -> Suprema:
        """1, 1/4, 0 and 1 / (6 sqrt 3)."""
        ones = np.ones_like(self.y)
        return Suprema(ones, ones / 4.0, 0.0 * ones, ones / (6.0 * np.sqrt(3.0)))


def _tanh_suprema(y: float) -> tuple[float, float, float, float]:
    """Suprema over t in [-1, 1] of the derivatives of (t - y)^2 / 2 with respect to atanh(t)."""
    inside = np.polynomial.Polynomial([1.0, 0.0, -1.0])
    first = inside * np.polynomial.Polynomial([-y, 1.0])
    second = inside * np.polynomial.Polynomial([1.0, 2.0 * y, -3.0])
    third = inside * np.polynomial.Polynomial([2.0 * y, -8.0, -6.0 * y, 12.0])
    low, high = zip(*(_range(item) for item in (first, second, third)), strict=True)
    return (
        max(-low[0], high[0]),
        max(0.0, high[1]),
        max(0.0, -low[1]),
        max(-low[2], high[2]),
    )


def _range(polynomial: Any) -> tuple[float, float]:
    """Smallest and largest value on [-1, 1]."""
    turning = polynomial.deriv().roots()
    inner = turning[abs(turning.imag) < 1e-6].real  # a spurious point only adds a value attained
    values = polynomial(np.concatenate([[-1.0, 1.0], inner[abs(inner) < 1.0]]))
    return float(values.min()), float(values.max())
