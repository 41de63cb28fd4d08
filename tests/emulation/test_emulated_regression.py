"""The linear-regression study's CUDA kernels on emulated blocks: the bits of the CPU kernel.

Everything but the arithmetic of a GPU is here that of innerloop._cuda. Its memory is watched:
reading what nothing wrote, touching what lies between a thread's arrays, and threads of a kernel
that meet in a number are refused (emulated_block.h).
"""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from innerloop import _native
from innerloop.studies import linear_regression
from innerloop.studies.linear_regression import simulation
from innerloop.studies.linear_regression import trials as kernels
from innerloop.studies.linear_regression.settings import Cell, Settings
from innerloop.studies.linear_regression.trials import draw_tasks, run_trials

pytestmark = pytest.mark.skipif(not _native.is_available(), reason="needs the native extension")
RATES = (-0.4, 0.0, 0.3, 1.0)


@pytest.fixture
def on_device(emulated, monkeypatch):
    """Calls run_trials with the emulation in the place of the CPU kernel."""

    def run(*arguments, **options):
        runner = functools.partial(kernels.launch_trials, emulated, place=(0, 0))
        with monkeypatch.context() as patch:
            patch.setitem(kernels._RUNNERS, "cpu", runner)
            return run_trials(*arguments, **options)

    yield run
    emulated.fix_regression_grid(0, 0)


def assert_same_bits(found, expected):
    """Of two Trials, all of whose numbers are written."""
    for name, value in expected._asdict().items():
        actual = getattr(found, name)
        if value is None:
            assert actual is None
            continue
        assert np.isfinite(value).all(), name
        assert np.ascontiguousarray(actual).tobytes() == np.ascontiguousarray(value).tobytes(), name


@pytest.mark.parametrize("p", range(1, 7))
@pytest.mark.parametrize("samples", [1, 3, 25])  # N < p, N about p, rejection for chi variables
@pytest.mark.parametrize("tasks", [1, 2, 16, 17, 50])  # M N < p; whole chunks, and not
def test_bits_are_those_of_the_cpu(on_device, p, samples, tasks):
    settings, at = Settings(p=p, inner_lrs=RATES), Cell(tasks, samples)
    for estimates in (False, True):
        options = {"first": 5, "trials": 7, "estimates": estimates}
        assert_same_bits(on_device(settings, at, **options), run_trials(settings, at, **options))


@pytest.mark.parametrize("threads", [1, 7, 32, 33, 128])
@pytest.mark.parametrize("blocks", [1, 2, 1000])
@pytest.mark.parametrize("p", [1, 4, 5])
def test_the_grid_changes_no_bit(on_device, emulated, p, blocks, threads):
    """Blocks that take one item a thread, and several."""
    settings, at = Settings(p=p, inner_lrs=RATES), Cell(40, 6)
    expected = run_trials(settings, at, trials=23, estimates=True)
    emulated.fix_regression_grid(threads, blocks)
    assert_same_bits(on_device(settings, at, trials=23, estimates=True), expected)


@pytest.mark.parametrize("rates", [(0.3,), tuple(k / 20 for k in range(21))])
@pytest.mark.parametrize("p", [1, 6])
def test_any_number_of_rates(on_device, p, rates):
    settings, at = Settings(p=p, inner_lrs=rates), Cell(20, 5)
    expected = run_trials(settings, at, trials=9, estimates=True)
    assert_same_bits(on_device(settings, at, trials=9, estimates=True), expected)


@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_singular_steps(on_device, p):
    """Rates at which a step cancels an eigenvalue of a trial's only task: where a pivot vanishes by
    rounding, the solution of smallest norm is taken, beside trials that have none."""
    at, count = Cell(1, p + 2), 12
    gram = draw_tasks(Settings(p=p, inner_lrs=(0.0,)), at, trials=count).gram[:, 0]
    settings = Settings(p=p, inner_lrs=tuple(1 / np.linalg.eigvalsh(gram[:, 0]).ravel()))
    step = np.reshape(settings.inner_lrs, (count, p, 1, 1)) * gram[:, None, 0]
    system = (np.eye(p) - step) @ gram[:, None, 1] @ (np.eye(p) - step)
    size = (1 + np.linalg.norm(step, axis=(2, 3))) ** 2 * np.linalg.norm(gram[:, 1:], axis=(2, 3))
    assert (np.linalg.svd(system, compute_uv=False)[..., -1] < 2.0**-52 * size).all()
    expected = run_trials(settings, at, trials=count, estimates=True)
    assert_same_bits(on_device(settings, at, trials=count, estimates=True), expected)


def test_no_trials(on_device, emulated):
    before = emulated.regression_kernels()
    found = on_device(Settings(p=2, inner_lrs=RATES), Cell(3, 4), trials=0, estimates=True)
    assert found.maml.shape == (0, 4, 2)
    assert emulated.regression_kernels() == before


@pytest.mark.parametrize(("tasks", "kernels"), [(16, 2), (17, 3)])
def test_kernels_of_a_call(on_device, emulated, tasks, kernels):
    """Sums of chunks, their sums where there are several chunks, and solutions."""
    before = emulated.regression_kernels()
    on_device(Settings(p=3, inner_lrs=RATES), Cell(tasks, 4), trials=2)
    assert emulated.regression_kernels() - before == kernels


def test_scratch_memory_is_bounded(emulated):
    """In a general dimension, blocks take their items in turn: from some number of trials on only
    the sums grow, beside a workspace of a GiB."""
    law, count = (40, 25, 2.0, 0), 20_000
    few, many = (emulated.regression_scratch(law, 16, k * count, 1) for k in (1, 2))
    sums = 4 * (40 * 41 // 2 + 40) * count
    assert many - few == sums
    assert few - sums < 2**27 + 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"law": (0, 1, 2.0, 0)}, "the dimension must lie in"),
        ({"law": (1025, 1, 2.0, 0)}, "the dimension must lie in"),
        ({"law": (1, 0, 2.0, 0)}, "the number of samples in"),
        ({"tasks": 0}, "tasks and trials must lie in"),
        ({"trials": -1}, "tasks and trials must lie in"),
        ({"rates": -1}, "the number of rates must not be negative"),
    ],
)
def test_sizes_are_checked(emulated, changes, message):
    sizes = {"law": (1, 1, 2.0, 0), "tasks": 1, "trials": 1, "rates": 1} | changes
    with pytest.raises(ValueError, match=message):
        emulated.regression_scratch(*sizes.values())


def test_sweeps_have_the_bits_of_the_cpu(emulated, monkeypatch):
    """Cells in several launches, which the host cuts differently on a GPU."""
    grid = {"p": 2, "tasks": [2, 20], "samples": [1, 5], "inner_lrs": [0.0, 0.3], "trials": 30}
    expected = linear_regression.sweep(**grid)
    runner = functools.partial(kernels.launch_trials, emulated, place=(0, 0))
    monkeypatch.setattr(_native, "cuda_reason", lambda index=None: "")
    monkeypatch.setitem(kernels._RUNNERS, "cuda", lambda call, _: runner(call, torch.device("cpu")))
    monkeypatch.setattr(simulation, "_LAUNCH_TASKS", 700)
    before = emulated.regression_kernels()
    found = linear_regression.sweep(**grid, device="cuda")
    calls_of_20 = -(-30 // (700 // 20 // 4))
    assert emulated.regression_kernels() - before == 2 * (2 * 1 + 3 * calls_of_20)
    for field in dataclasses.fields(expected):
        if field.name != "settings":
            np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))
