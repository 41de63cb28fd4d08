"""The study's benchmark: extrapolation of a known cost, tables that are those of the results."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from innerloop import _native
from innerloop.studies import linear_regression
from innerloop.studies.linear_regression.settings import SAMPLES, TASKS, Settings
from innerloop.studies.linear_regression.theory import predict

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"),
    pytest.mark.skipif(not _native.is_available(), reason="needs the native extension"),
]


@pytest.fixture(autouse=True)
def benchmark_modules(monkeypatch):
    """The benchmark folder on the import path, as when run.py is started."""
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(str(FOLDER))


def test_extrapolation_of_a_known_cost(monkeypatch):
    """A clock that a trial moves by a + b M + c M N: the model finds a, b, c and the sum."""
    from routines import regression_study

    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def trial(tasks, samples):
        now[0] += 1e-3 + 2e-4 * tasks + 3e-6 * tasks * samples

    found = regression_study._extrapolated(trial, Settings(), few=True)
    np.testing.assert_allclose(list(found["model_s"].values()), [1e-3, 2e-4, 3e-6], rtol=1e-6)
    assert abs(found["held_out_error"]) < 1e-6
    seconds = 1000 * (12 * 12 * 1e-3 + sum(TASKS) * (12 * 2e-4 + 3e-6 * sum(SAMPLES)))
    np.testing.assert_allclose(found["sweep_hours"], seconds / 3600, rtol=1e-6)


def test_tables():
    from tables import study

    program = {
        "trial_s": [{"tasks": 2, "samples": 1, "seconds": 0.001}],
        "sweep_hours": 2.0,
        "held_out_error": -0.05,
    }
    region = {
        "after_update": True, "steps": "0.6", "samples": "5", "tasks": "25", "cells": 1,
        "mean": 0.0123, "worst": 0.2, "noise": 0.01, "same_side": None,
    }  # fmt: skip
    run = {
        "kind": "regression-study",
        "environment": {"threads": 2},
        "rows": [{"p": 1, "sweep_s": 1.5, "twin": program}],
    }
    agreed = {
        "kind": "regression-agreement",
        "environment": {"threads": 1},
        "agreement": [
            {
                "settings": {"p": 1},
                "regions": [region],
                "named": 5715,
                "called": 5716,
                "mean": 0.0079,
                "noise": 0.00781,
            }
        ],
    }
    speed = study.speed([run]).splitlines()[-1]
    assert speed == "| p = 1, 2 thread(s) | 1.5 s | 2.0 h (4,800×; held-out cell -5%) | - |"
    assert "(2, 1): 1 ms" in study.trials([run])
    line = study.verdict([run, agreed]).splitlines()[-1]
    assert line == "| p = 1 | 0.0079 | 0.0078 | 5,715 of 5,716 |"
    assert "| 0.6 | 5 | 0.012 (0.20) |" in study.agreement([run, agreed])


def test_document_shows_the_newest_results():
    from tables import pages

    runs = pages.newest_runs(FOLDER / "results")
    if not any(run["kind"] == "regression-study" for run in runs):
        pytest.skip("no result file of this study in this checkout")
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    assert "| αβ | N |" in text
    assert pages.fill(text, runs) == text


def test_published_agreement_repeats():
    """The table in the documentation is what the command gives here, for one of its regions."""
    path = FOLDER / "results" / "regression-agreement.json"
    if not path.exists():
        pytest.skip("no result file of this study in this checkout")
    (run,) = json.loads(path.read_text())["runs"]
    (regions,) = [a["regions"] for a in run["agreement"] if a["settings"]["p"] == 1]
    (region,) = [
        r
        for r in regions
        if r["after_update"] and (r["steps"], r["samples"], r["tasks"]) == ("0", "25-50", "2-5")
    ]
    settings = Settings(tasks=(2, 5), samples=(25, 50), inner_lrs=(0.0,))
    simulated = linear_regression.sweep(tasks=[2, 5], samples=[25, 50], inner_lrs=[0.0])
    prediction = predict(settings)
    gap = np.abs(prediction.better_after - simulated.maml_better_after)
    # The exact law's draws do not depend on the other cells; float64 on other machines does.
    np.testing.assert_allclose(
        [gap.mean(), gap.max()], [region["mean"], region["worst"]], rtol=1e-9
    )
    assert prediction.error_after.max() < 0.005


def test_agreement_of_a_corner():
    from untimed import regression_agreement

    corner = Settings(tasks=(2, 50), samples=(1, 25), inner_lrs=(0.3,), trials=100)
    (run,) = regression_agreement.document([corner], "")["runs"]
    (made,) = run["agreement"]
    assert sum(region["cells"] for region in made["regions"]) == 2 * 4
    assert 0 < made["named"] <= made["called"] <= 8
    assert made["mean"] < 5 * made["noise"]


@pytest.mark.slow
def test_quick_run():
    from measure.worker import Request
    from routines import regression_study

    document = regression_study.run(Request("regression-study", threads=1, quick=True))
    (row,) = document["rows"]
    assert row["sweep_s"] < 60
    assert row["twin"]["sweep_hours"] * 3600 > 100 * row["sweep_s"]
    assert abs(document["frequencies_agree_z"]) < 4.5  # chance of failure below 1e-5


def test_routine_is_known_to_the_command_line():
    import routines
    from tables import pages

    assert "regression-study" in routines.NAMES_ON["cpu"]
    assert {"regression-study", "regression-agreement", "regression-verdict"} <= set(pages.TABLES)
    assert "docs/studies.md" in pages.DOCUMENTS
    assert str(FOLDER) in sys.path
