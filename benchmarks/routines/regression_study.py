"""The published linear-regression sweep: the fused kernel, and NumPy programs extrapolated to it.

A NumPy program takes hours for the sweep, so single trials of some cells are timed and the rest is
extrapolated: a trial takes a + b M + c M N seconds, fitted to the cells and tested on another. The
authors' own program takes part when METALEARNING_TRADEOFFS names the linear_regression folder of an
unpacked isl-org/MetaLearningTradeoffs.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from innerloop.studies import linear_regression
from innerloop.studies.linear_regression import reference
from innerloop.studies.linear_regression.risks import risk
from innerloop.studies.linear_regression.settings import Settings

from measure.timing import seconds_of
from measure.worker import Request

FITTED = ((2, 1), (5, 400), (25, 25), (100, 5), (100, 100), (250, 25))
HELD_OUT = (50, 200)
Cell = tuple[int, int]  # (M, N)
Trial = Callable[[int, int], Any]


def run(request: Request) -> dict[str, Any]:
    """Seconds of the sweep, and hours of the NumPy programs."""
    dimensions = (1,) if request.quick else (1, 2, 4)
    document: dict[str, Any] = {"kind": "regression-study", "rows": []}
    for p in dimensions:
        settings = Settings(p=p, seed=request.seed)
        row: dict[str, Any] = {"p": p, "cells": 144, "trials": settings.trials, "rates": 21}
        row.update(_sweep_seconds(settings, request))
        for name, trial in _programs(settings).items():
            row[name] = _extrapolated(trial, settings, few=request.quick)
        document["rows"].append(row)
    document["frequencies_agree_z"] = _frequencies(request)
    return document


def _sweep(settings: Settings, request: Request) -> linear_regression.Sweep:
    return linear_regression.sweep(
        settings.p, settings.beta, settings.tasks, settings.samples, settings.inner_lrs,
        settings.trials, settings.seed, threads=request.threads,
    )  # fmt: skip


def _sweep_seconds(settings: Settings, request: Request) -> dict[str, Any]:
    """The whole sweep through the Python function, after one small call."""
    linear_regression.sweep(settings.p, tasks=[2], samples=[5], trials=10)
    seconds = [
        seconds_of(lambda: _sweep(settings, request))[1] for _ in range(1 if request.quick else 3)
    ]
    return {"sweep_s": statistics.median(seconds), "fastest_s": min(seconds)}


# ---------------------------------------------------------------- row by row


def _programs(settings: Settings) -> dict[str, Trial]:
    """Trials with all rates, row by row: this project's readable twin, and the authors' program."""
    rng = np.random.default_rng(settings.seed)

    def twin(tasks: int, samples: int) -> None:
        rows = reference.draw_rows(rng, settings.p, settings.beta, tasks, samples)
        estimates = [reference.drs_estimate(rows)]
        estimates += [reference.maml_estimate(rows, rate) for rate in settings.inner_lrs]
        for theta in estimates:
            np.sum((theta - 1.0) ** 2)

    programs: dict[str, Trial] = {"twin": twin}
    folder = os.environ.get("METALEARNING_TRADEOFFS")
    if folder:
        authors = _module(Path(folder) / "algorithms.py")

        def published(tasks: int, samples: int) -> None:
            p, both = settings.p, 2 * samples
            data = authors.sample_data(tasks, both, p, settings.beta)
            authors.dr_estimate(tasks, both, p, *data)
            for rate in settings.inner_lrs:
                authors.maml_estimate(rate, tasks, both, p, *data)

        programs["authors"] = published
    return programs


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("metalearning_tradeoffs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


def _extrapolated(trial: Trial, settings: Settings, few: bool) -> dict[str, Any]:
    """Seconds of a trial in some cells, and what the model makes of them for the whole grid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lstsq's rcond in the authors' program
        measured = _seconds_per_trial(trial, (*FITTED, HELD_OUT), few)
    terms = np.array([[1.0, m, m * n] for m, n in FITTED])
    seconds = np.array([measured[cell] for cell in FITTED])
    (fixed, task, sample), *_ = np.linalg.lstsq(
        terms / seconds[:, None], np.ones_like(seconds), rcond=None
    )

    def model(m: int, n: int) -> float:
        return float(fixed + task * m + sample * m * n)

    grid = [(m, n) for m in settings.tasks for n in settings.samples]
    return {
        "trial_s": [{"tasks": m, "samples": n, "seconds": s} for (m, n), s in measured.items()],
        "model_s": {"fixed": float(fixed), "per_task": float(task), "per_row": float(sample)},
        "held_out_error": model(*HELD_OUT) / measured[HELD_OUT] - 1.0,
        "sweep_hours": settings.trials * sum(model(*cell) for cell in grid) / 3600.0,
    }


def _seconds_per_trial(trial: Trial, cells: Sequence[Cell], few: bool) -> dict[Cell, float]:
    """The fastest trial of each cell, in rounds: what disturbs the machine is not charged."""
    fastest = dict.fromkeys(cells, float("inf"))
    for _ in range(3 if few else 20):
        for cell in cells:
            fastest[cell] = min(fastest[cell], seconds_of(lambda at=cell: trial(*at))[1])
    return fastest


# ---------------------------------------------------------------- checks


def _frequencies(request: Request) -> float:
    """Standard errors between the kernel's and the twin's fraction in one cell: about N(0, 1)."""
    count, (p, tasks, samples, rate) = (200 if request.quick else 2000), (2, 10, 3, 0.3)
    rng = np.random.default_rng(request.seed)
    optimum = risk(p, 2.0, rate, samples).optimum
    wins = 0
    for _ in range(count):
        rows = reference.draw_rows(rng, p, 2.0, tasks, samples)
        drs = np.sum((reference.drs_estimate(rows) - optimum) ** 2)
        wins += bool(np.sum((reference.maml_estimate(rows, rate) - optimum) ** 2) < drs)
    kernel = linear_regression.sweep(
        p, tasks=[tasks], samples=[samples], inner_lrs=[rate], trials=20 * count, seed=request.seed
    ).maml_better_after.item()
    error = np.sqrt(kernel * (1 - kernel) / count * (1 + 1 / 20))
    return float((wins / count - kernel) / error)
