"""The scripts that measure no time: what they count, their result files and tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

for needed in ("scipy", "pandas", "typer", "rich"):
    pytest.importorskip(needed)

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="not part of this checkout")


def test_laws_have_the_published_crossovers() -> None:
    from untimed.crossover_coverage import cases, truth

    found = {(case.name, case.inner_lr): truth(case)["crossover"] for case in cases()}
    # Result 9 of docs/theory/linear.md.
    for case, wanted in {
        ("published, p = 1, β = 2", 0.3): 32.25814540374,
        ("published, p = 1, β = 1", 0.5): 15.61210862827,
        ("published, p = 1, β = 2", 0.1): 27.69034156387,
        ("published, p = 2, β = 2", 0.3): 44.88993572376,
        ("two tasks, p = 2", 0.3): 16.533351995608,
    }.items():
        assert found[case] == pytest.approx(wanted, rel=1e-9)
    assert found["one curvature, p = 40", 0.2] == float("inf")
    assert found["one task in fifty is a giant", 0.05] == 0.0


def test_samples_follow_the_law() -> None:
    from untimed.crossover_coverage import cases, sample

    case = next(case for case in cases() if case.name.startswith("two tasks"))
    x, y, query_x, query_y = sample(case, 20_000, np.random.default_rng(0))
    assert x.shape == query_x.shape == (20_000, 5, 2)
    assert y.shape == query_y.shape == (20_000, 5)
    q = np.einsum("tni,tnj->ij", x, x) / x[..., 0].size
    np.testing.assert_allclose(q, [[1.25, 0.15], [0.15, 1.25]], atol=0.03)
    # E[y^2] = E[theta' Q theta + sigma^2] over both tasks: (2 + .5 + 5.725 + 1) / 2.
    assert np.mean(query_y**2) == pytest.approx(4.6125, rel=0.03)


def test_counts_add_up_and_repeat() -> None:
    from untimed.crossover_coverage import cases, measure

    case = cases()[1]
    row = measure(case, 32, 6, seed=1)
    assert row == measure(case, 32, 6, seed=1)
    assert row["estimated"] == row["replications"] == 6
    assert row["wrong"] <= row["told_drs"] + row["told_maml"] <= row["outside"] <= 6
    assert row["outside_wrong"] <= row["outside"]
    assert set(row["standard_errors_cover"]) == {"modelling_error", "drs", "maml"}


def test_the_committed_coverage_keeps_its_promise() -> None:
    # At least 400 replications of every law, and at most one wrong statement in twenty: of all
    # together, and of those with light and heavy tails.
    from untimed.crossover_coverage import MOST_WRONG, REPLICATIONS, cases

    (run,) = json.loads((RESULTS / "crossover-coverage.json").read_text())["runs"]
    rows = run["rows"]
    assert len(rows) == sum(len(case.tasks) for case in cases())
    assert all(row["replications"] >= REPLICATIONS == 400 for row in rows)
    for heavy in (False, True):
        told = sum(r["told_drs"] + r["told_maml"] for r in rows if r["heavy"] == heavy)
        wrong = sum(r["wrong"] for r in rows if r["heavy"] == heavy)
        assert wrong <= MOST_WRONG * told
    assert all(
        r["flagged"] > 0.9 * r["replications"] for r in rows if r["heavy"] and r["tasks"] > 100
    )


def test_tables_come_from_the_result_files() -> None:
    from tables import pages

    runs = pages.newest_runs(RESULTS)
    made = pages.TABLES["crossover-coverage"](runs)
    assert "400 replications each" in made
    (run,) = json.loads((RESULTS / "crossover-coverage.json").read_text())["runs"]
    assert made.count("\n| ") == 1 + len(run["rows"])
    made = pages.TABLES["real-tables"](runs)
    assert all(f"`{name}`" in made for name in ("grunfeld", "gapminder", "wage_panel"))
    for name in ("crossover-coverage", "real-tables"):
        assert pages.TABLES[name]([]) == ""


def test_a_table_is_asked_as_on_the_command_line(tmp_path: Path) -> None:
    import pandas as pd
    from untimed import real_tables

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"unit": np.repeat(np.arange(12), 9), "x": rng.standard_normal(108)})
    frame["y"] = 2 * frame["x"] + rng.standard_normal(108)
    frame["empty"] = "none"
    options: real_tables.Options = {"task": "unit", "target": "y", "exclude": "empty"}
    made = real_tables.Table("small", "a made-up table", "none", lambda: frame, options)
    row = real_tables.compare(made, tmp_path, ["--splits", "3", "--draws", "2", "--steps", "1"])
    assert row["tasks"] == 12
    assert row["arguments"].startswith("small.csv --task unit --target y --exclude empty")
    said = real_tables.line(row)
    assert said.startswith("small           12 tasks  ")
    assert row["action"] in said
    assert "\n" not in said
    with pytest.raises(SystemExit, match="small: innerloop compare: --exclude: "):
        real_tables.compare(made._replace(options={**options, "exclude": "emty"}), tmp_path, [])


def test_switches_take_no_value() -> None:
    from untimed.real_tables import arguments_of

    assert arguments_of({"task": "a", "drop_small": True}) == ["--task", "a", "--drop-small"]


def test_every_committed_line_is_of_a_table_of_the_list() -> None:
    from untimed.real_tables import TABLES, line

    (run,) = json.loads((RESULTS / "real-tables.json").read_text())["runs"]
    assert len(run["rows"]) >= 8
    assert {row["table"] for row in run["rows"]} == {table.name for table in TABLES}
    for row in run["rows"]:
        assert row["answer"] in ("maml_better", "as_good", "joint_better", "undecided", "diverges")
        assert row["headline"]
        assert "\n" not in line(row)
    by_name = {row["table"]: row for row in run["rows"]}
    assert by_name["grunfeld"]["answer"] == "diverges"
    assert by_name["grunfeld"]["divergence"]["tasks"][0] == "General Motors"


def test_run_hands_on_to_every_one(capsys: pytest.CaptureFixture[str]) -> None:
    import run
    import untimed

    for name in untimed.NAMES:
        with pytest.raises(SystemExit) as ended:
            run.main([name, "--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert said.startswith(f"usage: run.py {name} ")
        assert "--out" in said
    files = (RESULTS.parent / "untimed").glob("*.py")
    modules = {path.stem.replace("_", "-") for path in files} - {"--init--", "measurement"}
    assert modules == set(untimed.NAMES)
