"""What holds for every long command: it writes what it declares, goes on only with its own state,
leaves strangers' files alone, and ends with the same bytes wherever it was killed."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from damage import one_line
from helpers import sweep
from innerloop import _native
from innerloop.cli import build
from innerloop.compare import run as compare_run
from innerloop.runs import document
from innerloop.runs.launch import RUN
from innerloop.runs.store import JOURNAL, LOCK
from innerloop.studies.linear_regression import run as regression_run
from innerloop.studies.meta_rl import run as meta_rl_run
from innerloop.studies.sinusoid import certificates
from innerloop.studies.sinusoid import run as sinusoid_run

pytestmark = pytest.mark.skipif(not _native.is_available(), reason="needs the native extension")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command with small settings, others, and what it declares to write."""

    name: str
    small: tuple[str, ...]
    other: tuple[str, ...]
    differs: str
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    def invoke(self, folder: Path, *more: str) -> tuple[int, str]:
        """Exit code, and standard error."""
        arguments = [*self.name.split(), *self.small, *more, "--threads", "1", "--out", str(folder)]
        result = CliRunner().invoke(build(), arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stderr


COMMANDS = [
    Command(
        "compare",
        ("--splits", "2", "--draws", "2", "--inner-lrs", "0.05,0.1", "--steps", "1"),
        ("--shots", "4"),
        "shots: 5 there, 4 now",
        compare_run.OUTPUTS,
    ),
    Command(
        "study linear-regression",
        ("--tasks", "2,9", "--samples", "1,5", "--inner-lrs", "0.3", "--trials", "40"),
        ("--seed", "1"),
        "seed: 0 there, 1 now",
        regression_run.OUTPUTS,
    ),
    Command(
        "study sinusoid",
        (
            *("--iterations", "60", "--meta-batch", "3", "--shots", "4", "--hidden", "6"),
            *("--test-tasks", "40", "--validation-tasks", "20", "--query-rows", "8"),
            *("--runs", "2"),
        ),
        ("--steps", "2"),
        "steps: 1 there, 2 now",
        sinusoid_run.OUTPUTS,
    ),
]
if find_spec("mujoco") and find_spec("gymnasium"):
    COMMANDS.append(
        Command(
            "study meta-rl",
            (
                *("--preset", "tiny", "--iterations", "4", "--checkpoints", "2", "--tasks", "2"),
                *("--rollouts", "2", "--horizon", "10", "--hidden", "4", "--test-tasks", "3"),
            ),
            ("--horizon", "12"),
            "horizon: 10 there, 12 now",
            meta_rl_run.OUTPUTS,
        )
    )


# what needs a finished run of a program waits for it: the quick suite does so for two of them
SWEPT = sweep(COMMANDS, COMMANDS[:2])


@pytest.fixture(autouse=True)
def few_tasks_for_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "TASKS", 6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Command], Path]:
    """The folder of a finished run of each command, which tests copy."""
    made: dict[str, Path] = {}

    def folder(command: Command) -> Path:
        if command.name not in made:
            made[command.name] = tmp_path_factory.mktemp("finished") / "out"
            assert command.invoke(made[command.name]) == (0, "")
        return made[command.name]

    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK
    }


def refused(command: Command, folder: Path, *parts: str, more: tuple[str, ...] = ()) -> None:
    """Exit code 2, one line, and the folder as it was."""
    before = content(folder)
    code, errors = command.invoke(folder, *more, "--no-figures")
    assert code == 2
    line = errors.removesuffix("\n")
    assert line.startswith(f"innerloop {command}: ")
    one_line(ValueError(line), *parts)
    assert content(folder) == before


@pytest.mark.parametrize("command", sweep(COMMANDS, COMMANDS[:1]), ids=str)
def test_all_that_is_written_is_declared(
    command: Command, finished: Callable[[Command], Path]
) -> None:
    """What is not declared may replace a stranger's file."""
    declared = (JOURNAL, LOCK, *(name.rstrip("/") for name in command.outputs))
    for entry in finished(command).iterdir():
        assert any(fnmatch.fnmatchcase(entry.name, name) for name in declared), entry.name


@pytest.mark.parametrize("fresh", [(), ("--fresh",)], ids=["resume", "fresh"])
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_files_of_strangers_stay(command: Command, fresh: tuple[str, ...], tmp_path: Path) -> None:
    for name in (RUN, JOURNAL, next(n for n in command.outputs if n.endswith(".png"))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine\n")
        refused(command, folder, name, more=fresh)


@pytest.mark.parametrize("command", SWEPT, ids=str)
def test_the_state_of_other_settings_is_noticed(
    command: Command, finished: Callable[[Command], Path], tmp_path: Path
) -> None:
    shutil.copy(finished(command) / JOURNAL, tmp_path)
    refused(command, tmp_path, command.differs, "--fresh to replace it", more=command.other)


@pytest.mark.parametrize("command", SWEPT, ids=str)
@pytest.mark.parametrize("name", ["innerloop", "torch", "numpy"])
def test_the_state_of_another_version_is_noticed(
    command: Command,
    name: str,
    finished: Callable[[Command], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(finished(command) / JOURNAL, tmp_path)
    real = document.versions()
    for module in list(sys.modules.values()):
        if getattr(module, "versions", None) is document.versions and module is not document:
            monkeypatch.setattr(module, "versions", lambda: {**real, name: "9.9"})
    refused(command, tmp_path, f"versions.{name}: {real[name]} there, 9.9 now")


@pytest.mark.parametrize("command", SWEPT, ids=str)
@pytest.mark.parametrize("other", SWEPT, ids=str)
def test_the_state_of_another_command_is_noticed(
    command: Command, other: Command, finished: Callable[[Command], Path], tmp_path: Path
) -> None:
    if command is not other:
        shutil.copy(finished(other) / JOURNAL, tmp_path)
        refused(command, tmp_path, "run of another command", more=("--fresh",))


@pytest.mark.parametrize("command", SWEPT, ids=str)
def test_a_damaged_journal_is_said_and_mended(
    command: Command, finished: Callable[[Command], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished(command), folder)
    lines = (folder / JOURNAL).read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"unit", b"Unit")
    (folder / JOURNAL).write_bytes(b"\n".join(lines))
    code, errors = command.invoke(folder, "--no-figures")
    assert code == 0
    notice = errors.splitlines()[0]
    assert notice.startswith(f"{folder / JOURNAL}: 1 of ")
    assert notice.endswith("what they held is computed again")
    assert same_numbers(folder, finished(command))


@pytest.mark.parametrize("command", SWEPT, ids=str)
def test_a_finished_run_writes_the_same_bytes_again(
    command: Command, finished: Callable[[Command], Path], tmp_path: Path
) -> None:
    """From its journal, beside what training itself has written: figures and report as well."""
    shutil.copytree(finished(command), tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        if path.is_file() and path.name != JOURNAL:
            path.unlink()
    assert command.invoke(tmp_path / "out")[0] == 0
    same_files(tmp_path / "out", finished(command))


def same_files(one: Path, two: Path) -> None:
    """Equal names, and equal bytes of all but the record, the journal's order and, in the logs of
    trainings, how long each iteration took."""
    first, second = content(one), content(two)
    assert sorted(first) == sorted(second)
    for name in set(first) - {RUN, JOURNAL}:
        assert untimed(name, first[name]) == untimed(name, second[name]), name


def untimed(name: str, data: bytes) -> object:
    """The content of a file; of a training's log the rows without seconds."""
    if not name.startswith("logs/"):
        return data
    rows = [json.loads(line) for line in data.splitlines()]
    assert all({"iteration", "return", "sampling_seconds"} <= row.keys() for row in rows)
    return [
        {key: value for key, value in row.items() if not key.endswith("_seconds")} for row in rows
    ]


def same_numbers(one: Path, two: Path) -> bool:
    """Equal bytes of all but the record, the journal's order and figures."""
    kinds = ("results.json", "results.npz", "agreement.json", "arrays.npz", "certificates.txt")
    names = [name for name in kinds if (one / name).exists()]
    return len(names) > 0 and all(
        (one / name).read_bytes() == (two / name).read_bytes() for name in names
    )


@pytest.mark.slow
@pytest.mark.ci
def test_a_checkpoint_of_another_method_is_noticed(
    finished: Callable[[Command], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of another run under its name; after it, a study of other settings'."""
    command = COMMANDS[2]
    expected = finished(command)
    kept: dict[str, bytes] = {}
    real = sinusoid_run.train_units

    def keep(*arguments):
        for unit, state in real(*arguments):
            kept[unit.name] = (tmp_path / f"{unit.name}.checkpoint.npz").read_bytes()
            yield unit, state

    monkeypatch.setattr(sinusoid_run, "train_units", keep)
    assert command.invoke(tmp_path, "--no-figures")[0] == 0
    header, *_ = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(header)
    (tmp_path / "maml-1.checkpoint.npz").write_bytes(kept["maml-0"])
    refused(command, tmp_path, "maml-1.checkpoint.npz", "holds the training of maml-0", "--fresh")
    (tmp_path / "maml-1.checkpoint.npz").write_bytes(kept["maml-1"][:-1])
    refused(command, tmp_path, "maml-1.checkpoint.npz", "its end is missing", "--fresh")
    assert command.invoke(tmp_path, "--no-figures", "--fresh")[0] == 0
    assert same_numbers(tmp_path, expected)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by POSIX signal")
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_killed_anywhere_it_ends_with_the_same_bytes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at random moments, also while files are written, until a run gets through."""
    monkeypatch.undo()  # the processes measure all of it
    arguments = [*command.name.split(), *command.small]

    def start(folder: Path) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "innerloop", *arguments, "--out", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    began = time.monotonic()
    whole = start(tmp_path / "whole")
    assert whole.communicate()[1] == b""
    seconds = time.monotonic() - began
    source = random.Random(0)
    for _ in range(6):
        process = start(tmp_path / "killed")
        time.sleep(source.uniform(0.5, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = start(tmp_path / "killed")
    errors = last.communicate()[1]
    assert last.returncode == 0, errors
    assert not list((tmp_path / "killed").rglob("*.part"))
    same_files(tmp_path / "killed", tmp_path / "whole")
