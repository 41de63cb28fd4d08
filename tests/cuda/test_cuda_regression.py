"""The linear-regression study on a GPU: the bits of the CPU kernel."""

import dataclasses

import numpy as np
import pytest
import torch

from innerloop.studies import linear_regression
from innerloop.studies.linear_regression.settings import Cell, Settings
from innerloop.studies.linear_regression.trials import draw_tasks, run_trials


def assert_same_bits(settings, at, **options):
    """Of the trials of a cell on both devices."""
    options = {"estimates": True, "threads": 4, **options}
    expected = run_trials(settings, at, **options)
    found = run_trials(settings, at, device="cuda", **options)
    for name, value in expected._asdict().items():
        actual = np.ascontiguousarray(getattr(found, name))
        assert actual.tobytes() == np.ascontiguousarray(value).tobytes(), name


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 6, 12, 33])
@pytest.mark.parametrize("samples", [1, 3, 25, 400])
@pytest.mark.parametrize("tasks", [1, 2, 16, 17, 100])
def test_bits_are_those_of_the_cpu(p, samples, tasks):
    settings = Settings(p=p, inner_lrs=(-0.4, 0.0, 0.3, 1.0))
    assert_same_bits(settings, Cell(tasks, samples), first=3, trials=200 if p < 10 else 20)


@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_singular_steps(p):
    """Rates at which a step cancels an eigenvalue of a trial's only task."""
    at, count = Cell(1, p + 2), 12
    gram = draw_tasks(Settings(p=p, inner_lrs=(0.0,)), at, trials=count).gram[:, 0, 0]
    rates = tuple(1 / np.linalg.eigvalsh(gram).ravel())
    assert_same_bits(Settings(p=p, inner_lrs=rates), at, trials=count)


def test_more_trials_than_threads():
    """In a general dimension blocks take their items in turn."""
    assert_same_bits(Settings(p=5, inner_lrs=(0.3,)), Cell(200, 6), trials=4000)


def test_a_sweep_on_another_stream():
    grid = {"p": 2, "tasks": [2, 60], "samples": [1, 25], "trials": 300}
    expected = linear_regression.sweep(**grid)
    with torch.cuda.stream(torch.cuda.Stream()):
        found = linear_regression.sweep(**grid, device="cuda")
    for field in dataclasses.fields(expected):
        if field.name != "settings":
            np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))
