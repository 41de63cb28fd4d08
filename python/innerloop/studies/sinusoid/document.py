"""results.json and arrays.npz: every number of a study, depending on nothing but its settings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from innerloop.runs.document import finite, interval_document, versions
from innerloop.runs.files import write_bytes
from innerloop.runs.methods import JOINT, METHODS
from innerloop.studies.sinusoid.certificates import Certificates, certificates_document
from innerloop.studies.sinusoid.measuring import Measured
from innerloop.studies.sinusoid.settings import Settings
from innerloop.studies.sinusoid.summary import Row, Spread, Summary, over_runs, rows, spread
from innerloop.studies.sinusoid.training import TRACE_EVERY
from innerloop.studies.sinusoid.units import ORACLE
from innerloop.studies.sinusoid.verdict import Verdict

FORMAT = "innerloop.study.sinusoid/2"
ARRAYS = "arrays.npz"


class Run(NamedTuple):
    """One run: parameters and training losses by method, and what was measured."""

    trained: dict[str, torch.Tensor]
    traces: dict[str, list[float]]
    measured: Measured


class Findings(NamedTuple):
    """What all runs give.

    Members:
        same, picked: rows of each run at the rate of training, and at the picked rates.
        over_same, over_picked: their summaries over runs.
        oracle: the oracle's mean error in each run, spread over runs.
    """

    same: list[list[Row]]
    picked: list[list[Row]]
    over_same: list[Summary]
    over_picked: list[Summary]
    oracle: Spread


def find(settings: Settings, runs: list[Run]) -> Findings:
    """The findings of all runs."""
    same = [rows(run.measured.errors, settings.level) for run in runs]
    picked = [rows(run.measured.picked_errors, settings.level) for run in runs]
    return Findings(
        same,
        picked,
        over_runs(same, settings.level),
        over_runs(picked, settings.level),
        spread([float(run.measured.oracle.mean()) for run in runs]),
    )


def describe_run(settings: Settings) -> dict[str, Any]:
    """Everything that determines the trained networks; its digest is the run's key."""
    return {"study": "sinusoid", "config": settings.fingerprint(), "versions": versions()}


def results_document(
    settings: Settings,
    runs: list[Run],
    found: Findings,
    verdict: Verdict,
    certificates: Certificates,
    key: str,
) -> dict[str, Any]:
    """The content of results.json; a number that is not finite is null."""
    return {
        "format": FORMAT,
        "key": key,
        "verdict": {
            "answer": verdict.answer,
            "headline": verdict.headline,
            "text": " ".join(verdict.reasons),
        },
        "measure": "mean squared error on query rows",
        "settings": settings.as_dict(),
        "versions": versions(),
        "over_runs": {
            "same_rate": [_summary(row) for row in found.over_same],
            "picked_rate": [_summary(row) for row in found.over_picked],
            "oracle": _spread(found.oracle),
        },
        "runs": [
            {"seed": settings.seed + number, **_run(settings, run, found, number)}
            for number, run in enumerate(runs)
        ],
        "certificates": {
            "seed": settings.seed,
            **certificates_document(certificates),
        },
    }


def write_arrays(folder: Path, runs: list[Run]) -> None:
    """Numbers of single tasks, and the trained networks.

    Members: methods [3]; errors, picked_errors [runs, 3, T, K + 1]; oracle_errors [runs, T];
    amplitude, phase [T]; parameters [runs, 3, P] and oracle_parameters [runs, P + 2 H], flat in the
    models' order.
    """

    def stacked(part: str) -> Any:
        return np.stack([[getattr(run.measured, part)[m] for m in METHODS] for run in runs])

    content = io.BytesIO()
    np.savez_compressed(
        content,
        methods=np.array(METHODS),
        errors=stacked("errors"),
        picked_errors=stacked("picked_errors"),
        oracle_errors=np.stack([run.measured.oracle for run in runs]),
        amplitude=runs[0].measured.test.amplitude,
        phase=runs[0].measured.test.phase,
        parameters=np.stack([[run.trained[m].numpy() for m in METHODS] for run in runs]),
        oracle_parameters=np.stack([run.trained[ORACLE].numpy() for run in runs]),
    )
    write_bytes(folder / ARRAYS, content.getvalue())


def _run(settings: Settings, run: Run, found: Findings, number: int) -> dict[str, Any]:
    measured = run.measured
    return {
        "same_rate": [_row(row) for row in found.same[number]],
        "picked_rate": [
            {"rate": {m: measured.picked_rate[m][row.steps] for m in METHODS}, **_row(row)}
            for row in found.picked[number]
        ],
        "oracle": finite(float(measured.oracle.mean())),
        "validation": {
            "rates": list(settings.rates),
            "error": {
                method: [[finite(value) for value in line] for line in measured.validation[method]]
                for method in METHODS
            },
        },
        "training_loss": {"every": TRACE_EVERY, **run.traces},
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "steps": row.steps,
        "error": {method: interval_document(row.error[method]) for method in METHODS},
        "median": {method: finite(row.median[method]) for method in METHODS},
        "failed": dict(row.failed),
        "change": {
            method: interval_document(row.change[method]) for method in METHODS if method != JOINT
        },
    }


def _summary(row: Summary) -> dict[str, Any]:
    return {
        "steps": row.steps,
        "mean": {method: _spread(row.mean[method]) for method in METHODS},
        "median": {method: _spread(row.median[method]) for method in METHODS},
        "failed": dict(row.failed),
        "change": {method: interval_document(value) for method, value in row.change.items()},
    }


def _spread(values: Spread) -> dict[str, float | None]:
    return {
        "median": finite(values.median),
        "low": finite(values.low),
        "high": finite(values.high),
    }
