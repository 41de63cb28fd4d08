"""Sine waves: amplitude U(0.1, 5), phase U(0, pi), x U(-5, 5), drawn from counter-based seeds."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from innerloop.studies.sinusoid.settings import CHUNK_ITERATIONS, Settings

AMPLITUDE, PHASE, INPUT = (0.1, 5.0), (0.0, math.pi), (-5.0, 5.0)

Side = tuple[torch.Tensor, torch.Tensor]


class Stream(enum.IntEnum):
    """What a random stream is for; part of its seed."""

    INITIAL = 0
    TRAINING = 1
    VALIDATION = 2
    TEST = 3
    EXAMPLES = 4
    CERTIFICATES = 5


class Waves(NamedTuple):
    """T tasks.

    Members:
        amplitude, phase: [T] float64.
        support, query: (x [T, rows, 1], y [T, rows, 1]) float32.
    """

    amplitude: np.ndarray
    phase: np.ndarray
    support: Side
    query: Side

    def part(self, chosen: slice) -> Waves:
        """Some of the tasks."""
        (sx, sy), (qx, qy) = self.support, self.query
        return Waves(
            self.amplitude[chosen],
            self.phase[chosen],
            (sx[chosen], sy[chosen]),
            (qx[chosen], qy[chosen]),
        )

    def informed(self, side: Side) -> Side:
        """Rows of these tasks with amplitude and phase as further inputs, [T, rows, 3]."""
        known = torch.from_numpy(np.stack([self.amplitude, self.phase], 1).astype(np.float32))
        x, y = side
        return torch.cat([x, known[:, None].expand(-1, x.shape[1], -1)], 2), y


def generator(seed: int, stream: Stream, counter: int = 0) -> np.random.Generator:
    """The random generator of one purpose; `counter` numbers its chunks."""
    sequence = np.random.SeedSequence([seed, int(stream), counter])
    return np.random.Generator(np.random.Philox(sequence))


def draw_waves(rng: np.random.Generator, tasks: int, support_rows: int, query_rows: int) -> Waves:
    """`tasks` waves y = amplitude sin(x - phase) with their rows."""
    amplitude = rng.uniform(*AMPLITUDE, tasks)
    phase = rng.uniform(*PHASE, tasks)
    x = rng.uniform(*INPUT, (tasks, support_rows + query_rows, 1))
    y = amplitude[:, None, None] * np.sin(x - phase[:, None, None])
    inputs, targets = (torch.from_numpy(a.astype(np.float32)) for a in (x, y))
    return Waves(
        amplitude,
        phase,
        (inputs[:, :support_rows].contiguous(), targets[:, :support_rows].contiguous()),
        (inputs[:, support_rows:].contiguous(), targets[:, support_rows:].contiguous()),
    )


def training_batches(settings: Settings, first: int) -> Iterator[Waves]:
    """The tasks of iterations `first`, `first` + 1, ...

    Iteration i is the same for every method and wherever training (re)starts: its chunk has a seed
    of its own, so the position in the stream is the whole state of the generator.
    """
    size = settings.meta_batch
    chunk, offset = divmod(first, CHUNK_ITERATIONS)
    while True:
        rng = generator(settings.seed, Stream.TRAINING, chunk)
        waves = draw_waves(rng, CHUNK_ITERATIONS * size, settings.shots, settings.shots)
        for index in range(offset, CHUNK_ITERATIONS):
            yield waves.part(slice(index * size, (index + 1) * size))
        chunk, offset = chunk + 1, 0
