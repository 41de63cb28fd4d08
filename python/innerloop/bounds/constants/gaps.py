"""Initial gaps and the smoothness met along a run (Result 35)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from innerloop import functional
from innerloop._params import BatchLike
from innerloop.bounds._results import Assumption, Record
from innerloop.bounds.constants._estimate import Estimate, Origin, measured_array
from innerloop.bounds.constants._oracle import Model, Oracle, Trajectory, oracle, stacked
from innerloop.objectives import Loss

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class InitialGaps(Record):
    """Values of both objectives at the start, above the lower bound 0 of every loss.

    Args:
        drs: R_drs at the start. maml: R_maml at the start, None if there was no support.
    """

    drs: Estimate
    maml: Estimate | None

    def explain(self) -> str:
        """Both gaps and how they were obtained."""
        return "\n".join(gap.explain() for gap in (self.drs, self.maml) if gap is not None)


def initial_gaps(
    model: Model,
    params: Any,
    query: BatchLike,
    *,
    support: BatchLike | None = None,
    inner_lr: float = 0.0,
    steps: int = 1,
    loss: Loss = "mse",
    dtype: torch.dtype = torch.float64,
    backend: str = "auto",
) -> InitialGaps:
    """Returns upper bounds of both objectives' initial gaps: their values, as all losses are >= 0.

    Args:
        model, params, loss, dtype, backend: as `curvature`; params shared by the tasks.
        query: (x [M, Q, D], y) of i.i.d. tasks; its rows measure both risks.
        support: (x [M, N, D], y) of the same tasks, independent of the query; None leaves MAML out.
        inner_lr, steps: the inner loop, as `innerloop.meta_loss` takes it.

    Returns:
        InitialGaps with standard errors over tasks. The gap is value - infimum <= value, so the
        only error is that of the average over tasks. Subtracting the best value seen instead of 0
        would not give an upper bound.

    Raises:
        ValueError: fewer than 2 tasks, targets outside [0, 1] for "bce_with_logits" (whose loss
            then has no lower bound of 0), or a loss that is not finite.

    Cost: one loss per task for DRS, an inner loop and one loss for MAML.

    Assumes:
        Losses are never negative. Checked: the loss is of such a kind.

    Source: Result 35.

    Example:
        >>> import innerloop as il
        >>> x = torch.ones(3, 2, 1)
        >>> zero = {"0.weight": torch.zeros(1, 1)}
        >>> float(initial_gaps(il.MLP([1, 1], bias=False), zero, (x, x)).drs)
        1.0
    """
    name = "initial_gaps"
    asked = oracle(name, model, params, query, loss=loss, dtype=dtype, backend=backend)
    if asked.tasks < 2:
        raise ValueError(f"{name}: query must hold at least 2 tasks (got {asked.tasks})")
    if loss == "bce_with_logits" and not bool(((asked.y >= 0) & (asked.y <= 1)).all()):
        raise ValueError(
            f"{name}: targets of bce_with_logits must lie in [0, 1]; Result 35 needs a loss that "
            "is never negative"
        )
    maml = None
    if support is not None:
        given = oracle(name, model, params, support, loss=loss, dtype=dtype, backend=backend)
        losses = functional.meta_loss(
            {**asked.params, **asked.fixed},
            given.batch,
            asked.batch,
            model=asked.model,
            inner_lr=inner_lr,
            steps=steps,
            loss=loss,
            backend=backend,
        )
        maml = _gap("initial gap of MAML", losses, "after the inner loop")
    return InitialGaps(
        _gap("initial gap of joint training", asked.gradient()[0], "at params"), maml
    )


def _gap(name: str, losses: Tensor, when: str) -> Estimate:
    """Returns the labelled mean of a loss over tasks."""
    values = losses.detach().double().cpu().numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"initial_gaps: the loss {when} must be finite (got {values.tolist()})")
    count = len(values)
    return Estimate(
        float(values.mean()),
        name=name,
        source="Result 35",
        assumptions=(Assumption("the loss is never negative", "checked"),),
        origin=Origin(
            "plug-in",
            "unbiased",
            f"the law of the tasks ({count} drawn)",
            f"mean loss {when}, which exceeds value - infimum since the infimum is at least 0",
            standard_error=float(values.std(ddof=1)) / math.sqrt(count),
            cost={"task losses": count},
        ),
    )


@dataclasses.dataclass(frozen=True)
class DirectionalSmoothness(Record):
    """Curvature that an objective showed between consecutive points of a run.

    Args:
        values: [J] 2 (F(b) - F(a) - <grad F(a), b - a>) / ||b - a||^2; NaN where the step is too
            short for the difference to rise above rounding.
        secants: [J] ||grad F(b) - grad F(a)|| / ||b - a||.
        largest: the largest of both, a lower bound of the objective's smoothness.
    """

    values: Array
    secants: Array
    largest: Estimate

    def explain(self) -> str:
        """The largest value and what it says."""
        return self.largest.explain()


def directional_smoothness(points: Any, values: Any, gradients: Any) -> DirectionalSmoothness:
    """Returns the smoothness that one objective showed along a run.

    Args:
        points: [J + 1, P]; values: [J + 1]; gradients: [J + 1, P], all of the same function (the
            same tasks and rows at every point). Tensors or arrays, float64 for short steps.

    Returns:
        DirectionalSmoothness. Any Lambda for which the descent inequality of Result 25 holds on
        these steps is at least max values; any Lipschitz constant of the gradient is at least
        max secants.

    Raises:
        ValueError: shapes do not fit, numbers are not finite, or there are fewer than 2 points.

    Cost: O(J P).

    Assumes:
        The points belong to one deterministic objective. Checked: shapes and finite values.

    Source: Result 35.

    Example:
        >>> found = directional_smoothness([[0.0], [1.0]], [0.0, 1.5], [[0.0], [3.0]])
        >>> float(found.values[0]), float(found.secants[0])
        (3.0, 3.0)
    """
    name = "directional_smoothness"
    theta, height, slope = (
        np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v, dtype=np.float64)
        for v in (points, values, gradients)
    )
    if theta.ndim != 2 or len(theta) < 2 or slope.shape != theta.shape:
        raise ValueError(
            f"{name}: points and gradients must have one shape [J + 1, P] with J >= 1 "
            f"(got {list(theta.shape)} and {list(slope.shape)})"
        )
    if height.shape != theta.shape[:1]:
        raise ValueError(f"{name}: values must have shape [J + 1] (got {list(height.shape)})")
    if not all(np.isfinite(v).all() for v in (theta, height, slope)):
        raise ValueError(f"{name}: points, values and gradients must be finite")
    step = np.diff(theta, axis=0)
    square = (step**2).sum(1)
    excess = np.diff(height) - (slope[:-1] * step).sum(1)
    rounding = 64 * np.finfo(np.float64).eps * (np.abs(height[:-1]) + np.abs(height[1:]))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(np.abs(excess) > rounding, 2.0 * excess / square, math.nan)
        change = np.sqrt((np.diff(slope, axis=0) ** 2).sum(1))
        lost = 64 * np.finfo(np.float64).eps * np.sqrt((slope**2).sum(1).max())
        least = np.where(change > 1e6 * lost, change, np.maximum(change - lost, 0.0))
        secant = np.where(square > 0, least / np.sqrt(square), 0.0)
    largest = max(float(np.nanmax(np.append(ratio, 0.0))), float(secant.max()))
    return DirectionalSmoothness(
        measured_array(ratio, "smoothness met by a step", "Result 35"),
        measured_array(secant, "change of the gradient per distance", "Result 35"),
        Estimate(
            largest,
            name="smoothness met along the run",
            source="Result 35",
            origin=Origin(
                "certified",
                "lower bound",
                f"this objective between the {len(theta)} points of this run",
                "descent remainders and gradient secants over the steps, largest",
                confidence=1.0,
            ),
        ),
    )


def smoothness_along(
    model: Model,
    trajectory: Trajectory | Mapping[str, Tensor],
    query: BatchLike,
    *,
    support: BatchLike | None = None,
    inner_lr: float = 0.0,
    steps: int = 1,
    loss: Loss = "mse",
    dtype: torch.dtype = torch.float64,
    backend: str = "auto",
) -> DirectionalSmoothness:
    """Returns the smoothness that the joint (or, with a support, the MAML) objective of fixed tasks
    showed along a run.

    Args:
        trajectory: J + 1 parameter dicts in order, or one dict of leaves [J + 1, ...].
        query, support, inner_lr, steps, loss, dtype, backend: as `initial_gaps`.

    Returns:
        DirectionalSmoothness of the average over these tasks.

    Raises: see `directional_smoothness` and `initial_gaps`.

    Cost: J + 1 gradients (or meta-gradients) per task.

    Assumes:
        The tasks stay the same along the run. Checked: shapes and finite values.

    Source: Result 35.

    Example:
        >>> import innerloop as il
        >>> x = torch.full((1, 1, 1), 3.0)
        >>> run = {"0.weight": torch.tensor([[[0.0]], [[1.0]]])}
        >>> found = smoothness_along(il.MLP([1, 1], bias=False), run, (x, x), loss="half_mse")
        >>> round(float(found.largest), 9)
        9.0
    """
    name = "smoothness_along"
    points, values, gradients = [], [], []
    for params in stacked(name, trajectory):
        asked = oracle(name, model, params, query, loss=loss, dtype=dtype, backend=backend)
        if support is None:
            losses, rows = asked.gradient()
            value, slope = losses.mean(), rows.mean(0)
        else:
            given = oracle(name, model, params, support, loss=loss, dtype=dtype, backend=backend)
            value, slope = _meta(asked, given, inner_lr, steps)
        points.append(asked.flat()[0])
        values.append(value)
        gradients.append(slope)
    return directional_smoothness(torch.stack(points), torch.stack(values), torch.stack(gradients))


def _meta(asked: Oracle, given: Oracle, inner_lr: float, steps: int) -> tuple[Tensor, Tensor]:
    """Returns the MAML objective of the tasks and its gradient [P]."""
    found = functional.meta_grad(
        {**asked.params, **asked.fixed},
        given.batch,
        asked.batch,
        model=asked.model,
        inner_lr=inner_lr,
        steps=steps,
        loss=asked.loss,
        backend=asked.backend,
    )
    return found.loss.mean(), torch.cat([found.grad[k].reshape(-1) for k in asked.shapes])
