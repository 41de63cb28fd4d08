"""Splits and draws: disjoint, reproducible, independent of order, and blind to the test tasks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from families import linear_family

from innerloop.compare.config import Config
from innerloop.compare.episodes import (
    Stream,
    draw_episodes,
    generator,
    make_split,
    split_sizes,
    standardise,
)
from innerloop.compare.frames import tasks_of_frame
from innerloop.compare.tables import Tasks


def make_tasks(ragged: bool = False) -> tuple[Tasks, Config]:
    config = Config(task="task", target="y", shots=4)
    frame = linear_family(20, 12, seed=1, correlated=True)
    if ragged:
        frame = frame[(frame["task"] != 3) | (frame.index % 2 == 0)].reset_index(drop=True)
    return tasks_of_frame(frame, config, "table"), config


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_standardised_numbers_do_not_depend_on_their_units(unit: float) -> None:
    tasks, _ = make_tasks()
    moved = dataclasses.replace(tasks, x=tasks.x * unit, y=tasks.y * unit)
    expected, got = (standardise(t, np.arange(9), torch.float64) for t in (tasks, moved))
    torch.testing.assert_close(got.x, expected.x)
    torch.testing.assert_close(got.y, expected.y)


@pytest.mark.parametrize("tasks", [5, 6, 7, 20, 48, 301])
def test_splits_partition_the_tasks(tasks: int) -> None:
    config = Config(task="t", target="y")
    for number in range(5):
        split = make_split(tasks, number, config)
        sizes = tuple(map(len, (split.training, split.validation, split.test)))
        assert sizes == split_sizes(tasks, config)
        assert min(sizes) >= 1
        assert sizes[0] >= 2
        together = np.concatenate([split.training, split.validation, split.test])
        assert sorted(together) == list(range(tasks))


def test_splits_depend_on_seed_and_number_only() -> None:
    config = Config(task="t", target="y", seed=7)
    again = Config(task="t", target="y", seed=7, splits=99, shots=2)
    first = [make_split(48, number, config).test.tolist() for number in (0, 1, 2)]
    assert first == [make_split(48, number, again).test.tolist() for number in (0, 1, 2)]
    assert len({tuple(test) for test in first}) == 3
    other = Config(task="t", target="y", seed=8)
    assert make_split(48, 0, other).test.tolist() != first[0]


def test_standardisation_ignores_other_tasks() -> None:
    tasks, _ = make_tasks()
    training = np.arange(10)
    scaled = standardise(tasks, training, torch.float64)
    rows = slice(0, int(tasks.start[10]))
    assert scaled.x[rows].mean().item() == pytest.approx(0.0, abs=1e-12)
    assert scaled.x[rows].std(correction=0).item() == pytest.approx(1.0, rel=1e-12)
    tasks.x[int(tasks.start[10]) :] *= 100.0
    changed = standardise(tasks, training, torch.float64)
    assert torch.equal(changed.x[rows], scaled.x[rows])


def test_draws_use_each_row_at_most_once_and_pad_short_tasks() -> None:
    tasks, config = make_tasks(ragged=True)
    scaled = standardise(tasks, np.arange(20), torch.float64)
    drawn = draw_episodes(scaled, np.arange(20), config, generator(0, 0, Stream.TEST))
    assert drawn.query_count.tolist() == [2 if t == 3 else 8 for t in range(20)]
    for t in range(20):
        count = int(drawn.query_count[t])
        got = torch.cat([drawn.support_x[t, :, 0], drawn.query_x[t, :count, 0]])
        own = scaled.x[int(tasks.start[t]) : int(tasks.start[t + 1]), 0]
        assert torch.equal(got.sort().values, own.sort().values)
        # Targets travel with their rows.
        assert set(
            zip(
                got.tolist(),
                torch.cat([drawn.support_y[t, :, 0], drawn.query_y[t, :count, 0]]).tolist(),
                strict=True,
            )
        ) <= set(zip(scaled.x[:, 0].tolist(), scaled.y[:, 0].tolist(), strict=True))


def test_query_rows_are_capped() -> None:
    tasks, _ = make_tasks()
    config = Config(task="task", target="y", shots=4, max_query=3)
    scaled = standardise(tasks, np.arange(20), torch.float64)
    drawn = draw_episodes(scaled, np.arange(20), config, generator(0, 0, Stream.TEST))
    assert drawn.query_x.shape == (20, 3, 1)
    assert drawn.query_count.tolist() == [3] * 20


def test_streams_differ() -> None:
    seen = {
        tuple(generator(seed, split, stream, counter).random(2))
        for seed in (0, 1)
        for split in (0, 1)
        for stream in Stream
        for counter in (0, 1)
    }
    assert len(seen) == 8 * len(Stream)


@pytest.mark.parametrize("size", [1e6, 1e10, 1e13, 2e13])
def test_columns_far_from_zero_are_standardised_as_those_about_it(size: float) -> None:
    tasks, _ = make_tasks()
    x, y = np.round(tasks.x * 64) / 64, np.round(tasks.y * 64) / 64
    about = dataclasses.replace(tasks, x=x, y=y)
    away = dataclasses.replace(tasks, x=x + size, y=y - size)
    expected, got = (standardise(t, np.arange(9), torch.float64) for t in (about, away))
    torch.testing.assert_close(got.x, expected.x, rtol=0, atol=1e-2)
    torch.testing.assert_close(got.y, expected.y, rtol=0, atol=1e-2)
    spread = got.x - got.x.mean(0), expected.x - expected.x.mean(0)
    torch.testing.assert_close(*spread, rtol=1e-2, atol=1e-2)


def test_columns_that_vary_by_rounding_alone_are_only_shifted() -> None:
    tasks, _ = make_tasks()
    x = np.full_like(tasks.x, 0.3) + np.where(np.arange(len(tasks.x)) % 2, 0.0, 2**-54)[:, None]
    scaled = standardise(dataclasses.replace(tasks, x=x), np.arange(9), torch.float64)
    assert scaled.x.abs().max() < 1e-15
