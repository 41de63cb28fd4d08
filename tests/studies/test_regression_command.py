"""`innerloop study linear-regression`: its files, its resuming, its errors."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from helpers import hear_interrupts, sweep
from innerloop import _native, cli
from innerloop.studies import linear_regression
from innerloop.studies.linear_regression import simulation
from innerloop.studies.linear_regression.trials import run_trials

typer_testing = pytest.importorskip("typer.testing")
for package in ("rich", "scipy", "matplotlib"):
    pytest.importorskip(package)
pytestmark = pytest.mark.skipif(not _native.is_available(), reason="needs the native extension")
SMALL = ["--tasks", "2,30", "--samples", "1,5,25", "--inner-lrs", "0,0.3", "--trials", "40"]


def invoke(*arguments):
    command = ["study", "linear-regression", *map(str, arguments)]
    return typer_testing.CliRunner().invoke(cli.build(), command)


def run(folder, *arguments):
    """A small study without figures in `folder`; returns what it printed."""
    done = invoke(*SMALL, "--no-figures", "--out", folder, *arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    run(folder)
    return folder


def test_numbers_are_those_of_the_function(finished):
    stored = linear_regression.load(finished / "results.npz")
    direct = linear_regression.sweep(
        tasks=[2, 30], samples=[1, 5, 25], inner_lrs=[0, 0.3], trials=40
    )
    for name in ("maml_better_after", "drs_risk_after", "maml_excess_before_quantiles"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(direct, name))


def test_prediction_is_the_theorys(finished):
    from innerloop.bounds import linear

    prediction = linear_regression.load(finished / "results.npz").prediction
    law = linear.published_law(p=1, beta=2.0)
    for j, samples in enumerate((1, 5, 25)):
        expected = linear.crossover(law, inner_lr=[0, 0.3], samples=samples)
        np.testing.assert_allclose(prediction.crossover[j], expected, rtol=1e-12)
        for after, found in ((True, prediction.better_after), (False, prediction.better_before)):
            expected = linear.probability_drs_worse(
                law, inner_lr=0.3, samples=samples, tasks=[2, 30], after_update=after
            )
            np.testing.assert_allclose(found[:, j, 1], expected, rtol=1e-9)


def test_agreement_is_that_of_the_maps(finished):
    document = json.loads((finished / "agreement.json").read_text())
    stored = linear_regression.load(finished / "results.npz")
    gap = np.abs(stored.prediction.better_after - stored.maml_better_after)
    (region,) = [
        r
        for r in document["regions"]
        if r["after_update"] and (r["steps"], r["samples"], r["tasks"]) == ("0.6", "5", "30")
    ]
    assert region["cells"] == 1
    assert region["mean"] == region["worst"] == gap[1, 1, 1]
    assert sum(r["cells"] for r in document["regions"]) == 2 * gap.size


def test_report_is_readable_in_80_columns(finished):
    text = run(finished)
    assert "M = 2" in text
    assert "share of clear cells" in " ".join(text.split())
    assert "mean risks at M = 2, all N estimate infinite" in text.replace("\n", " ")  # Result 13
    assert "…" not in text


def test_a_second_run_computes_nothing(finished, tmp_path):
    before = (finished / "results.npz").read_bytes()
    run(finished)
    assert (finished / "results.npz").read_bytes() == before
    assert json.loads((finished / "run.json").read_text())["resumed_cells"] == 6


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.83, 0.99])
def test_a_torn_journal_gives_the_same_numbers(finished, tmp_path, share):
    """What a power cut can leave: a prefix of the journal, to any byte."""
    folder = tmp_path / "torn"
    folder.mkdir()
    journal = (finished / "units.jsonl").read_bytes()
    (folder / "units.jsonl").write_bytes(journal[: int(share * len(journal))])
    run(folder)
    assert json.loads((folder / "run.json").read_text())["resumed_cells"] < 6
    for name in ("results.npz", "agreement.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_an_interrupted_run_goes_on_to_the_same_numbers(finished, tmp_path, monkeypatch):
    """Ctrl-C in the third cell: a message, exit code 130, two cells kept, nothing half-written."""
    folder, calls = tmp_path / "interrupted", []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_trials(*arguments, **options)

    monkeypatch.setattr(simulation, "run_trials", interrupted)
    done = invoke(*SMALL, "--no-figures", "--out", folder)
    monkeypatch.undo()
    assert done.exit_code == 130
    assert "Interrupted: 2 of 6 cells are kept in" in done.output
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "units.jsonl"]
    assert "Resuming: 2 of 6 cells are done." in run(folder)
    assert (folder / "results.npz").read_bytes() == (finished / "results.npz").read_bytes()


LONG = ["--tasks", "50", "--samples", "1,5,25,100,200", "--inner-lrs", "0.3", "--trials", "100000"]


def start(folder):
    """A run of some seconds in its own process."""
    options = ["--threads", "1", "--no-figures", "--no-theory", "--out", str(folder)]
    return subprocess.Popen(
        [sys.executable, "-m", "innerloop", "study", "linear-regression", *LONG, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=hear_interrupts if os.name == "posix" else None,
    )


def wait_for_cells(folder, process, count):
    """Until the journal holds some cells, and more are to come."""
    journal = folder / "units.jsonl"
    for _ in range(3000):
        if journal.exists() and journal.read_bytes().count(b"\n") > count:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    pytest.fail("the run wrote nothing in 30 s")


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_numbers(tmp_path):
    """SIGKILL, then Ctrl-C, then to the end; against one run that nobody disturbed."""
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(folder)
    wait_for_cells(folder, process, 1)
    process.kill()
    process.communicate()
    assert not (folder / "results.npz").exists()
    process = start(folder)
    wait_for_cells(folder, process, 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted: " in errors
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors
    assert not (folder / "results.npz").exists()
    for out in (folder, whole):
        process = start(out)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert json.loads((folder / "run.json").read_text())["resumed_cells"] >= 2
    assert (folder / "results.npz").read_bytes() == (whole / "results.npz").read_bytes()
    assert not [path for path in folder.iterdir() if path.name.endswith(".part")]


def test_threads_do_not_change_the_file(finished, tmp_path):
    run(tmp_path / "two", "--threads", "2")
    first, second = finished / "results.npz", tmp_path / "two" / "results.npz"
    assert first.read_bytes() == second.read_bytes()


FIGURES = ("summary", "theory_against_simulation", "crossover")


@pytest.mark.slow
@pytest.mark.ci
def test_figures(tmp_path):
    """One page per rate and the figures of all rates, thrice each; pages of an earlier run are
    gone."""
    from matplotlib.image import imread

    out = tmp_path / "drawn"
    done = invoke(*SMALL, "--inner-lrs", "0.1", "--out", out)
    assert done.exit_code == 0, done.output
    done = invoke(*SMALL, "--inner-lrs", "0.3,0.5", "--out", out, "--fresh")
    assert done.exit_code == 0, done.output
    pages = sorted(path.name for path in (out / "heat_maps").iterdir())
    kinds = ("pdf", "png", "svg")
    assert pages == [f"inner_lr_{rate}.{kind}" for rate in (0.3, 0.5) for kind in kinds]
    for path in (*(out / f"{name}.png" for name in FIGURES), *(out / "heat_maps").glob("*.png")):
        image = imread(path)
        assert image.shape[0] > 300
        colours = (image[::3, ::3, :3] * 255).astype(int) @ [1, 256, 65536]
        assert len(np.unique(colours)) > 20
        assert path.with_name(f"{path.stem}.svg").read_text().startswith("<?xml")
        assert path.with_name(f"{path.stem}.pdf").read_bytes().startswith(b"%PDF")
    report = (out / "report.html").read_text()
    assert report.count("<img") == len(FIGURES) + 2


ONE_CELL = ["--tasks", "25", "--samples", "5"]


@pytest.mark.parametrize(
    "changes",
    sweep(
        [
            ["--tasks", "25"],
            ["--tasks", "25", "--samples", "5"],
            ["--samples", "1"],
            ["--no-theory"],
        ],
        [["--tasks", "25", "--samples", "5"]],
    ),
    ids=["one M", "one cell", "one N", "no theory"],
)
def test_figures_of_small_grids(tmp_path, changes):
    """One value along an axis, a single cell, no theory beside."""
    arguments = [*SMALL, "--inner-lrs", "-0.3", "--trials", "10", *changes]
    done = invoke(*arguments, "--out", tmp_path / "drawn")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "drawn" / "summary.png").exists()
    with_theory = changes != ["--no-theory"]
    assert (tmp_path / "drawn" / "crossover.png").exists() == with_theory


def test_the_end_names_the_answer_and_the_report(finished):
    lines = run(finished).splitlines()
    assert lines[-1] == f"Open {finished / 'report.html'}"
    answer = next(line for line in lines if line.startswith("After one gradient step MAML wins"))
    text = (finished / "report.html").read_text()
    assert f"<strong>{answer}</strong>" in text
    assert "<img" not in text
    assert "estimate infinite expectations" in text


def test_counts_of_the_answer(finished):
    """Each called cell once, rate 0 left out."""
    from innerloop.studies.linear_regression.agreement import agreement
    from innerloop.studies.linear_regression.verdict import conclude

    stored = linear_regression.load(finished / "results.npz")
    shares = stored.maml_better_after[:, :, 1]
    reach = 1 / np.sqrt(40)
    won, lost = (shares - 0.5 > reach).sum(), (0.5 - shares > reach).sum()
    verdict = conclude(stored, agreement(stored))
    assert f"MAML wins most trials in {won} of 6 cells" in verdict.headline
    assert f"pooled least squares in {lost}; {6 - won - lost} are too close" in verdict.headline
    assert "exact law, Result 10a)" in verdict.reasons[1]


def test_lines_run_between_the_cells_that_differ(finished):
    """Also beside the gap after N = 1, which no line crosses."""
    from innerloop.studies.linear_regression.heat_maps import Maps

    maps = Maps(linear_regression.load(finished / "results.npz"))
    left = [0.0, 1.6, 2.6]
    np.testing.assert_allclose(maps.left, left)
    above = np.array([[False, False, False], [False, False, True]])
    assert maps.boundary(above) == [[(2.6, 1.0), (3.6, 1.0)], [(2.6, 1.0), (2.6, 2.0)]]
    above = np.array([[True, False, False], [True, False, False]])
    assert maps.boundary(above) == []


def test_a_folder_of_another_run_is_refused(finished):
    done = invoke(*SMALL, "--seed", "1", "--out", finished)
    assert done.exit_code == 2
    assert "holds a different run (seed: 0 there, 1 now)" in done.output
    assert "--fresh" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "2,x"], "--tasks must be whole numbers separated by commas (got 'x')"),
        (["--tasks", ""], "tasks must hold at least one number"),
        (["--samples", "0"], "samples must lie between 1 and"),
        (["--inner-lrs", "nan"], "inner_lrs must be finite (got nan)"),
        (["--beta", "-1"], "beta must lie between"),
        (["--p", "0"], "p must lie between 1 and 1024 (got 0)"),
        (["--trials", "0"], "trials must lie between"),
        (["--threads", "0"], "--threads must be at least 1 (got 0)"),
        (["--device", "gpu"], "device must be cpu, cuda or cuda:<number> (got 'gpu')"),
    ],
)
def test_bad_options(tmp_path, arguments, message):
    done = invoke(*SMALL, "--out", tmp_path / "none", *arguments)
    assert done.exit_code == 2
    assert f"innerloop study linear-regression: {message}" in done.output.replace("\n", " ")
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = invoke(*SMALL, "--out", tmp_path / "file")
    assert done.exit_code == 2
    assert "cannot be written" in done.output


def test_a_device_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(_native, "cuda_reason", lambda index=None: "the reason")
    done = invoke(*SMALL, "--out", tmp_path / "none", "--device", "cuda")
    assert done.exit_code == 2
    text = "device 'cuda' needs the fused CUDA kernels, which cannot be used: the reason; the"
    assert text in done.output.replace("\n", " ")
    assert not (tmp_path / "none").exists()


def test_the_device_is_recorded_and_handed_on(tmp_path, monkeypatch):
    """The CPU's kernel in the place of a GPU's."""
    used = []

    def elsewhere(*arguments, device, **options):
        used.append(str(device))
        return run_trials(*arguments, **options)

    monkeypatch.setattr(_native, "cuda_reason", lambda index=None: "")
    monkeypatch.setattr(simulation, "run_trials", elsewhere)
    run(tmp_path / "there", "--device", "cuda")
    assert set(used) == {"cuda"}
    assert json.loads((tmp_path / "there" / "run.json").read_text())["device"] == "cuda"


def test_without_the_extension(tmp_path, monkeypatch):
    monkeypatch.setattr(_native, "is_available", lambda: False)
    monkeypatch.setattr(_native, "reason", lambda: "no such file")
    done = invoke(*SMALL, "--out", tmp_path / "none")
    assert done.exit_code == 2
    assert "this study needs the native extension (no such file)" in done.output


def test_help_names_the_published_defaults():
    text = invoke("--help").output
    assert "1000" in text
    assert "2,5,10,25" in text
