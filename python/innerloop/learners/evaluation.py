"""Measures a learner step by step on held-out rows, a few tasks at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop import functional
from innerloop._choice import Model
from innerloop._inner_step import at_step, last_step
from innerloop._params import InnerLr
from innerloop.objectives import Objective

BatchParts = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # x, y, count, weight

_CHUNK_BYTES = 64 << 20  # parameters of all steps held at a time


class Evaluation(NamedTuple):
    """What a learner reaches after 0..S inner steps. Constants.

    Members:
        loss: [T, S + 1], query loss of each task after 0..S steps.
        mean: [S + 1], mean of loss over tasks.
        confidence: [S + 1], half width of the 95 % confidence interval of the mean over tasks
            (Student's t; NaN for one task).
        accuracy: [T, S + 1], share of query rows classified correctly; None unless their loss is
            cross entropy ("cross_entropy", or torch's) and the targets are classes.
        accuracy_mean, accuracy_confidence: [S + 1], likewise, of tasks with rows.
    """

    loss: Tensor
    mean: Tensor
    confidence: Tensor
    accuracy: Tensor | None = None
    accuracy_mean: Tensor | None = None
    accuracy_confidence: Tensor | None = None

    def __str__(self) -> str:
        rows = []
        for step, (mean, half) in enumerate(
            zip(self.mean.tolist(), self.confidence.tolist(), strict=True)
        ):
            text = f"after {step} steps: loss {mean:.4g} +- {half:.2g}"
            if self.accuracy_mean is not None and self.accuracy_confidence is not None:
                share, width = self.accuracy_mean[step], self.accuracy_confidence[step]
                text += f", accuracy {100 * share:.2f} % +- {100 * width:.2f}"
            rows.append(text)
        return "\n".join(rows)


def evaluate(
    params: Mapping[str, Tensor],
    support: BatchParts,
    query: BatchParts,
    *,
    model: Model,
    inner_lr: InnerLr,
    steps: int,
    objective: Objective,
    outer: Objective,
    solver: Mapping[str, Any],
    adapted: Sequence[str],
    backend: str,
    allow_tf32: bool,
) -> Evaluation:
    """Returns the losses of all tasks, computed for as many tasks at a time as the chunk size
    allows."""
    tasks = support[0].shape[0]
    size = sum(v.numel() * v.element_size() for v in params.values())
    chunk = max(1, _CHUNK_BYTES // (size * (steps + 1)))
    losses: list[Tensor] = []
    shares: list[Tensor] = []
    for start in range(0, max(tasks, 1), chunk):
        part = slice(start, start + chunk)
        loss_part, share_part = _chunk(
            params,
            _tasks_of(support, part),
            _tasks_of(query, part),
            model=model,
            inner_lr=inner_lr,
            steps=steps,
            objective=objective,
            outer=outer,
            solver=solver,
            adapted=adapted,
            backend=backend,
            allow_tf32=allow_tf32,
        )
        losses.append(loss_part.detach())  # a module may differentiate in its forward pass
        if share_part is not None:
            shares.append(share_part.detach())
    total = torch.cat(losses)
    mean, half = _interval(total)
    if not shares:
        return Evaluation(total, mean, half)
    accuracy = torch.cat(shares)
    with_rows = ~accuracy.isnan().any(1)
    return Evaluation(total, mean, half, accuracy, *_interval(accuracy[with_rows]))


def _tasks_of(batch: BatchParts, part: slice) -> BatchParts:
    """Returns the batch of some of the tasks."""
    x, y, count, weight = batch
    return (
        x[part],
        y[part],
        None if count is None else count[part],
        None if weight is None else weight[part],
    )


def _chunk(
    params: Mapping[str, Tensor],
    support: BatchParts,
    query: BatchParts,
    *,
    model: Model,
    inner_lr: InnerLr,
    steps: int,
    objective: Objective,
    outer: Objective,
    solver: Mapping[str, Any],
    adapted: Sequence[str],
    backend: str,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor | None]:
    """Returns (losses, accuracies or None), both [T, S + 1], of the tasks of one chunk."""
    visited = [dict(params)]
    if steps:
        path = functional.adapt(
            params,
            support,
            model=model,
            inner_lr=inner_lr,
            steps=steps,
            loss=objective,
            **solver,
            adapt_params=adapted,
            stepwise=True,
            backend=backend,
            allow_tf32=allow_tf32,
        )
        visited += [{k: v[:, s] for k, v in path.items()} for s in range(1, steps + 1)]
    counts = outer.classes and query[1].dtype is torch.int64 and query[1].ndim == 2
    losses, shares = [], []
    for updates, phi in enumerate(visited):
        with at_step(last_step(updates)):
            losses.append(
                functional.meta_loss(
                    phi,
                    support,
                    query,
                    model=model,
                    inner_lr=0.0,
                    steps=0,
                    loss=objective,
                    query_loss=outer,
                    backend=backend,
                    allow_tf32=allow_tf32,
                )
            )
            if counts:
                outputs = functional.predict(
                    phi, query[0], model=model, backend=backend, allow_tf32=allow_tf32
                )
                shares.append(_accuracy(outputs, query, outer.ignored))
    return torch.stack(losses, 1), torch.stack(shares, 1) if shares else None


def _accuracy(outputs: Tensor, query: BatchParts, ignored: int | None) -> Tensor:
    """Returns the share of the rows in use [T] whose largest output [T, Q, K] is at their class;
    NaN without rows. Rows of the ignored class are not in use."""
    x, y, count, weight = query
    used = torch.ones_like(y, dtype=torch.bool) if ignored is None else y != ignored
    if count is not None:
        used = used & (torch.arange(x.shape[1], device=x.device) < count[:, None])
    if weight is not None:
        used = used & (weight != 0)
    right = used & (outputs.argmax(2) == y)
    wide = torch.promote_types(outputs.dtype, torch.float32)
    return right.sum(1).to(wide) / used.sum(1)


def _interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and 95 % half width over tasks of values [T, ...]."""
    tasks = values.shape[0]
    if tasks < 2:
        return values.mean(0), torch.full_like(values[0] if tasks else values.sum(0), math.nan)
    return values.mean(0), student_quantile(tasks - 1) * values.std(0) / math.sqrt(tasks)


def student_quantile(degrees: int) -> float:
    """Returns the 97.5 % quantile of Student's t, to 0.2 %.

    Source: closed forms for 1 and 2 degrees of freedom, Abramowitz and Stegun 26.7.5 from 3 on.
    """
    if degrees == 1:
        return math.tan(0.475 * math.pi)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
    z = 1.959963984540054
    terms: tuple[float, ...] = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / degrees**power for power, term in enumerate(terms))
