"""Curvature of every task's loss at given parameters: L_plus, ell, L and kappa with confidence
(Result 32)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from innerloop.bounds._results import Assumption, Record
from innerloop.bounds.constants._estimate import Estimate, Origin, measured_array
from innerloop.bounds.constants._oracle import (
    Model,
    Oracle,
    check_count,
    check_fraction,
    gaussian,
    oracle,
    source_of,
)
from innerloop.bounds.constants.kinks import Kink, kink_of
from innerloop.bounds.constants.krylov import (
    Method,
    lanczos,
    lanczos_failure,
    largest_eigenvalue,
    power_failure,
    products_needed,
    ritz,
)
from innerloop.objectives import Loss

Array = np.ndarray[Any, Any]
CurvatureMethod = Literal["two-sided", "squared", "power"]

# numbers kept at once in the Krylov bases; more tasks run in groups
_BASIS = 2**21


@dataclasses.dataclass(frozen=True)
class Curvature(Record):
    """Extreme eigenvalues of the Hessian of every task's loss at given parameters.

    Args:
        largest, smallest: [T] Rayleigh quotients: certain bounds, largest <= lambda_max and
            smallest >= lambda_min.
        largest_residual, smallest_residual: [T]; an eigenvalue lies within this distance.
        largest_upper, smallest_lower: [T] bounds on the other side, each with probability
            1 - delta for its task.
        L_plus: upper bound of max_t lambda_max, at least 0.
        ell: upper bound of max_t -lambda_min, at least 0.
        L: upper bound of max_t of the Hessian's norm.
        eps, delta: relative error and failure probability of one bound.
        method: "two-sided", "squared" or "power".
        products: Hessian-vector products spent on each task.
        size: P.
    """

    largest: Array
    smallest: Array
    largest_residual: Array
    smallest_residual: Array
    largest_upper: Array
    smallest_lower: Array
    L_plus: Estimate
    ell: Estimate
    L: Estimate
    eps: float
    delta: float
    method: str
    products: int
    size: int

    def kappa(self, inner_lr: float) -> Estimate:
        """Returns max(|1 - inner_lr L_plus|, |1 + inner_lr ell|): how much a step can expand.

        A bound of ||I - inner_lr H|| for either sign of the rate; with a negative rate L_plus and
        ell change places, which the absolute values take care of.
        """
        rate = float(inner_lr)
        value = np.maximum(abs(1.0 - rate * self.L_plus), abs(1.0 + rate * self.ell))
        origin = dataclasses.replace(
            self.L.origin, how="from L_plus and ell", measured=None, cost={}
        )
        standing = value.standing
        return Estimate(value, name="kappa", source="Result 32", origin=origin, standing=standing)

    def explain(self) -> str:
        """The three constants and how they were obtained."""
        return "\n".join(
            [
                f"curvature of {len(self.largest)} tasks, {self.size} parameters",
                self.L_plus.explain(),
                self.ell.explain(),
                self.L.explain(),
            ]
        )


def curvature(
    model: Model,
    params: Any,
    batch: Any,
    *,
    loss: Loss = "mse",
    eps: float = 0.05,
    delta: float = 0.01,
    products: int | None = None,
    method: CurvatureMethod = "two-sided",
    dtype: torch.dtype = torch.float64,
    backend: str = "auto",
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> Curvature:
    """Returns L_plus, ell and L of every task's loss at `params`, with their confidence.

    Args:
        model: an MLP or any nn.Module.
        params: {name: tensor}, each leaf shared [...] or per task [T, ...].
        batch: (x [T, N, D], y), optionally with count and weight, as `innerloop.hvp` takes it.
        loss: as `innerloop.hvp` takes it.
        eps: relative error of the bounds, below 1/2 for "two-sided".
        delta: probability with which a bound may fail, over the random start.
        products: Lanczos (or power) steps; None takes what `eps` and `delta` need. When given,
            `eps` stays and the confidence is what these steps buy.
        method: "two-sided" runs Lanczos once on H and reads both ends; "squared" runs it on H^2
            and then on c I + H and c I - H with c >= ||H||; "power" is the latter with power
            iteration, whose memory does not grow with the steps.
        dtype: float64, or float32 (faster; residuals show what it costs).
        generator, seed: where the Gaussian starts come from.

    Returns:
        Curvature. L_plus and ell are upper bounds at these parameters for these tasks with
        confidence 1 - delta each: the task with the largest eigenvalue does not depend on the
        starts, so no union over tasks is needed. They say nothing about other parameters: in a
        bound they are plug-in, and heuristics where kinks are found, which break B2.

    Raises:
        ValueError: an argument is out of range, or the loss is not finite there.

    Cost: Hessian-vector products per task, k steps: k + 2 ("two-sided"), 4k + 8 ("squared"), 4k
        ("power"); memory O(T k P), or O(T P) for "power"; one product is about two gradients.

    Assumes:
        Losses are twice differentiable there and arithmetic is exact. Checked: starts are Gaussian
        and independent of the Hessians. Not checked: B2 at other parameters and for other tasks.

    Source: Result 32; Kuczyński and Woźniakowski 1992; the two-sided form is this project's own.

    Example:
        >>> import innerloop as il
        >>> x = torch.tensor([[[3.0]], [[1.0]]])
        >>> found = curvature(il.MLP([1, 1], bias=False), {"0.weight": torch.ones(1, 1)},
        ...                   (x, x), loss="half_mse")
        >>> found.largest.round(6).tolist()
        [9.0, 1.0]
    """
    name = "curvature"
    if method not in ("two-sided", "squared", "power"):
        raise ValueError(f"{name}: method must be two-sided, squared or power (got {method!r})")
    eps = check_fraction(name, "eps", eps, 0.5 if method == "two-sided" else 1.0)
    delta = check_fraction(name, "delta", delta)
    whole = oracle(name, model, params, batch, loss=loss, dtype=dtype, backend=backend)
    inner: Method = "power" if method == "power" else "lanczos"
    if products is None:
        products = products_needed(eps, delta / 2, whole.size, method=inner)
        if method != "power":
            products = min(products, whole.size)
    check_count(name, "products", products, 1)
    failure = _failure(inner, eps, products, whole.size)
    source = source_of(generator, seed)
    run = _two_sided if method == "two-sided" else _squared
    group = max(1, _BASIS // (whole.size * (products if inner == "lanczos" else 1)))
    parts = [
        run(whole.select(slice(first, first + group)), products, eps, inner, source)
        for first in range(0, whole.tasks, group)
    ]
    values = {
        key: np.concatenate([part[key].double().cpu().numpy() for part in parts])
        for key in parts[0]
    }
    spent = {"two-sided": products + 2, "squared": 4 * products + 8, "power": 4 * products}[method]
    kink = kink_of(whole.model, whole.x, loss)
    return _summary(values, eps, min(1.0, 2 * failure), method, spent, whole.size, kink)


def _failure(method: Method, eps: float, products: int, size: int) -> float:
    """Returns the failure bound of one end; a full Krylov space does not fail."""
    if method == "power":
        return float(power_failure(eps, products, size))
    return 0.0 if products >= size else float(lanczos_failure(eps, products, size))


def _two_sided(
    part: Oracle, products: int, eps: float, method: Method, source: torch.Generator
) -> dict[str, Tensor]:
    """Returns both ends from one Lanczos run: each misses by at most eps (lambda_max -
    lambda_min), since the Krylov space of H is that of H - lambda_min I."""
    found = lanczos(part.product, gaussian(source, part), products)
    low, high = ritz(found, part.product)
    slack = eps / (1.0 - 2.0 * eps) * (high.value - low.value)
    return {
        "largest": high.value,
        "smallest": low.value,
        "largest_residual": high.residual,
        "smallest_residual": low.residual,
        "largest_upper": high.value + slack,
        "smallest_lower": low.value - slack,
    }


def _squared(
    part: Oracle, products: int, eps: float, method: Method, source: torch.Generator
) -> dict[str, Tensor]:
    """Returns both ends from three positive semidefinite problems: H^2, c I + H and c I - H."""

    def square(vector: Tensor) -> Tensor:
        return part.product(part.product(vector))

    top = largest_eigenvalue(square, gaussian(source, part), products, method=method)
    shift = (top.value.clamp(min=0) / (1.0 - eps)).sqrt()  # an upper bound of the norm
    ends = []
    for sign in (1.0, -1.0):

        def shifted(vector: Tensor, sign: float = sign) -> Tensor:
            return shift[:, None] * vector + sign * part.product(vector)

        found = largest_eigenvalue(shifted, gaussian(source, part), products, method=method)
        upper = sign * (found.value / (1.0 - eps) - shift)
        ends.append((sign * (found.value - shift), found.residual, upper))
    (high, high_residual, upper), (low, low_residual, lower) = ends
    return {
        "largest": high,
        "smallest": low,
        "largest_residual": high_residual,
        "smallest_residual": low_residual,
        "largest_upper": upper,
        "smallest_lower": lower,
    }


def _summary(
    values: dict[str, Array],
    eps: float,
    failure: float,
    method: str,
    spent: int,
    size: int,
    kink: Kink | None,
) -> Curvature:
    """Returns the record: maxima over tasks as labelled estimates."""
    tasks = len(values["largest"])
    scope = f"the losses of these {tasks} tasks at these parameters"
    cost = {"Hessian-vector products": tasks * spent}
    assumptions = (
        Assumption("B2 needs the supremum over a region and all tasks: use there is plug-in"),
        Assumption("Gaussian starts independent of the Hessians", "checked"),
        Assumption("exact arithmetic (the residuals show what rounding costs)"),
    )

    def estimate(name: str, upper: float, measured: float) -> Estimate:
        made = Estimate(
            max(0.0, upper),
            name=name,
            source="Result 32",
            assumptions=assumptions,
            reason="the steps are too few for any confidence" if failure >= 1 else None,
            origin=Origin(
                "certified" if failure < 1 else "plug-in",
                "upper bound" if failure < 1 else "inflated",
                scope,
                f"{method} Krylov run from Gaussian starts, largest over tasks, inflated for a "
                f"relative error of {eps:g}",
                confidence=1.0 - failure,
                measured=max(0.0, measured),
                cost=cost,
            ),
        )
        return made.broken(kink.why) if kink is not None and kink.first else made

    above = float(values["largest_upper"].max()), float(values["largest"].max())
    below = float(-values["smallest_lower"].min()), float(-values["smallest"].min())
    norm = max(above[0], below[0]), max(above[1], below[1])
    return Curvature(
        **{key: measured_array(each, key, "Result 32") for key, each in values.items()},
        L_plus=estimate("L_plus, largest curvature", *above),
        ell=estimate("ell, most negative curvature", *below),
        L=estimate("L, largest norm of the Hessian", *norm),
        eps=eps,
        delta=failure,
        method=method,
        products=spent,
        size=size,
    )
