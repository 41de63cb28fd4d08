"""Agreement of the predicted with the simulated maps of the published linear-regression sweep.

No time is measured: the numbers depend on the seed alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from innerloop.studies import linear_regression
from innerloop.studies.linear_regression.agreement import agreement
from innerloop.studies.linear_regression.settings import Settings
from innerloop.studies.linear_regression.theory import predict
from innerloop.studies.linear_regression.verdict import fit

from worker import Request

# As a quick check: a corner of the grid.
QUICK: dict[str, Any] = {"tasks": (2, 50), "samples": (1, 25), "inner_lrs": (0.3,), "trials": 100}


def run(request: Request) -> dict[str, Any]:
    """The tables of `innerloop study linear-regression` for p = 1, 2 and 4."""
    dimensions = (1,) if request.quick else (1, 2, 4)
    changes = QUICK if request.quick else {}
    return {
        "kind": "regression-agreement",
        "agreement": [
            _agreement(Settings(p=p, seed=request.seed, **changes), request.threads)
            for p in dimensions
        ],
    }


def _agreement(settings: Settings, threads: int) -> dict[str, Any]:
    simulated = linear_regression.sweep(
        settings.p, settings.beta, settings.tasks, settings.samples, settings.inner_lrs,
        settings.trials, settings.seed, threads=threads,
    )  # fmt: skip
    sweep = replace(simulated, prediction=predict(settings))
    regions = agreement(sweep)
    return {
        "settings": settings.as_dict(),
        **fit(sweep, regions)._asdict(),
        "regions": [region.as_dict() for region in regions],
    }
