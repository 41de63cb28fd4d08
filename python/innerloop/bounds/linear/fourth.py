"""Exact fourth moments of the scores, which sharpen the finite-sample guarantee (Result 11).

Given its support, a task's query score is X'b / N with b = X v + noise. Regressing the rows of X on
b makes it, given C = b'b / N, a normal vector with mean C Qv / k and covariance (C / N) (Q - Qvv'Q
/ k), k = v'Qv + sigma2, and C is k times a chi-square over N. Averages over MAML's support are
polynomials in a Wishart matrix and taken with a product Gauss rule on its Bartlett factor.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._quantities import hands_on
from innerloop.bounds._results import quantity
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.guarantee import Method, check_method
from innerloop.bounds.linear.laws import Nodes, PublishedLaw, TaskLaw
from innerloop.bounds.linear.moments import scalar_moments
from innerloop.bounds.linear.quadratic import post_update
from innerloop.bounds.linear.risk import (
    law_assumptions,
    population,
    rate_and_samples,
)
from innerloop.bounds.linear.scores import grid, stacked, symmetric_inverse

# Degree 8 in the Wishart matrix: 5 Gauss points for a chi-square, 9 for an off-diagonal entry;
# degree 4 in the support's noise: 3 points.
_CHI, _NORMAL, _NOISE = 5, 9, 3
_MOST_DIMENSIONS = 2


@hands_on
def score_fourth_moment(law: TaskLaw, *, method: Method, inner_lr: Any, samples: Any = None) -> Any:
    """Returns E||(E W)^(-1/2) psi||^4 for one method: the `fourth_moment` of `guarantee`.

    Args:
        law: the task law.
        method: "drs" (any p) or "maml" (p <= 2).
        inner_lr, samples: rate and N; None for infinity. Arrays broadcast.

    Returns:
        Quantity or float64 array.

    Raises:
        TypeError: not real numbers.
        ValueError: unknown method, E Q or E A not positive definite (Result 3), N below 1, NaN.
        NotImplementedError: MAML with p > 2. Bound the moment yourself, or use `guarantee` without.

    Cost:
        O(G p^3) for joint training; MAML for p = 2 takes 2025 support points per node, about
        10 ms for a few nodes.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Checked: E Q and
        E A are positive definite.

    Source:
        This project's own (docs/theory/linear.md, Result 11).

    >>> from innerloop.bounds import linear
    >>> law = linear.Mixture([1.0], [[[1.0]]], [[1.0]], [0.5])
    >>> moment = linear.score_fourth_moment(law, method="drs", inner_lr=0.0, samples=5)
    >>> round(moment, 6)  # 3 (1 + 2 / n) (0.5 / n)^2 with n = 10
    0.009
    """
    name = "score_fourth_moment"
    check_method(method, name)
    rate, count = rate_and_samples(inner_lr, samples, name)
    if method == "maml" and law.p > _MOST_DIMENSIONS:
        raise NotImplementedError(
            f"{name}: MAML's fourth moment is known for p <= {_MOST_DIMENSIONS} (got {law.p}); "
            "guarantee works without it"
        )
    nodes = law.with_noise_levels() if isinstance(law, PublishedLaw) else law.nodes()
    found = population(law, rate, count, name)
    joint = symmetric_inverse(post_update(law).joint)

    def at_point(a: float, n: float) -> float:
        if method == "drs":
            metric = np.broadcast_to(joint, nodes.Q.shape)
            own = _query_moment(nodes.Q, nodes.theta - found.drs, nodes.sigma2, metric, 2.0 * n)
            return float(nodes.weights @ own)
        at = population(law, np.asarray(a), np.asarray(n), name)
        return _maml_moment(nodes, at.maml, symmetric_inverse(at.curvature), a, n)

    with np.errstate(over="ignore", invalid="ignore"):
        moments = stacked(grid(rate, count, at_point), lambda value: value)
    sizes.check_finite(moments, name, "the fourth moment")
    return quantity(
        moments,
        name="fourth moment of the weighted score",
        source="Result 11",
        assumptions=law_assumptions(law),
    )


def _query_moment(q: Array, v: Array, sigma2: Array, metric: Array, n: float) -> Array:
    """E (psi' metric psi)^2 for psi = Qh v + e on n samples, over leading axes."""
    chi = scalar_moments(4, n)
    qv = np.einsum("...ij,...j->...i", q, v)
    k = np.einsum("...i,...i->...", v, qv) + sigma2
    safe = np.where(k > 0.0, k, 1.0)  # k = 0 means psi = 0
    rest = q - qv[..., :, None] * qv[..., None, :] / safe[..., None, None]
    pushed = np.einsum("...ij,...j->...i", metric, qv)
    turned = metric @ rest
    along = np.einsum("...i,...i->...", qv, pushed)
    trace = np.trace(turned, axis1=-2, axis2=-1)
    square = np.einsum("...ij,...ji->...", turned, turned)
    mixed = np.einsum("...i,...ij,...j->...", pushed, rest, pushed)
    value = chi[4] * along**2 + 2.0 * chi[3] * k / n * along * trace
    value += chi[2] * (k / n) ** 2 * (trace**2 + 2.0 * square) + 4.0 * chi[3] * k / n * mixed
    return np.asarray(value)


def _maml_moment(nodes: Nodes, target: Array, metric: Array, rate: float, n: float) -> float:
    """E (psi' metric psi)^2 for MAML's score: `_query_moment` averaged over the support."""
    p = len(target)
    factors, shares = _wishart_rule(p, n)  # [K, p, r], [K]
    points, mass = _normal_rule(_NOISE, factors.shape[-1])  # [L, r], [L]
    values, vectors = np.linalg.eigh(nodes.Q)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]) @ np.swapaxes(vectors, 1, 2)
    total = 0.0
    for weight, q, half, theta, sigma2 in zip(
        nodes.weights, nodes.Q, root, nodes.theta, nodes.sigma2, strict=True
    ):
        rows = half @ factors  # [K, p, r], Qh = rows rows'
        step = np.eye(p) - rate * rows @ np.swapaxes(rows, 1, 2)
        noise = np.sqrt(sigma2 / n) * np.einsum("kir,lr->kli", rows, points)
        v = (step @ (theta - target))[:, None, :] - rate * noise  # [K, L, p]
        inner = _query_moment(q, v, sigma2, (step @ metric @ step)[:, None], n)
        total += weight * float(shares @ inner @ mass)
    return total


def _wishart_rule(p: int, n: float) -> tuple[Array, Array]:
    """Factors F [K, p, r] and weights with F F' standing for Wishart(n, I) / n to degree 8."""
    if np.isinf(n):
        return np.eye(p)[None], np.ones(1)
    if n < p:  # the rows themselves
        points, mass = _normal_rule(_NORMAL, p * int(n))
        return points.reshape(len(points), p, int(n)) / np.sqrt(n), mass
    special = _arguments.scipy_module("special", function="score_fourth_moment")
    diagonal = []
    for i in range(p):
        shape = (n - i) / 2.0
        points, mass = special.roots_genlaguerre(_CHI, shape - 1.0)
        diagonal.append((np.sqrt(2.0 * points), mass / mass.sum()))
    below = [(i, j) for i in range(p) for j in range(i)]
    off, off_mass = _normal_rule(_NORMAL, len(below))
    grids = list(itertools.product(*(range(_CHI) for _ in range(p))))
    factors = np.zeros((len(grids), len(off), p, p))
    shares = np.ones((len(grids), len(off))) * off_mass
    for i, (points, mass) in enumerate(diagonal):
        chosen = [index[i] for index in grids]
        factors[:, :, i, i] = points[chosen][:, None]
        shares *= mass[chosen][:, None]
    for place, (i, j) in enumerate(below):
        factors[:, :, i, j] = off[:, place]
    return factors.reshape(-1, p, p) / np.sqrt(n), shares.ravel()


def _normal_rule(count: int, dimensions: int) -> tuple[Array, Array]:
    """Product Gauss-Hermite rule for independent standard normals, [L, dimensions] and [L]."""
    points, mass = np.polynomial.hermite_e.hermegauss(count)
    mass = mass / mass.sum()
    grid_points = np.array(list(itertools.product(points, repeat=dimensions)))
    weights = [np.prod(m) for m in itertools.product(mass, repeat=dimensions)]
    return grid_points.reshape(len(grid_points), dimensions), np.array(weights, dtype=np.float64)
