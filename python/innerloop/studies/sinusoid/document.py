"""results.json and arrays.npz: every number of a study, depending on nothing but its settings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from innerloop.runs.document import finite, interval_document, versions
from innerloop.runs.files import write_bytes
from innerloop.runs.methods import JOINT, METHODS
from innerloop.studies.sinusoid.certificates import Certificates, certificates_document
from innerloop.studies.sinusoid.measuring import Measured
from innerloop.studies.sinusoid.settings import Settings
from innerloop.studies.sinusoid.summary import Row
from innerloop.studies.sinusoid.training import TRACE_EVERY
from innerloop.studies.sinusoid.verdict import Verdict

FORMAT = "innerloop.study.sinusoid/1"
ARRAYS = "arrays.npz"


def describe_run(settings: Settings) -> dict[str, Any]:
    """Everything that determines the trained networks; its digest is the run's key."""
    return {"study": "sinusoid", "config": settings.fingerprint(), "versions": versions()}


def results_document(
    settings: Settings,
    measured: Measured,
    same: list[Row],
    picked: list[Row],
    verdict: Verdict,
    traces: dict[str, list[float]],
    certificates: Certificates,
    key: str,
) -> dict[str, Any]:
    """The content of results.json; a number that is not finite is null."""
    return {
        "format": FORMAT,
        "key": key,
        "verdict": {"answer": verdict.answer, "headline": verdict.headline, "text": verdict.text},
        "measure": "mean squared error on query rows",
        "settings": settings.as_dict(),
        "versions": versions(),
        "same_rate": [_row(row) for row in same],
        "picked_rate": [
            {"rate": {m: measured.picked_rate[m][row.steps] for m in METHODS}, **_row(row)}
            for row in picked
        ],
        "validation": {
            "rates": list(settings.rates),
            "error": {
                method: [[finite(value) for value in line] for line in measured.validation[method]]
                for method in METHODS
            },
        },
        "training_loss": {"every": TRACE_EVERY, **{m: traces[m] for m in METHODS}},
        "certificates": certificates_document(certificates),
    }


def write_arrays(folder: Path, measured: Measured, trained: dict[str, torch.Tensor]) -> Path:
    """Numbers of single tasks, and the trained networks; returns the file's path.

    Members: methods [3]; errors, picked_errors [3, T, K + 1]; amplitude, phase [T]; parameters
    [3, P], flat in the model's order.
    """
    content = io.BytesIO()
    np.savez_compressed(
        content,
        methods=np.array(METHODS),
        errors=np.stack([measured.errors[m] for m in METHODS]),
        picked_errors=np.stack([measured.picked_errors[m] for m in METHODS]),
        amplitude=measured.test.amplitude,
        phase=measured.test.phase,
        parameters=np.stack([trained[m].numpy() for m in METHODS]),
    )
    write_bytes(folder / ARRAYS, content.getvalue())
    return folder / ARRAYS


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
