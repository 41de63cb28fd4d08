"""The files of a first visit to a GPU: which sources they are of, and that they are whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from contact_visits import git

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)


def test_a_commit_has_the_digest_of_its_files(checkout: Callable[[], str], tmp_path: Path) -> None:
    from contact import record

    assert checkout() == record.sources_of("HEAD", tmp_path)
    assert len(checkout()) == 12


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("csrc/core/a.h", True),
        ("csrc/new.cu", True),
        ("python/innerloop/c.py", True),
        ("benchmarks/d.sh", True),
        ("tests/helpers.py", True),
        ("benchmarks/results/new.json", False),
        ("benchmarks/results/new.py", False),
        ("python/innerloop/_cuda.so", False),
        ("python/innerloop/__pycache__/c.pyc", False),
        ("python/innerloop.egg-info/SOURCES.txt", False),
        ("docs/g.md", False),
        ("tests/ops/h.py", False),
    ],
)
def test_the_digest_changes_with_what_is_measured_and_nothing_else(
    checkout: Callable[[], str], tmp_path: Path, name: str, counts: bool
) -> None:
    from contact import record

    before = checkout()
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("changed\n")
    assert (checkout() != before) == counts
    git(tmp_path, "add", "-f", name)
    git(tmp_path, "commit", "-q", "-m", "second")
    assert checkout() == record.sources_of("HEAD", tmp_path)
    assert record.sources_of("HEAD~", tmp_path) == before


# ---------------------------------------------------------------- the files


def test_pieces_are_in_the_file_at_once_and_survive_the_next_visit(work: Path) -> None:
    from contact.record import Step, close, is_done, read

    work.mkdir()
    first = Step(work, "ours")
    first.put("sinusoid", 1)
    assert read(work, "ours")["result"] == {"sinusoid": 1}
    assert read(work, "ours")["state"] == "running"
    second = Step(work, "ours")
    assert second.result == {"sinusoid": 1}
    second.put("wide", 2)
    Step(work, "smoke").put("cell", 3)
    close(work, "ours", "done", "", 7)
    assert is_done(work, "ours")
    assert not is_done(work, "smoke")
    found = read(work, "ours")
    assert (found["result"], found["seconds"]) == ({"sinusoid": 1, "wide": 2}, 7)
    assert sorted(path.name for path in work.iterdir()) == ["ours.json", "smoke.json"]


def test_steps_of_one_file_do_not_overwrite_each_other(work: Path) -> None:
    from contact.record import Step, close, read

    work.mkdir()
    Step(work, "memcheck").put("errors", 0)
    Step(work, "racecheck").put("errors", 1)
    close(work, "memcheck", "done")
    close(work, "synccheck", "skipped", "may take 40 s, 9 s were left")
    assert read(work, "memcheck")["result"] == {"errors": 0}
    assert read(work, "racecheck")["result"] == {"errors": 1}
    assert read(work, "synccheck")["state"] == "skipped"
    close(work, "racecheck", "skipped", "no time")  # an earlier visit saw more than that
    assert read(work, "racecheck")["state"] == "running"


def test_results_of_other_sources_and_broken_files_are_taken_again(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contact import record

    work.mkdir()
    record.Step(work, "ours").put("sinusoid", 1)
    record.close(work, "ours", "done")
    monkeypatch.setattr(record, "present_sources", lambda: "ba9876543210")
    assert record.read(work, "ours") == {}
    assert record.Step(work, "ours").result == {}
    (work / "ours.json").write_text('{"format": "first')
    assert record.read(work, "ours") == {}
    record.Step(work, "ours").put("sinusoid", 2)
    assert record.read(work, "ours")["result"] == {"sinusoid": 2}


def test_every_step_has_a_place_and_the_files_are_few() -> None:
    from contact import merge, record

    assert set(merge.CHECKS) == set(record.STEPS)
    assert len(record.FILES) + len(["log.txt", "one that is being written"]) <= 8
