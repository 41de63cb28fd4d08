"""benchmarks/first_contact.sh from end to end, with stand-ins for the device and its tools
(stand_in): ended from outside, killed, called again, and its files merged.

Everything but the device runs as on a card: the steps' own programs, on emulated kernels.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import innerloop

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ci,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"),
    pytest.mark.skipif(sys.platform != "linux", reason="the script is for Linux"),
]
TABLE = "<!-- table:cuda-evidence -->\n<!-- /table:cuda-evidence -->\n"


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the stand-in for a build hands out: the emulation as the CUDA module."""
    path = ROOT / "tests/emulation/conftest.py"
    spec = importlib.util.spec_from_file_location("emulation_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    emulation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(emulation)
    folder = tmp_path_factory.mktemp("modules")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    shutil.copy(emulation.build(ROOT / "build/emulation"), folder / f"_cuda{suffix}")
    for module in Path(innerloop.__file__).parent.glob("_cpu*.so"):
        shutil.copy(module, folder)
    return folder


class Call:
    """A call of the script in the background, in a session of its own."""

    def __init__(self, folder: Path, modules: Path, **variables: str) -> None:
        self.out = folder / "out"
        # one thread everywhere, and no other installation than the staged one
        surroundings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._log = (folder / "said.txt").open("a+")
        self._start = self._log.tell()
        self.process = subprocess.Popen(
            ["bash", str(FOLDER / "first_contact.sh"), str(self.out)],
            env={
                **surroundings,
                "PYTHON": sys.executable,
                "OMP_NUM_THREADS": "1",
                "FIRST_CONTACT_STRETCH": "10",  # other tests run beside this one
                "STAND_IN_MODULES": str(modules),
                "FIRST_CONTACT_STAND_IN": str(Path(__file__).parent / "stand_in"),
                "FIRST_CONTACT_WORK": str(folder / "work"),
                **variables,
            },
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def steps(self) -> dict[str, dict[str, Any]]:
        """What is recorded of all steps; every file is whole at any time."""
        found: dict[str, dict[str, Any]] = {}
        for path in self.out.glob("*.json"):
            found |= json.loads(path.read_text())["steps"]
        return found

    def wait_for(self, step: str, entries: int) -> None:
        """Returns when a step has found some entries."""
        end = time.monotonic() + 600
        while len(self.steps().get(step, {}).get("result", {})) < entries:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(timeout=900)

    def said(self) -> str:
        """The output of this call."""
        self._log.flush()
        self._log.seek(self._start)
        return self._log.read()

    def end(self) -> None:
        """Ends whatever is left."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._log.close()


@pytest.fixture
def calls(tmp_path: Path, modules: Path) -> Iterator[Any]:
    """Starts calls of the script that share a folder."""
    started: list[Call] = []

    def start(**variables: str) -> Call:
        started.append(Call(tmp_path, modules, **variables))
        return started[-1]

    yield start
    for call in started:
        call.end()


def begun(text: str) -> list[str]:
    """The steps that a call began, in their order."""
    lines = [line.split("s  ", 1)[1] for line in text.splitlines() if " s  " in line]
    return [line for line in lines if line.isalnum()]


def test_rehearsal(calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contact import merge, record

    # ended from outside in the middle of the smoke set: the summary all the same
    first = calls()
    first.wait_for("smoke", 20)
    os.kill(first.process.pid, signal.SIGTERM)
    assert first.wait() == 143
    assert begun(first.said()) == ["card", "build", "smoke"]
    assert "\nsmoke: running: cut off\n" in first.said()
    assert "card: a stand-in" in first.said()
    cells = first.steps()["smoke"]["result"]
    assert 20 <= len(cells) < 144

    # killed while cases are timed: what is there is whole, and nothing is taken twice
    second = calls()
    second.wait_for("ours", 5)
    os.killpg(second.process.pid, signal.SIGKILL)
    second.wait()
    assert begun(second.said()) == ["smoke", "ours"]
    assert {key: second.steps()["smoke"]["result"][key] for key in cells} == cells
    timed = second.steps()["ours"]["result"]

    # the rest; a tool that fails costs its own step alone
    third = calls(STAND_IN_NCU_FAILS="1")
    assert third.wait() == 0, third.said()
    text = third.said()
    expected = ["ours", "rivals", "tests", "alone", "memcheck", "racecheck", "synccheck"]
    assert begun(text) == [*expected, "schedules", "ncu"]
    steps = third.steps()
    states = {name: entry["state"] for name, entry in steps.items()}
    assert states == {**dict.fromkeys(record.STEPS, "done"), "ncu": "failed"}, text
    assert {key: steps["ours"]["result"][key] for key in timed} == timed
    check_results({name: entry["result"] for name, entry in steps.items() if name != "ncu"})
    assert "\nncu: failed: " in text
    assert text.index("card: a stand-in") > text.index("s  ncu")
    assert len(list(third.out.iterdir())) <= 8

    # a call with everything there takes what failed, and only that
    fourth = calls()
    assert fourth.wait() == 0
    assert begun(fourth.said()) == ["ncu"]
    assert fourth.steps()["ncu"]["state"] == "done"

    # and the files can be kept
    monkeypatch.setattr(merge, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(merge, "ROOT", tmp_path)
    monkeypatch.setattr(merge, "commit_of", lambda sources: "abcdef012345")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/cuda.md").write_text(TABLE)
    assert merge.main([str(fourth.out)]) == 0
    rows = (tmp_path / "docs/cuda.md").read_text()
    assert rows.count("| `abcdef012345` | a stand-in |") >= 6 + 14
    assert json.loads(next((tmp_path / "results").iterdir()).read_text())["steps"].keys() == {
        *record.STEPS
    }


def test_without_kernels_only_what_needs_none_is_taken(calls: Any) -> None:
    """And a later call, when they can be built, finds nothing taken that needs them."""
    call = calls(STAND_IN_BUILD_FAILS="1")
    assert call.wait() == 0
    assert begun(call.said()) == ["card", "build", "rivals"]
    steps = call.steps()
    assert steps["build"]["state"] == "failed"
    assert steps["rivals"]["state"] == "done"
    others = set(steps) - {"card", "build", "rivals"}
    assert {steps[name]["reason"] for name in others} == {"there are no kernels"}
    assert "\nbuild: failed: status 1: " in call.said()


def check_results(results: dict[str, Any]) -> None:
    """Asserts that every step found what it was for."""
    from cases.names import CASE_NAMES

    cases = set(CASE_NAMES["cuda"])
    cells = results["smoke"].values()
    assert [cell for cell in cells if not cell.get("ok") and "unfit" not in cell] == []
    assert sum("ok" in cell for cell in cells) > 40
    assert set(results["ours"]) == set(results["rivals"]) == set(results["schedules"]) == cases
    for case, found in results["ours"].items():
        assert {"plain", "graph", "kernels", "schedule"} <= set(found), (case, found)
        assert found["disagreement"] < 1e-4
        bmm = results["rivals"][case]["bmm"]
        assert bmm["median_s"] > 0, (case, bmm)
        assert bmm["choice"] == "batched; CUDA graph"
        scheduled = results["schedules"][case]["schedules"]
        assert len(scheduled) > 1
        assert all("median_s" in each for each in scheduled)
    compiled = [r["torch_compile"] for r in results["rivals"].values() if "torch_compile" in r]
    assert all(each["median_s"] > 0 for each in compiled)
    assert len(compiled) == 1
    assert results["tests"]["complete"]
    assert sum(c["skipped"] for c in results["tests"]["files"].values()) > 700
    for tool in ("memcheck", "racecheck", "synccheck"):
        assert results[tool]["errors"] == 0
        assert results[tool]["cells"] > 20
    environment = results["card"]["environment"]
    assert environment["gpu"]["limits"]["fma_gflops"] > 0
    assert results["build"]["architecture"] == "90"
