"""results.json: every number of a study, depending on nothing but its settings."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np

from innerloop.rl.meta_world import BENCHMARKS
from innerloop.runs.document import versions
from innerloop.studies.meta_rl.settings import Settings
from innerloop.studies.meta_rl.summary import (
    Comparison,
    comparisons,
    mean_and_error,
    update_gain,
)
from innerloop.studies.meta_rl.units import ADAPTS, PUBLISHED, Unit, all_units

FORMAT = "innerloop.study.meta-rl/1"
REVISION = 2  # counts changes of the numbers, their rounding included, that no version shows
BASE = ("mujoco", "gymnasium")

Results = dict[str, dict[str, Any]]  # of finished units, by name


def simulators(settings: Settings) -> list[str]:
    """The packages that the environments need."""
    benchmarks = any(name in BENCHMARKS for name in settings.environments)
    return [*BASE, *(["metaworld"] if benchmarks else [])]


def simulator_versions(settings: Settings) -> dict[str, str]:
    """Versions of everything that computes a number."""
    return {**versions(), **{name: metadata.version(name) for name in simulators(settings)}}


def describe_run(settings: Settings) -> dict[str, Any]:
    """Everything that determines the numbers; its digest is the run's key."""
    return {
        "study": "meta-rl",
        "revision of the numbers": REVISION,
        "config": settings.fingerprint(),
        "versions": simulator_versions(settings),
    }


def results_document(settings: Settings, results: Results, key: str) -> dict[str, Any]:
    """The content of results.json.

    `runs` holds the seeds of which both algorithms of a pair are finished: steps [C], returns and
    stderr [C][U + 1]; `controls` what else was trained or tested; `tradeoff` the maps [C][U + 1],
    with the names of both sides and what the updates add to each at the last checkpoint (mean and
    standard error).
    """
    units = all_units(settings)
    return {
        "format": FORMAT,
        "key": key,
        "complete": all(unit.name in results for unit in units),
        "settings": _settings(settings),
        "versions": simulator_versions(settings),
        "runs": matched_runs(settings, results),
        "controls": control_runs(settings, results),
        "tradeoff": [_tradeoff(made) for made in comparisons(settings, results)],
    }


def _settings(settings: Settings) -> dict[str, Any]:
    """The settings, with the sizes that None stands for."""
    found = settings.as_dict()
    found["sizes"] = {
        name: {**settings.sizes_of(name), "iterations": settings.iterations_of(name)}
        for name in settings.environments
    }
    for size in ("tasks", "rollouts", "horizon", "iterations"):
        held = {sizes[size] for sizes in found["sizes"].values()}
        if len(held) == 1:
            found[size] = held.pop()
    return found


def matched_runs(settings: Settings, results: Results) -> list[dict[str, Any]]:
    """The rows of `runs`."""
    units = [unit for unit in all_units(settings) if not unit.control]
    finished = {
        (unit.environment, unit.pair, unit.seed, unit.algorithm)
        for unit in units
        if unit.name in results
    }
    counts = {place[:3]: sum(p[:3] == place[:3] for p in finished) for place in finished}
    return [
        _run(unit, results[unit.name], PUBLISHED)
        for unit in units
        if counts.get((unit.environment, unit.pair, unit.seed)) == 2
    ]


def control_runs(settings: Settings, results: Results) -> list[dict[str, Any]]:
    """The rows of `controls`: as those of `runs`, with the name of the control, the settings that
    are not the published ones, and the rate of the test."""
    found = []
    for unit in all_units(settings):
        tests = list(unit.tests) if unit.control else [t for t in unit.tests if t == ADAPTS]
        for test in tests if unit.name in results else []:
            run = _run(unit, results[unit.name], test)
            control = unit.control or test
            found.append({"control": control, "changed": unit.changed, **run})
    return found


def _run(unit: Unit, result: dict[str, Any], test: str) -> dict[str, Any]:
    mean, error = mean_and_error(np.array(result["returns"][test]))
    return {
        "environment": unit.environment,
        "pair": unit.pair,
        "algorithm": unit.algorithm,
        "seed": unit.seed,
        "test_rate": unit.tests[test],
        "steps": result["steps"],
        "returns": mean.tolist(),
        "stderr": error.tolist(),
        "diverged": result["diverged"],
    }


def _tradeoff(made: Comparison) -> dict[str, Any]:
    return {
        "environment": made.environment,
        "pair": made.pair,
        "control": made.control,
        "sides": {"drs": made.drs.label, "maml": made.maml.label},
        "seeds": made.seeds,
        "steps": made.steps.tolist(),
        "map": made.tradeoff.tolist(),
        "difference": made.difference.tolist(),
        "stderr": made.error.tolist(),
        "gain": {"drs": update_gain(made.drs), "maml": update_gain(made.maml)},
    }
