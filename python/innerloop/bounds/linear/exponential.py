"""Exponential moments of joint training's score: a guarantee that pays ln(1 / delta) (Result 11b).

With X = Wb^(-1/2) psi, g(s) >= E[exp(s |X|) - 1 - s |X|] bounds the tail of the mean of M scores.
Given a task, X has a mean part and a part of quadratic forms in normal variables, so that all its
moments are bounded in closed form; g sums them.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds.linear.laws import Mixture, TaskLaw
from innerloop.bounds.linear.quadratic import post_update
from innerloop.bounds.linear.scores import symmetric_inverse

# Orders summed one by one; a geometric series bounds the others.
_ORDERS = np.arange(3.0, 81.0)
_TRIALS = 200  # trial values of the exponent s


def mixture_of(law: TaskLaw, function: str) -> Mixture:
    """The law itself; ValueError unless it has finitely many tasks."""
    if not isinstance(law, Mixture):
        raise ValueError(
            f"{function}: exponential needs a Mixture, whose tasks are bounded; Result 11b has no "
            "bound for a law known by its density or a sampler"
        )
    return law


def log_moments(
    law: Mixture, target: Array, samples: float, score_trace: float
) -> tuple[Array, Array]:
    """Trial exponents s [L], increasing, and upper bounds on ln(1 + g(s)) [L].

    Args:
        law: the tasks.
        target: [p], joint training's target.
        samples: n, rows of a task.
        score_trace: E|X|^2.
    """
    weights, q, theta, sigma2 = law.nodes()
    inverse = symmetric_inverse(post_update(law).joint)
    offset = theta - target
    mean = np.einsum("gij,gj->gi", q, offset)
    square = np.einsum("gi,ij,gj->g", mean, inverse, mean)
    centre, width = np.sqrt(square), np.sqrt(_spread(q, inverse, offset, sigma2) / samples)
    # E|X|^m <= (centre |chi2_n / n|_m + width |(chi2_n / n)^(1/2)|_m |z|_m)^m, task by task
    special = _arguments.scipy_module("special", function="guarantee")
    norm = np.zeros((len(_ORDERS), len(weights)))
    if np.isfinite(samples):
        normal = special.gammaln((_ORDERS + 1) / 2.0) - special.gammaln(0.5)
        normal += _ORDERS / 2.0 * np.log(2.0)
        whole, half = _log_chi_moments(samples, special)
        norm += np.exp((half + normal) / _ORDERS)[:, None] * width
        norm += np.exp(whole / _ORDERS)[:, None] * centre
    else:
        norm += centre
    last = float(_ORDERS[-1])
    growth = float(
        np.e * np.max(centre * (1 / last + 2 / samples) + width * (1 / last + 1 / samples) ** 0.5)
    )
    if growth == 0.0:  # no error at all
        return np.ones(1), np.zeros(1)
    s = np.geomspace(1e-5, 0.999, _TRIALS) / growth
    with np.errstate(divide="ignore"):
        logs = _ORDERS[:, None] * np.log(norm) + np.log(weights)
    logs = special.logsumexp(logs, axis=1) - special.gammaln(_ORDERS + 1)  # of E|X|^m / m!
    terms = np.exp(logs + _ORDERS * np.log(s)[:, None]).sum(axis=1)
    rest = (s * growth) ** (last + 1) / (1.0 - s * growth)
    return s, np.log1p(s**2 * score_trace / 2.0 + terms + rest)


def _spread(q: Array, inverse: Array, offset: Array, sigma2: Array) -> Array:
    """tr(Wb^-1 Q) (d'Qd + sigma2) - d'Q Wb^-1 Q d at every node, [G], as a sum of positive terms.

    With R R' = Q, y = R'd and a, u the eigenvalues and eigenvectors of R' Wb^-1 R, the part in d is
    the sum over i of a_i (|y|^2 - (u_i'y)^2).
    """
    values, vectors = np.linalg.eigh(q)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    weights, frames = np.linalg.eigh(np.swapaxes(root, 1, 2) @ inverse @ root)
    turned = np.einsum("gij,gki,gk->gj", frames, root, offset) ** 2
    others = (1.0 - np.eye(q.shape[-1])) @ turned[..., None]
    return np.asarray((np.maximum(weights, 0.0) * (others[..., 0] + sigma2[:, None])).sum(axis=1))


def _log_chi_moments(samples: float, special: ModuleType) -> tuple[Array, Array]:
    """ln E (chi2_n / n)^m and ln E (chi2_n / n)^(m / 2) for the orders m, without the difference of
    two logarithms of large gamma functions.
    """
    half = samples / 2.0
    steps = np.arange(_ORDERS[-1])
    whole = np.concatenate([[0.0], np.cumsum(np.log1p(steps / half))])  # by m
    # ln of Gamma(h + 1/2) / (Gamma(h) sqrt(h)), then factors (h + 1/2 + j) / h
    if half < 50.0:
        first = special.gammaln(half + 0.5) - special.gammaln(half) - 0.5 * np.log(half)
    else:
        first = (-1.0 / 8.0 + (1.0 / 192.0 - 1.0 / (640.0 * half**2)) / half**2) / half
    shifted = first + np.concatenate([[0.0], np.cumsum(np.log1p((steps + 0.5) / half))])
    orders = _ORDERS.astype(int)
    return whole[orders], np.where(orders % 2 == 0, whole[orders // 2], shifted[orders // 2])


def squared_tail(s: Array, logs: Array, tasks: Array, failure: Array) -> Array:
    """What |mean of M scores|^2 exceeds with at most that probability, [...].

    Args:
        s, logs: [..., L], as `log_moments` gives them.
        tasks, failure: [...].
    """
    level = np.log(2.0 / failure) / tasks
    return np.asarray((((level[..., None] + logs) / s).min(axis=-1)) ** 2)
