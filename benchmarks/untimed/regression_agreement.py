"""Agreement of the predicted with the simulated maps of the published linear-regression sweep.

The numbers depend on the seed alone. The script writes results/regression-agreement.json and the
tables in docs/studies.md; it measures no time.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from innerloop import __version__
from innerloop.studies import linear_regression
from innerloop.studies.linear_regression.agreement import agreement
from innerloop.studies.linear_regression.settings import Settings
from innerloop.studies.linear_regression.theory import predict
from innerloop.studies.linear_regression.verdict import fit

from measure import environment
from tables import pages

DIMENSIONS = (1, 2, 4)
DOCUMENT = Path("docs") / "studies.md"
RESULT = Path("benchmarks") / "results" / "regression-agreement.json"


def document(every: Iterable[Settings], command: str) -> dict[str, Any]:
    """The result file: for each sweep the fit of both maps, and every region of them."""
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "torch")}
    run = {
        "kind": "regression-agreement",
        "environment": {
            "threads": 1,
            "dtype": "float64",
            "versions": {"python": platform.python_version(), "innerloop": __version__, **versions},
            "commit": environment.commit(),
        },
        "agreement": [compared(settings) for settings in every],
    }
    return {"format": 1, "command": command, "started": started, "quick": False, "runs": [run]}


def compared(settings: Settings) -> dict[str, Any]:
    """One sweep's fit and regions."""
    simulated = linear_regression.sweep(
        settings.p, settings.beta, settings.tasks, settings.samples, settings.inner_lrs,
        settings.trials, settings.seed, threads=1,
    )  # fmt: skip
    sweep = replace(simulated, prediction=predict(settings))
    regions = agreement(sweep)
    return {
        "settings": settings.as_dict(),
        **fit(sweep, regions)._asdict(),
        "regions": [region.as_dict() for region in regions],
    }


def main(arguments: list[str]) -> int:
    """Computes, writes the result file and the tables."""
    parser = argparse.ArgumentParser("run.py regression-agreement", description=__doc__)
    parser.add_argument("--out", type=Path, help="write only this file, and no table")
    given = parser.parse_args(arguments)
    command = " ".join(["python benchmarks/run.py regression-agreement", *arguments])
    made = document((Settings(p=p) for p in DIMENSIONS), command)
    target = given.out or environment.ROOT / RESULT
    target.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if given.out is None:
        pages.update_page(environment.ROOT / DOCUMENT, target.parent)
    return 0
