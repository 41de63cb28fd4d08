"""Options by fuzzing: whatever a command is given, it runs with it or ends with code 2 and one line
on standard error; sizes that no machine can have are refused at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer.main

import innerloop.compare.run
import innerloop.studies.linear_regression.run
import innerloop.studies.sinusoid.run
from damage import one_line
from helpers import sweep
from innerloop import _native
from innerloop.cli import build, run
from innerloop.compare.config import Config
from innerloop.compare.problem import Problem
from innerloop.runs import launch, sizes

COMMANDS = ("compare", "study linear-regression", "study sinusoid")
VALUES = [
    "", " ", "0", "-1", "-0", "1", "2", "1.5", "nan", "inf", "-inf", "1e300", "-1e300", "1e-320",
    "1e18", "2147483647", "2147483648", "9223372036854775807", "9223372036854775808",
    "1000000000000",
    "1_000", "0x10", "abc", "größe", "a,b", ",", "1,,2", "1,1", "-1,2", "1000000000,1000000000",
    "None", "true", "\x1b[31m", "\ud800", "9" * 5000, "9" * 200, "1 2", "0.5", "--help", "-h", "'",
    "$HOME", "../..", "/dev/null", "x" * 5000, "a\nb", "\u2028", "١", "0.999999999999999999",
]  # fmt: skip
QUICK = ["", "-1", "1.5", "nan", "1e300", "2147483647", "9223372036854775808", "größe\n", "1,1"]


def options() -> list[tuple[str, str]]:
    """(command, flag) of every option of every command, and of the table."""
    found = []
    for name in COMMANDS:
        command: Any = typer.main.get_command(build())
        for part in name.split():
            command = command.commands[part]
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                found.append((name, ""))
            else:
                found += [(name, flag) for flag in (*parameter.opts, *parameter.secondary_opts)]
    return found


OPTIONS = options()


def refused(errors: str, *parts: str) -> None:
    """One line that begins with the command's name, after which it is that of an error."""
    name, colon, line = errors.removesuffix("\n").partition(": ")
    assert name.startswith("innerloop")
    assert colon
    one_line(ValueError(line), *parts)


@pytest.mark.parametrize("name", [*COMMANDS, "study meta-rl"])
def test_every_option_says_what_it_does(name: str) -> None:
    command: Any = typer.main.get_command(build())
    for part in name.split():
        command = command.commands[part]
    options = [each for each in command.params if each.param_type_name == "option"]
    assert len(options) > 10
    for option in options:
        assert option.help, option.name
        assert option.name == "help" or option.rich_help_panel, option.name


@pytest.fixture
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands check their options and stop before the work."""

    def stop(*arguments: object, **options: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(innerloop.compare.run, "Store", stop)
    for study in (innerloop.studies.linear_regression.run, innerloop.studies.sinusoid.run):
        monkeypatch.setattr(study, "Store", stop)


def check_option(
    command: str, flag: str, values: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        out = [] if flag == "--out" else ["--out", str(folder / "out")]
        given = [f"{flag}={value}"] if flag else [value]
        started = time.process_time()
        try:
            code = run([*command.split(), *out, *given])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        assert time.process_time() - started < 3.0, value
        _, errors = capsys.readouterr()
        assert code in (0, 2), value
        if code == 2:
            refused(errors)
        assert not list(folder.iterdir()), value


@pytest.mark.usefixtures("nothing_is_run")
@pytest.mark.parametrize(("command", "flag"), OPTIONS, ids=str)
def test_options(
    command: str,
    flag: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    check_option(command, flag, QUICK, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_run")
@pytest.mark.parametrize(("command", "flag"), OPTIONS, ids=str)
def test_options_with_all_values(
    command: str,
    flag: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    check_option(command, flag, VALUES, tmp_path, capsys)


ABSURD = {
    "compare": [
        ("--hidden", "16777217", "--hidden must be at most 16777216"),
        ("--hidden", "9223372036854775808", "--hidden must be at most 16777216"),
        ("--hidden", "10000000,10000000", "--hidden 10000000,10000000 with --adapt-steps 5 takes"),
        ("--steps", "2147483647", "--steps (0 is joint training) must be at most 10000"),
        ("--adapt-steps", "2147483647", "--adapt-steps must be at most 10000"),
        ("--draws", "2147483647", "--draws 2147483647 takes about"),
        ("--draws", "1000000000000", "--draws must be at most 2147483647"),
        ("--splits", "2147483647", "--splits 2147483647 gives"),
        ("--splits", "1000000000000000000", "--splits must be at most 2147483647"),
        ("--shots", "9223372036854775808", "--shots must be at most 2147483647"),
        ("--inner-lrs", "1e300", "--inner-lrs must be positive, from 1e-30 to 1e+30 (got 1e+300)"),
        ("--threads", "2147483647", "--threads must be at most"),
    ],
    "study linear-regression": [
        ("--trials", "1000000000000000000", "trials must lie between 1 and 2147483648"),
        ("--trials", "2147483648", "trials = 2147483648 at 21 inner_lrs takes about 3.0 TiB"),
        ("--tasks", "1000000000000", "tasks must lie between 1 and"),
        ("--tasks", "2147483647", "tasks = 2147483647 at p = 1 takes about 3651 s"),
        ("--p", "2147483647", "p must lie between 1 and 1024"),
        ("--p", "1024", "tasks = 400 at p = 1024 takes about"),
        ("--beta", "1e300", "beta must lie between"),
    ],
    "study sinusoid": [
        ("--hidden", "2147483647", "--hidden must be at most 16777216"),
        ("--hidden", "10000000,10000000", "--hidden 10000000,10000000 with --steps 1 takes about"),
        ("--steps", "2147483647", "--steps must be at most 10000"),
        ("--shots", "2147483647", "--meta-batch 25 with --shots 2147483647 takes about"),
        ("--meta-batch", "2147483647", "--meta-batch 2147483647 with --shots 10 takes about"),
        ("--test-tasks", "2147483647", "--test-tasks 2147483647 and --validation-tasks 1000"),
        ("--query-rows", "2147483647", "--query-rows 2147483647 takes about"),
        ("--iterations", "1e18", "--iterations"),
        ("--outer-lr", "1e300", "--outer-lr must be positive, from 1e-30 to 1e+30"),
        ("--rates", "0.1,1e-320", "--rates must be positive, from 1e-30 to 1e+30"),
    ],
}


@pytest.mark.parametrize(
    ("command", "flag", "value", "part"),
    [(command, *case) for command, cases in ABSURD.items() for case in cases],
)
def test_absurd_sizes_are_refused_at_once(
    command: str,
    flag: str,
    value: str,
    part: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sizes, "capacity_bytes", lambda: 24 * 2**30)
    started = time.process_time()
    assert run([*command.split(), flag, value, "--out", str(tmp_path / "out")]) == 2
    assert time.process_time() - started < 1.5
    out, errors = capsys.readouterr()
    assert out == ""
    refused(errors, part)
    assert not list(tmp_path.iterdir())


def test_threads_are_those_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 100)
    assert launch.usable_threads(400) == 400
    with pytest.raises(ValueError, match=r"--threads must be at most 400 \(got 401\)"):
        launch.usable_threads(401)


def test_memory_that_runs_out_later_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: object) -> None:
        raise MemoryError("Unable to allocate 432. GiB")

    monkeypatch.setattr(Problem, "split_data", exhausted)
    code = run(["compare", "--splits", "2", "--threads", "1", "--out", str(tmp_path / "out")])
    assert code == 2
    refused(capsys.readouterr().err, "not enough memory (Unable to allocate 432. GiB)")


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["compare", "--nothing"], ["compare", "a", "b"]]
)
def test_unknown_names_are_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    refused(capsys.readouterr().err, "--help")


PROGRAMS = {
    "python -m innerloop": ["innerloop"],
    "innerloop --help": ["innerloop", "--help"],
    "innerloop compare": [
        *("innerloop", "compare", "--splits", "1", "--draws", "1", "--steps", "1"),
        *("--inner-lrs", "0.1", "--no-figures", "--threads", "1"),
    ],
}


def start(arguments: list[str], **options: Any) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.skipif(not _native.is_available(), reason="compares quickly with the extension only")
@pytest.mark.parametrize("program", sweep(PROGRAMS, ["innerloop compare"]))
def test_a_full_standard_output_is_one_line(program: str, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = start(PROGRAMS[program], stdout=full, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("standard output cannot be written (No space left on device)\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
@pytest.mark.parametrize(
    "program", sweep(["python -m innerloop", "innerloop --help"], ["innerloop --help"])
)
def test_a_reader_that_goes_is_no_error(program: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = start(PROGRAMS[program], stdout=writing, cwd=tmp_path)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
def test_a_closed_standard_output_is_no_error(tmp_path: Path) -> None:
    done = start(["innerloop"], preexec_fn=lambda: os.close(1), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_is_the_program() -> None:
    done = start(["innerloop", "compare", "--splits", "\x1b[31m"], stdout=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("innerloop compare: ")
    refused(done.stderr, "--splits")


@pytest.mark.parametrize("place", ["/dev/full", "/dev/null/x", "/proc/nothing", "file"])
@pytest.mark.parametrize("command", COMMANDS)
def test_folders_that_cannot_be(
    command: str,
    place: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    assert run([*command.split(), "--out", place]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    refused(errors, repr(place), "cannot be written", "choose another folder")
    assert Path("file").read_text() == "mine"


def test_settings_of_the_library_are_refused_likewise() -> None:
    for fields in ({"seed": 10**5000}, {"shots": -(10**5000)}, {"hidden": (10**5000,)}):
        with pytest.raises(ValueError, match=r"about 10\^5000") as caught:
            Config(task="a", target="b", **fields)  # type: ignore[arg-type]
        one_line(caught.value)
