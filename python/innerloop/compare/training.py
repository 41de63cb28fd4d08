"""One unit of work: train one method at one setting on one split, then measure it on validation
and test tasks.
"""

from __future__ import annotations

import math
from typing import Any

from innerloop.compare.descent import descend
from innerloop.compare.exact import fit_exactly
from innerloop.compare.measuring import is_stable, raised, risks
from innerloop.compare.problem import Problem, SplitData, Trained
from innerloop.compare.units import Unit
from innerloop.runs.document import finite
from innerloop.runs.methods import JOINT


def run_unit(problem: Problem, unit: Unit) -> dict[str, Any]:
    """The numbers of one unit, as JSON types (null for a risk that is not finite).

    Returns:
        `trained` and `why` (training reached a usable point), `iterations`, `touches` (samples
        that entered a gradient), and `curves`: for each inner rate used at test time, the
        `validation` and `test` risks after 0..K adaptation steps, whether adaptation is `stable`
        on known tasks, the test tasks whose support loss it `raised`, and for classes the error
        rates. Joint training has one curve per rate of
        the grid, MAML one at its own rate.
    """
    data = problem.split_data(unit.split)
    rates = problem.config.inner_lrs if unit.method == JOINT else (unit.rate,)
    trained = fit_exactly(problem, data, unit) if problem.exact else descend(problem, data, unit)
    return {
        "trained": trained.why is None,
        "why": trained.why,
        "iterations": trained.iterations,
        "touches": trained.touches,
        "curves": [_curve(problem, data, trained, rate) for rate in rates],
    }


def _curve(problem: Problem, data: SplitData, trained: Trained, rate: float) -> dict[str, Any]:
    """Risks after 0..K adaptation steps at one rate.

    Each number of steps uses the checkpoint with the lowest validation risk, among those that are
    stable on the known (training and validation) tasks if there are any.
    """
    steps = problem.config.adapt_steps + 1
    validation = [risks(problem, theta, data.validation, rate) for theta in trained.fitted]
    stable = [is_stable(problem, data, theta, rate) for theta in trained.final]

    def order(checkpoint: int, k: int) -> tuple[bool, float]:
        risk = float(validation[checkpoint][0, k])
        return not stable[checkpoint][k], risk if math.isfinite(risk) else math.inf

    best = [
        min(range(len(trained.fitted)), key=lambda c: order(c, k), default=None)
        for k in range(steps)
    ]
    used = {c for c in best if c is not None}
    test = {c: risks(problem, trained.final[c], data.test, rate) for c in used}
    worse = {c: raised(problem, trained.final[c], data.test, rate, data.draws) for c in used}

    def pick(of: Any, row: int) -> list[float | None]:
        return [None if c is None else finite(of[c][row, k]) for k, c in enumerate(best)]

    curve: dict[str, Any] = {
        "rate": rate,
        "validation": pick(validation, 0),
        "test": pick(test, 0),
        "stable": [c is not None and bool(stable[c][k]) for k, c in enumerate(best)],
        "raised": [
            [] if c is None else data.parts.test[worse[c][:, k]].tolist()
            for k, c in enumerate(best)
        ],
    }
    if not problem.exact:
        curve["checkpoint"] = best
    if problem.tasks.classes:
        curve["validation_error"] = pick(validation, 1)
        curve["test_error"] = pick(test, 1)
    return curve
