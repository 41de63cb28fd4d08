"""The command as a user runs it: answers, files, errors, interruption, resuming after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from families import class_family, linear_family
from typer.testing import CliRunner

from helpers import hear_interrupts
from innerloop.cli import build

COMMAND = [sys.executable, "-m", "innerloop", "compare"]
OPTIONS = ["--draws", "2", "--inner-lrs", "0.05,0.1", "--steps", "1"]
SMALL = ["us-states", "--splits", "3", *OPTIONS, "--no-figures"]


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(build(), ["compare", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=hear_interrupts if os.name == "posix" else None,
    )


def wait_for_units(folder: Path, count: int, process: subprocess.Popen) -> None:
    journal = folder / "units.jsonl"
    for _ in range(1200):
        assert process.poll() is None, process.communicate()
        if journal.exists() and journal.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.05)
    raise AssertionError("no units were written")


def test_the_default_table_has_a_clear_answer(tmp_path: Path) -> None:
    code, out, _ = invoke("--splits", 10, "--draws", 3, "--no-figures", "--out", tmp_path)
    assert code == 0
    document = results(tmp_path)
    assert document["data"]["source"] == "countries_life_expectancy.csv"
    assert document["verdict"]["answer"] == "as_good"
    assert out.splitlines()[0] == "No: joint training plus fine-tuning is as good here."
    assert "A gain by MAML of 5% or more is ruled out." in " ".join(out.split())


def test_the_panel_of_states_but_smaller(tmp_path: Path) -> None:
    code, out, _ = invoke("us-states", "--splits", 4, "--draws", 5, "--out", tmp_path)
    assert code == 0
    document = results(tmp_path)
    # The closed-form check: joint training near 0.0095 without adaptation, near 0.005 after one
    # step at rate 0.1 (four splits are few, so the bounds are wide).
    before = document["by_adapt_steps"][0]["risk"]["joint"]["mean"]
    after = next(
        row for row in document["same_rate"] if row["steps"] == 1 and row["inner_lr"] == 0.1
    )
    assert 0.006 < before < 0.014
    for method in ("joint", "maml"):
        assert 0.003 < after["risk"][method]["mean"] < 0.008
    assert document["verdict"]["headline"] in out
    assert "of 4 splits." in document["verdict"]["text"]
    lines = out.splitlines()
    assert lines[0] == document["verdict"]["headline"]
    assert lines[lines.index("") - 1] == document["verdict"]["action"]
    assert lines.index("") <= 6
    for name in ("risk_by_adaptation_steps", "risk_by_inner_rate"):
        from matplotlib.image import imread

        pixels = imread(tmp_path / f"{name}.png")
        assert pixels.shape[0] > 400
        assert pixels.shape[1] > 600
        assert 0.02 < np.mean(pixels[..., :3].min(axis=-1) < 0.95) < 0.6
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    report = (tmp_path / "report.html").read_text()
    assert f"<strong>{document['verdict']['headline']}</strong>" in report
    assert report.count("<img") == 2
    assert "public_capital, private_capital, employment, unemployment" in report
    assert out.splitlines()[-1] == f"Open {tmp_path / 'report.html'}"
    assert not [entry for entry in tmp_path.iterdir() if entry.suffix == ".part"]


def test_figures_without_any_interval(tmp_path: Path) -> None:
    """One split, one rate and no margin: points without bars, and no warning."""
    few = ["--splits", 1, "--draws", 2, "--margin", 0, "--inner-lrs", "0.1", "--steps", 1]
    code, _, errors = invoke(*few, "--out", tmp_path)
    assert (code, errors) == (0, "")
    assert (tmp_path / "risk_by_adaptation_steps.pdf").read_bytes().startswith(b"%PDF")


def test_results_schema(tmp_path: Path) -> None:
    code, out, _ = invoke(*SMALL, "--out", tmp_path)
    assert code == 0
    document = results(tmp_path)
    assert list(document) == [
        "format",
        "key",
        "verdict",
        "measure",
        "interval",
        "config",
        "data",
        "model",
        "versions",
        "picked",
        "by_adapt_steps",
        "same_rate",
        "theory",
        "splits",
        "units",
    ]
    assert document["format"] == "innerloop.compare/1"
    assert document["verdict"]["answer"] in ("maml_better", "as_good", "joint_better", "undecided")
    assert len(document["splits"]) == 3
    assert len(document["units"]) == 3 * 5
    assert len(document["by_adapt_steps"]) == 6
    assert document["data"]["tasks"] == 48
    assert len(document["data"]["sha256"]) == 64
    # The summary follows from the units: redo one number by hand.
    wanted = []
    for split in document["splits"]:
        unit = next(
            u
            for u in document["units"]
            if u["unit"] == f"split={split['split']}/maml/rate=0.05/steps=1"
        )
        wanted.append(unit["curves"][0]["test"][1])
    row = next(row for row in document["same_rate"] if row["inner_lr"] == 0.05)
    got = row["risk"]["maml"]["mean"]
    assert got == pytest.approx(float(np.exp(np.mean(np.log(wanted)))), rel=1e-12)
    theory = document["theory"]
    assert theory["tasks"] == 48
    assert theory["sentence"] in " ".join(out.split())
    assert [row["inner_lr"] for row in theory["settings"]] == [0.05, 0.1]
    for row in theory["settings"]:
        assert row["statistical_error"]["maml"]["estimate"] > 0
        assert row["crossover"]["low"] >= 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["units"] == 15
    assert run["resumed_units"] == 0


@pytest.mark.slow
@pytest.mark.ci
def test_killed_and_resumed_runs_give_the_same_bytes(tmp_path: Path) -> None:
    arguments = ["us-states", "--splits", 12, "--draws", 4, "--steps", 1, "--no-figures"]
    process = start(*arguments, "--out", tmp_path / "killed")
    wait_for_units(tmp_path / "killed", 9, process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "killed" / "results.json").exists()
    code, _, err = invoke(*arguments, "--out", tmp_path / "killed")
    assert code == 0
    assert "Resuming:" in err
    assert invoke(*arguments, "--out", tmp_path / "whole")[0] == 0
    killed, whole = (
        (tmp_path / name / "results.json").read_bytes() for name in ("killed", "whole")
    )
    assert killed == whole
    run = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert 9 <= run["resumed_units"] < 12 * 13


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a POSIX signal here")
def test_interrupt_keeps_units_and_says_so(tmp_path: Path) -> None:
    process = start("--splits", 400, "--no-figures", "--threads", 1, "--out", tmp_path)
    wait_for_units(tmp_path, 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "units are kept in" in err
    assert "run the same command again" in err


def test_one_split_has_no_interval(tmp_path: Path) -> None:
    code, out, _ = invoke("us-states", *OPTIONS, "--splits", 1, "--out", tmp_path)
    assert code == 0
    assert "allows no interval" in " ".join(out.split())
    document = results(tmp_path)
    assert document["verdict"]["answer"] == "undecided"
    assert document["picked"]["risk"]["maml"]["low"] is None
    assert document["picked"]["relative"]["maml"]["high"] is None
    assert (tmp_path / "risk_by_inner_rate.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.ci
def test_networks_do_not_depend_on_threads(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    class_family(12, 12, seed=0).to_csv(table, index=False)
    arguments = [table, "--task", "unit", "--target", "kind", "--hidden", "6", "--iterations", 20]
    arguments += ["--outer-lrs", "0.01"]
    arguments += ["--splits", 2, "--draws", 2, "--steps", 1, "--inner-lrs", "0.1", "--no-figures"]
    for threads in (1, 2):
        folder = tmp_path / str(threads)
        code, out, _ = invoke(*arguments, "--threads", threads, "--out", folder)
        assert code == 0
        assert "error rate" in out
        assert "cross-entropy" in out
    assert (tmp_path / "1" / "results.json").read_bytes() == (
        tmp_path / "2" / "results.json"
    ).read_bytes()


def test_linear_models_do_not_depend_on_threads(tmp_path: Path) -> None:
    for threads in (1, 2):
        assert invoke(*SMALL, "--threads", threads, "--out", tmp_path / str(threads))[0] == 0
    assert (tmp_path / "1" / "results.json").read_bytes() == (
        tmp_path / "2" / "results.json"
    ).read_bytes()


def test_archives_run(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    slope = generator.standard_normal((15, 1))
    x = generator.standard_normal((15, 9, 1))
    y = slope * x[..., 0]
    np.savez(
        tmp_path / "t.npz",
        support_x=x[:, :4],
        support_y=y[:, :4],
        query_x=x[:, 4:],
        query_y=y[:, 4:],
    )
    code, out, _ = invoke(tmp_path / "t.npz", *SMALL[1:], "--out", tmp_path / "out")
    assert code == 0
    assert "4 support rows per task" in out


def run_family(tmp_path: Path, correlated: bool) -> dict:
    """Many tasks, one step at a large rate: the setting in which the two objectives differ most."""
    table = tmp_path / "t.csv"
    linear_family(800, 40, seed=4, correlated=correlated).to_csv(table, index=False)
    arguments = [table, "--task", "task", "--target", "y", "--shots", 30, "--inner-lrs", "0.6"]
    arguments += ["--steps", 1, "--adapt-steps", 1, "--splits", 8, "--draws", 2, "--no-figures"]
    assert invoke(*arguments, "--out", tmp_path / "out")[0] == 0
    return results(tmp_path / "out")


def test_maml_wins_where_curvature_follows_the_solution(tmp_path: Path) -> None:
    document = run_family(tmp_path, correlated=True)
    assert document["verdict"]["answer"] == "maml_better"
    assert document["verdict"]["headline"].startswith("Yes")
    assert document["picked"]["wins"]["maml"] == 8
    assert document["picked"]["relative"]["maml"]["mean"] < -0.15
    crossover = document["theory"]["settings"][0]["crossover"]
    # it lies below the numbers of tasks for which the expansion in 1/M holds, and is not placed
    assert crossover["tasks"] is None
    assert "from which the expansion in 1/M is used" in crossover["why_none"]
    assert crossover["high"] < 800
    assert crossover["ahead"] == "maml"
    assert "MAML pays from fewer than" in document["theory"]["sentence"]


def test_joint_training_is_as_good_with_a_common_curvature(tmp_path: Path) -> None:
    document = run_family(tmp_path, correlated=False)
    assert document["verdict"]["answer"] == "as_good"
    assert document["verdict"]["headline"].startswith("No")
    assert abs(document["picked"]["relative"]["maml"]["mean"]) < 0.02
    # A common curvature leaves no modelling error: no upper end for the crossover.
    assert document["theory"]["settings"][0]["crossover"]["high"] is None


def test_bad_input_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    linear_family(8, 9, seed=0, correlated=True).to_csv(table, index=False)
    folder = tmp_path / "out"
    for arguments in (
        [table, "--task", "tsk", "--target", "y"],
        [table, "--task", "task", "--target", "y", "--shots", -2],
        [table, "--task", "task", "--target", "y", "--inner-lrs", "a"],
        [tmp_path / "absent.csv", "--task", "task", "--target", "y"],
        [table, "--task", "task", "--target", "y", "--threads", 0],
        [table, "--task", "task", "--target", "y", "--splits", 0],
    ):
        code, out, err = invoke(*arguments, "--out", folder)
        assert code == 2
        assert out == ""
        assert err.startswith("innerloop compare: ")
        assert err.count("\n") == 1
        assert not folder.exists()


def test_a_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    assert invoke(*SMALL, "--out", tmp_path)[0] == 0
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    code, _, err = invoke(*SMALL, "--shots", 3, "--out", tmp_path)
    assert code == 2
    assert "shots: 5 there, 3 now" in err
    assert before == {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    # Judging differently is not a different run: nothing is computed again.
    code, _, err = invoke(*SMALL, "--margin", 0.2, "--out", tmp_path)
    assert code == 0
    assert "15 of 15 units are done" in err
    assert invoke(*SMALL, "--shots", 3, "--out", tmp_path, "--fresh")[0] == 0
    assert results(tmp_path)["config"]["shots"] == 3


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    code, _, err = invoke(*SMALL, "--out", tmp_path / "out")
    tmp_path.chmod(0o700)
    assert code == 2
    assert "cannot be written" in err


def test_unwritable_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    code, _, err = invoke(*SMALL, "--out", tmp_path / "file" / "out")
    assert code == 2
    assert "cannot be written" in err
    assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


def test_missing_extra_is_one_line(tmp_path: Path) -> None:
    blocker = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'pandas':\n"
        "            raise ModuleNotFoundError('No module named pandas', name='pandas')\n"
        "sys.meta_path.insert(0, Block())\n"
        "sys.argv = ['innerloop', 'compare']\n"
        "from innerloop.cli import app\n"
        "app()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocker], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert 'pip install "innerloop[cli]"' in done.stderr


def test_interrupt_while_writing_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import innerloop.compare.run as run

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_json", interrupted)
    code, _, err = invoke(*SMALL, "--out", tmp_path)
    assert code == 130
    assert err.strip().endswith("run the same command again to go on.")
    monkeypatch.undo()
    code, _, err = invoke(*SMALL, "--out", tmp_path)
    assert code == 0
    assert "15 of 15 units are done" in err


@pytest.mark.slow
def test_readme_shows_the_answer_that_the_first_command_gives(tmp_path: Path) -> None:
    code, out, _ = invoke("--no-figures", "--out", tmp_path)
    assert code == 0
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    answer = out.partition("\n\n")[0]
    assert len(answer.splitlines()) == 5
    assert f"```\n{answer}\n```" in readme


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return of_scale(tmp_path_factory.mktemp("ordinary"), {})


def of_scale(folder: Path, scale: dict[str, float]) -> dict:
    frame = linear_family(12, 9, seed=3, correlated=True, noise=0.5)
    frame = frame.assign(**{name: frame[name] * factor for name, factor in scale.items()})
    frame.to_csv(folder / "t.csv", index=False)
    arguments = [folder / "t.csv", "--task", "task", "--target", "y", "--splits", 3, *OPTIONS]
    assert invoke(*arguments, "--no-figures", "--out", folder / "out")[0] == 0
    return results(folder / "out")


@pytest.mark.parametrize("power", [-1000, -600, -570, -540, -300, -250, 260, 300, 490])
@pytest.mark.parametrize("columns", ["x", "y", "xy"])
def test_units_change_nothing(power: int, columns: str, ordinary: dict, tmp_path: Path) -> None:
    """A power of two is exact, however small or large its squares would be."""
    found = of_scale(tmp_path, dict.fromkeys(columns, 2.0**power))
    for part in ("verdict", "picked", "by_adapt_steps", "same_rate", "theory"):
        same(found[part], ordinary[part])
    factor = 2.0**power if "y" in columns else 1.0
    for here, there in zip(found["splits"], ordinary["splits"], strict=True):
        wanted = [value * factor for value in there["target_scale"]]
        assert here["target_scale"] == pytest.approx(wanted, rel=1e-12)


def same(found: object, wanted: object) -> None:
    """Equal documents, numbers up to rounding."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict)
        assert list(found) == list(wanted)
        for name in wanted:
            same(found[name], wanted[name])
    elif isinstance(wanted, list):
        assert isinstance(found, list)
        for here, there in zip(found, wanted, strict=True):
            same(here, there)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    else:
        assert found == wanted


IGNORED = {
    "--activation tanh": ["--activation", "tanh"],
    "--iterations": ["--iterations", 7],
    "--meta-batch": ["--meta-batch", 3],
    "--outer-lrs": ["--outer-lrs", "0.02"],
}


@pytest.mark.parametrize("names", [[name] for name in IGNORED] + [list(IGNORED)], ids=",".join)
def test_options_without_effect_are_named(names: list[str], tmp_path: Path) -> None:
    given = [word for name in names for word in IGNORED[name]]
    code, out, _ = invoke(*SMALL, *given, "--out", tmp_path)
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("Ignored "))
    for name in IGNORED:
        assert (name.split()[0] in line) == (name in names)
    assert line.removeprefix("Ignored  ") in (tmp_path / "report.html").read_text()


def test_names_from_files_are_printed_without_what_a_terminal_acts_on(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    frame = linear_family(8, 9, seed=0, correlated=True).rename(columns={"x": "a\x1b[31m"})
    frame["task"] = frame["task"].map(lambda t: f"t\x1b[31m{t}")
    frame.to_csv(table, index=False)
    options = ["--task", "task", "--target", "y", "--splits", 2, "--no-figures", *OPTIONS]
    code, out, _ = invoke(table, *options, "--out", tmp_path / "found")
    assert code == 0
    assert "\x1b[31m" not in out
    assert "a\\x1b[31m" in out


def test_options_with_effect_are_not_named(tmp_path: Path) -> None:
    assert "Ignored" not in invoke(*SMALL, "--out", tmp_path / "linear")[1]
    table = tmp_path / "t.csv"
    class_family(8, 9, seed=0).to_csv(table, index=False)
    arguments = [table, "--task", "unit", "--target", "kind", "--splits", 1, *OPTIONS]
    arguments += ["--iterations", 4, "--outer-lrs", "0.02", "--meta-batch", 3, "--no-figures"]
    arguments += ["--activation", "tanh", "--threads", 1]
    code, out, _ = invoke(*arguments, "--hidden", 3, "--out", tmp_path / "network")
    assert code == 0
    assert "Ignored" not in out
    code, out, _ = invoke(*arguments, "--out", tmp_path / "classes")
    assert code == 0
    assert "Ignored  --activation (there are no hidden layers)\n" in out


@pytest.mark.parametrize("rates", ["1e9", "1e20,1e9", "1e30"])
def test_rates_that_diverge_leave_the_answer_alone_on_the_screen(
    rates: str, tmp_path: Path
) -> None:
    arguments = ["us-states", "--splits", 3, "--draws", 2, "--inner-lrs", rates, "--steps", "1,7"]
    code, out, errors = invoke(*arguments, "--out", tmp_path)
    assert (code, errors) == (0, "")
    assert out.splitlines()[0] == results(tmp_path)["verdict"]["headline"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["countries", "us-states"])
def test_the_page_shows_what_the_command_prints(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = invoke(name, "--no-figures", "--out", tmp_path)
    assert code == 0
    lines = [line.rstrip() for line in out.splitlines()]
    page = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
    blocks = page.split("```\n")
    (block,) = (block for block in blocks if block.startswith("\n".join(lines[:2])))
    shown = block.splitlines()
    assert shown == lines[: len(shown)]
    rest = lines[len(shown) :]
    assert rest[0] == "" or rest[0] == lines[0]  # an answer alone, or all but where files are
