"""How often Result 36 is right: its interval, its standard errors, and what it says about who is
ahead, on laws of tasks whose crossover is known in closed form.

`innerloop compare` speaks of a crossover as `Estimate.ahead` does. The script writes
results/crossover-coverage.json and the table in docs/compare.md, and exits with status 1 if more
than one in twenty of the statements is wrong.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from innerloop.bounds import linear
from scipy import special

from measure import environment
from untimed.measurement import Measurement, renew_table, write_result

DOCUMENT = Path("docs") / "compare.md"
RESULT = Path("benchmarks") / "results" / "crossover-coverage.json"
REPLICATIONS = 400
MOST_WRONG = 0.05
# Of replications: with an estimate, heavy tails found, crossover in the interval; said to be ahead
# and wrongly so; M outside the interval (a weaker rule for comparison) and on the wrong side.
COUNTS = (
    "estimated", "flagged", "covered", "told_drs", "told_maml", "wrong", "outside", "outside_wrong",
)  # fmt: skip
NUMBERS = ("modelling_error", "drs", "maml")
MANY = (32, 64, 128, 256)


class Case(NamedTuple):
    """A law with an inner rate, support rows, and the numbers of tasks to try."""

    name: str
    law: linear.TaskLaw
    inner_lr: float
    samples: int
    tasks: tuple[int, ...] = MANY
    is_heavy: bool = False


def equal_weights(q: np.ndarray, theta: np.ndarray, sigma2: float) -> linear.Mixture:
    """Equally likely tasks with one noise variance."""
    count = len(q)
    return linear.Mixture(
        np.full(count, 1 / count), Q=q, theta=theta, sigma2=np.full(count, sigma2)
    )


def lognormal(spread: float) -> linear.Mixture:
    """One input whose variance is lognormal over tasks (200 quantiles), and a slope that grows with
    it.
    """
    q = np.exp(spread * special.ndtri((np.arange(200) + 0.5) / 200))
    return equal_weights(q[:, None, None], (q / (1 + q))[:, None], 0.3)


def spheres(size: int, contrast: float) -> linear.Mixture:
    """Two tasks with opposite solutions, inputs uncorrelated, variances 1 + contrast and 1 -
    contrast.
    """
    direction = np.full(size, size**-0.5)
    q = np.stack([(1 + contrast) * np.eye(size), (1 - contrast) * np.eye(size)])
    return equal_weights(q, np.stack([direction, -direction]), 1.0)


def cases() -> list[Case]:
    """All laws, those with light tails first."""
    pair = linear.Mixture(
        [0.5, 0.5],
        Q=[[[2.0, 0.5], [0.5, 1.0]], [[0.5, -0.2], [-0.2, 1.5]]],
        theta=[[1.0, -1.0], [0.5, 2.0]],
        sigma2=[0.5, 1.0],
    )
    giant = linear.Mixture(
        [0.5, 0.48, 0.02],
        Q=[[[1.0]], [[0.5]], [[15.0]]],
        theta=[[1.0], [0.2], [1.6]],
        sigma2=[0.3, 0.3, 0.3],
    )
    one = linear.published_law(p=1, beta=2.0)
    return [
        Case("published, p = 1, β = 2", one, 0.3, 5),
        Case("published, p = 1, β = 1", linear.published_law(p=1, beta=1.0), 0.5, 25),
        Case("published, p = 1, β = 2", one, 0.1, 25),
        Case("published, p = 2, β = 2", linear.published_law(p=2, beta=2.0), 0.3, 10),
        Case("two tasks, p = 2", pair, 0.3, 5),
        Case("one curvature, p = 1", spheres(1, 0.0), 0.5, 2),
        Case("two near curvatures, p = 1", spheres(1, 0.05), 0.5, 3),
        Case("one curvature, p = 40", spheres(40, 0.0), 0.2, 20, (128, 256)),
        Case("two curvatures, p = 40", spheres(40, 0.3), 0.3, 60, (128, 256)),
        Case("lognormal curvature, s = 1", lognormal(1.0), 0.1, 10, MANY, is_heavy=True),
        Case("lognormal curvature, s = 1.5", lognormal(1.5), 0.03, 10, MANY, is_heavy=True),
        Case("one task in fifty is a giant", giant, 0.05, 10, MANY, is_heavy=True),
    ]


def truth(case: Case) -> dict[str, float]:
    """Modelling error, both constants, and the crossover that they give."""
    exact = linear.expansion(case.law, inner_lr=case.inner_lr, samples=case.samples)
    error, drs, maml = float(exact.drs_limit), float(exact.drs), float(exact.maml)
    gap = max(maml - drs, 0.0)
    crossover = gap / error if error > 0 or gap == 0 else math.inf
    return {"modelling_error": error, "drs": drs, "maml": maml, "crossover": crossover}


def sample(case: Case, tasks: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Support and query sets of `tasks` random tasks, N rows each."""
    drawn = case.law.sample(rng, tasks)
    noise = rng.standard_normal((tasks, 2 * case.samples, case.law.p))
    x = noise @ np.linalg.cholesky(drawn.Q).transpose(0, 2, 1)
    y = (x @ drawn.theta[..., None])[..., 0]
    y += np.sqrt(drawn.sigma2)[:, None] * rng.standard_normal(y.shape)
    n = case.samples
    return x[:, :n], y[:, :n], x[:, n:], y[:, n:]


def measure(case: Case, tasks: int, replications: int, seed: int) -> dict[str, Any]:
    """Counts over replications with `tasks` tasks each."""
    exact = truth(case)
    crossover = exact["crossover"]
    counts: collections.Counter[str] = collections.Counter()
    for replication in range(replications):
        rng = np.random.default_rng([seed, tasks, replication])
        found = linear.estimate(*sample(case, tasks, rng), inner_lr=case.inner_lr)
        reach = float(special.stdtrit(tasks - 1, 0.975))
        for name in NUMBERS:
            distance = abs(float(getattr(found, name)) - exact[name])
            counts[name] += bool(distance <= reach * found.standard_errors[name])
        counts["flagged"] += found.heavy_tails is not None
        if tasks < found.fewest_tasks:
            continue
        low, high = found.interval
        ahead = "drs" if tasks < crossover else "maml"
        counts["estimated"] += 1
        counts["covered"] += bool(low <= crossover <= high)
        counts["outside"] += not low <= tasks <= high
        counts["outside_wrong"] += ahead == "maml" and bool(tasks < low)
        counts["outside_wrong"] += ahead == "drs" and bool(tasks > high)
        counts[f"told_{found.ahead}"] += 1
        counts["wrong"] += found.ahead not in (ahead, None)
    return {
        "law": case.name,
        "heavy": case.is_heavy,
        "inner_lr": case.inner_lr,
        "samples": case.samples,
        "tasks": tasks,
        "crossover": crossover if math.isfinite(crossover) else None,
        "replications": replications,
        **{name: counts[name] for name in COUNTS},
        "standard_errors_cover": {name: counts[name] / replications for name in NUMBERS},
    }


def main(arguments: list[str]) -> int:
    """Measures, writes the result file and the table, prints it; 1 if too much is wrong."""
    parser = argparse.ArgumentParser("run.py crossover-coverage", description=__doc__)
    parser.add_argument("--replications", type=int, default=REPLICATIONS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write only this file, and no table")
    given = parser.parse_args(arguments)
    command = " ".join(["python benchmarks/run.py crossover-coverage", *arguments])
    measurement = Measurement("crossover-coverage", command, ("numpy", "scipy"))
    rows = []
    for case in cases():
        for tasks in case.tasks:
            row = measure(case, tasks, given.replications, given.seed)
            rows.append(row)
            print(json.dumps(row, ensure_ascii=False), flush=True)
    made = measurement.document(replications=given.replications, seed=given.seed, rows=rows)
    write_result(given.out or environment.ROOT / RESULT, made)
    if given.out is None:
        renew_table(DOCUMENT)
    told = sum(row["told_drs"] + row["told_maml"] for row in rows)
    wrong = sum(row["wrong"] for row in rows)
    print(f"{wrong} of {told} statements are wrong")
    return 1 if wrong > MOST_WRONG * told else 0
