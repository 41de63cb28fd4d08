"""A trust-region step: conjugate gradients, then a line search that restores what it cannot
improve. Vectors are {name: tensor}, like parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Vector = Mapping[str, Tensor]

STOP = 1e-10  # of the squared residual
TINY = 1e-8  # added to the step's curvature


class TrustRegionStep(NamedTuple):
    """Result of `trust_region_step`.

    Members:
        params: the new parameters, or those given if no step was accepted.
        accepted: whether a step was.
        loss: at `params`.
        kl: at `params`.
        tried: how many lengths the line search looked at.
    """

    params: dict[str, Tensor]
    accepted: bool
    loss: float
    kl: float
    tried: int


def conjugate_gradient(
    product: Callable[[Vector], Vector], target: Vector, *, iterations: int = 10
) -> dict[str, Tensor]:
    """Returns an approximate solution x of A x = target, from x = 0, without damping.

    Args:
        product: v -> A v for a symmetric positive semidefinite A.
        target: {name: tensor}.
        iterations: at most so many; it stops once the squared residual is below 1e-10.

    Cost: one product an iteration.

    Source: Hestenes and Stiefel 1952.

    Example:
        >>> twice = conjugate_gradient(lambda v: {"a": 0.5 * v["a"]}, {"a": torch.ones(3)})
        >>> twice["a"]
        tensor([2., 2., 2.])
    """
    solution = {name: torch.zeros_like(leaf) for name, leaf in target.items()}
    residual = dict(target)
    direction = dict(target)
    square = inner(residual, residual)
    for _ in range(iterations):
        if square < STOP:
            break
        curved = product(direction)
        curvature = inner(direction, curved)
        if not curvature > 0:  # a flat direction: what is found so far is all there is
            break
        solution = moved(solution, square / curvature, direction)
        residual = moved(residual, -square / curvature, curved)
        before, square = square, inner(residual, residual)
        direction = moved(residual, square / before, direction)
    return solution


def trust_region_step(
    params: Vector,
    gradient: Vector,
    product: Callable[[Vector], Vector],
    evaluate: Callable[[Vector], tuple[float, float]],
    *,
    max_kl: float,
    cg_iterations: int = 10,
    line_search_steps: int = 15,
    line_search_ratio: float = 0.8,
) -> TrustRegionStep:
    """Returns the longest step tried that lowers the loss and keeps the KL within its bound.

    The direction d solves H d = gradient; the first length is sqrt(2 max_kl / (d' H d + 1e-8)),
    each further one `line_search_ratio` times the last. If none is accepted the parameters stay.

    Args:
        params: where the gradient was taken.
        gradient: of the loss.
        product: v -> H v, H the Hessian of the KL at `params`.
        evaluate: params -> (loss, KL).
        max_kl: bound of the KL.
        cg_iterations, line_search_steps, line_search_ratio: see above.

    Cost: cg_iterations + 1 products and at most line_search_steps + 1 evaluations.

    Source: Schulman et al. 2015, appendix C.

    Example:
        >>> step = trust_region_step(
        ...     {"a": torch.ones(1)}, {"a": torch.ones(1)}, lambda v: v,
        ...     lambda p: (p["a"].item(), 0.5 * (p["a"].item() - 1) ** 2), max_kl=0.02,
        ... )
        >>> round(step.params["a"].item(), 2), step.accepted
        (0.8, True)
    """
    loss, start_kl = evaluate(params)
    direction = conjugate_gradient(product, gradient, iterations=cg_iterations)
    curvature = inner(direction, product(direction))
    tried = 0
    if curvature > 0 and math.isfinite(curvature):
        length = math.sqrt(2 * max_kl / (curvature + TINY))
        for tried in range(1, line_search_steps + 1):
            candidate = moved(params, -length, direction)
            new_loss, new_kl = evaluate(candidate)
            if new_loss < loss and new_kl <= max_kl:
                return TrustRegionStep(candidate, True, new_loss, new_kl, tried)
            length *= line_search_ratio
    return TrustRegionStep(dict(params), False, loss, start_kl, tried)


def inner(a: Vector, b: Vector) -> float:
    """The inner product of two vectors, summed in float64."""
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


def moved(start: Vector, length: float, direction: Vector) -> dict[str, Tensor]:
    """start + length * direction."""
    return {name: leaf + length * direction[name] for name, leaf in start.items()}
