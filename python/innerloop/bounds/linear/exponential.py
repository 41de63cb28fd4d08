"""Exponential moments of joint training's score: a guarantee that pays ln(1 / delta) (Result 11b).

With X = Wb^(-1/2) psi, g(s) >= E[exp(s |X|) - 1 - s |X|] bounds the tail of the mean of M scores.
Given a task, X has a mean part and a part of quadratic forms in normal variables, so that all its
moments are bounded in closed form; g sums them.
"""

from __future__ import annotations

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds.linear.laws import Mixture, TaskLaw
from innerloop.bounds.linear.risk import low_order
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
    inverse = symmetric_inverse(low_order(law).matrices[0])
    offset = theta - target
    mean = np.einsum("gij,gj->gi", q, offset)
    power = np.einsum("gi,gi->g", offset, mean) + sigma2  # variance of a row's residual
    square = np.einsum("gi,ij,gj->g", mean, inverse, mean)
    spread = np.einsum("ij,gji->g", inverse, q) * power - square
    centre, width = np.sqrt(square), np.sqrt(np.maximum(spread, 0.0) / samples)
    # E|X|^m <= (centre |chi2_n / n|_m + width |(chi2_n / n)^(1/2)|_m |z|_m)^m, task by task
    special = _arguments.scipy_module("special", function="guarantee")
    norm = np.zeros((len(_ORDERS), len(weights)))
    if np.isfinite(samples):
        half = samples / 2.0

        def chi(order: Array) -> Array:
            """ln E (chi2_n / n)^order."""
            logs = special.gammaln(half + order) - special.gammaln(half) - order * np.log(half)
            return np.asarray(logs)

        normal = special.gammaln((_ORDERS + 1) / 2.0) - special.gammaln(0.5)
        normal += _ORDERS / 2.0 * np.log(2.0)
        norm += np.exp((chi(_ORDERS / 2.0) + normal) / _ORDERS)[:, None] * width
        norm += np.exp(chi(_ORDERS) / _ORDERS)[:, None] * centre
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


def squared_tail(s: Array, logs: Array, tasks: Array, failure: Array) -> Array:
    """What |mean of M scores|^2 exceeds with at most that probability, [...].

    Args:
        s, logs: [..., L], as `log_moments` gives them.
        tasks, failure: [...].
    """
    level = np.log(2.0 / failure) / tasks
    return np.asarray((((level[..., None] + logs) / s).min(axis=-1)) ** 2)
