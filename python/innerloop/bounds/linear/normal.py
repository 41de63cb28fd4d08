"""The normal approximation, for many tasks, of the probability that joint training ends worse than
MAML (Result 10).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.quadratic import post_update
from innerloop.bounds.linear.risk import population
from innerloop.bounds.linear.scores import estimators

_MOST_ENTRIES = 4_000_000  # of one block of the numerical inversion
# A gap of the two estimates that varies less than this share of them is rounding.
_RESOLVED = 1e-9


def normal_cells(
    law: TaskLaw, rates: Array, samples: Array, tasks: Array, after_update: bool, function: str
) -> Array:
    """The probability by the normal approximation of every cell (rate, N, M), [cells] all."""
    pairs, place = np.unique(np.stack([rates, samples], axis=1), axis=0, return_inverse=True)
    limits = [_limit(law, a, n, after_update, function) for a, n in pairs]
    hessian, offsets, biases, spread = (np.array(column) for column in zip(*limits, strict=True))
    place, size = np.ravel(place), tasks[:, None]
    mean = offsets[place] + biases[place] / size  # [cells, 2 p]
    covariance = spread[place] / size[:, :, None]
    solve = _in_one_dimension if law.p == 1 else _in_more_dimensions
    return solve(hessian[place], mean, covariance)


def is_resolved(law: TaskLaw, rate: float, samples: float, function: str) -> bool:
    """Whether the limit's covariances tell both estimates apart: their gap is the difference of two
    nearly equal numbers for tiny rates without sampling.
    """
    found = estimators(law, rate, samples, function)
    cross = found.cross_covariance
    both = found.drs.covariance + found.maml.covariance
    return bool(np.trace(both - cross - cross.T) >= _RESOLVED * np.trace(both))


def _limit(
    law: TaskLaw, rate: float, samples: float, after_update: bool, function: str
) -> tuple[Array, Array, Array, Array]:
    """Hessian of the risk [p, p]; offsets, biases [2 p] and covariance [2 p, 2 p] of (X, Y)."""
    found = estimators(law, rate, samples, function)
    at = population(law, np.asarray(rate), np.asarray(samples), function)
    nothing = np.zeros(law.p)
    if after_update:
        hessian, offset = at.curvature, np.concatenate([at.offset, nothing])
    else:
        hessian, offset = post_update(law).joint, np.concatenate([nothing, -at.offset])
    cross = found.cross_covariance
    spread = np.block([[found.drs.covariance, cross], [cross.T, found.maml.covariance]])
    return hessian, offset, np.concatenate([found.drs.bias, found.maml.bias]), spread


def _in_one_dimension(hessian: Array, mean: Array, covariance: Array) -> Array:
    """P(|X| > |Y|): U = X - Y and V = X + Y have the same sign."""
    owens_t = _arguments.scipy_module("special", function="probability_drs_worse").owens_t
    turn = np.array([[1.0, -1.0], [1.0, 1.0]])
    centre = mean @ turn.T
    spread = turn @ covariance @ turn.T
    scale = np.sqrt(np.maximum(np.diagonal(spread, axis1=1, axis2=2), 0.0))
    still = scale <= 1e-12 * np.abs(scale).max(axis=1, keepdims=True)  # a combination without noise
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.where(still, np.copysign(np.inf, centre), centre / scale)
        correlation = spread[:, 0, 1] / (scale[:, 0] * scale[:, 1])
    correlation = np.where(still.any(axis=1), 0.0, np.clip(correlation, -1.0, 1.0))
    root = np.sqrt(1.0 - correlation**2)
    total = np.ones(len(h))
    with np.errstate(divide="ignore", invalid="ignore"):
        for first, second in ((0, 1), (1, 0)):
            slope = (h[:, second] / h[:, first] - correlation) / root
            inner = owens_t(h[:, first], np.where(np.isnan(slope), 0.0, slope))
            # T vanishes at infinity; at 0 its values for (h, k) and (-h, -k) cancel.
            total -= 2.0 * np.where(np.isinf(h[:, first]) | (h[:, first] == 0.0), 0.0, inner)
    product = np.sign(h[:, 0]) * np.sign(h[:, 1])
    total -= np.where(product < 0.0, 1.0, np.where(product == 0.0, 0.5, 0.0))
    both = (h == 0.0).all(axis=1)
    total = np.where(both, 0.5 + np.arcsin(correlation) / np.pi, total)
    tied = (still & (centre == 0.0)).any(axis=1)  # |X| = |Y| for certain: not worse
    return np.asarray(np.clip(np.where(tied, 0.0, total), 0.0, 1.0))


def _in_more_dimensions(hessian: Array, mean: Array, covariance: Array) -> Array:
    """P(X'HX > Y'HY) for joint normal (X, Y) [cells, 2 p].

    With L L' the covariance and V l V' the eigendecomposition of L'KL, K = diag(H, -H), the
    difference is k + sum_i (l_i z_i^2 + 2 c_i z_i) for standard normal z, where c = V'L'K mean and
    k = mean'K mean.
    """
    p = hessian.shape[-1]
    signed = np.zeros((len(hessian), 2 * p, 2 * p))
    signed[:, :p, :p], signed[:, p:, p:] = hessian, -hessian
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    slopes, turn = np.linalg.eigh(np.swapaxes(root, 1, 2) @ signed @ root)
    pushed = np.einsum("cij,cj->ci", signed, mean)
    linear = np.einsum("cji,ckj,ck->ci", turn, root, pushed)
    constant = (pushed * mean).sum(axis=1)
    scale = np.sqrt(2.0 * (slopes**2).sum(axis=1) + 4.0 * (linear**2).sum(axis=1))
    centre = constant + slopes.sum(axis=1)
    # A form 200 standard deviations from its mean has probability below 1e-20: the mean decides.
    moving = np.abs(centre) < 200.0 * scale
    full = values[:, 0] > 1e-10 * values[:, -1]
    found: Array = np.where(centre > 0.0, 1.0, 0.0)
    for cells, solve in ((moving & full, _by_inversion), (moving & ~full, _by_lattice)):
        if cells.any():
            s = scale[cells]
            found[cells] = solve(
                slopes[cells] / s[:, None], linear[cells] / s[:, None], constant[cells] / s
            )
    return found


def _by_lattice(slopes: Array, linear: Array, constant: Array) -> Array:
    """`_by_inversion` for singular covariances, whose characteristic function decays too slowly.

    The share of a fixed 65536-point additive lattice (Kronecker sequence of a generalised golden
    ratio) of normal quantiles; errors are about 1e-4.
    """
    ndtri = _arguments.scipy_module("special", function="probability_drs_worse").ndtri
    dimensions = slopes.shape[1]
    ratio = 2.0
    for _ in range(60):  # the root of x^(d + 1) = x + 1
        ratio = (1.0 + ratio) ** (1.0 / (dimensions + 1.0))
    steps = ratio ** -np.arange(1.0, dimensions + 1.0)
    # A singular direction has slope and push 0; the others come last when ordered by size.
    order = np.argsort(-(np.abs(slopes) + np.abs(linear)), axis=1)
    slopes = np.take_along_axis(slopes, order, axis=1)
    linear = np.take_along_axis(linear, order, axis=1)
    z = ndtri((0.5 + np.arange(1, 65537)[:, None] * steps) % 1.0)
    return np.array(
        [
            np.mean(k + (z * (z * slope + 2.0 * push)).sum(axis=1) > 1e-12)
            for slope, push, k in zip(slopes, linear, constant, strict=True)
        ]
    )


def _by_inversion(slopes: Array, linear: Array, constant: Array) -> Array:
    """P(constant + sum_i (slopes_i z_i^2 + 2 linear_i z_i) > 0); variances are 1.

    1/2 + 1/pi times the integral of Im(phi(u)) / u, where the characteristic function phi(u) is the
    exponential of i u k - sum_i [log(1 - 2 i l_i u) / 2 + 2 u^2 c_i^2 / (1 - 2 i l_i u)]. By the
    trapezoidal rule in t, u = exp(t - exp(-t)): the integrand is analytic and decays at both ends,
    so the rule converges exponentially once its step resolves the phase.
    """
    low, high = -4.0, 36.0
    steps = np.full(len(constant), 640)
    coarse = np.linspace(low, high, 641)
    for block in _blocks(steps, slopes.shape[1]):
        size, phase = _characteristic(coarse, slopes[block], linear[block], constant[block])
        turning = np.abs(np.diff(phase, axis=1)) * (size[:, 1:] > 1e-13)
        steps[block] *= 2 ** np.ceil(np.log2(np.maximum(turning.max(axis=1) / 0.5, 1.0))).astype(
            int
        )
    found = np.empty(len(constant))
    for block in _blocks(steps, slopes.shape[1]):
        t = np.linspace(low, high, int(steps[block[0]]) + 1)
        size, phase = _characteristic(t, slopes[block], linear[block], constant[block])
        integral = (size * np.sin(phase)) @ (1.0 + np.exp(-t)) * (t[1] - t[0])
        found[block] = 0.5 + integral / np.pi
    return np.asarray(np.clip(found, 0.0, 1.0))


def _characteristic(t: Array, slopes: Array, linear: Array, constant: Array) -> tuple[Array, Array]:
    """Modulus and phase of the characteristic function at u(t), [cells, points]."""
    u = np.exp(t - np.exp(-t))
    size, phase = np.zeros((2, len(constant), len(t)))
    phase += constant[:, None] * u
    for slope, push in zip(slopes.T[:, :, None], linear.T[:, :, None], strict=True):
        turn = 2.0 * slope * u
        damped = 2.0 * (push * u) ** 2 / (1.0 + turn**2)
        size -= 0.25 * np.log1p(turn**2) + damped
        phase += 0.5 * np.arctan(turn) - damped * turn
    return np.exp(size), phase


def _blocks(steps: NDArray[np.int_], forms: int) -> Iterator[NDArray[np.int_]]:
    """Indices of cells with equally many steps, few enough at a time to fit in the cache."""
    for count in np.unique(steps):
        alike = np.flatnonzero(steps == count)
        most = max(1, _MOST_ENTRIES // (int(count) * forms))
        for start in range(0, len(alike), most):
            yield alike[start : start + most]
