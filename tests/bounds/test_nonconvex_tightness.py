"""The tightness script measures every inequality, and the documentation shows its result file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)


@pytest.fixture(autouse=True)
def benchmark_modules():
    """The benchmark folder on the import path, as when tightness.py is started."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.mark.slow
@pytest.mark.ci
def test_every_inequality_is_measured(tmp_path, capsys):
    pytest.importorskip("scipy")
    from tables import pages
    from untimed import tightness

    target = tmp_path / "tightness.json"
    assert tightness.main(["--families", "1", "--updates", "3", "--out", str(target)]) == 0
    assert "violations: 0" in capsys.readouterr().out
    made = json.loads(target.read_text())
    (run,) = made["runs"]
    assert {row["result"] for row in run["rows"]} == {
        *("21", "22", "23", "24", "25", "27", "28", "30")
    }
    for row in run["rows"]:
        for kind in run["kinds"]:
            if kind in row:
                assert 0.0 <= row[kind]["median"] <= row[kind]["max"] <= 1.0 + 1e-9
    text = pages.fill(
        "<!-- table:tightness --><!-- /table:tightness -->", pages.newest_runs(tmp_path)
    )
    assert text.count("\n| 2") + text.count("\n| 3") == len(run["rows"])


def test_a_violation_is_counted():
    from untimed import tightness

    rows = tightness.rows_of({"tanh": {"inverse link": [0.5, 1.2], "value interval": [0.3]}})
    assert [row["inequality"] for row in rows] == ["value interval", "inverse link"]
    assert rows[1]["tanh"] == {"max": 1.2, "median": 0.85, "cases": 2, "violations": 1}


def test_the_page_shows_the_result_file():
    from tables import pages

    page = (ROOT / "docs" / "theory" / "nonconvex.md").read_text(encoding="utf-8")
    assert pages.fill(page, pages.newest_runs(FOLDER / "results")) == page
