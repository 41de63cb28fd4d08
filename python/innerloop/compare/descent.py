"""Training by Adam for networks and for classification, with equal sample budgets."""

from __future__ import annotations

import math
from typing import Any

import torch

from innerloop.compare import episodes as ep
from innerloop.compare.problem import Problem, SplitData, Trained
from innerloop.compare.units import Unit
from innerloop.runs.adam import Adam
from innerloop.runs.methods import FIRST_ORDER, JOINT

CHECKPOINTS = 4


def training_iterations(problem: Problem, data: SplitData, steps: int) -> tuple[int, int]:
    """Meta-iterations that one sample budget buys with `steps` inner steps, and the touches of one
    iteration.

    A touch is one sample entering one gradient: N + Q per task for joint training, steps * N + Q
        for MAML.
    """
    config = problem.config
    support = data.data.fixed_support or config.shots
    rows = problem.tasks.counts[data.parts.training] - support
    query = float(rows.clip(max=config.max_query).mean())
    ratio = (support + query) / (max(steps, 1) * support + query)
    batch = min(config.meta_batch, len(rows))
    return max(1, round(config.iterations * ratio)), round(
        batch * (max(steps, 1) * support + query)
    )


def descend(problem: Problem, data: SplitData, unit: Unit) -> Trained:
    """Parameters at evenly spaced checkpoints of Adam with a cosine schedule; stops early if a
    gradient is not finite.
    """
    config = problem.config
    iterations, touches = training_iterations(problem, data, unit.steps)
    seed = ep.generator(config.seed, data.split, ep.Stream.INITIAL).integers(2**62)
    source = torch.Generator().manual_seed(int(seed))
    start = problem.model.init(generator=source, dtype=problem.dtype)
    theta = torch.cat([leaf.detach().reshape(-1) for leaf in start.values()])
    descent = Adam(theta)
    order = 1 if unit.method == FIRST_ORDER else 2
    keep = {round(iterations * (i + 1) / CHECKPOINTS) for i in range(CHECKPOINTS)}
    kept: list[torch.Tensor] = []
    done = 0
    for done, batch in enumerate(data.training_batches(config, iterations), start=1):
        support: Any = (batch.support_x, batch.support_y)
        query: Any = (batch.query_x, batch.query_y, batch.query_count)
        if unit.method == JOINT:
            query = batch.pooled()
            support = (query[0][:, :0], query[1][:, :0])
        result = problem.meta_grad(
            theta, support, query, rate=unit.rate, steps=unit.steps, order=order
        )
        flat = torch.cat([leaf.reshape(-1) for leaf in result.grad.values()])
        if not bool(torch.isfinite(flat).all()):
            break
        schedule = 0.5 * (1.0 + math.cos(math.pi * (done - 1) / iterations))
        descent.step(flat, unit.outer * schedule)
        if done in keep:
            kept.append(theta.clone())
    why = None if kept else "training diverged"
    return Trained(kept, kept, why, done, done * touches)
