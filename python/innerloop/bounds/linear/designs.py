"""Averages over the empirical second-moment matrix Qh of a Gaussian design: points and weights.

Every point is a value of Z = sum z z' / N with z ~ N(0, I); a design of covariance Q = R R' has
Qh = R Z R'. Three rules: a Gauss product rule, exact for polynomials; a quadrature for smooth
functions in one dimension; randomised Sobol points, with a standard error, for all the rest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array

SOBOL = "randomised Sobol"
# Largest number of (point, task) pairs of a product rule and of one Sobol randomisation.
_LARGEST_RULE = 1 << 21
_LARGEST_RANDOMISATION = 1 << 15
# Points of one Sobol randomisation: at most, and at least however many tasks there are.
_MOST_POINTS = 2048
_FEWEST_POINTS = 16
_RANDOMISATIONS = 16


class Designs(NamedTuple):
    """Points and weights that stand for Z.

    Members:
        values: [B, J, p, p]; B independent randomisations (1 for a deterministic rule).
        weights: [J], summing to 1, the same for each randomisation.
        samples: N; infinity for the population inner step (a single point, the identity).
        rule: "population", "Gauss product rule", "chi-square quadrature" or "randomised Sobol".
        exact: whether averages of the functions it was made for are exact up to rounding.
    """

    values: Array
    weights: Array
    samples: float
    rule: str
    exact: bool


def designs(
    p: int,
    samples: float,
    degree: int | None,
    *,
    tasks: int = 1,
    seed: int = 0,
    smallest: float = 1.0,
) -> Designs:
    """The best rule for functions of a p x p matrix Qh from `samples` rows.

    Args:
        p: dimension.
        samples: N, or infinity.
        degree: degree of the function if it is a polynomial in the entries of Qh; None if it is
            merely smooth.
        tasks: number of covariances Q that the points will be used for; bounds the work.
        seed: of the Sobol points.
        smallest: value of Z down to which a function of one dimension must be resolved.

    Raises:
        ValueError: p so large that the Sobol sequence has too few dimensions.
    """
    if math.isinf(samples):
        return Designs(np.eye(p)[None, None], np.ones(1), samples, "population", True)
    rows = int(samples)
    if degree is not None and tasks * product_rule_size(p, rows, degree) <= _LARGEST_RULE:
        return gauss_designs(p, rows, degree)
    if p == 1:
        return chi_square_designs(rows, smallest)
    points = _MOST_POINTS
    while points > _FEWEST_POINTS and points * tasks > _LARGEST_RANDOMISATION:
        points //= 2
    return sobol_designs(p, rows, points=points, seed=seed)


def product_rule_size(p: int, samples: int, degree: int) -> int:
    """The number of points of `gauss_designs`."""
    columns = min(p, samples)
    normals = columns * p - columns * (columns + 1) // 2
    return int((degree // 2 + 1) ** columns * (degree + 1) ** normals)


def gauss_designs(p: int, samples: int, degree: int) -> Designs:
    """A product rule that averages polynomials in the entries of Qh exactly.

    With Bartlett's factor, N Z = L L' where L [p, min(p, N)] has independent entries: normal below
    the diagonal, and the square of entry j on it is chi-square with N - j degrees of freedom
    (j from 0). Changing the sign of a column leaves L L' as it is, so a polynomial of degree k in Z
    is, once averaged over the normal entries, one of degree k in the squared diagonal; degree 2k in
    each normal entry. Gauss rules with k // 2 + 1 and k + 1 points are exact.

    Source:
        Bartlett 1933 (the factor); Golub and Welsch 1969 (the one-dimensional rules).
    """
    normal = _gauss_rule(np.zeros(degree + 1), np.sqrt(np.arange(1.0, degree + 1)))
    axes = []
    for row, column in _entries(p, samples):
        if row > column:
            axes.append(normal)
            continue
        # Laguerre polynomials for x^a e^-x, a = (N - column) / 2 - 1, chi-square = 2 x.
        a, k = (samples - column) / 2.0 - 1.0, np.arange(degree // 2 + 1.0)
        points, mass = _gauss_rule(2.0 * k + 1.0 + a, np.sqrt(k[1:] * (k[1:] + a)))
        axes.append((np.sqrt(2.0 * points), mass))
    grids = np.meshgrid(*(points for points, _ in axes), indexing="ij")
    weights = np.ones(1)
    for _, mass in axes:
        weights = np.outer(weights, mass).ravel()
    values = _second_moments(np.stack([g.ravel() for g in grids], -1), p, samples)
    return Designs(values[None], weights, float(samples), "Gauss product rule", True)


def chi_square_designs(samples: int, smallest: float = 1.0) -> Designs:
    """A rule for p = 1 and functions of qh that are smooth in ln(qh), such as those of a ridge.

    `smallest` is the value of qh below which they stop to grow (a ridge's penalty).

    In u = ln(chi-square / N) the density is proportional to exp(N (u - e^u) / 2), analytic and
    falling doubly exponentially to the right, so that the trapezoidal rule converges geometrically
    in 1 / step: steps of 0.2, or of half the standard deviation sqrt(2 / N) where that is less,
    leave errors near rounding for functions without poles within pi of the real u axis.

    Source:
        Trefethen and Weideman, SIAM Review 56 (2014), for the trapezoidal rule.
    """
    n = float(samples)
    step = min(0.2, 0.5 * math.sqrt(2.0 / n))
    # Cut where the density has fallen by e^-80 (left) and e^-60 (right).
    low = max(-1.0 - 160.0 / n, -math.sqrt(320.0 / n) - 160.0 / n)
    low = min(low, math.log(smallest) - 40.0)
    high = math.log1p(120.0 / n + math.sqrt(240.0 / n))
    u = step * np.arange(math.floor(low / step), math.ceil(high / step) + 1)
    density = np.exp(-n / 2.0 * _expm2(np.asarray(u, dtype=np.float64)))
    return Designs(
        np.exp(u)[None, :, None, None], density / density.sum(), n, "chi-square quadrature", True
    )


def _expm2(u: Array) -> Array:
    """e^u - 1 - u, accurate near 0 too."""
    tail = 1.0 + u / 3.0 * (1.0 + u / 4.0 * (1.0 + u / 5.0 * (1.0 + u / 6.0 * (1.0 + u / 7.0))))
    return np.where(np.abs(u) < 0.01, u**2 / 2.0 * tail, np.expm1(u) - u)


def sobol_designs(p: int, samples: int, *, points: int = _MOST_POINTS, seed: int = 0) -> Designs:
    """Independently scrambled Sobol points sent through Bartlett's factor.

    Each randomisation is an unbiased estimate by itself, so their spread gives a standard error.

    Source:
        Owen, Randomly permuted (t, m, s)-nets, 1995.
    """
    special = _arguments.scipy_module("special", function="sobol_designs")
    qmc = _arguments.scipy_module("stats.qmc", function="sobol_designs")
    entries = _entries(p, samples)
    if len(entries) > qmc.Sobol.MAXDIM:
        raise ValueError(
            f"p = {p} needs {len(entries)} random numbers a design; at most {qmc.Sobol.MAXDIM} "
            "are supported"
        )
    drawn = []
    for child in np.random.SeedSequence(seed).spawn(_RANDOMISATIONS):
        sequence = qmc.Sobol(len(entries), scramble=True, seed=np.random.default_rng(child))
        uniform = sequence.random(points) + 2.0**-31  # never 0
        normal = special.ndtri(uniform)
        for index, (row, column) in enumerate(entries):
            if row == column:
                square = 2.0 * special.gammaincinv((samples - column) / 2.0, uniform[:, index])
                normal[:, index] = np.sqrt(square)
        drawn.append(_second_moments(normal, p, samples))
    weights = np.full(points, 1.0 / points)
    return Designs(np.stack(drawn), weights, float(samples), SOBOL, False)


def _entries(p: int, samples: int) -> list[tuple[int, int]]:
    """Positions of the random entries of Bartlett's factor."""
    return [(row, column) for column in range(min(p, samples)) for row in range(column, p)]


def _second_moments(factors: Array, p: int, samples: int) -> Array:
    """[J, p, p], Z from the entries [J, E] of Bartlett's factor."""
    rows, columns = np.array(_entries(p, samples)).T
    lower = np.zeros((len(factors), p, min(p, samples)))
    lower[:, rows, columns] = factors
    return np.asarray(lower @ lower.transpose(0, 2, 1) / samples)


def _gauss_rule(diagonal: Array, beside: Array) -> tuple[Array, Array]:
    """Nodes and weights (summing to 1) of the orthogonal polynomials with this Jacobi matrix.

    Weights are 1 / sum_k p_k(x)^2 of the orthonormal polynomials, by their recurrence, scaled as it
    goes: relative errors stay near rounding where eigenvectors, right only in absolute terms, lose
    all digits of the far nodes' weights, which high powers multiply by as much as these are small.
    """
    nodes = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    before, now, total = np.zeros_like(nodes), np.ones_like(nodes), np.ones_like(nodes)
    exponent = np.zeros_like(nodes)  # polynomials are their numbers here times its exponential
    for k in range(len(nodes) - 1):
        past = beside[k - 1] * before if k else 0.0
        before, now = now, ((nodes - diagonal[k]) * now - past) / beside[k]
        total = total + now**2
        scale = np.maximum(np.maximum(np.abs(now), np.abs(before)), np.sqrt(total))
        before, now, total = before / scale, now / scale, total / scale**2
        exponent = exponent + np.log(scale)
    weights: Array = np.exp(-2.0 * exponent) / total
    return np.asarray(nodes, dtype=np.float64), np.asarray(weights / weights.sum())
