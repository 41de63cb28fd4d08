"""Measured value over bound, for every inequality of Results 21-24, 27, 28 and 30.

A ratio above 1 is a violated bound. Families are finite, so the measured side is exact; constants
are exact at the points (B4-B6) or certified by analysis (B2, B3, B7).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from innerloop.bounds._arguments import Array
from innerloop.bounds.nonconvex.bias import difference_error, gradient_bias
from innerloop.bounds.nonconvex.constants import Constants
from innerloop.bounds.nonconvex.enumeration import Exact, exact_moments
from innerloop.bounds.nonconvex.families import Family, LogisticLoss, TanhRegression
from innerloop.bounds.nonconvex.links import gradient_gap, maml_gradient_bound
from innerloop.bounds.nonconvex.smoothness import maml_smoothness
from innerloop.bounds.nonconvex.unbounded import inverse_link, relative_constants
from innerloop.bounds.nonconvex.values import sampling_gap, value_interval
from innerloop.bounds.nonconvex.variance import drs_variance, maml_variance

Ratios = dict[str, list[float]]
RATES = (-0.4, -0.1, 0.1, 0.4, 1.0, 1.8)  # inner rates, in units of 1 / L
_ROUNDING = 1e-12  # smaller measured differences are rounding of numbers of order 1


def random_family(kind: str, rng: np.random.Generator) -> Family:
    """A family of 2-4 tasks with 2-4 samples each in 1-3 dimensions; kind "tanh" or "logistic".

    Tasks have solutions of their own and inputs of their own scale, so that gradients and curvature
    differ between tasks; probabilities are not equal.
    """
    tasks, atoms, p = rng.integers(2, 5), rng.integers(2, 5), rng.integers(1, 4)
    scale = rng.uniform(0.3, 1.5, (tasks, 1, 1))
    x = scale * rng.standard_normal((tasks, atoms, p))
    solution = rng.standard_normal((tasks, p)) + rng.standard_normal(p)
    u = np.einsum("gap,gp->ga", x, solution) + 0.3 * rng.standard_normal((tasks, atoms))
    chances = rng.dirichlet(np.full(atoms, 3.0), tasks)
    weights = rng.dirichlet(np.full(tasks, 3.0))
    if kind == "tanh":
        return TanhRegression(x, 0.9 * np.tanh(u), chances, weights)
    return LogisticLoss(x, np.where(u > 0.0, 1.0, -1.0), chances, weights)


def attack(
    family: Family,
    rng: np.random.Generator,
    *,
    points: int = 6,
    rates: Iterable[float] = RATES,
    change: Callable[[Constants], Constants] = lambda constants: constants,
) -> Ratios:
    """Every inequality at random points and pairs of points, with all supports of size 1 and 2.

    Every third point is first moved close to a stationary point of joint training, where the
    modelling term of Result 27 is all that is left.

    Args:
        family: the tasks.
        rng: draws points and pairs.
        points: number of points, each with a partner for the smoothness results.
        rates: inner rates in units of 1 / L.
        change: applied to the constants before a bound is evaluated; the identity tests the
            theory, anything that shrinks a constant tests this test.

    Returns:
        Name of the inequality to its ratios measured / bound.

    Cost:
        About 50 milliseconds for each rate.
    """
    p = family.x.shape[-1]
    theta = rng.standard_normal((points, p)) * rng.choice([0.3, 1.0, 2.0], (points, 1))
    everywhere = family.constants()
    theta[::3] = _descended(family, theta[::3], 1.0 / everywhere.L)
    step = rng.standard_normal((points, p))
    step *= rng.choice([1e-3, 0.1, 1.0], (points, 1)) / np.linalg.norm(step, axis=-1, keepdims=True)
    local = [family.constants(at=point) for point in theta]
    found: Ratios = {}
    for rate in rates:
        spot = _Spot(
            family, theta, theta + step, rate / everywhere.L, everywhere, local, change, found
        )
        for steps in (1, 2, 3):
            spot.smoothness(steps, None)
            spot.links(steps, None)
            spot.inverse(steps, None)
        for samples in (1, 2):
            spot.biases(samples)
            for steps in (1, 2, 3) if samples == 1 else (1, 2):
                spot.smoothness(steps, samples)
                spot.links(steps, samples)
                spot.inverse(steps, samples)
                spot.variances(steps, samples)
        spot.values()
    return found


def _descended(family: Family, theta: Array, rate: float) -> Array:
    """Points after 200 steps of gradient descent on the joint objective."""
    for _ in range(200):
        slopes = family.gradients(theta[:, None, :])
        theta = theta - rate * np.einsum("g,mgp->mp", family.weights, slopes)
    return theta


@dataclasses.dataclass
class _Spot:
    """One family, one inner rate, points theta with partners phi, and constants at each theta."""

    family: Family
    theta: Array
    phi: Array
    rate: float
    exact: Constants
    exact_local: list[Constants]
    change: Callable[[Constants], Constants]
    found: Ratios

    def __post_init__(self) -> None:
        self.known = self.change(self.exact)
        self.local = [self.change(here) for here in self.exact_local]
        self.moments = functools.lru_cache(maxsize=None)(self._moments)
        self.wide = {"theta": self.theta[:, None, :], "phi": self.phi[:, None, :]}

    def add(self, name: str, measured: Any, bound: Any) -> None:
        """Appends measured / bound; both sides 0 up to rounding count as 0."""
        for value, limit in zip(np.ravel(measured), np.ravel(bound), strict=True):
            ratio = 0.0 if value <= _ROUNDING else value / max(limit, 1e-300)
            self.found.setdefault(name, []).append(float(ratio))

    def _moments(self, where: str, samples: int | None, **options: Any) -> Exact:
        """Exact moments at the points `where` ("theta" or "phi") with this inner rate."""
        points = self.wide[where][:, 0]
        return exact_moments(self.family, points, inner_lr=self.rate, samples=samples, **options)

    def norms(self, points: Array) -> Array:
        """Gradient norm of each task at points, [m, G]."""
        return np.asarray(np.linalg.norm(self.family.gradients(points[:, None, :]), axis=-1))

    def joint(self, points: Array) -> Array:
        """Gradient of the joint objective, [m, p]."""
        slopes = self.family.gradients(points[:, None, :])
        return np.asarray(np.einsum("g,mgp->mp", self.family.weights, slopes))

    def smoothness(self, steps: int, samples: int | None) -> None:
        """Result 21: with the bound on gradients everywhere, and at the better end point."""
        far = np.linalg.norm(self.theta - self.phi, axis=-1)
        ends = [self.moments(where, samples, steps=steps).gradient for where in ("theta", "phi")]
        measured = np.linalg.norm(ends[0] - ends[1], axis=-1)
        label = f"smoothness, K={steps}" + ("" if samples is None else f", N={samples}")
        options: dict[str, Any] = {"inner_lr": self.rate, "steps": steps, "samples": samples}
        bound = float(maml_smoothness(self.known, **options))
        self.add(f"{label}, bounded gradients", measured, bound * far)
        if samples is None:
            slopes = [self.norms(point) @ self.family.weights for point in (self.theta, self.phi)]
            least = np.minimum(*slopes)
            bounds = maml_smoothness(self.known, gradient_norm=least, **options)
            self.add(f"{label}, one end point", measured, bounds * far)
            return
        rms = np.sqrt(self.norms(self.theta) ** 2 @ self.family.weights)
        for sharp in (False, True):
            if sharp and steps == 1:
                continue
            bounds = [
                float(maml_smoothness(here, gradient_norm=slope, sharp=sharp, **options))
                for here, slope in zip(self.local, rms, strict=True)
            ]
            word = ", sharp" if sharp else ""
            self.add(f"{label}, one end point{word}", measured, np.array(bounds) * far)

    def values(self) -> None:
        """Result 22: the interval for population steps, for N samples, and the sampling gap."""
        joint = self.family.risks(self.theta[:, None, :]) @ self.family.weights
        squares = self.norms(self.theta) ** 2 @ self.family.weights
        population = self.moments("theta", None).value
        for samples in (None, 1, 2):
            value = population if samples is None else self.moments("theta", samples).value
            for k, here in enumerate(self.local):
                interval = value_interval(
                    here, inner_lr=self.rate, gradient_square=squares[k], samples=samples
                )
                centre = -self.rate * squares[k]
                shift = value[k] - joint[k] - centre
                end = interval.upper if shift > 0.0 else interval.lower
                label = "" if samples is None else f", N={samples}"
                self.add(f"value interval{label}", abs(shift), abs(end - centre))
                if samples is not None:
                    gap = sampling_gap(here, inner_lr=self.rate, samples=samples)
                    self.add(f"sampling gap{label}", abs(value[k] - population[k]), gap)

    def biases(self, samples: int) -> None:
        """Result 23: same batch, separate batch, first order, finite differences."""
        target = self.moments("theta", None).gradient
        cases: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("same batch", "same", {}),
            ("separate batch", "separate", {"same_batch": False}),
            ("first order", "none", {"order": 1}),
        )
        for label, hessian, options in cases:
            mean = self.moments("theta", samples, hessian=hessian).gradient
            bounds = [
                float(gradient_bias(here, inner_lr=self.rate, samples=samples, **options))
                for here in self.local
            ]
            self.add(f"bias, {label}", np.linalg.norm(mean - target, axis=-1), bounds)
        h, direction = 0.05, self.phi - self.theta
        wide = self.theta[:, None, :]
        change = self.family.gradients(wide + h * direction[:, None, :])
        product = (change - self.family.gradients(wide)) / h
        exact = np.einsum("mgpq,mq->mgp", self.family.hessians(wide), direction)
        error = np.abs(self.rate) * np.linalg.norm(product - exact, axis=-1).max(-1)
        size = np.linalg.norm(direction, axis=-1)
        bound = difference_error(self.known, inner_lr=self.rate, step=h, vector_norm=size)
        self.add("finite-difference product", error, bound)

    def variances(self, steps: int, samples: int) -> None:
        """Result 24, with the gradient noise of all points visited; and Result 30's version."""
        exact = self.moments("theta", samples, steps=steps, queries=samples)
        visited = self.family.gradient_noise(exact.visited.theta).max(axis=(-2, -1))
        options: dict[str, Any] = {"inner_lr": self.rate, "samples": samples, "steps": steps}
        u = np.linalg.norm(exact.gradient, axis=-1)
        for k, here in enumerate(self.exact_local):
            noise = max(here.sigma_g or 0.0, float(np.sqrt(visited[k])))
            noisy = self.change(dataclasses.replace(here, sigma_g=noise))
            for sharp in (False, True):
                word = ", sharp" if sharp else ""
                bound = maml_variance(noisy, queries=samples, sharp=sharp, **options)
                self.add(f"variance, K={steps}{word}", exact.variance[k], bound)
            if self.small(steps, here.L_plus_s):
                relative = relative_constants(noisy, queries=samples, **options)
                base, growth = relative.variance
                self.add(
                    "variance relative to gradient", exact.variance[k], base + growth * u[k] ** 2
                )
        if steps == 1:
            slopes = self.family.gradients(self.theta[:, None, :])
            spread = ((slopes - self.joint(self.theta)[:, None]) ** 2).sum(-1)
            inner = self.family.gradient_noise(self.theta[:, None, :]) / samples
            measured = (spread + inner) @ self.family.weights
            bounds = [float(drs_variance(here, samples=samples)) for here in self.local]
            self.add("variance of joint gradients", measured, bounds)

    def links(self, steps: int, samples: int | None) -> None:
        """Result 27: crude for any K and N, refined for one step."""
        slope = self.joint(self.theta)
        maml = self.moments("theta", samples, steps=steps).gradient
        measured = np.linalg.norm(maml - slope, axis=-1)
        options: dict[str, Any] = {"inner_lr": self.rate, "steps": steps, "samples": samples}
        norms = self.norms(self.theta)
        weights = self.family.weights
        size = norms @ weights if samples is None else np.sqrt(norms**2 @ weights)
        bounds = [
            float(gradient_gap(here, gradient_norm=g, **options))
            for here, g in zip(self.local, size, strict=True)
        ]
        where = "" if samples is None else f", N={samples}"
        self.add(f"gradient gap, K={steps}{where}", measured, bounds)
        if steps == 1:
            refined = []
            for here, g in zip(self.local, np.linalg.norm(slope, axis=-1), strict=True):
                bound = float(maml_gradient_bound(g, here, inner_lr=self.rate))
                if samples is not None:
                    bound += float(gradient_bias(here, inner_lr=self.rate, samples=samples))
                refined.append(bound)
            self.add(f"refined link{where}", np.linalg.norm(maml, axis=-1), refined)

    def small(self, steps: int, bound: float | None) -> bool:
        """Whether Result 30 covers this rate."""
        return bool((1.0 + abs(self.rate) * (bound or 0.0)) ** (2 * steps) < 1.99)

    def inverse(self, steps: int, samples: int | None) -> None:
        """Result 30: the inverse link, and the smoothness it leads to."""
        ends = [self.moments(end, samples, steps=steps).gradient for end in ("theta", "phi")]
        far = np.linalg.norm(self.theta - self.phi, axis=-1)
        left = np.linalg.norm(self.joint(self.theta), axis=-1)
        u = np.linalg.norm(ends[0], axis=-1)
        options: dict[str, Any] = {"inner_lr": self.rate, "steps": steps, "samples": samples}
        where = "" if samples is None else f", N={samples}"
        for k, here in enumerate(self.local):
            if not self.small(steps, here.L if samples is None else here.L_plus_s):
                continue
            link = inverse_link(here, **options)
            right = link.slope * u[k] + link.spread * (here.sigma_gamma or 0.0) + link.noise
            self.add(f"inverse link{where}", left[k], right)
            if samples is not None:
                relative = relative_constants(here, queries=1, **options)
                bound = relative.smoothness[0] + relative.smoothness[1] * u[k]
                moved = np.linalg.norm(ends[0][k] - ends[1][k])
                self.add("smoothness relative to gradient", moved, bound * far[k])
