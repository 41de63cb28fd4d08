"""Task laws of the variants' tests, and a simulation that knows no theory: rows of data, an inner
solver run on them literally, and the normal equations of the outer loss.
"""

from __future__ import annotations

import numpy as np

from innerloop.bounds import linear

Q1 = np.array([[2.0, 0.5], [0.5, 1.0]])
Q2 = np.array([[0.5, -0.2], [-0.2, 1.5]])


def two_tasks():
    """The worked example of docs/theory.md."""
    return linear.Mixture([0.5, 0.5], [Q1, Q2], [[1.0, -1.0], [0.5, 2.0]], [0.5, 1.0])


def random_mixture(rng, p, count=3):
    """A mixture of `count` tasks with random covariances, solutions and noise."""
    factors = rng.standard_normal((count, p, p + 2))
    q = factors @ factors.transpose(0, 2, 1) / (p + 2)
    return linear.Mixture(
        rng.dirichlet(np.full(count, 4.0)), q, rng.standard_normal((count, p)),
        rng.uniform(0.2, 1.0, count),
    )  # fmt: skip


def draw(rng, tasks, rows):
    """Rows X [T, rows, p] and targets y [T, rows] of the tasks in `tasks` (Nodes)."""
    root = np.linalg.cholesky(tasks.Q)
    x = rng.standard_normal((len(tasks.weights), rows, root.shape[-1])) @ root.transpose(0, 2, 1)
    noise = rng.standard_normal(x.shape[:2]) * np.sqrt(tasks.sigma2)[:, None]
    return x, np.einsum("tni,ti->tn", x, tasks.theta) + noise


def gradient_steps(inner_lr, steps):
    """A solver: `steps` gradient steps of the support risk, one after the other."""

    def solve(x, y, theta):
        for _ in range(steps):
            residual = np.einsum("tni,ti->tn", x, theta) - y
            theta = theta - inner_lr * np.einsum("tni,tn->ti", x, residual) / x.shape[1]
        return theta

    return solve


def matrix_step(rate):
    """A solver: one gradient step with a matrix rate."""

    def solve(x, y, theta):
        residual = np.einsum("tni,ti->tn", x, theta) - y
        return theta - np.einsum("tni,tn->ti", x, residual) / x.shape[1] @ rate.T

    return solve


def ridge_fit(penalty):
    """A solver: ridge regression towards theta, as least squares on extended data."""

    def solve(x, y, theta):
        tasks, rows, p = x.shape
        pull = np.sqrt(rows * penalty)
        extended = np.concatenate([x, np.broadcast_to(pull * np.eye(p), (tasks, p, p))], axis=1)
        aims = np.concatenate([y, np.broadcast_to(pull * theta, (tasks, p))], axis=1)
        turned = extended.transpose(0, 2, 1)
        return np.linalg.solve(turned @ extended, turned @ aims[..., None])[..., 0]

    return solve


def normal_equations(solve, support, query):
    """W [T, p, p] and z [T, p] of the outer loss, from the solver's answers to unit vectors."""
    (x1, y1), (x2, y2) = support, query
    p = x1.shape[-1]
    origin = solve(x1, y1, np.zeros((len(x1), p)))
    map_ = np.stack(
        [solve(x1, 0.0 * y1, np.tile(unit, (len(x1), 1))) for unit in np.eye(p)], axis=-1
    )
    seen = x2 @ map_
    rest = y2 - np.einsum("tni,ti->tn", x2, origin)
    rows = x2.shape[1]
    return seen.transpose(0, 2, 1) @ seen / rows, np.einsum("tni,tn->ti", seen, rest) / rows


def z_scores(samples, expected):
    """(mean - expected) / standard error of the mean, for samples along the first axis."""
    samples = samples.reshape(len(samples), -1)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    return (samples.mean(0) - np.ravel(expected)) / error
