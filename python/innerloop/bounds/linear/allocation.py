"""How to spend a fixed number of labels: many tasks with few rows, or few with many (Result 20)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._results import Record, quantity
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.expansion import LARGE_M
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.risk import law_assumptions
from innerloop.bounds.linear.rules import GradientSteps, checked_law, over_tasks, rule_moments
from innerloop.bounds.linear.training import excess, joint_training, train
from innerloop.bounds.linear.validity import fewest_for_means

# The default candidates leave at least this many tasks: the excess is an expansion in 1 / tasks.
_FEWEST_TASKS = 20


@dataclasses.dataclass(frozen=True)
class Allocation(Record):
    """Predicted excess risk for each way of spending the labels.

    Members:
        rows: [C], labels per task (2 N for MAML).
        tasks: [C], budget / rows.
        excess: [C], modelling_error + constant / tasks; NaN where `tasks` is below `fewest_tasks`.
        modelling_error: [C], excess risk of the estimator's limit.
        constant: [C], c of c / tasks.
        fewest_tasks: [C], tasks from which the expansion is used, as `tasks_needed` explains.
        best_rows: the entry of `rows` with the lowest excess.
        best_tasks: whole tasks that the budget pays for there.
        best_excess: the excess there.
    """

    rows: Array
    tasks: Array
    excess: Array
    modelling_error: Array
    constant: Array
    fewest_tasks: Array
    best_rows: int
    best_tasks: int
    best_excess: Any

    def explain(self) -> str:
        """The best way in words."""
        return (
            f"{self.best_tasks} tasks of {self.best_rows} labels are predicted to be best: "
            f"excess risk {self.best_excess:.5g} (Result 20)"
        )


def allocate_labels(
    law: TaskLaw,
    budget: float,
    *,
    inner_lr: float,
    test_inner_lr: float,
    test_samples: int | None = None,
    method: Literal["maml", "drs"] = "maml",
    rows: Any = None,
) -> Allocation:
    """Returns the predicted excess risk of every way to divide a label budget, and the best one.

    Args:
        law: distribution of tasks.
        budget: number of labels in all; rows per task times tasks.
        inner_lr: alpha of MAML's training (not used by "drs").
        test_inner_lr: alpha of the inner step at test time; 0 measures the risk before it.
        test_samples: its support rows; None for the population step.
        method: "maml" (half of a task's rows support, half query) or "drs" (all pooled).
        rows: [C] whole numbers, candidate rows per task (even for "maml"). By default every
            number up to 40, then steps of a tenth, as long as 20 tasks remain. Only those that
            leave enough tasks for the expansion compete.

    Returns:
        Allocation.

    Raises:
        TypeError: not a law or not numbers.
        ValueError: an unknown method, odd rows for "maml", fewer than one task, a budget too small
            for the default candidates or for the expansion, a curvature that is not positive
            definite (Result 3).

    Cost:
        One expansion per candidate, O(G p^3) each for G nodes of the law.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        independent and M is large: no remainder bound. Checked: the budget pays for the
        divisions and for tasks enough, and E A is positive definite.

    Source:
        Result 20; Cioba et al. 2021 study the question and report an interior optimum.

    >>> from innerloop.bounds.linear import centroid_law
    >>> law = centroid_law([[1.0, 0.0], [0.0, 1.0]], tau2=0.8, sigma2=0.7)
    >>> found = allocate_labels(law, 6000, inner_lr=0.5, test_inner_lr=0.0)
    >>> found.best_rows, found.best_tasks
    (6, 1000)
    """
    function = "allocate_labels"
    checked_law(law, function)
    if method not in ("maml", "drs"):
        raise ValueError(f"{function}: method must be 'maml' or 'drs' (got {method!r})")
    labels = float(
        sizes.array(budget, function=function, name="budget", ndim=0, largest=_arguments.MOST)
    )
    candidates = _candidates(rows, labels, even=method == "maml")
    test_rows = _arguments.counts(test_samples, function=function, name="test_samples", none=np.inf)
    nodes = law.nodes()
    test = rule_moments(law, GradientSteps(test_inner_lr), float(test_rows)).hessian
    hessian = over_tasks(nodes, test)
    _arguments.positive_definite(hessian, function=function, name="E A", result="Result 3")
    aimed = over_tasks(nodes, test @ nodes.theta[..., None])
    minimiser = np.asarray(np.linalg.solve(hessian, aimed))[..., 0]
    size = float(np.abs(nodes.theta).max())
    errors, constants, fewest = np.empty((3, len(candidates)))
    for index, count in enumerate(candidates):
        if method == "maml":
            rule = GradientSteps(inner_lr)
            trained = train(law, rule, count / 2.0, split=True, function=function)
        else:
            trained = joint_training(law, count, function)
        error, constant = excess(trained, hessian, minimiser, size)
        errors[index], constants[index] = error[0], constant[0]
        fewest[index] = fewest_for_means(trained.dispersion)
    tasks = labels / candidates
    total = np.where(tasks >= fewest, errors + constants / tasks, np.nan)
    if np.isnan(total).all():
        raise ValueError(
            f"{function}: budget must pay for the {fewest.min():g} tasks or more from which the "
            f"expansion in 1 / tasks is used (got {labels:g} labels); for fewer, compare "
            "exact_probability_drs_worse"
        )
    best = int(np.nanargmin(total))
    return Allocation(
        rows=candidates,
        tasks=tasks,
        excess=total,
        modelling_error=errors,
        constant=constants,
        fewest_tasks=fewest,
        best_rows=int(candidates[best]),
        best_tasks=int(tasks[best]),
        best_excess=quantity(
            total[best],
            name="predicted excess risk of the best allocation",
            source="Result 20",
            assumptions=law_assumptions(law, LARGE_M),
        ),
    )


def _candidates(rows: Any, labels: float, *, even: bool) -> Array:
    """Rows per task to try, as whole numbers in float64."""
    function = "allocate_labels"
    step = 2.0 if even else 1.0
    if rows is None:
        found, last = [], step
        while labels / last >= _FEWEST_TASKS:
            found.append(last)
            last = max(last + step, step * np.floor(1.1 * last / step) if last >= 40.0 else 0.0)
        if not found:
            raise ValueError(
                f"{function}: budget must pay for {_FEWEST_TASKS} tasks of {step:g} labels "
                f"(got {labels:g}); name rows to try fewer tasks"
            )
        return np.array(found)
    made = _arguments.counts(rows, function=function, name="rows").reshape(-1)
    if not made.size or (even and (made % 2.0 != 0.0).any()):
        raise ValueError(
            f"{function}: rows must be even for method 'maml': half support, half query "
            f"(got {made.tolist()})"
        )
    if (labels < made).any():
        raise ValueError(
            f"{function}: budget must pay for one task (got {labels:g} for {made.max():g} rows)"
        )
    return made
