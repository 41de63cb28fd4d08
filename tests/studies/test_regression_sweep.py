"""`linear_regression.sweep`: what it returns, what its numbers depend on, its file, its errors."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from damage import check_damage
from innerloop import _native
from innerloop.runs.arrays import read_sealed, write_sealed
from innerloop.runs.errors import InputError
from innerloop.studies import linear_regression
from innerloop.studies.linear_regression.result import FORMAT, QUANTILES
from innerloop.studies.linear_regression.settings import Cell, Settings
from innerloop.studies.linear_regression.trials import risks_of, run_trials

pytestmark = pytest.mark.skipif(not _native.is_available(), reason="needs the native extension")
GRID = {"tasks": [2, 7], "samples": [1, 3, 6], "inner_lrs": [0.0, 0.3], "trials": 50}


def arrays(result):
    """Every array of a result by name."""
    return {
        field.name: np.asarray(getattr(result, field.name))
        for field in dataclasses.fields(result)
        if field.name not in ("settings", "prediction")
    }


def assert_same(found, expected):
    for name, value in arrays(expected).items():
        assert arrays(found)[name].tobytes() == value.tobytes(), name


def test_the_default_is_the_published_sweep():
    settings = Settings()
    assert (settings.p, settings.beta, settings.trials) == (1, 2.0, 1000)
    assert len(settings.cells()) == 144
    assert (settings.inner_lrs[0], settings.inner_lrs[-1]) == (0.0, 1.0)
    np.testing.assert_allclose(np.diff(settings.inner_lrs), 0.05, rtol=1e-12)


def test_a_result_summarises_its_trials():
    result = linear_regression.sweep(p=2, **GRID)
    for i, tasks in enumerate(GRID["tasks"]):
        for j, samples in enumerate(GRID["samples"]):
            cell = Cell(tasks, samples)
            trials = run_trials(result.settings, cell)
            risks = risks_of(result.settings, samples)
            for r in range(2):
                for when, drs, maml, risk in (
                    ("before", trials.drs_before, trials.maml_before[:, r], risks[0]),
                    ("after", trials.drs_after[:, r], trials.maml_after[:, r], risks[1 + r]),
                ):
                    at = i, j, r
                    better = getattr(result, f"maml_better_{when}")[at]
                    assert better == np.mean(maml < drs)
                    for name, excess in (("drs", drs), ("maml", maml)):
                        mean = getattr(result, f"{name}_risk_{when}")[at]
                        np.testing.assert_allclose(mean, risk.least + excess.mean(), rtol=1e-13)
                        quantiles = getattr(result, f"{name}_excess_{when}_quantiles")[at]
                        np.testing.assert_allclose(quantiles, np.quantile(excess, QUANTILES))
    assert result.least_risk_before == risks_of(result.settings, 1)[0].least
    assert result.least_risk_after[2, 1] == risks_of(result.settings, 6)[2].least


def test_without_an_update_after_is_before():
    result = linear_regression.sweep(**{**GRID, "inner_lrs": [0.0]})
    np.testing.assert_array_equal(result.maml_better_after, result.maml_better_before)
    np.testing.assert_allclose(result.maml_risk_after, result.maml_risk_before, rtol=1e-13)


def test_threads_change_no_bit():
    expected = linear_regression.sweep(p=3, **GRID, threads=1)
    for threads in (2, 3):
        assert_same(linear_regression.sweep(p=3, **GRID, threads=threads), expected)


def test_seeds_and_cells_are_different_trials():
    results = [linear_regression.sweep(**GRID, seed=seed) for seed in (0, 1, 2**63)]
    means = {float(value) for r in results for value in r.drs_risk_before[:, :, 0].ravel()}
    assert len(means) == 3 * 6


def test_a_cell_does_not_depend_on_the_rest_of_the_grid():
    whole = linear_regression.sweep(**GRID)
    alone = linear_regression.sweep(
        tasks=np.array([7]), samples=(3,), inner_lrs=np.array([0.3]), trials=50
    )
    assert alone.maml_risk_after[0, 0, 0] == whole.maml_risk_after[1, 1, 1]
    assert alone.drs_risk_before[0, 0, 0] == whole.drs_risk_before[1, 1, 1]


def test_more_trials_extend_fewer():
    settings = Settings(p=2)
    cell = settings.cells()[20]
    few, many = run_trials(settings, cell, trials=21), run_trials(settings, cell, trials=70)
    np.testing.assert_array_equal(few.maml_after, many.maml_after[:21])


def test_progress_ends_at_one():
    heard = []
    linear_regression.sweep(**GRID, progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_file_keeps_every_bit(tmp_path):
    result = linear_regression.sweep(p=2, **GRID)
    result.to_npz(tmp_path / "a.npz")
    loaded = linear_regression.load(tmp_path / "a.npz")
    assert loaded.settings == result.settings
    assert loaded.prediction is None
    assert_same(loaded, result)
    result.to_npz(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_file_documents_its_axes(tmp_path):
    linear_regression.sweep(**GRID).to_npz(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as stored:
        about = json.loads(str(stored["about"]))
        assert set(about["axes"]) == set(stored.files) - {
            "tasks",
            "samples",
            "inner_lrs",
            "about",
            "quantiles",
        }
        for name, axes in about["axes"].items():
            assert stored[name].shape == tuple(len(stored[axis]) for axis in axes), name


def test_files_of_others_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "other.npz", tasks=np.ones(2))
    for name, message in (
        ("text.npz", "cannot be used: it is no archive of arrays"),
        ("other.npz", "is not a file of this command"),
        ("none.npz", "does not exist"),
    ):
        with pytest.raises(InputError, match=f"{name}' {message}"):
            linear_regression.load(tmp_path / name)


def check_flips(folder, rounds):
    result = linear_regression.sweep(p=2, **GRID)
    path = folder / "a.npz"
    result.to_npz(path)

    def same(loaded):
        assert_same(loaded, result)
        return loaded.settings == result.settings

    check_damage(path, lambda: linear_regression.load(path), same, rounds)


def test_flips_give_no_other_number(tmp_path):
    check_flips(tmp_path, 200)


@pytest.mark.slow
def test_ten_thousand_flips_give_no_other_number(tmp_path):
    check_flips(tmp_path, 10_000)


def test_files_that_do_not_hold_a_sweep_are_refused(tmp_path):
    """Sealed as they should be, but settings and arrays do not belong together."""
    result = linear_regression.sweep(**GRID)
    path = tmp_path / "a.npz"
    result.to_npz(path)
    about, arrays = read_sealed(path, FORMAT, "file", "")
    del about["format"]
    other = dict(about["settings"], samples=[1, 2, 3, 4])
    for change, message in (
        ({"settings": None}, "does not hold the settings of a study"),
        ({"settings": {"p": 1}}, "does not hold the settings of a study"),
        ({"settings": other}, "lacks maml_better_before with shape"),
        ({"settings": dict(other, p=0)}, "p must lie between"),
    ):
        write_sealed(path, FORMAT, {**about, **change}, arrays)
        with pytest.raises(InputError, match=message):
            linear_regression.load(path)
    for name in ("maml_better_after", "least_risk_before"):
        for value in (None, np.zeros(2), arrays[name].astype(np.float32)):
            kept = {n: a for n, a in arrays.items() if n != name}
            write_sealed(path, FORMAT, about, kept if value is None else {**kept, name: value})
            with pytest.raises(InputError, match=f"a.npz' lacks {name} with shape"):
                linear_regression.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": 0}, r"p must lie between 1 and 1024 \(got 0\)"),
        ({"p": 1.5}, r"p must be a whole number \(got 1.5\)"),
        ({"beta": 0}, r"beta must lie between 1e-30 and 1e\+30 \(got 0\)"),
        ({"beta": float("nan")}, r"beta must be finite \(got nan\)"),
        ({"beta": "x"}, r"beta must be a number \(got 'x'\)"),
        ({"tasks": []}, "tasks must hold at least one number"),
        ({"tasks": 5}, r"tasks must be a list of numbers \(got 5\)"),
        ({"tasks": "25"}, r"tasks must be a list of numbers \(got '25'\)"),
        ({"tasks": [5, 5]}, r"tasks must not repeat a value \(got \[5, 5\]\)"),
        ({"samples": [0]}, r"samples must lie between 1 and 2147483648 \(got 0\)"),
        ({"samples": [2.0]}, r"samples must be a whole number \(got 2.0\)"),
        ({"inner_lrs": [float("inf")]}, r"inner_lrs must be finite \(got inf\)"),
        ({"inner_lrs": [1e40]}, r"inner_lrs must be at most 1e\+30 in size"),
        ({"trials": 0}, r"trials must lie between 1 and 2147483648 \(got 0\)"),
        ({"trials": True}, r"trials must lie between 1 and 2147483648 \(got True\)"),
        ({"seed": -1}, r"seed must lie between 0 and 18446744073709551615 \(got -1\)"),
        ({"threads": 0}, r"threads must be at least 1 \(got 0\)"),
        ({"device": "gpu"}, r"device must be cpu, cuda or cuda:<number> \(got 'gpu'\)"),
        ({"device": "meta"}, r"device must be cpu, cuda or cuda:<number> \(got 'meta'\)"),
        ({"device": None}, r"device must be cpu, cuda or cuda:<number> \(got 'None'\)"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        linear_regression.sweep(**{**GRID, **changes})


def test_a_device_that_cannot_be_used(monkeypatch):
    """The reasons of the fused operations, and what to do."""
    monkeypatch.setattr(_native, "cuda_reason", lambda index=None: "the reason")
    text = "device 'cuda:1' needs the fused CUDA kernels, which cannot be used: the reason; the def"
    with pytest.raises(ValueError, match=text):
        linear_regression.sweep(**GRID, device="cuda:1")
    monkeypatch.setattr(_native, "cuda_reason", lambda index=None: "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ValueError, match=r"cannot be used: torch finds 1 GPU\(s\); the default, cpu"
    ):
        linear_regression.sweep(**GRID, device="cuda:1")


def test_the_cpu_is_the_default():
    assert_same(linear_regression.sweep(**GRID, device="cpu"), linear_regression.sweep(**GRID))


def test_published_frequencies():
    """Frequencies at 4000 trials against long simulations of the same cells by other programs.

    p = 1, beta = 2, rate 0.3, N = 25, before the update: .145 at M = 25, .023 at M = 100; p = 2,
    N = 10, after it: .5435 (s.e. .0029, row by row) at M = 50, .803 at M = 200. Four standard
    errors each: 3e-4 to fail.
    """
    common = {"inner_lrs": [0.3], "trials": 4000, "seed": 1}
    one = linear_regression.sweep(1, 2.0, tasks=[25, 100], samples=[25], **common)
    two = linear_regression.sweep(2, 2.0, tasks=[50, 200], samples=[10], **common)
    found = [*one.maml_better_before.ravel(), *two.maml_better_after.ravel()]
    for value, expected in zip(found, (0.145, 0.023, 0.5435, 0.803), strict=True):
        rounding = 0.0005
        assert abs(value - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000) + 2 * rounding
