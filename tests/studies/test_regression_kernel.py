"""The fused kernel: published random words, the same bits everywhere, and the right estimators."""

import numpy as np
import pytest

from innerloop import _native
from innerloop.studies.linear_regression.trials import draw_tasks, risks_of, run_trials
from regression_cases import cell, philox, settings_of, systems, uniforms

LEVELS = ("baseline", "avx2", "avx512")
SHAPES = [(p, n) for p in (1, 2, 3, 4, 5, 8) for n in (1, 2, 25)]
pytestmark = pytest.mark.skipif(not _native.is_available(), reason="needs the native extension")


@pytest.fixture(params=LEVELS)
def level(request, cpu_settings):
    """Each instruction level in turn."""
    if request.param not in cpu_settings.simd_levels():
        pytest.skip(f"this machine or build lacks {request.param}")
    cpu_settings.set_simd_level(request.param)
    return request.param


def random_words(key, counters):
    """The kernel's words [n, 4] for counters [n, 4]."""
    counters = np.array(counters, dtype=np.uint32)
    words = np.empty_like(counters)
    _native.native().random_words(key, len(counters), counters.ctypes.data, words.ctypes.data)
    return words


def test_random_words_are_the_published_ones(level):
    """Known answers that come with Random123, the authors' library."""
    for key, counter, words in (
        (0, [0] * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, [2**32 - 1] * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            0x299F31D0A4093822,
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ):
        expected = [int(word, 16) for word in words.split()]
        assert random_words(key, [counter])[0].tolist() == expected
        assert philox(key, counter) == tuple(expected)


def test_random_words_of_many_counters(level):
    counters = np.random.default_rng(0).integers(0, 2**32, (50, 4))
    key = 0x0123456789ABCDEF
    assert random_words(key, counters).tolist() == [list(philox(key, c.tolist())) for c in counters]


@pytest.mark.parametrize("p", [1, 2, 5])
def test_parameters_are_functions_of_key_trial_and_task(level, p):
    """theta and sigma2 are the first p + 1 uniform numbers of the task's own counters."""
    settings, at = settings_of(p, seed=5), cell(3, 2)
    tasks = draw_tasks(settings, at, first=11, trials=9)
    for trial in range(9):
        for task in range(3):
            key = settings.key(at)
            pairs = [uniforms(key, draw, task, 11 + trial) for draw in range(p // 2 + 1)]
            flat = settings.beta * np.array(pairs).ravel()
            assert (tasks.theta[trial, task] == flat[:p]).all()
            assert tasks.sigma2[trial, task] == flat[p]


@pytest.mark.parametrize(("p", "samples"), SHAPES)
def test_bits_do_not_depend_on_level_threads_or_calls(cpu_settings, p, samples):
    """No contraction, no sums across lanes: every lane is the same chain of rounded operations."""
    settings, at, count = settings_of(p), cell(7, samples), 37
    expected = None
    for name in cpu_settings.simd_levels():
        cpu_settings.set_simd_level(name)
        for threads in (1, 2, 5):
            whole = run_trials(settings, at, trials=count, threads=threads, estimates=True)
            parts = [
                run_trials(settings, at, first=a, trials=b - a, threads=threads, estimates=True)
                for a, b in ((0, 1), (1, 20), (20, count))
            ]
            tasks = draw_tasks(settings, at, trials=count, threads=threads)
            for found in (whole, [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]):
                bits = [array.tobytes() for array in (*found, *tasks)]
                expected = expected or bits
                assert bits == expected


@pytest.mark.parametrize(("p", "samples"), SHAPES)
def test_estimators_solve_their_equations(level, p, samples):
    """Smallest-norm least squares from the same statistics.

    Backward error: the residual is some roundings of the sizes that were summed, and directions
    that no row reaches stay 0. With p = 8 and one row per task both systems are singular.
    """
    rates = (-0.5, 0.0, 0.3, 1.0)
    settings, at, count = settings_of(p, rates), cell(3, samples), 50
    tasks = draw_tasks(settings, at, trials=count)
    found = run_trials(settings, at, trials=count, estimates=True)
    theta = np.concatenate([found.drs[:, None], found.maml], axis=1)
    w, z = systems(tasks, rates)
    growth = 1 + np.max(np.abs(rates)) * np.linalg.norm(tasks.gram[:, :, 0], axis=(2, 3)).max(1)
    size = np.linalg.norm(tasks.gram, axis=(3, 4)).sum((1, 2)) * growth**2
    values = np.linalg.eigvalsh(w)
    rows = 3 * min(samples, p) * np.array([2] + [1] * len(rates))
    for which, rank in enumerate(np.minimum(rows, p)):
        smallest = values[:, which, p - rank]
        expected = np.linalg.pinv(w[:, which], rcond=1e-13, hermitian=True) @ z[:, which, :, None]
        error = np.linalg.norm(theta[:, which] - expected[..., 0], axis=1)
        reach = np.linalg.norm(expected[..., 0], axis=1)
        sound = smallest > 1e-10 * size  # elsewhere neither way has digits
        assert sound.mean() > 0.9
        assert (error <= 100 * p * 2.0**-52 * size / smallest * reach)[sound].all()


def test_excess_is_the_closed_form(level):
    """Excess = curvature / 2 |theta - optimum|^2 with the risks of the settings."""
    settings, at = settings_of(3), cell(5, 4)
    found = run_trials(settings, at, trials=20, estimates=True)
    before, *after = risks_of(settings, 4)

    def excess(risk, theta):
        return risk.curvature / 2 * ((theta - risk.optimum) ** 2).sum(-1)

    tight = {"rtol": 1e-13}
    np.testing.assert_allclose(found.drs_before, excess(before, found.drs), **tight)
    np.testing.assert_allclose(found.maml_before, excess(before, found.maml), **tight)
    for r, risk in enumerate(after):
        np.testing.assert_allclose(found.drs_after[:, r], excess(risk, found.drs), **tight)
        np.testing.assert_allclose(found.maml_after[:, r], excess(risk, found.maml[:, r]), **tight)


@pytest.mark.parametrize(("p", "samples"), SHAPES)
def test_statistics_are_those_of_rows(level, p, samples):
    """Rank min(N, p), Q with eigenvalues theta, moments in the range of the Gram matrix."""
    tasks = draw_tasks(settings_of(p), cell(4, samples), trials=10)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(tasks.Q), np.sort(tasks.theta, axis=-1), atol=1e-13
    )
    values, vectors = np.linalg.eigh(tasks.gram)
    nothing = max(p - samples, 0)
    top = values[..., -1:]
    assert (np.abs(values[..., :nothing]) < 1e-13 * top).all()
    null = np.swapaxes(vectors[..., :nothing], -1, -2)
    length = np.linalg.norm(tasks.moment, axis=-1, keepdims=True)
    assert (np.abs((null @ tasks.moment[..., None])[..., 0]) < 1e-12 * length).all()
    assert (values[..., nothing] > 0).all()
