"""What the bounds over-estimate, measured: gradients at the start, variances of stochastic
gradients, and the smoothness that both objectives showed (Results 34 and 35)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from innerloop import functional
from innerloop._params import Params
from innerloop.bounds.constants._estimate import Estimate, Origin
from innerloop.bounds.constants._oracle import Model
from innerloop.bounds.constants.gaps import smoothness_along
from innerloop.bounds.constants.points import Point

Gradients = Callable[[Tensor], Tensor]  # shared parameters [P] to gradients of all tasks [T, P]

_STEP = 1e-4  # distance over which gradients are compared
_ITERATIONS = 10  # power steps at a point


def measured_counterparts(
    model: Model,
    visited: list[Params],
    run: list[Point],
    options: dict[str, Any],
    loop: dict[str, Any],
    source: torch.Generator,
) -> dict[str, Estimate]:
    """Returns the measured counterparts of the bounds, all plug-in.

    Keys, each for "drs" and "maml": "gradient2_..._start", squared norm of the objective's gradient
    at the start, unbiased and hence sometimes negative; "variance_...", of one task's stochastic
    gradient, the largest over the points; "smoothness_...", the largest change of the objective's
    gradient per distance that was found, a lower bound of its smoothness.

    Cost: 21 gradients and 21 meta-gradients per task and point, and one more of each on a run.

    Source: Result 34, on the stochastic gradients that training would use, and Result 35.
    """
    found = {}
    for method, gradients in (("drs", _joint), ("maml", _maml)):
        at: list[Gradients] = [functools.partial(gradients, point, loop) for point in run]
        centres = [point.base.flat()[0] for point in run]
        moments = [
            _moments(method, one(centre), f"point {k + 1} of the run" if k else "the start")
            for k, (one, centre) in enumerate(zip(at, centres, strict=True))
        ]
        found[f"gradient2_{method}_start"] = moments[0][0]
        found[f"variance_{method}"] = max((variance for _, variance in moments), key=float)
        steepest = max(_steepest(*item, source) for item in zip(at, centres, strict=True))
        chords = 0.0
        if len(run) > 1:
            support = None if method == "drs" else run[0].support
            query = run[0].query
            along = smoothness_along(model, visited, query, support=support, **loop, **options)
            chords = float(along.largest)
        found[f"smoothness_{method}"] = _shown(method, steepest, chords, len(run))
    return found


def _joint(point: Point, loop: dict[str, Any], flat: Tensor) -> Tensor:
    """Returns the gradients of the joint objective's tasks, on the rows that training uses."""
    base = point.base
    used = point.support[0].shape[1] + point.query[0].shape[1]
    rows = dataclasses.replace(base, x=base.x[:, :used], y=base.y[:, :used])
    return rows.at(flat.expand(base.tasks, -1)).gradient()[1]


def _maml(point: Point, loop: dict[str, Any], flat: Tensor) -> Tensor:
    """Returns the meta-gradients of all tasks."""
    base = point.base
    found = functional.meta_grad(
        {**base.tree(flat.expand(base.tasks, -1)), **base.fixed},
        point.support,
        point.query,
        model=base.model,
        loss=base.loss,
        backend=base.backend,
        task_weight=torch.ones(base.tasks, dtype=base.dtype, device=base.x.device),
        **loop,
    )
    return base.join(found.grad)


def _moments(method: str, rows: Tensor, where: str) -> tuple[Estimate, Estimate]:
    """Returns the squared norm of the mean gradient and the variance of one task's gradient, from
    [T, P], both without bias and with jackknifed standard errors (which for the squared gradient
    grow to sqrt 2 times its spread where the true gradient is 0: on the safe side)."""
    values = rows.double()
    count = len(values)
    total, squares = values.sum(0), values.square().sum(1)
    rest = (total - values).square().sum(1)  # of the sums over the other tasks
    others = float(squares.sum()) - squares

    def both(whole: Any, own: Any, size: int) -> tuple[Any, Any]:
        """||sum||^2 and the sum of squares of `size` rows give both unbiased estimates."""
        return (whole - own) / (size * (size - 1)), (own - whole / size) / (size - 1)

    whole = both(float(total.square().sum()), float(squares.sum()), count)
    made = []
    for name, value, without in zip(
        ("squared gradient", "variance of one task's gradient"),
        whole,
        both(rest, others, count - 1),
        strict=True,
    ):
        away = without - without.mean()
        error = math.sqrt((count - 1) / count * float(away.square().sum()))
        made.append(
            Estimate(
                value,
                name=f"{name}, {method}",
                source="Result 34",
                origin=Origin(
                    "plug-in",
                    "unbiased",
                    f"the law of the tasks at {where} ({count} tasks drawn)",
                    "stochastic gradients as training uses them, jackknife over tasks",
                    standard_error=error,
                ),
            )
        )
    return made[0], made[1]


def _steepest(gradients: Gradients, centre: Tensor, source: torch.Generator) -> float:
    """Returns the largest change of the mean gradient per distance met by power steps."""
    draw = torch.randn(len(centre), generator=source, dtype=torch.float64, device=source.device)
    vector = draw.to(centre) / draw.norm().to(centre)
    best = 0.0
    for _ in range(_ITERATIONS):
        ends = [gradients(centre + sign * _STEP * vector).mean(0) for sign in (1.0, -1.0)]
        image = (ends[0] - ends[1]) / (2.0 * _STEP)
        length = float(image.norm())
        if not length > 0.0:
            break
        best, vector = max(best, length), image / length
    return best


def _shown(method: str, steepest: float, chords: float, points: int) -> Estimate:
    """Returns the larger of both measurements of smoothness, labelled."""
    how = f"{_ITERATIONS} power steps at {points} point{'s' if points > 1 else ''}"
    if points > 1:
        how += f" ({steepest:.4g}) and {points - 1} chord{'s' if points > 2 else ''} of the run "
        how += f"({chords:.4g}), the larger"
    return Estimate(
        max(steepest, chords),
        name=f"smoothness met, {method}",
        source="Result 35",
        origin=Origin(
            "plug-in",
            "lower bound",
            "the average of the tasks drawn, near the points examined",
            how,
        ),
    )
