"""How tight the non-convex bounds are: measured / bound on random families, exactly enumerated.

The inequalities and families are those that tests/bounds/test_nonconvex_attacks.py attacks. The
script writes results/tightness.json and the table in docs/theory/nonconvex.md, and exits with
status 1 if any bound is violated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from innerloop.bounds.nonconvex.attack import RATES, attack, random_family
from innerloop.bounds.nonconvex.simulation import Setting, modelling_error, simulate

from measure import environment
from untimed.measurement import Measurement, renew_table, write_result

KINDS = ("tanh", "logistic")
DOCUMENT = Path("docs") / "theory" / "nonconvex.md"
RESULT = Path("benchmarks") / "results" / "tightness.json"
TOLERANCE = 1.0 + 1e-9
SGD = (
    ("SGD, joint objective", "drs", 0.3, {}),
    ("SGD, MAML", "maml", 0.3, {}),
    ("SGD, MAML, negative inner rate", "maml", -0.2, {}),
    ("SGD, MAML, K=2, N=2", "maml", 0.2, {"steps": 2, "samples": 2}),
    ("SGD, MAML, population objective", "maml, population", 0.3, {}),
)
# Result number by the first word or words of an inequality's name.
RESULTS = (
    ("smoothness relative", "30"),
    ("variance relative", "30"),
    ("smoothness", "21"),
    ("value", "22"),
    ("sampling", "22"),
    ("bias", "23"),
    ("finite-difference", "23"),
    ("variance", "24"),
    ("SGD", "25"),
    ("gradient gap", "27"),
    ("refined link", "27"),
    ("modelling error", "28"),
    ("inverse link", "30"),
    ("adaptive", "30"),
)


def result_of(name: str) -> str:
    """The number of the result that an inequality belongs to."""
    return next(number for start, number in RESULTS if name.startswith(start))


def measure(kind: str, families: int, updates: int) -> dict[str, list[float]]:
    """Ratios of every inequality over families of one kind."""
    found: dict[str, list[float]] = {}
    for seed in range(families):
        rng = np.random.default_rng([seed, KINDS.index(kind), 2])
        family = random_family(kind, rng)
        known = family.constants()
        for name, ratios in attack(family, rng).items():
            found.setdefault(name, []).extend(ratios)
        for rate in RATES:
            outcome = modelling_error(family, rate / known.L, rng)
            if outcome.bound > 1e-9:  # else all tasks are solved exactly and nothing is compared
                found.setdefault("modelling error", []).append(outcome.ratio)
        if seed % 4 == 0:
            sizes = {"updates": updates, "runs": 24}
            for name, method, rate, further in SGD:
                setting = Setting(rate / known.L, **{**sizes, **further})
                outcome = simulate(family, method, setting, rng)
                found.setdefault(name, []).append(outcome.ratio)
            assert known.L_plus_s is not None
            setting = Setting(0.05 / known.L_plus_s, **sizes)
            outcome = simulate(family, "maml, adaptive", setting, rng)
            found.setdefault("adaptive steps, gradient norm", []).append(outcome.ratio)
    return found


def rows_of(measured: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """One row per inequality, in the order of the results."""
    names = sorted({name for found in measured.values() for name in found})
    names.sort(key=lambda name: int(result_of(name)))
    rows = []
    for name in names:
        row: dict[str, Any] = {"result": result_of(name), "inequality": name}
        for kind, found in measured.items():
            if name in found:
                ratios = np.array(found[name])
                row[kind] = {
                    "max": float(ratios.max()),
                    "median": float(np.median(ratios)),
                    "cases": len(ratios),
                    "violations": int((~(ratios <= TOLERANCE)).sum()),
                }
        rows.append(row)
    return rows


def main(arguments: list[str]) -> int:
    """Measures, writes the result file and the table, prints it; 1 if a bound is violated."""
    parser = argparse.ArgumentParser("run.py tightness", description=__doc__)
    parser.add_argument("--families", type=int, default=40, help="random families of each kind")
    parser.add_argument("--updates", type=int, default=400, help="SGD updates per run")
    parser.add_argument("--out", type=Path, help="write only this file, and no table")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    given = parser.parse_args(arguments)
    result = environment.ROOT / RESULT
    if not given.table:
        command = " ".join(["python benchmarks/run.py tightness", *arguments])
        measurement = Measurement("tightness", command, ("numpy", "scipy"))
        measured = {kind: measure(kind, given.families, given.updates) for kind in KINDS}
        made = measurement.document(
            kinds=list(KINDS),
            families=given.families,
            updates=given.updates,
            inner_rates=list(RATES),
            rows=rows_of(measured),
        )
        write_result(given.out or result, made)
    if given.out is None:
        renew_table(DOCUMENT)
    made = json.loads((given.out or result).read_text())
    rows = made["runs"][0]["rows"]
    for row in rows:
        shown = "  ".join(
            f"{kind} {row[kind]['max']:.3f} / {row[kind]['median']:.3f}"
            for kind in KINDS
            if kind in row
        )
        print(f"Result {row['result']}  {row['inequality']:45s} {shown}")
    violations = sum(row[kind]["violations"] for row in rows for kind in KINDS if kind in row)
    print(f"violations: {violations}")
    return 1 if violations else 0
