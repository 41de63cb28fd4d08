"""results.json: every number of a run, in an order and a spelling that depend on nothing but the
run's settings and data.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from innerloop.compare.analysis import Analysis, Choice, Results, Row
from innerloop.compare.episodes import make_split, split_sizes
from innerloop.compare.problem import Problem
from innerloop.compare.theory import Theory, theory_document
from innerloop.compare.units import all_units
from innerloop.compare.verdict import Verdict
from innerloop.runs.document import finite, interval_document, versions
from innerloop.runs.methods import METHODS

FORMAT = "innerloop.compare/1"


def measure_name(problem: Problem) -> str:
    """What a risk is, in words with its unit."""
    if problem.tasks.classes:
        return "cross-entropy (nats)"
    return "MSE (1 = variance of the training tasks' target)"


def describe_run(problem: Problem) -> dict[str, Any]:
    """Everything that determines the units' numbers; its digest is the run's key."""
    return {
        "config": problem.config.fingerprint(),
        "data": problem.tasks.sha256(),
        "backend": problem.backend,
        "versions": versions(),
    }


def results_document(
    problem: Problem,
    analysis: Analysis,
    verdict: Verdict,
    theory: Theory | None,
    results: Results,
    key: str,
) -> dict[str, Any]:
    """The content of results.json. A number that is not finite (a diverged risk, an unknown bound)
    is null.
    """
    tasks, config = problem.tasks, problem.config
    training, validation, test = split_sizes(len(tasks.names), config)
    divergence: dict[str, Any] | None = None
    if analysis.divergence is not None:
        divergence = dataclasses.asdict(analysis.divergence)
        for name in ("before", "after"):
            divergence[name] = finite(divergence[name])
    curvature = [] if problem.curvature is None else problem.curvature.tolist()
    return {
        "format": FORMAT,
        "key": key,
        "verdict": {
            "answer": verdict.answer,
            "headline": verdict.headline,
            "text": verdict.text,
            "action": verdict.action,
            "divergence": divergence,
            "notes": analysis.notes(),
        },
        "measure": measure_name(problem),
        "interval": {
            "method": "corrected resampled t (Nadeau and Bengio 2003)",
            "level": config.level,
            "margin": config.margin,
            "splits": config.splits,
            "test_tasks": test,
            "other_tasks": training + validation,
        },
        "config": config.as_dict(),
        "data": {
            "source": tasks.source,
            "sha256": tasks.sha256(),
            "tasks": len(tasks.names),
            "rows": len(tasks.x),
            "rows_per_task": [int(tasks.counts.min()), int(tasks.counts.max())],
            "features": list(tasks.features),
            "target": tasks.target,
            "loss": tasks.loss,
            "classes": list(tasks.classes),
            "task_names": list(tasks.names),
            "curvature": curvature,
            "notes": list(tasks.notes),
        },
        "model": {
            "widths": [tasks.x.shape[1], *config.hidden, tasks.outputs],
            "activation": config.activation,
            "parameters": problem.parameters,
            "training": "exact" if problem.exact else "adam",
            "dtype": str(problem.dtype).removeprefix("torch."),
            "backend": problem.backend,
        },
        "versions": versions(),
        "picked": _row(analysis.picked),
        "by_adapt_steps": [
            {"adapt_steps": count, **_row(row)} for count, row in enumerate(analysis.by_adapt_steps)
        ],
        "same_rate": [
            {
                "steps": steps,
                "inner_lr": rate,
                "adapt_steps": min(steps, config.adapt_steps),
                **_row(row),
            }
            for (steps, rate), row in analysis.same_rate.items()
        ],
        "theory": theory_document(theory),
        "splits": [_split(problem, analysis, split) for split in range(config.splits)],
        "units": [{"unit": unit.name, **results[unit.name]} for unit in all_units(config)],
    }


def _row(row: Row) -> dict[str, Any]:
    document: dict[str, Any] = {
        name: {method: interval_document(value) for method, value in getattr(row, name).items()}
        for name in ("risk", "error", "change", "relative")
    }
    document["mean"] = {method: finite(value) for method, value in row.mean.items()}
    document["wins"] = row.wins
    document["failed"] = row.failed
    return document


def _choice(choice: Choice, has_classes: bool) -> dict[str, Any]:
    document = {
        "inner_lr": choice.rate,
        "outer_lr": choice.outer,
        "steps": choice.steps,
        "adapt_steps": choice.adapt_steps,
        "validation": finite(choice.validation),
        "test": finite(choice.test),
    }
    if has_classes:
        document["test_error"] = finite(choice.test_error)
    return document


def _split(problem: Problem, analysis: Analysis, split: int) -> dict[str, Any]:
    parts = make_split(len(problem.tasks.names), split, problem.config)
    return {
        "split": split,
        "training": parts.training.tolist(),
        "validation": parts.validation.tolist(),
        "test": parts.test.tolist(),
        "target_scale": problem.split_data(split).final_data.target_scale.tolist(),
        "picked": {
            method: _choice(analysis.picked_choices[method][split], analysis.has_classes)
            for method in METHODS
        },
    }
