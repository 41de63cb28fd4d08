"""`innerloop study meta-rl` as a user runs it: files, resuming, threads, a cluster, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from innerloop import rl
from innerloop.cli import build
from innerloop.runs.errors import InputError
from innerloop.studies.meta_rl import launching, work
from innerloop.studies.meta_rl.launching import Cluster
from innerloop.studies.meta_rl.run import run_study
from innerloop.studies.meta_rl.settings import PRESETS, preset_settings
from innerloop.studies.meta_rl.units import all_units

pytest.importorskip("mujoco", reason="needs innerloop[rl]")

SIZES: dict[str, Any] = {
    "iterations": 4,
    "checkpoints": 2,
    "tasks": 2,
    "rollouts": 2,
    "horizon": 8,
    "test_tasks": 3,
}
SMALL = [text for name, n in SIZES.items() for text in ("--" + name.replace("_", "-"), str(n))]
SMALL = ["--preset", "tiny", *SMALL, "--hidden", "4", "--no-figures"]
BOTH = ["--pairs", "ppo,trpo"]


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(build(), ["study", "meta-rl", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that nothing interrupted."""
    folder = tmp_path_factory.mktemp("meta-rl") / "whole"
    code, _, err = invoke(*SMALL, *BOTH, "--threads", 1, "--out", folder)
    assert (code, err) == (0, "")
    return folder


def test_results(whole: Path) -> None:
    document = results(whole)
    assert document["complete"]
    settings = document["settings"]
    names = ("sampling", "tester", "test_optimizer", "horizon", "discount")
    assert [settings[name] for name in names] == ["lanes", "lanes", "sgd", 8, 0.99]
    assert {"innerloop", "torch", "mujoco"} <= set(document["versions"])
    runs = document["runs"]
    assert [(run["algorithm"], run["seed"]) for run in runs] == [
        ("drs-ppo", 0),
        ("promp", 0),
        ("drs-ppo", 1),
        ("promp", 1),
        ("drs-trpo", 0),
        ("trpo-maml", 0),
        ("drs-trpo", 1),
        ("trpo-maml", 1),
    ]
    for run in runs:
        assert run["steps"] == [0, 2 * 2 * 32, 2 * 4 * 32]  # both sides of a pair alike
        assert np.shape(run["returns"]) == np.shape(run["stderr"]) == (3, 3)
        assert not [name for name in run if "second" in name or "time" in name]
    ours, theirs = runs[:2]  # the untrained policy is shared, and so are its test rates
    assert ours["test_rate"] == theirs["test_rate"]
    assert ours["returns"][0] == theirs["returns"][0]
    assert ours["returns"][2] != theirs["returns"][2]


def test_controls(whole: Path) -> None:
    document = results(whole)
    controls = [(row["control"], row["algorithm"], row["changed"]) for row in document["controls"]]
    expected = [
        ("step-size", "promp", {"learning_rate": 0.01}),
        ("adapts", "drs-trpo", {}),
        ("step-size", "trpo-maml", {"max_kl": 0.01}),
    ]
    assert sorted(map(str, controls)) == sorted(map(str, 2 * expected))
    adapting = next(row for row in document["controls"] if row["control"] == "adapts")
    fixed = next(run for run in document["runs"] if run["algorithm"] == "drs-trpo")
    assert (adapting["test_rate"], fixed["test_rate"]) == (0.01, 0)
    # the same policy: equal before any update, and only there
    before = np.array([adapting["returns"], fixed["returns"]])
    assert (before[0, :, 0] == before[1, :, 0]).all()
    assert (before[0, :, 1:] != before[1, :, 1:]).all()


def test_maps_are_those_of_the_runs(whole: Path) -> None:
    document = results(whole)
    for made in document["tradeoff"]:
        drs, maml = {"ppo": ("drs-ppo", "promp"), "trpo": ("drs-trpo", "trpo-maml")}[made["pair"]]
        sides = []
        for algorithm in (drs, maml):
            rows = [run for run in document["runs"] if run["algorithm"] == algorithm]
            replaced = [
                row
                for row in document["controls"]
                if (row["control"], row["algorithm"]) == (made["control"], algorithm)
            ]
            rows = replaced or rows
            sides += [[row[name] for row in rows] for name in ("returns", "stderr")]
        assert np.array_equal(rl.tradeoff(*sides), made["map"])
        difference = np.mean(sides[0], 0) - np.mean(sides[2], 0)
        np.testing.assert_allclose(made["difference"], difference, atol=1e-12)
        for side, returns in (("drs", sides[0]), ("maml", sides[2])):
            last = np.array(returns)[:, -1]
            mean, error = made["gain"][side]
            assert mean == pytest.approx(np.mean(last[:, -1] - last[:, 0]))
            assert (error > 0) == (mean != 0)
        assert made["sides"]["drs"].startswith("DRS+")
        assert ("step size" in made["sides"]["maml"]) == (made["control"] == "step-size")
        assert ("test rate" in made["sides"]["drs"]) == (made["control"] == "adapts")


def test_a_run_is_what_train_and_evaluate_give(whole: Path) -> None:
    """Nothing of the study lies between a user's own calls and its numbers."""
    env = rl.make("HalfCheetahRandVel", tasks=2, rollouts=2, horizon=8, threads=1)
    training = rl.train(env, "promp", iterations=2, seed=1, hidden=(4,))
    test = env.sample_tasks(3, rl.derived(0, 2), split="test")
    parts = [
        rl.evaluate(
            env,
            training.params,
            model=training.model,
            tasks=test[first : first + 2],
            updates=2,
            inner_lr=0.01,
            seed=rl.derived(0, 3, first),
        )
        for first in (0, 2)
    ]
    run = next(r for r in results(whole)["runs"] if (r["algorithm"], r["seed"]) == ("promp", 1))
    assert np.concatenate(parts).mean(0).tolist() == run["returns"][1]


@pytest.mark.slow
@pytest.mark.ci
def test_more_seeds_join_a_study(whole: Path, tmp_path: Path) -> None:
    assert invoke(*SMALL, "--out", tmp_path, "--threads", 1)[0] == 0
    assert len(results(tmp_path)["runs"]) == 4
    code, _, err = invoke(*SMALL, *BOTH, "--out", tmp_path, "--threads", 1)
    assert (code, err) == (0, "Resuming: 6 of 12 trainings are done.\n")
    assert (tmp_path / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_interrupted_within_a_unit_it_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after every few saves, in trainings and in tests."""
    monkeypatch.setattr(work, "SAVE_SECONDS", 0.0)
    real, saves = work.save, 0

    def interrupting(*arguments: Any) -> None:
        nonlocal saves
        real(*arguments)
        saves += 1
        if saves % 7 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(work, "save", interrupting)
    rounds = 0
    while True:
        code, _, err = invoke(*SMALL, "--out", tmp_path, "--threads", 1)
        if code == 0:
            break
        assert code == 130
        assert "of 6 trainings are done" in err
        rounds += 1
    assert rounds > 8
    expected = [row for row in results(whole)["runs"] if row["pair"] == "ppo"]
    assert results(tmp_path)["runs"] == expected
    log = (tmp_path / "logs/HalfCheetahRandVel-promp-0.jsonl").read_text()
    logs = [json.loads(line) for line in log.splitlines()]
    assert [row["iteration"] for row in logs] == [0, 1, 2, 3]


@pytest.mark.skipif(sys.platform == "win32", reason="kills by POSIX signal")
@pytest.mark.slow
@pytest.mark.ci
def test_killed_it_goes_on_in_two_processes_with_the_same_bytes(
    whole: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from innerloop.studies.meta_rl import work; work.SAVE_SECONDS = 0.0\n"
        "from innerloop.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "study", "meta-rl", *SMALL, *BOTH, "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("unfinished/*promp-0.npz")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "results.json").exists()
    status, _, err = invoke(*SMALL, *BOTH, "--threads", 2, "--out", tmp_path)
    assert status == 0
    assert err.startswith("Resuming: 1 of 12")
    for name in ("results.json", "report.md", "report.html"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert not list((tmp_path / "unfinished").iterdir())


@pytest.mark.slow
@pytest.mark.ci
def test_jobs_of_a_cluster_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs innerloop[cluster]")
    settings = preset_settings("tiny", **SIZES, hidden=(4,), controls=False)
    run_study(settings, out=tmp_path, cluster=Cluster("local"), with_figures=False)
    found = [row for row in results(whole)["runs"] if row["pair"] == "ppo"]
    assert results(tmp_path)["runs"] == found


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)
def test_processes_of_torchrun_share_every_training(whole: Path, tmp_path: Path) -> None:
    arguments = [*SMALL, "--no-controls", "--out", str(tmp_path), "--threads", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "innerloop", "study", "meta-rl", *arguments]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    expected = [row for row in results(whole)["runs"] if row["pair"] == "ppo"]
    found = results(tmp_path)["runs"]
    assert [row["steps"] for row in found] == [row["steps"] for row in expected]
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["returns"], two["returns"], rtol=1e-4, atol=1e-4)
    assert ended.stdout.count("Written to ") == 1  # one process speaks


def test_policies_and_events_are_kept_where_asked_for(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs innerloop[safetensors]")
    pytest.importorskip("tensorboard", reason="needs innerloop[tensorboard]")
    options = [*SMALL, "--no-controls", "--seeds", 2, "--policies", "--tensorboard"]
    assert invoke(*options, "--threads", 1, "--out", tmp_path)[0] == 0
    names = {f"HalfCheetahRandVel-{name}-{i}" for name in ("drs-ppo", "promp") for i in (0, 1)}
    assert {path.stem for path in (tmp_path / "policies").iterdir()} == names
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == names
    params, model = rl.load_policy(tmp_path / "policies/HalfCheetahRandVel-promp-1.safetensors")
    env = rl.make("HalfCheetahRandVel", tasks=2, rollouts=2, horizon=8, threads=1)
    training = rl.train(env, "promp", iterations=4, seed=1, hidden=(4,))
    assert model == training.model
    assert all(torch.equal(leaf, params[name]) for name, leaf in training.params.items())


def test_only_report_runs_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "run_unit", None)
    code, out, _ = invoke(*SMALL, *BOTH, "--only-report", "--out", tmp_path)
    assert code == 0
    assert "nothing can be said" in out
    document = results(tmp_path)
    assert (document["complete"], document["runs"], document["tradeoff"]) == (False, [], [])
    assert "Unfinished: 0 of 12 trainings" in (tmp_path / "report.md").read_text()


def test_a_training_that_diverges_keeps_its_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rl.Training.step

    def step(self: rl.Training) -> Any:
        if self.algorithm == "promp" and len(self.history) == 2:
            raise FloatingPointError("not finite")
        return real(self)

    monkeypatch.setattr(rl.Training, "step", step)
    assert invoke(*SMALL, "--no-controls", "--threads", 1, "--out", tmp_path)[0] == 0
    for run in results(tmp_path)["runs"]:
        if run["algorithm"] == "promp":
            assert run["diverged"] == 2
            assert run["returns"][1] == run["returns"][2]
        else:
            assert run["diverged"] is None
    assert (
        "2 of 2 trainings met a gradient that was not finite"
        in (tmp_path / "report.md").read_text()
    )


@pytest.mark.slow
@pytest.mark.ci
def test_figures(whole: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    (tmp_path / "units.jsonl").write_bytes((whole / "units.jsonl").read_bytes())
    arguments = [name for name in SMALL if name != "--no-figures"]
    code, _, err = invoke(*arguments, *BOTH, "--only-report", "--out", tmp_path)
    assert (code, err) == (0, "Resuming: 12 of 12 trainings are done.\n")
    for name in ("tradeoff", "returns"):
        pixels = imread(tmp_path / f"{name}.png")
        assert min(pixels.shape[:2]) > 400
        assert 0.01 < np.mean(pixels[..., :3].min(axis=-1) < 0.95) < 0.75
        assert f"]({name}.svg)" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").read_text().count("data:image/svg+xml;base64,") == 2


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("iterations", [1, 2, 4, 30])
def test_no_more_checkpoints_than_iterations_unless_asked_for(preset: str, iterations: int) -> None:
    settings = preset_settings(preset, iterations=iterations)
    assert settings.checkpoints == min(PRESETS[preset]["checkpoints"], iterations)
    for environment in settings.environments:
        assert settings.stops(environment, "promp")[-1] == iterations
    assert preset_settings(preset).checkpoints == PRESETS[preset]["checkpoints"]
    with pytest.raises(InputError, match=rf"--checkpoints must be at most .*\({iterations}; got"):
        preset_settings(preset, iterations=iterations, checkpoints=iterations + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "tiy"), "--preset must be one of tiny, small, medium, published (got 'tiy')"),
        (("--environments", "HoperRandParams"), "did you mean 'HopperRandParams'?"),
        (("--pairs", "ppo,ppo"), "--pairs must name at least one, each once"),
        (("--pairs", "a2c"), "--pairs must be one of ppo, trpo (got 'a2c')"),
        (("--seeds", 1), "--seeds must be at least 2 (got 1)"),
        (("--checkpoints", 5), "--checkpoints must be at most --iterations (4; got 5)"),
        (("--horizon", 0), "--horizon must be at least 1 (got 0)"),
        (("--hidden", "4,x"), "--hidden must be whole numbers"),
        (("--level", 1), "--level must lie between 0 and 1"),
        (("--launcher", "slrm"), "--launcher must be one of local, slurm (got 'slrm')"),
        (("--tester", "lane"), "did you mean 'lanes'?"),
        (("--threads", 0), "--threads must be at least 1"),
    ],
    ids=lambda value: value[0].lstrip("-") if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_exit_code_two(
    arguments: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    code, out, err = invoke(*SMALL, *arguments, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith("innerloop study meta-rl: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "package", "extra"),
    [
        (["--launcher", "slurm"], "submitit", "cluster"),
        (["--tensorboard"], "tensorboard", "tensorboard"),
        (["--policies"], "safetensors", "safetensors"),
        ([], "mujoco", "rl"),
        (["--environments", "ML1-Reach"], "metaworld", "metaworld"),
    ],
    ids=["cluster", "tensorboard", "safetensors", "rl", "metaworld"],
)
def test_a_missing_extra_is_one_line(
    options: list[str],
    package: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = invoke(*SMALL, *options, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith("innerloop study meta-rl: ")
    assert err.endswith(f'run pip install "innerloop[{extra}]"\n')
    assert not (tmp_path / "out").exists()


def test_without_a_cluster_there_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs innerloop[cluster]")
    if shutil.which("srun"):
        pytest.skip("this machine has Slurm")
    code, _, err = invoke(*SMALL, "--launcher", "slurm", "--out", tmp_path)
    assert code == 2
    assert err.endswith("--launcher local needs no cluster\n")
    assert err.count("\n") == 1


def test_presets_match_pairs_in_steps() -> None:
    for name in ("tiny", "small", "medium", "published"):
        settings = preset_settings(name)
        units = all_units(settings)
        assert len({unit.name for unit in units}) == len(units)
        for environment in settings.environments:
            ours, theirs = (settings.stops(environment, a) for a in ("drs-ppo", "promp"))
            assert ours == [2 * stop for stop in theirs]
            assert theirs[-1] == settings.iterations_of(environment)
    published = preset_settings("published")
    assert published.stops("ML10", "promp")[:2] == [0, 500]
    assert published.stops("HopperRandParams", "promp")[-2:] == [950, 1000]
    assert published.sizes_of("ML45") == {"tasks": 20, "rollouts": 10, "horizon": 150}
