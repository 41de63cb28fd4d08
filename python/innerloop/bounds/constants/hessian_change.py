"""How fast the Hessian changes: rho from third-order power iteration, and from secants along a run
(Result 33)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from innerloop.bounds._results import Assumption, Record
from innerloop.bounds.constants._estimate import Estimate, Origin, measured_array
from innerloop.bounds.constants._oracle import (
    Model,
    Oracle,
    Trajectory,
    check_count,
    gaussian,
    oracle,
    source_of,
    stacked,
)
from innerloop.bounds.constants.kinks import Kink, kink_of
from innerloop.bounds.constants.krylov import lanczos, ritz
from innerloop.objectives import Loss

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class ThirdOrder(Record):
    """Lower bounds of the Lipschitz constant of every task's Hessian.

    Args:
        values: [T] for one point, [J, T] for the J segments of a trajectory.
        rho: the number to insert in the bounds: the largest value times the inflation.
        inflation: that factor.
    """

    values: Array
    rho: Estimate
    inflation: float

    def explain(self) -> str:
        """The constant and how it was obtained."""
        return self.rho.explain()


def third_order(
    model: Model,
    params: Any,
    batch: Any,
    *,
    loss: Loss = "mse",
    starts: int = 4,
    iterations: int = 20,
    shift: float = 1.0,
    step: float | None = None,
    inflation: float = 2.0,
    dtype: torch.dtype = torch.float64,
    backend: str = "auto",
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> ThirdOrder:
    """Returns lower bounds of the norm of every task's third derivative at `params`.

    The norm is the largest |D^3 R[u, u, u]| over unit vectors u. From each start, u becomes the
    direction of sign(c) w + shift |c| u with w the central difference of H u along u and c = u.w;
    the largest |c| met over all starts and iterations is kept.

    Args:
        model, params, batch, loss, dtype, backend: as `curvature`.
        starts: Gaussian starts per task; all run at once.
        iterations: of each start.
        shift: >= 0; 1 stops the iteration from jumping between opposite directions.
        step: length h of the difference; None takes the fourth root of the machine precision.
        inflation: factor >= 1 between the largest value found and `rho`.
        generator, seed: where the starts come from.

    Returns:
        ThirdOrder with values [T]. Each is a lower bound of the local constant (up to the
        difference error, of order h^2 times the fifth derivative), hence of rho in B3: nothing
        here bounds rho from above, so `rho` is plug-in, and a heuristic where kinks are found: no
        finite rho exists there, this is the change between them.

    Raises:
        ValueError: an argument is out of range, or the loss is not finite there.

    Cost: 2 starts iterations Hessian-vector products per task, about 4 starts iterations gradients;
        memory O(starts T P).

    Assumes:
        Losses are three times differentiable there. Not checked: B3 elsewhere.

    Source: Result 33; the shifted symmetric higher-order power method is Kolda and Mayo's 2011.

    Example:
        >>> import innerloop as il
        >>> x, y = torch.tensor([[[2.0]]]), torch.tensor([[1.0]])
        >>> found = third_order(il.MLP([1, 1], bias=False), {"0.weight": torch.ones(1, 1)},
        ...                     (x, y), loss="bce_with_logits")
        >>> s = torch.sigmoid(torch.tensor(2.0)).item()
        >>> bool(abs(found.values[0] - s * (1 - s) * abs(1 - 2 * s) * 8) < 1e-6)
        True
    """
    name = "third_order"
    check_count(name, "starts", starts, 1)
    check_count(name, "iterations", iterations, 1)
    if not (shift >= 0 and np.isfinite(shift)):
        raise ValueError(f"{name}: shift must be finite and >= 0 (got {shift!r})")
    check_inflation(name, inflation)
    whole = oracle(name, model, params, batch, loss=loss, dtype=dtype, backend=backend)
    h = float(torch.finfo(dtype).eps ** 0.25) if step is None else float(step)
    if not (h > 0 and np.isfinite(h)):
        raise ValueError(f"{name}: step must be positive and finite (got {step!r})")
    source = source_of(generator, seed)
    many = whole.select(torch.arange(whole.tasks).repeat(starts))
    best = _iterate(many, gaussian(source, many), iterations, shift, h)
    values = best.reshape(starts, whole.tasks).amax(0).double().cpu().numpy()
    cost = {"Hessian-vector products": 2 * starts * iterations * whole.tasks}
    how = (
        f"third-order power iteration, {starts} starts of {iterations} iterations, largest over "
        f"{whole.tasks} tasks, times {inflation:g}"
    )
    scope = f"the losses of these {whole.tasks} tasks at these parameters"
    kink = kink_of(whole.model, whole.x, loss)
    rho = _rho(values, inflation, scope, how, cost, kink)
    return ThirdOrder(measured_array(values, "change of the Hessian", "Result 33"), rho, inflation)


def _iterate(many: Oracle, vector: Tensor, iterations: int, shift: float, h: float) -> Tensor:
    """Returns the largest |D^3 R[u, u, u]| met from each start, [T]."""
    centre = many.flat()
    vector = vector / vector.norm(dim=1, keepdim=True)
    best = vector.new_zeros(many.tasks)
    for _ in range(iterations):
        ahead = many.at(centre + h * vector).product(vector)
        behind = many.at(centre - h * vector).product(vector)
        image = (ahead - behind) / (2.0 * h)
        value = (image * vector).sum(1)
        best = torch.maximum(best, value.abs())
        moved = value.sign()[:, None] * image + shift * value.abs()[:, None] * vector
        length = moved.norm(dim=1, keepdim=True)
        vector = torch.where(length > 0, moved / length.clamp(min=1e-300), vector)
    return best


def secant_rho(
    model: Model,
    trajectory: Trajectory | Mapping[str, Tensor],
    batch: Any,
    *,
    loss: Loss = "mse",
    products: int = 12,
    inflation: float = 2.0,
    dtype: torch.dtype = torch.float64,
    backend: str = "auto",
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> ThirdOrder:
    """Returns ||H(a) - H(b)|| / ||a - b|| for consecutive points of a run and every task.

    Args:
        trajectory: J + 1 parameter dicts in order, or one dict of leaves [J + 1, ...].
        products: Lanczos steps on the difference of the two Hessians.
        others: see `third_order`.

    Returns:
        ThirdOrder with values [J, T]: lower bounds of rho between the two points, certain up to
        rounding whatever the start was. Segments of length zero give 0.

    Raises:
        ValueError: fewer than two points, or an argument out of range.

    Cost: 2 (products + 2) Hessian-vector products per segment and task; memory O(T P products).

    Assumes:
        Losses are twice differentiable along the run. Not checked: B3 elsewhere.

    Source: Result 33.

    Example:
        >>> import innerloop as il
        >>> x, y = torch.tensor([[[2.0]]]), torch.tensor([[1.0]])
        >>> run = {"0.weight": torch.tensor([[[0.0]], [[0.5]], [[1.0]]])}
        >>> found = secant_rho(il.MLP([1, 1], bias=False), run, (x, y), loss="bce_with_logits")
        >>> found.values.shape
        (2, 1)
    """
    name = "secant_rho"
    check_count(name, "products", products, 1)
    check_inflation(name, inflation)
    points = stacked(name, trajectory)
    if len(points) < 2:
        raise ValueError(f"{name}: trajectory must have at least two points (got {len(points)})")
    source = source_of(generator, seed)
    made = [oracle(name, model, p, batch, loss=loss, dtype=dtype, backend=backend) for p in points]
    rows = []
    for first, second in itertools.pairwise(made):
        length = (first.flat() - second.flat()).norm(dim=1)

        def difference(vector: Tensor, first: Oracle = first, second: Oracle = second) -> Tensor:
            return second.product(vector) - first.product(vector)

        found = lanczos(difference, gaussian(source, first), products)
        low, high = ritz(found, difference)
        norm = torch.maximum(high.value.abs(), low.value.abs())
        rows.append(torch.where(length > 0, norm / length.clamp(min=1e-300), 0))
    values = torch.stack(rows).double().cpu().numpy()
    segments, tasks = values.shape
    cost = {"Hessian-vector products": 2 * (products + 2) * segments * tasks}
    how = f"secants of the Hessian over {segments} segments, largest, times {inflation:g}"
    scope = f"{tasks} tasks between the points of this run"
    kink = kink_of(made[0].model, made[0].x, loss)
    rho = _rho(values, inflation, scope, how, cost, kink)
    return ThirdOrder(measured_array(values, "change of the Hessian", "Result 33"), rho, inflation)


def check_inflation(name: str, inflation: float) -> None:
    """Raises unless the factor is a finite number that is at least 1."""
    if not (float(inflation) >= 1.0 and np.isfinite(inflation)):
        raise ValueError(f"{name}: inflation must be finite and >= 1 (got {inflation!r})")


def _rho(
    values: Array, inflation: float, scope: str, how: str, cost: dict[str, int], kink: Kink | None
) -> Estimate:
    """Returns the labelled constant."""
    made = Estimate(
        inflation * float(values.max()),
        name="rho, Lipschitz constant of the Hessian",
        source="Result 33",
        assumptions=(Assumption("B3 needs the supremum over a region and all tasks"),),
        origin=Origin(
            "plug-in",
            "inflated" if inflation > 1 else "lower bound",
            scope,
            how,
            measured=float(values.max()),
            cost=cost,
        ),
    )
    return made if kink is None else made.broken(kink.why)
