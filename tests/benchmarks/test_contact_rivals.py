"""Whose turn it is among the rivals of a first visit to a GPU: processes that compute nothing."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)
MEASURES = """
import json, sys
name, *cases = sys.argv[1:]
print("ready", flush=True)
assert sys.stdin.readline() == "go\\n"
for case in cases:
    print("chatter", flush=True)
    print(json.dumps({"case": case, "report": {"median_s": len(case)}}), flush=True)
"""
PROGRAMS = {
    "measures": MEASURES,
    "dies": "raise SystemExit(1)",
    "dies later": MEASURES.replace("for case in cases:", "for case in cases[:1]:"),
    "never ends": "import time\ntime.sleep(600)",
    "stops": MEASURES.replace(
        'print("ready", flush=True)',
        'assert sys.stdin.readline() == "stop\\n"\nprint("ready", flush=True)',
    ),
}


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch, work: Path) -> Any:
    """The module, with programs in the place of rivals."""
    from contact import record, rivals

    work.mkdir()
    record.WORK.mkdir()
    monkeypatch.setattr(rivals, "READY", record.WORK / "ready")
    monkeypatch.setattr(rivals, "GO", record.WORK / "go")
    monkeypatch.setattr(rivals, "PATIENCE_S", 1.0)
    monkeypatch.setattr(
        rivals,
        "command",
        lambda name, cases: [sys.executable, "-c", PROGRAMS[name], name, *cases],
    )
    return rivals


def result(rivals: Any, work: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> Any:
    """What is recorded of some programs with two cases each, after GO."""
    from contact.record import Step

    monkeypatch.setattr(rivals, "lineup", lambda: [(name, ("one", "three")) for name in names])
    step = Step(work, "rivals")
    controller = threading.Thread(target=rivals.run, args=(step,))
    controller.start()
    time.sleep(0.5)
    rivals.GO.write_text("")
    controller.join(timeout=30)
    assert not controller.is_alive()
    return step.result


def test_each_has_its_turn_and_what_it_says_besides_does_not_count(
    rivals: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = result(rivals, work, monkeypatch, "measures", "stops")
    reports = {"one": {"median_s": 3}, "three": {"median_s": 5}}
    assert found == {
        case: {"measures": report, "stops": report} for case, report in reports.items()
    }


def test_one_that_dies_or_never_ends_costs_itself_alone(
    rivals: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = result(rivals, work, monkeypatch, "dies", "never ends", "dies later", "measures")
    ended, late = {"failed": "its process ended"}, {"failed": "not compiled in time"}
    common = {"dies": ended, "never ends": late}
    assert found == {
        "one": {**common, "dies later": {"median_s": 3}, "measures": {"median_s": 3}},
        "three": {**common, "dies later": ended, "measures": {"median_s": 5}},
    }


def test_what_an_earlier_visit_measured_is_not_measured_again(
    rivals: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contact.record import Step

    Step(work, "rivals").put("one", {"measures": {"median_s": 7}})
    found = result(rivals, work, monkeypatch, "measures")
    assert found == {"one": {"measures": {"median_s": 7}}, "three": {"measures": {"median_s": 5}}}


def test_the_script_goes_on_as_soon_as_all_are_ready(
    rivals: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has died is as ready as it will be."""
    from contact.record import Step

    monkeypatch.setattr(rivals, "lineup", lambda: [("dies", ("one",)), ("measures", ("one",))])
    controller = threading.Thread(target=rivals.run, args=(Step(work, "rivals"),))
    controller.start()
    end = time.monotonic() + 20
    while not rivals.READY.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    rivals.GO.write_text("")
    controller.join(timeout=20)
    assert not controller.is_alive()
