"""Exact MAML objectives, gradients and variances of finite families, by listing all supports."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal, NamedTuple

import numpy as np

from innerloop.bounds._arguments import Array, array, counts
from innerloop.bounds.nonconvex.families import Family

Hessian = Literal["same", "separate", "none"]


class Adapted(NamedTuple):
    """All outcomes of the inner steps from points [..., p]; S supports, G tasks.

    Members:
        chances: [S, G], probability of each support in each task.
        theta: [..., S, G, p], adapted parameters.
        jacobian: [..., S, G, p, p], derivative of them with respect to the point.
    """

    chances: Array
    theta: Array
    jacobian: Array


class Exact(NamedTuple):
    """Exact moments at points [..., p].

    Members:
        value: [...], the MAML objective.
        gradient: [..., p], mean of the stochastic MAML gradient; with the Hessian on the same
            support this is the gradient of `value`.
        variance: [...], E|g - E g|^2 of one task's stochastic gradient.
        visited: Adapted, for constants on the points visited.
    """

    value: Array
    gradient: Array
    variance: Array
    visited: Adapted


def supports(family: Family, samples: int | None) -> tuple[Array, Array]:
    """All multisets of `samples` samples: frequencies [S, 1 or G, A] and chances [S, G].

    None is the population: one support with the samples' own probabilities.
    """
    tasks, atoms = family.y.shape
    if samples is None:
        return family.chances[None], np.ones((1, tasks))
    size = int(counts(samples, function="supports", name="samples"))
    listed = list(itertools.combinations_with_replacement(range(atoms), size))
    frequency = np.array([np.bincount(item, minlength=atoms) for item in listed])  # [S, A]
    ways = np.array(
        [math.factorial(size) / math.prod(map(math.factorial, row.tolist())) for row in frequency]
    )
    chances = ways[:, None] * np.prod(family.chances ** frequency[:, None, :], axis=-1)
    return frequency[:, None, :] / size, chances


def adapt(
    family: Family, theta: Any, *, inner_lr: float, samples: int | None, steps: int = 1
) -> Adapted:
    """Every adapted parameter vector, with its probability and its Jacobian.

    Args:
        family: the tasks.
        theta: [..., p] points.
        inner_lr: inner rate, any sign.
        samples: support size N; None for population steps.
        steps: inner steps K on the same support.

    Returns:
        Adapted.

    Cost:
        S = C(A + N - 1, N) supports times K Hessians.
    """
    points = array(theta, function="adapt", name="theta")
    frequency, chances = supports(family, samples)
    tasks, p = family.x.shape[0], points.shape[-1]
    moved = np.broadcast_to(
        points[..., None, None, :], (*points.shape[:-1], len(frequency), tasks, p)
    )
    jacobian = np.broadcast_to(np.eye(p), (*moved.shape, p))
    for _ in range(steps):
        turn = np.eye(p) - inner_lr * family.hessians(moved, frequency)
        jacobian = turn @ jacobian
        moved = moved - inner_lr * family.gradients(moved, frequency)
    return Adapted(chances, moved, jacobian)


def exact_moments(
    family: Family,
    theta: Any,
    *,
    inner_lr: float,
    samples: int | None,
    queries: int | None = None,
    steps: int = 1,
    hessian: Hessian = "same",
) -> Exact:
    """MAML objective, mean and variance of its stochastic gradient, without any sampling.

    Args:
        family, theta, inner_lr, samples, steps: as in `adapt`.
        queries: query samples N_o; None for exact query gradients.
        hessian: "same" support for the Hessian factor, a "separate" one (one step; its own
            noise does not enter the variance here), or "none" for first-order MAML.

    Returns:
        Exact.

    Raises:
        ValueError: a separate Hessian batch with several steps.

    >>> from innerloop.bounds.nonconvex.families import TanhRegression
    >>> family = TanhRegression(np.ones((1, 2, 1)), np.array([[0.5, -0.5]]))
    >>> float(exact_moments(family, [0.0], inner_lr=0.1, samples=1).gradient[0])
    0.0
    """
    points = array(theta, function="exact_moments", name="theta")
    visited = adapt(family, points, inner_lr=inner_lr, samples=samples, steps=steps)
    jacobian = visited.jacobian
    if hessian == "none":
        jacobian = np.broadcast_to(np.eye(points.shape[-1]), jacobian.shape)
    elif hessian == "separate":
        if steps != 1:
            raise ValueError("exact_moments: a separate Hessian batch needs steps = 1")
        turn = np.eye(points.shape[-1]) - inner_lr * family.hessians(points[..., None, None, :])
        jacobian = np.broadcast_to(turn, jacobian.shape)
    joint = visited.chances * family.weights  # [S, G]
    value = (joint * family.risks(visited.theta)).sum((-2, -1))
    slopes = family.gradients(visited.theta)
    seen = np.einsum("...pq,...p->...q", jacobian, slopes)  # [..., S, G, p]
    mean = np.einsum("sg,...sgp->...p", joint, seen)
    variance = np.einsum("sg,...sgp->...", joint, (seen - mean[..., None, None, :]) ** 2)
    if queries is not None:
        away = family.sample_gradients(visited.theta) - slopes[..., None, :]
        through = np.einsum("...pq,...ap->...aq", jacobian, away)
        noise = (family.chances * (through**2).sum(-1)).sum(-1)
        size = float(counts(queries, function="exact_moments", name="queries"))
        variance = variance + (joint * noise).sum((-2, -1)) / size
    return Exact(value, mean, variance, visited)
