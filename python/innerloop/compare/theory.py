"""What theory says about a linear model on the same table: errors of both methods and the number of
tasks from which MAML pays (Result 36 of docs/theory.md).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from innerloop.bounds.linear import Estimate
from innerloop.bounds.linear.empirical import from_equations
from innerloop.bounds.linear.equations import Equations, drs_equations, maml_equations
from innerloop.bounds.linear.sizes import OutOfRange
from innerloop.compare import episodes as ep
from innerloop.compare.analysis import Analysis
from innerloop.compare.problem import Problem, draws_per_task
from innerloop.runs.document import finite
from innerloop.runs.methods import JOINT, MAML

# Tasks (and episodes) times squared parameters; more would take minutes or gigabytes.
MOST_WORK, MOST_MEMORY = 2_000_000, 30_000_000
# Result 36 has the factor 1/2 in its risk; this tool reports full squared errors.
PER_RISK = 2.0

_AHEAD = {"drs": JOINT, "maml": MAML}

Setting = tuple[int, float]


@dataclasses.dataclass(frozen=True)
class Theory:
    """Result 36 on all tasks of the table.

    Args:
        tasks: M.
        setting: inner steps and rate that MAML picks in most splits.
        estimates: for each inner steps and rate of the grid where there is one.
        why: why there is none at `setting`; None if there is.
    """

    tasks: int
    setting: Setting
    estimates: dict[Setting, Estimate]
    why: str | None

    def sentence(self) -> str:
        """Who is ahead with the tasks at hand, in plain words no stronger than what was measured of
        such statements (docs/compare.md).
        """
        if self.why is not None:
            return f"Theory does not tell: {self.why}."
        steps, rate = self.setting
        at = f"rate {rate:g}, {steps} inner step{'s' * (steps > 1)}"
        return _judgement(self.estimates[self.setting], at)


def estimate_theory(problem: Problem, analysis: Analysis) -> Theory | None:
    """Result 36 at every setting of the grid; None if the model is not solved exactly.

    All tasks are used, on the scale of all of them, with the tool's own N support rows, query rows
    and draws: a task's equations of MAML are the averages over its draws, those of joint training
    use each of its rows once.
    """
    if not problem.exact:
        return None
    config, tasks = problem.config, len(problem.tasks.names)
    grid = [(steps, rate) for steps in config.steps for rate in config.inner_lrs]
    picked = collections.Counter(
        (choice.steps, choice.rate) for choice in analysis.picked_choices[MAML]
    )
    setting = max(grid, key=lambda pair: picked[pair])
    draws = draws_per_task(problem.tasks, config)
    size = problem.tasks.x.shape[1] + 1
    if tasks < size + 2:
        why = f"{size} parameters per output need at least {size + 2} tasks"
        return Theory(tasks, setting, {}, why)
    if tasks * size**2 > MOST_WORK or tasks * draws * size**2 > MOST_MEMORY:
        return Theory(tasks, setting, {}, f"{size} parameters are too many for this estimate")
    everything = np.arange(tasks)
    data = ep.standardise(problem.tasks, everything, torch.float64)
    drs = _joint(*ep.all_rows(data, everything))
    drawn = ep.draw_episodes(
        data,
        np.repeat(everything, draws),
        config,
        ep.generator(config.seed, 0, ep.Stream.THEORY),
    )
    estimates: dict[Setting, Estimate] = {}
    whys: dict[Setting, str] = {}
    for steps, rate in grid:
        try:
            estimates[steps, rate] = from_equations(
                drs,
                _maml(drawn, draws, rate, steps),
                inner_lr=rate,
                steps=steps,
                level=config.level,
            )
        except OutOfRange:
            whys[steps, rate] = f"at rate {rate:g} its numbers leave the range of float64"
        except ValueError:
            whys[steps, rate] = (
                "all tasks, or all but one, leave a direction of the parameters undetermined"
            )
    return Theory(tasks, setting, estimates, whys.get(setting))


def theory_document(theory: Theory | None) -> dict[str, Any] | None:
    """The theory part of results.json, in units of the measured risks.

    A crossover that is null is infinite (no number of tasks), and so is an end of its interval.
    """
    if theory is None:
        return None
    return {
        "source": "Result 36",
        "tasks": theory.tasks,
        "sentence": theory.sentence(),
        "why_none": theory.why,
        "steps": theory.setting[0],
        "inner_lr": theory.setting[1],
        "settings": [_setting(estimate) for estimate in theory.estimates.values()],
    }


def _setting(estimate: Estimate) -> dict[str, Any]:
    error, tasks = estimate.standard_errors, estimate.tasks
    return {
        "steps": estimate.steps,
        "inner_lr": estimate.inner_lr,
        "modelling_error": _value(estimate.modelling_error, error["modelling_error"]),
        "statistical_error": {
            "joint": _value(estimate.drs / tasks, error["drs"] / tasks),
            "maml": _value(estimate.maml / tasks, error["maml"] / tasks),
        },
        "crossover": {
            "tasks": finite(estimate.crossover),
            "low": finite(estimate.interval[0]),
            "high": finite(estimate.interval[1]),
            "meaningful_from": estimate.fewest_tasks,
            "ahead": None if estimate.ahead is None else _AHEAD[estimate.ahead],
            "heavy_tails": estimate.heavy_tails,
            "why_none": estimate.crossover.reason if math.isnan(estimate.crossover) else None,
        },
    }


def _value(risk: float, error: float) -> dict[str, float | None]:
    return {"estimate": finite(PER_RISK * risk), "standard_error": finite(PER_RISK * error)}


def _judgement(estimate: Estimate, at: str) -> str:
    """What one estimate says about M tasks, `at` some setting."""
    low, high = estimate.interval
    tasks, level, fewest = estimate.tasks, f"{100 * estimate.level:g}%", estimate.fewest_tasks
    if tasks < fewest:
        return f"Theory does not tell: {estimate.crossover.reason}."
    if estimate.heavy_tails is not None:
        return f"Theory does not tell: {estimate.heavy_tails}."
    if low == 0 and math.isinf(high):
        return (
            f"Theory ({at}) does not tell: MAML may pay from any number of tasks on; your {tasks} "
            "are too few or too alike."
        )
    interval = f"{level} interval {tasks_text(low, fewest)} to {tasks_text(high, fewest)}"
    told = estimate.ahead is not None
    start = f"Theory ({at}{'' if told else ', roughly'})"
    if estimate.ahead == "drs":
        shown = estimate.crossover if math.isfinite(estimate.crossover) else low
        number = tasks_text(shown, fewest)
        return (
            f"{start}: joint training is ahead below {number} tasks ({interval}); you have {tasks}."
        )
    # NaN: below `fewest`, where the expansion in 1/M places nothing
    number = tasks_text(estimate.crossover, fewest)
    if math.isinf(high):
        about = "about " if estimate.crossover >= fewest else ""
        pays = f"if it does, then from {about}{number} tasks on"
        if math.isinf(estimate.crossover):
            pays = "by its estimate it never does"
        return (
            f"Theory ({at}) does not tell whether MAML ever pays; {pays} ({interval}); you have "
            f"{tasks}."
        )
    pays = f"MAML pays from {number} tasks on"
    end = f"you have {tasks}" if told else f"your {tasks} are too near to tell"
    return f"{start}: {pays} ({interval}); {end}."


def tasks_text(value: float, fewest: int) -> str:
    """A number of tasks, rounded to what matters; none below `fewest`, where theory ends."""
    if math.isnan(value) or value < fewest:
        return f"fewer than {fewest}"
    if math.isinf(value):
        return "infinity"
    return f"{value:.0f}" if value < 1000 else f"{value:.2g}".replace("e+0", "e").replace("e+", "e")


def _joint(x: torch.Tensor, y: torch.Tensor, count: torch.Tensor) -> Equations:
    inputs, targets = _design(x), y.numpy()
    return drs_equations(
        inputs[:, :0], targets[:, :0], inputs, targets, count.numpy().astype(np.float64)
    )


def _maml(drawn: ep.Episodes, draws: int, rate: float, steps: int) -> Equations:
    """Each task's equations, averaged over its draws (consecutive episodes)."""
    equations = maml_equations(
        _design(drawn.support_x),
        drawn.support_y.numpy(),
        _design(drawn.query_x),
        drawn.query_y.numpy(),
        drawn.query_count.numpy().astype(np.float64),
        inner_lr=rate,
        steps=steps,
    )
    left, right = (part.reshape(-1, draws, *part.shape[1:]).mean(axis=1) for part in equations)
    return Equations(left, right)


def _design(x: torch.Tensor) -> NDArray[np.float64]:
    """Inputs with a column of ones for the bias, [..., D + 1]."""
    inputs = x.numpy()
    return np.concatenate([inputs, np.ones((*inputs.shape[:-1], 1))], axis=-1)
