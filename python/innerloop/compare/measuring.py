"""Adapting to support rows and measuring on the others, for all numbers of steps at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

import innerloop as il
from innerloop.compare import episodes as ep
from innerloop.compare.curvature import DIVERGES_FROM
from innerloop.compare.problem import Params, Problem, SplitData

UNSTABLE_SHARE = 0.01
_CHUNK_ELEMENTS = 4_000_000

Sides = tuple[torch.Tensor, torch.Tensor]


def _adapted(
    problem: Problem, theta: torch.Tensor, support: Sides, rate: float
) -> Iterator[tuple[slice, Params]]:
    """Parameters after 0..K adaptation steps of every episode, as [E * (K + 1), ...], by chunks.

    Step k of episode e is row e * (K + 1) + k of its chunk.
    """
    steps = problem.config.adapt_steps
    count = support[0].shape[0]
    size = max(1, _CHUNK_ELEMENTS // ((steps + 1) * problem.parameters))
    for first in range(0, count, size):
        part = slice(first, first + size)
        leaves = il.adapt(
            problem.unflatten(theta),
            (support[0][part], support[1][part]),
            model=problem.model,
            inner_lr=rate,
            steps=steps,
            loss=problem.loss,
            stepwise=True,
            backend=problem.backend,
        )
        yield part, {name: leaf.flatten(0, 1) for name, leaf in leaves.items()}


def risks(
    problem: Problem, theta: torch.Tensor, episodes: ep.Episodes, rate: float
) -> NDArray[np.float64]:
    """[2, K + 1]: mean risk and error rate of the query rows after 0..K adaptation steps."""
    steps = problem.config.adapt_steps + 1
    support = (episodes.support_x, episodes.support_y)
    x, y, count = episodes.query_x, episodes.query_y, episodes.query_count
    parts = [
        _row_means(problem, params, x[part], y[part], count[part], steps)
        for part, params in _adapted(problem, theta, support, rate)
    ]
    return np.asarray(np.concatenate(parts, axis=1).mean(axis=1))


def raised(
    problem: Problem, theta: torch.Tensor, episodes: ep.Episodes, rate: float, draws: int
) -> NDArray[np.bool_]:
    """[T, K + 1]: whether adaptation leaves a task's support loss higher than it was.

    A task's loss is the mean over its draws, which are consecutive episodes.
    """
    steps = problem.config.adapt_steps + 1
    support = (episodes.support_x, episodes.support_y)
    full = torch.full((support[0].shape[0],), support[0].shape[1])
    parts = [
        _row_means(problem, params, support[0][part], support[1][part], full[part], steps)[0]
        for part, params in _adapted(problem, theta, support, rate)
    ]
    by_task = np.concatenate(parts).reshape(-1, draws, steps).mean(axis=1)
    return np.asarray(~(by_task <= by_task[:, :1] * (1.0 + 1e-6)))  # NaN counts as raised


def is_stable(
    problem: Problem, data: SplitData, theta: torch.Tensor, rate: float
) -> NDArray[np.bool_]:
    """[K + 1]: whether adaptation at this rate is far from diverging on nearly every known task.

    Where curvature is known, rate times curvature stays below 2 in all but one episode in a
    hundred. For all models, no more than one task in a hundred has its support loss raised: with
    that many, the mean validation risk sees what such tasks cost.
    """
    share = raised(problem, theta, data.known, rate, data.draws).mean(axis=0)
    stable = np.asarray(share <= UNSTABLE_SHARE)
    if data.known_curvature is not None:
        beyond = rate * data.known_curvature >= DIVERGES_FROM
        stable[1:] &= beyond.mean() <= UNSTABLE_SHARE
    return stable


def _row_means(
    problem: Problem,
    params: Params,
    x: torch.Tensor,
    y: torch.Tensor,
    count: torch.Tensor,
    steps: int,
) -> NDArray[np.float64]:
    """[2, E, steps]: mean loss and error rate (zero for regression) over each episode's rows.

    Args:
        params: leaves [E * steps, ...]; x [E, N, D], y, count [E] of the E episodes.
    """
    repeated = x.repeat_interleave(steps, dim=0)
    predicted = il.predict(params, repeated, model=problem.model, backend=problem.backend)
    outputs = predicted.double().numpy().reshape(len(x), steps, x.shape[1], -1)  # [E, S, N, K]
    rows = count.numpy()[:, None]
    weight = ((np.arange(x.shape[1])[None, :] < rows) / rows)[:, None]  # [E, 1, N]
    targets = y.numpy()[:, None]  # [E, 1, N, K] or [E, 1, N]
    with np.errstate(over="ignore", invalid="ignore"):
        if not problem.tasks.classes:
            loss = np.mean((outputs - targets) ** 2, axis=-1)
            risk = np.sum(loss * weight, axis=-1)
            return np.stack([risk, np.zeros_like(risk)])
        shifted = outputs - outputs.max(axis=-1, keepdims=True)
        index = np.broadcast_to(targets[..., None], (*outputs.shape[:-1], 1))
        chosen = np.take_along_axis(shifted, index, axis=-1)[..., 0]
        loss = np.log(np.exp(shifted).sum(axis=-1)) - chosen
        wrong = outputs.argmax(axis=-1) != targets
        return np.stack([np.sum(loss * weight, axis=-1), np.sum(wrong * weight, axis=-1)])
