"""Splits over tasks, standardisation by training tasks, and random support/query draws, all from
counter-based seeds.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
import torch
from numpy.typing import NDArray

from innerloop.compare.config import Config
from innerloop.compare.tables import BINARY_SCALE, Tasks, in_reach


class Stream(enum.IntEnum):
    """What a random stream is for; part of its seed, so that no unit's numbers depend on
    another's.
    """

    SPLIT = 0
    VALIDATION = 1
    TEST = 2
    TRAINING = 3
    INITIAL = 4
    KNOWN = 5
    BATCHES = 6
    THEORY = 7
    CURVATURE = 8


def generator(seed: int, split: int, stream: Stream, counter: int = 0) -> np.random.Generator:
    """The random generator of one purpose within one split."""
    sequence = np.random.SeedSequence([seed, split, int(stream), counter])
    return np.random.Generator(np.random.Philox(sequence))


@dataclasses.dataclass(frozen=True)
class Split:
    """Task numbers of one split, sorted, without overlap."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_sizes(tasks: int, config: Config) -> tuple[int, int, int]:
    """Numbers of training, validation and test tasks; at least one task (two for training) each."""
    test = min(max(1, round(tasks * config.test_fraction)), tasks - 3)
    validation = min(max(1, round((tasks - test) * config.validation_fraction)), tasks - test - 2)
    return tasks - test - validation, validation, test


def make_split(tasks: int, split: int, config: Config) -> Split:
    """The random partition of the tasks that belongs to one split number."""
    training, validation, _ = split_sizes(tasks, config)
    order = generator(config.seed, split, Stream.SPLIT).permutation(tasks)
    parts = np.split(order, [training, training + validation])
    return Split(*(np.sort(part) for part in parts))


@dataclasses.dataclass(frozen=True)
class Scaled:
    """All rows of a data set after standardisation by the training tasks of one split.

    Args:
        x: [rows, D] features; y: [rows, K] targets or [rows] class numbers.
        start: [T + 1] first row of each task; fixed_support: as in `Tasks`.
        target_scale: [K] standard deviation of each target over the training tasks (ones for
            classes).
    """

    x: torch.Tensor
    y: torch.Tensor
    start: NDArray[np.int64]
    fixed_support: int
    target_scale: NDArray[np.float64]


def standardise(tasks: Tasks, training: NDArray[np.int64], dtype: torch.dtype) -> Scaled:
    """Features and real targets shifted and scaled to mean 0 and variance 1 over the rows of the
    training tasks; features of 0 and 1 as if both were equally frequent, if they are not.
    """
    rows = np.concatenate([np.arange(tasks.start[t], tasks.start[t + 1]) for t in training])
    inputs, _ = in_reach(tasks.x)
    centre, scale = _moments(inputs[rows])
    scale = np.where(tasks.binary, np.maximum(scale, BINARY_SCALE), scale)
    x = (inputs - centre) / scale
    if tasks.classes:
        y, target_scale = torch.from_numpy(tasks.y), np.ones(1)
    else:
        targets, exponents = in_reach(np.asarray(tasks.y, dtype=np.float64))
        middle, scale = _moments(targets[rows])
        y = torch.from_numpy((targets - middle) / scale).to(dtype)
        target_scale = np.ldexp(scale, exponents)
    return Scaled(torch.from_numpy(x).to(dtype), y, tasks.start, tasks.fixed_support, target_scale)


def _moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Column means and standard deviations; a column that does not vary, but for rounding, gets 1
    so that it is only shifted.
    """
    centre = values.mean(axis=0)
    centre = centre + (values - centre).mean(axis=0)  # means of large numbers are rounded
    scale = np.sqrt(np.square(values - centre).mean(axis=0))
    least = 4 * np.finfo(np.float64).eps * np.abs(centre)
    return centre, np.where(scale > least, scale, 1.0)


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Support and query sets of E (task, draw) pairs; query rows beyond `query_count` are padding.

    Args:
        support_x: [E, N, D]; support_y: [E, N, K] or [E, N].
        query_x: [E, Q, D]; query_y: [E, Q, K] or [E, Q]; query_count: [E] int64.
    """

    support_x: torch.Tensor
    support_y: torch.Tensor
    query_x: torch.Tensor
    query_y: torch.Tensor
    query_count: torch.Tensor

    def pooled(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Support and query rows of each episode as one set: x, y, count."""
        return (
            torch.cat([self.support_x, self.query_x], dim=1),
            torch.cat([self.support_y, self.query_y], dim=1),
            self.query_count + self.support_x.shape[1],
        )


def draw_episodes(
    data: Scaled, tasks: NDArray[np.int64], config: Config, rng: np.random.Generator
) -> Episodes:
    """One support/query draw for each entry of `tasks` (a task may appear several times).

    N rows without replacement are the support, up to `max_query` of the others the query; with a
    fixed support only the choice of query rows is random, and only when there are more than
    `max_query`.
    """
    counts = (data.start[1:] - data.start[:-1])[tasks]
    support = data.fixed_support or config.shots
    widest = int(counts.max())
    query = min(widest - support, config.max_query)
    keys = rng.random((len(tasks), widest))
    columns = np.arange(widest)
    if data.fixed_support:
        keys[:, :support] = columns[:support] - support
        if widest - support <= config.max_query:
            keys[:, support:] = columns[support:]
    keys[columns[None, :] >= counts[:, None]] = np.inf
    order = np.argsort(keys, axis=1, kind="stable")[:, : support + query]
    query_count = np.minimum(counts - support, query)
    padding = columns[None, : support + query] >= (support + query_count)[:, None]
    # Padding repeats the task's first row: finite numbers that the count excludes.
    order[padding] = 0
    rows = torch.from_numpy(order + data.start[tasks][:, None])
    x, y = data.x[rows], data.y[rows]
    return Episodes(
        x[:, :support].contiguous(),
        y[:, :support].contiguous(),
        x[:, support:].contiguous(),
        y[:, support:].contiguous(),
        torch.from_numpy(query_count),
    )


def all_rows(
    data: Scaled, tasks: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every row of each task once, padded to the longest: x [T, rows, D], y, count [T]."""
    counts = (data.start[1:] - data.start[:-1])[tasks]
    columns = np.arange(int(counts.max()))
    order = np.where(columns[None, :] < counts[:, None], columns[None, :], 0)
    rows = torch.from_numpy(order + data.start[tasks][:, None])
    return data.x[rows], data.y[rows], torch.from_numpy(counts)
