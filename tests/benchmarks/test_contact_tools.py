"""What a first visit to a GPU reads of other programs, and its script's clock."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import sweep

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)


def test_sanitizers_are_read() -> None:
    from contact.tools import read_sanitizer

    cells = "cell a | b {'error': 1e-7, 'equal': True, 'ok': True}\ncell c | d {'ok': False}\n"
    found = read_sanitizer(0, cells + "========= ERROR SUMMARY: 0 errors\n")
    assert found == {"status": 0, "cells": 1, "errors": 0}
    one = read_sanitizer(1, "========= Invalid __global__ read\n========= ERROR SUMMARY: 1 error\n")
    assert (one["errors"], one["complaints"][0]) == (1, "========= Invalid __global__ read")
    text = "========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)\n"
    raced = read_sanitizer(0, text)
    assert (raced["errors"], raced["warnings"]) == (2, 1)
    assert "errors" not in read_sanitizer(255, "========= Error: Device not supported\n")


def test_counters_are_read() -> None:
    from contact.tools import read_profile

    text = (
        '==PROF== Connected\n"ID","Section Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","Occupancy","Achieved Occupancy","%","25.4"\n"0","Occupancy","","",""\n'
        '"0","Launch Statistics","Grid Size","","132"\n'
    )
    assert read_profile(text) == {
        "Occupancy, Achieved Occupancy": "25.4 %",
        "Launch Statistics, Grid Size": "132",
    }
    assert read_profile("==ERROR== no counters") == {}


TESTS = """
import os, signal, time
import pytest

def test_right():
    pass

@pytest.mark.parametrize("i", range(3))
def test_wrong(i):
    assert i == 1

@pytest.mark.skip(reason="not here")
def test_skipped():
    pass

@pytest.fixture
def broken():
    raise RuntimeError("no fixture")

def test_error(broken):
    pass

def test_last():
    time.sleep(2.1)

def test_killed():
    if os.environ.get("KILLED"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("killed", sweep([False, True], [True]))
def test_tests_are_recorded_while_they_run(tmp_path: Path, killed: bool) -> None:
    """A run that dies has told what it saw."""
    (tmp_path / "test_some.py").write_text(TESTS)
    out = tmp_path / "out"
    out.mkdir()
    variables = {
        "INNERLOOP_CONTACT": f"tests:{out}",
        "PYTHONPATH": str(FOLDER),
        "FIRST_CONTACT_WORK": str(tmp_path / "work"),
        **({"KILLED": "1"} if killed else {}),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path)]
    command += ["-p", "contact.tests_plugin", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "test_some.py"],
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == (-9 if killed else 1), done.stderr.decode()[-2000:]
    found = json.loads((out / "checks.json").read_text())["steps"]["tests"]["result"]
    last = 0 if killed else 1
    assert found["files"] == {
        "test_some.py": {"passed": 3 + last, "failed": 2, "skipped": 1, "error": 1}
    }
    assert found["complete"] is not killed
    names = [failure["test"].split("::")[1] for failure in found["failures"]]
    assert names == ["test_wrong[0]", "test_wrong[2]", "test_error"]


# ---------------------------------------------------------------- the script


def script(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with this interpreter."""
    return subprocess.run(
        ["bash", str(FOLDER / "first_contact.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_script_wants_a_folder() -> None:
    done = script(FIRST_CONTACT_OUT="")
    assert (done.returncode, done.stderr) == (
        2,
        "usage: bash benchmarks/first_contact.sh FOLDER\n",
    )


def test_steps_that_do_not_fit_are_skipped_and_said_so(tmp_path: Path) -> None:
    """A clock that leaves time for nothing but the summary."""
    from contact.record import STEPS

    out = tmp_path / "out"
    variables = {"FIRST_CONTACT_LIMIT_S": "15", "FIRST_CONTACT_WORK": str(tmp_path / "work")}
    done = script(str(out), **variables)
    assert done.returncode == 0, done.stderr
    for name in STEPS:
        reason = "it may take " if name in ("card", "build", "rivals") else "there are no kernels"
        assert f"  {name}: skipped, {reason}" in done.stdout, name
        assert f"\n{name}: skipped: {reason}" in done.stdout, name
    assert done.stdout.index("card: not asked") > done.stdout.index("ncu: skipped, ")
    assert {path.name for path in out.iterdir()} <= {
        *(f"{name}.json" for name in ("machine", "smoke", "ours", "rivals", "checks", "tuning")),
        "log.txt",
    }


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")
def test_script_is_clean() -> None:
    stand_ins = Path(__file__).parent / "stand_in/bin"
    files = [FOLDER / "first_contact.sh", *sorted(stand_ins.iterdir())]
    done = subprocess.run(["shellcheck", *map(str, files)], capture_output=True, text=True)
    assert done.stdout == ""


# ---------------------------------------------------------------- what kernels may do


SURVIVOR = """
import os, sys, time
sys.path.insert(0, {folder!r})
from pathlib import Path
from contact import survive
from contact.record import Step

step = Step(Path({out!r}), "ours")
survive.is_lost = lambda: step.result["spoils"]["failed"] == "spoilt" and "later" not in step.result

def measure(key):
    with open({out!r} + "/measured", "a") as file:
        file.write(f"{{key}} {{os.getpid()}}\\n")
    if key == "hangs":
        time.sleep(600)
    return {{"failed": "spoilt"}} if key == "spoils" else {{"seconds": 1}}

survive.each(step, ["first", "hangs", "spoils", "later"], measure, 1.0)
"""


def test_a_kernel_that_hangs_or_spoils_the_context_costs_its_own_case_alone(
    tmp_path: Path,
) -> None:
    out, program = tmp_path / "out", tmp_path / "survivor.py"
    out.mkdir()
    program.write_text(SURVIVOR.format(folder=str(FOLDER), out=str(out)))
    subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "FIRST_CONTACT_WORK": str(tmp_path / "work")},
        timeout=60,
        check=True,
    )
    found = json.loads((out / "ours.json").read_text())["steps"]["ours"]["result"]
    assert found == {
        "first": {"seconds": 1},
        "hangs": {"failed": "did not come back"},
        "spoils": {"failed": "spoilt"},
        "later": {"seconds": 1},
    }
    measured = [line.split() for line in (out / "measured").read_text().splitlines()]
    assert [key for key, _ in measured] == list(found)
    assert len({process for _, process in measured}) == 1  # `timeout` still knows it
