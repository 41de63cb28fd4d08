"""`innerloop study sinusoid` as a user runs it: files, interruption, resuming, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from innerloop.cli import build
from innerloop.runs.methods import METHODS
from innerloop.runs.statistics import mean_interval
from innerloop.studies.sinusoid import certificates, pool
from innerloop.studies.sinusoid.settings import Settings
from innerloop.studies.sinusoid.training import Diverged, State
from innerloop.studies.sinusoid.units import ORACLE, Unit

SMALL = ["--iterations", 60, "--meta-batch", 3, "--shots", 4, "--hidden", "6,6"]
SMALL += ["--test-tasks", 40, "--validation-tasks", 20, "--query-rows", 8, "--threads", 1]
SMALL += ["--runs", 2]
WITHOUT = [*SMALL, "--no-figures"]


@pytest.fixture(autouse=True)
def few_tasks_for_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "TASKS", 6)


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(build(), ["study", "sinusoid", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_files_hold_every_number(tmp_path: Path) -> None:
    code, out, err = invoke(*SMALL, "--out", tmp_path)
    assert code == 0, err
    document = results(tmp_path)
    assert document["format"] == "innerloop.study.sinusoid/2"
    with np.load(tmp_path / "arrays.npz") as content:
        arrays = dict(content)
    assert list(arrays["methods"]) == list(METHODS)
    assert arrays["errors"].shape == (2, 3, 40, 11)
    assert arrays["parameters"].shape == (2, 3, 61)
    assert arrays["oracle_errors"].shape == (2, 40)
    assert arrays["oracle_parameters"].shape == (2, 73)
    assert [run["seed"] for run in document["runs"]] == [0, 1]
    for number, run in enumerate(document["runs"]):
        for index, method in enumerate(METHODS):
            for row in run["same_rate"]:
                errors = arrays["errors"][number, index, :, row["steps"]]
                wanted = mean_interval(errors, 0.95)
                got = row["error"][method]
                assert (got["mean"], got["low"], got["high"]) == pytest.approx(
                    (wanted.mean, wanted.low, wanted.high)
                )
        assert [row["steps"] for row in run["picked_rate"]] == list(range(11))
        assert len(run["validation"]["error"]["maml"]) == len(run["validation"]["rates"])
        assert run["oracle"] == pytest.approx(arrays["oracle_errors"][number].mean())
    means = arrays["errors"].mean(axis=2)  # [runs, methods, steps]
    for row in document["over_runs"]["same_rate"]:
        for index, method in enumerate(METHODS):
            both = means[:, index, row["steps"]]
            shown = row["mean"][method]
            assert (shown["low"], shown["median"], shown["high"]) == pytest.approx(
                (both.min(), both.mean(), both.max())
            )
    for method in ("joint", "maml"):
        certificate = document["certificates"][method]
        assert certificate["comparison"]["setting"]["budget"] == 60 * 3 * 2 * 4
        assert "HEURISTIC, not certified" in certificate["text"]  # relu
        assert certificate["text"] in (tmp_path / "certificates.txt").read_text()
    assert document["verdict"]["headline"] in out
    for steps in (0, 1, 5, 10):
        shown = document["over_runs"]["same_rate"][steps]["mean"]["maml"]
        assert f"{shown['median']:.3f}" in out
        assert f"{shown['low']:.3f}-{shown['high']:.3f}" in out
    report = (tmp_path / "report.html").read_text()
    assert f"<strong>{document['verdict']['headline']}</strong>" in report
    assert report.count("<img") == 2
    assert out.splitlines()[-1] == f"Open {tmp_path / 'report.html'}"
    for name in ("error_by_steps", "example_fits"):
        from matplotlib.image import imread

        pixels = imread(tmp_path / f"{name}.png")
        assert min(pixels.shape[:2]) > 400
        assert 0.01 < np.mean(pixels[..., :3].min(axis=-1) < 0.95) < 0.75
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    left = [path.name for path in tmp_path.iterdir() if "checkpoint" in path.name]
    assert left == []
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["iterations_trained"] == 60 * 4 * 2


def test_an_interrupted_study_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke(*WITHOUT, "--iterations", 130, "--out", tmp_path / "whole")[0] == 0
    monkeypatch.setattr(pool, "SAVE_SECONDS", 0.0)
    real = pool.save
    saves = 0

    def interrupting(*arguments: object) -> None:
        nonlocal saves
        real(*arguments)  # type: ignore[arg-type]
        saves += 1
        # Three saves a training: after 50 and 100 iterations and at the end.
        if saves == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(pool, "save", interrupting)
    arguments = [*WITHOUT, "--iterations", 130, "--out", tmp_path / "parts"]
    code, _, err = invoke(*arguments)
    assert code == 130
    assert "1 of 8 trainings are done" in err
    assert not (tmp_path / "parts" / "results.json").exists()
    assert (tmp_path / "parts" / "fomaml-0.checkpoint.npz").exists()
    code, _, err = invoke(*arguments)
    assert code == 0
    assert "Resuming: 1 of 8 trainings are done." in err
    run = json.loads((tmp_path / "parts" / "run.json").read_text())
    assert run["iterations_trained"] == 130 * 7 - 100
    for name in ("results.json", "arrays.npz", "certificates.txt"):
        whole, parts = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "parts"))
        assert whole == parts


@pytest.mark.slow
@pytest.mark.ci
def test_worker_processes_give_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(iterations=60, meta_batch=3, shots=4, hidden=(6,))
    units = [Unit("joint", 0), Unit("maml", 1), Unit(ORACLE, 0)]
    states: list[dict[Unit, State]] = []
    seen: list[tuple[Unit, int]] = []
    for brief, folder in ((10**9, "alone"), (0, "workers")):
        monkeypatch.setattr(pool, "BRIEF_ITERATIONS", brief)
        (tmp_path / folder).mkdir()
        made = pool.train_units(
            settings, units, tmp_path / folder, "key", 2, lambda *a: seen.append(a)
        )
        states.append(dict(made))
    for unit in units:
        one, two = (found[unit] for found in states)
        assert torch.equal(one.theta, two.theta)
        assert one.done == two.done == 60
        assert seen.count((unit, 60)) >= 1


@pytest.mark.slow
def test_a_diverging_worker_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BRIEF_ITERATIONS", 0)
    settings = Settings(iterations=60, meta_batch=3, shots=4, hidden=(6,), outer_lr=1e18)
    with pytest.raises(Diverged):
        list(
            pool.train_units(
                settings,
                [Unit("joint", 0), Unit("maml", 0)],
                tmp_path,
                "key",
                2,
                lambda unit, done: None,
            )
        )


@pytest.mark.slow
@pytest.mark.ci
def test_measuring_again_does_not_train_again(tmp_path: Path) -> None:
    assert invoke(*WITHOUT, "--out", tmp_path)[0] == 0
    before = results(tmp_path)
    code, _, err = invoke(*WITHOUT, "--test-tasks", 55, "--level", 0.5, "--out", tmp_path)
    assert code == 0
    assert "8 of 8 trainings are done" in err
    after = results(tmp_path)
    assert after["key"] == before["key"]
    assert after["settings"]["test_tasks"] == 55
    assert json.loads((tmp_path / "run.json").read_text())["iterations_trained"] == 0
    code, _, err = invoke(*WITHOUT, "--seed", 1, "--out", tmp_path)
    assert code == 2
    assert "seed: 0 there, 1 now" in err
    assert invoke(*WITHOUT, "--seed", 1, "--out", tmp_path, "--fresh")[0] == 0
    assert results(tmp_path)["settings"]["seed"] == 1


@pytest.mark.slow
@pytest.mark.ci
def test_more_runs_go_on_from_fewer(tmp_path: Path) -> None:
    """Run r of seed s is the training of seed s + r, and what is there is not trained again."""
    assert invoke(*WITHOUT, "--runs", 1, "--out", tmp_path / "grown")[0] == 0
    first = results(tmp_path / "grown")["runs"][0]
    assert invoke(*WITHOUT, "--runs", 3, "--out", tmp_path / "grown")[0] == 0
    run = json.loads((tmp_path / "grown" / "run.json").read_text())
    assert run["iterations_trained"] == 60 * 4 * 2
    grown = results(tmp_path / "grown")
    assert grown["runs"][0] == first
    assert invoke(*WITHOUT, "--runs", 1, "--seed", 2, "--out", tmp_path / "third")[0] == 0
    several, alone = (np.load(tmp_path / name / "arrays.npz") for name in ("grown", "third"))
    with several, alone:
        for name in ("parameters", "oracle_parameters"):
            np.testing.assert_array_equal(several[name][2], alone[name][0])
    one = results(tmp_path / "third")
    assert "not about other seeds" in one["verdict"]["text"]
    assert "not about other seeds" not in grown["verdict"]["text"]


def test_bad_input_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for arguments in (
        ["--iterations", 0],
        ["--hidden", "a"],
        ["--rates", "0.1,x"],
        ["--threads", 0],
        ["--level", 2],
        ["--runs", 0],
    ):
        code, out, err = invoke(*WITHOUT, *arguments, "--out", folder)
        assert code == 2
        assert out == ""
        assert err.startswith("innerloop study sinusoid: ")
        assert err.count("\n") == 1
        assert not folder.exists()
    code, _, err = invoke(*WITHOUT, "--outer-lr", 1e18, "--out", folder)
    assert code == 2
    assert "training of joint training diverged; lower --outer-lr" in err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by POSIX signal")
def test_a_killed_study_goes_on(tmp_path: Path) -> None:
    options = [*WITHOUT, "--iterations", 12_000, "--threads", 2]
    command = [sys.executable, "-m", "innerloop", "study", "sinusoid", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    for _ in range(1200):
        assert process.poll() is None, process.communicate()
        if list((tmp_path / "killed").glob("*.checkpoint.npz")):
            break
        time.sleep(0.05)
    process.kill()
    process.communicate()
    # Workers notice that their parent is gone within fifty iterations.
    time.sleep(2.0)
    for folder in ("killed", "whole"):
        code, _, err = invoke(*options, "--out", tmp_path / folder)
        assert code == 0, err
    killed, whole = (
        (tmp_path / folder / "results.json").read_bytes() for folder in ("killed", "whole")
    )
    assert killed == whole
    run = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert 0 < run["iterations_trained"] < 96_000
