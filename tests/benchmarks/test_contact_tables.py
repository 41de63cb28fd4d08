"""What is shown of a first visit to a GPU: the table of evidence and the summary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from contact_visits import merged, put, step, visit

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)


@pytest.fixture
def table_rows(tmp_path: Path) -> Callable[[], dict[str, list[str]]]:
    """The rows of the table of evidence, made from the merged files in a folder."""
    from tables import pages

    def rows() -> dict[str, list[str]]:
        text = pages.TABLES["cuda-evidence"](pages.newest_runs(tmp_path / "results"))
        cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
        return {row[0]: row[1:] for row in cells[2:]}

    return rows


def test_evidence_shows_what_was_seen(
    tmp_path: Path, table_rows: Callable[[], dict[str, list[str]]]
) -> None:
    merged(put(tmp_path / "visit", visit()), tmp_path / "results")
    rows = table_rows()
    head = ["`abcdef012345`", "A Card 80GB"]
    checks = ["90 of 92", "memcheck 0, racecheck 3, synccheck not run"]
    nothing = ["not run"] * 3
    assert rows["meta_grad"] == [*head, *checks, "float32 5e-07, float64 2e-15", *nothing]
    assert rows["hvp"] == [*head, *checks, "float32: 2 of 2 wrong", *nothing]
    assert rows["predict"] == [*head, *checks, "not run", *nothing]
    assert rows["regression study"] == [*head, "40 of 40", *["not run"] * 5]
    assert rows["allow_tf32"] == ["not run"] * 8
    times = "0.1 ms plain, 20 µs in a graph"
    assert rows["`sinusoid`"] == [
        *head, *checks, "float32 4e-07", times, "2.5× (bmm by hand)", "5.0%",
    ]  # fmt: skip
    assert rows["`wide`"] == [*head, *checks, "RuntimeError: it failed", *nothing]
    assert rows["`policy`"] == ["not run"] * 8


def test_evidence_takes_the_newest_visit_of_each_card(
    tmp_path: Path, table_rows: Callable[[], dict[str, list[str]]]
) -> None:
    results = tmp_path / "results"
    merged(put(tmp_path / "old", visit()), results, "aaaaaaaaaaaa")
    newer, other = visit(), visit()
    del newer["ours"], newer["rivals"]
    for steps in newer.values():
        for entry in steps.values():
            entry.update(sources="f" * 12, ended="2026-02-02T00:00:09Z")
    other["machine"]["card"]["result"]["name"] = "Another"
    merged(put(tmp_path / "new", newer), results, "bbbbbbbbbbbb")
    merged(put(tmp_path / "other", other), results, "cccccccccccc")
    from tables import pages

    text = pages.TABLES["cuda-evidence"](pages.newest_runs(results))
    commits = {
        name: {line.split("|")[2].strip() for line in text.splitlines() if f"| {name} |" in line}
        for name in ("meta_grad", "`sinusoid`")
    }
    assert commits["meta_grad"] == {"`bbbbbbbbbbbb`", "`cccccccccccc`"}
    assert commits["`sinusoid`"] == {"`aaaaaaaaaaaa`", "`cccccccccccc`"}


def test_without_visits_every_cell_says_so(
    table_rows: Callable[[], dict[str, list[str]]],
) -> None:
    from cases.names import CASE_NAMES

    from innerloop.schedule import OPERATIONS

    rows = table_rows()
    assert set(rows) > {*OPERATIONS, *(f"`{case}`" for case in CASE_NAMES["cuda"])}
    assert {cell for row in rows.values() for cell in row} == {"not run"}


def test_the_page_holds_what_the_result_files_say() -> None:
    from tables import pages

    text = (ROOT / "docs/cuda.md").read_text()
    assert "<!-- table:cuda-evidence -->" in text
    assert pages.fill(text, pages.newest_runs(FOLDER / "results")) == text


def test_other_tables_do_not_see_visits(tmp_path: Path) -> None:
    from tables import pages

    merged(put(tmp_path / "visit", visit()), tmp_path / "results")
    runs = pages.newest_runs(tmp_path / "results")
    for name, make in pages.TABLES.items():
        if name != "cuda-evidence":
            assert make(runs) == make([]), name


def test_summary_says_what_matters(work: Path) -> None:
    from contact.summary import lines

    files = visit()
    del files["tuning"]
    files["rivals"]["rivals"]["state"] = "running"
    files["checks"]["synccheck"] = step({}, "skipped", reason="may take 40 s, 9 s were left")
    text = list(lines(put(work, files)))
    assert text[0] == "card: A Card 80GB; commit not known here"
    assert [line.split() for line in text if line.startswith("sinusoid")] == [
        ["sinusoid", "0.1", "ms", "20", "µs", "50", "µs", "bmm", "by", "hand", "2.5×", "1", "µs",
         "5.0%"],
    ]  # fmt: skip
    for line in (
        f"{'wide':16s} RuntimeError: it failed",
        "smoke: 3 of 5 cells right, 1 do not fit",
        "  hvp | 3 x 40 | float32 | small: RuntimeError: launch failed",
        "tests: 2 failed, 130 passed, 7 skipped",
        "racecheck: 3 errors, 50 cells passed",
        "rivals: running: cut off",
        "synccheck: skipped: may take 40 s, 9 s were left",
        "schedules: missing: not begun",
    ):
        assert line in text, line
