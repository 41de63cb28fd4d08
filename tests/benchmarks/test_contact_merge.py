"""Merging the files of a first visit to a GPU: nothing broken gets in, nothing gets lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contact_visits import SOURCES, git, merged, put, step, visit

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)


def test_a_visit_becomes_a_result_file_once(tmp_path: Path) -> None:
    folder, results = put(tmp_path / "visit", visit()), tmp_path / "results"
    (target,) = merged(folder, results)
    assert target.name == f"first-contact-a-card-80gb-{SOURCES}.json"
    kept = json.loads(target.read_text())
    assert (kept["commit"], kept["card"]) == ("abcdef012345", "A Card 80GB")
    assert kept["steps"]["ours"]["result"] == visit()["ours"]["ours"]["result"]
    assert merged(folder, results) == []
    assert [path.name for path in results.iterdir()] == [target.name]


def test_a_second_visit_adds_what_the_first_lacked_and_takes_nothing_away(tmp_path: Path) -> None:
    results, whole = tmp_path / "results", visit()
    first, second = visit(), visit()
    first["ours"]["ours"] = step({"wide": whole["ours"]["ours"]["result"]["wide"]}, "running")
    del first["smoke"], first["tuning"]
    del second["rivals"]
    second["checks"]["tests"] = step({}, "skipped")
    later = {"started": "2026-01-03T00:00:00Z", "ended": "2026-01-03T00:00:09Z"}
    second["checks"]["memcheck"] = step({"status": 1, "cells": 3}, "failed", **later)
    merged(put(tmp_path / "first", first), results)
    (target,) = merged(put(tmp_path / "second", second), results)
    steps = json.loads(target.read_text())["steps"]
    assert set(steps["ours"]["result"]) == {"sinusoid", "wide"}
    for name in ("smoke", "schedules", "rivals", "tests", "memcheck"):
        assert steps[name]["state"] == "done", name
    assert merged(put(tmp_path / "first", first), results) == []  # in any order


def changed(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets a place in a visit, named by keys with slashes between them."""

    def change(files: dict[str, Any]) -> None:
        *way, last = path.split("/")
        for key in way:
            files = files[int(key) if isinstance(files, list) else key]
        files[last] = value

    return change


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("ours", changed("ours/ours/result/sinusoid/plain/median_s", -1.0)),
        ("ours", changed("ours/ours/result/sinusoid/plain/median_s", float("nan"))),
        ("ours", changed("ours/ours/result/sinusoid/plain/median_s", "fast")),
        ("ours", changed("ours/ours/result/sinusoid/graph", {})),
        ("ours", changed("ours/ours/result/sinusoid/flops", 0)),
        ("ours", changed("ours/ours/result/wide", {"flops": 1, "least_bytes": 1})),
        ("ours", changed("ours/ours/result/sinusoid", None)),
        ("ours", changed("ours/ours/sources", "x")),
        ("ours", changed("ours/ours/state", "well")),
        ("ours", changed("ours/nothing", step({"a": 1}))),
        ("smoke", changed("smoke/smoke/result/cell", {})),
        ("smoke", changed("smoke/smoke/result/a | b | c | d", {"error": "small", "ok": True})),
        ("smoke", changed("smoke/smoke/result/a | b | c | d", {})),
        ("rivals", changed("rivals/rivals/result/sinusoid/bmm/q1_s", 0.0)),
        ("checks", changed("checks/tests/result/files/x.py", {"passed": 0.5})),
        ("checks", changed("checks/tests/result/complete", "yes")),
        ("checks", changed("checks/memcheck/result/errors", -1)),
        ("tuning", changed("tuning/schedules/result/sinusoid/schedules/0/median_s", True)),
        ("machine", changed("machine/card/result/name", "")),
        (
            "machine",
            changed("machine/card/result/environment/gpu/limits/gemm_gflops", float("inf")),
        ),
    ],
)
def test_a_wrong_number_is_refused_on_one_line_that_names_the_file(
    tmp_path: Path, file: str, change: Callable[[dict[str, Any]], None]
) -> None:
    from contact.merge import Refused

    files = visit()
    change(files)
    with pytest.raises(Refused) as why:
        merged(put(tmp_path / "visit", files), tmp_path / "results")
    (line,) = str(why.value).splitlines()
    assert line.startswith(f"{file}.json: ")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": "first-contact-1"}', '{"format": 1, "steps": {}}']
)
@pytest.mark.parametrize("file", ["machine", "ours", "checks"])
def test_a_broken_file_is_refused_on_one_line_that_names_it(
    tmp_path: Path, file: str, text: str
) -> None:
    from contact.merge import Refused

    folder = put(tmp_path / "visit", visit())
    (folder / f"{file}.json").write_text(text)
    with pytest.raises(Refused) as why:
        merged(folder, tmp_path / "results")
    (line,) = str(why.value).splitlines()
    assert line.startswith(f"{file}.json: ")


@pytest.mark.parametrize("file", ["machine", "smoke", "ours", "rivals", "checks", "tuning"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, file: str) -> None:
    from contact.merge import Refused

    folder = put(tmp_path / "visit", visit())
    path = folder / f"{file}.json"
    text = path.read_text()
    for end in range(0, len(text), max(1, len(text) // 25)):
        path.write_text(text[:end])
        with pytest.raises(Refused, match=f"^{file}.json: "):
            merged(folder, tmp_path / "results")


def test_what_no_commit_has_is_refused(tmp_path: Path) -> None:
    from contact.merge import Refused

    folder = put(tmp_path / "visit", visit())
    with pytest.raises(Refused, match=f"visit: no commit has the sources .*{SOURCES}"):
        merged(folder, tmp_path / "results", None)
    assert not (tmp_path / "results").exists()


def test_a_visit_without_its_card_or_any_file_is_refused(tmp_path: Path) -> None:
    from contact.merge import Refused

    files = visit()
    del files["machine"]
    with pytest.raises(Refused, match="which card"):
        merged(put(tmp_path / "visit", files), tmp_path / "results")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="empty: there is no file"):
        merged(tmp_path / "empty", tmp_path / "results")


def test_the_command_merges_and_renews_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import run
    from contact import merge

    page = tmp_path / "docs/cuda.md"
    page.parent.mkdir()
    page.write_text("<!-- table:cuda-evidence -->\n<!-- /table:cuda-evidence -->\n")
    monkeypatch.setattr(merge, "ROOT", tmp_path)
    monkeypatch.setattr(merge, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(merge, "commit_of", lambda sources: "abcdef012345")
    folder = put(tmp_path / "visit", visit())
    assert run.main(["merge", str(folder)]) == 0
    assert "| meta_grad | `abcdef012345` | A Card 80GB |" in page.read_text()
    assert capsys.readouterr().out.count("updated: ") == 2
    assert run.main(["merge", str(folder)]) == 0
    assert capsys.readouterr().out == "nothing new\n"
    (folder / "ours.json").write_text("{")
    with pytest.raises(SystemExit, match=r"^run.py merge: ours.json: broken"):
        run.main(["merge", str(folder)])
    with pytest.raises(SystemExit, match="name the FOLDER"):
        run.main(["merge"])


def test_the_commit_of_a_digest_is_the_newest_that_has_it(
    checkout: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contact import merge, record

    monkeypatch.setattr(merge, "ROOT", tmp_path)
    monkeypatch.setattr(merge, "sources_of", lambda commit: record.sources_of(commit, tmp_path))
    first = checkout()
    before = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "csrc/b.cpp").write_text("other\n")
    assert merge.commit_of(checkout()) is None
    git(tmp_path, "commit", "-qam", "second")
    assert merge.commit_of(checkout()) == git(tmp_path, "rev-parse", "HEAD")[:12]
    assert merge.commit_of(first) == before[:12]
