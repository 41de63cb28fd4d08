"""MAML against DRS for any inner solver: targets, constants of c / M, and the crossover."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._results import Assumption, Record, quantity
from innerloop.bounds.linear.expansion import LARGE_M, SAME
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.risk import law_assumptions
from innerloop.bounds.linear.rules import (
    InnerRule,
    checked_law,
    over_tasks,
    rule_moments,
    single_count,
    spread,
)
from innerloop.bounds.linear.training import excess, joint_training, train
from innerloop.bounds.linear.validity import fewest_for_means


@dataclasses.dataclass(frozen=True)
class RuleExpansion(Record):
    """Expected excess of both methods in the risk after an inner solver, for many tasks M.

    The excess of a method is about limit + constant / M.

    Members:
        drs_target: [p], limit of the joint estimator.
        maml_target: [p], limit of the MAML estimator.
        minimiser: [p], where the risk after the test solver is smallest.
        drs_limit: excess risk of `drs_target`, the modelling error of joint training.
        maml_limit: excess risk of `maml_target`; 0 if training and test agree.
        drs: constant c of c / M for the joint estimator (pooling 2 samples rows per task).
        maml: the same for MAML.
        crossover: M above which MAML has the smaller expected excess; infinite if there is none,
            NaN if it lies below `fewest_tasks`.
        fewest_tasks: M from which the expansion is used, as `tasks_needed` explains.
        standard_error: of the numbers above that rest on random points, by name; 0 otherwise.
        averaged_by: how averages over the solver's rows were taken.
    """

    drs_target: Array
    maml_target: Array
    minimiser: Array
    drs_limit: Any
    maml_limit: Any
    drs: Any
    maml: Any
    crossover: Any
    fewest_tasks: Any
    standard_error: dict[str, Any]
    averaged_by: str

    def explain(self) -> str:
        """The two expansions and where they cross, in words."""
        lines = []
        for name, limit, constant in (
            ("joint training", self.drs_limit, self.drs),
            ("MAML", self.maml_limit, self.maml),
        ):
            if np.ndim(constant):
                lines.append(f"{name}: limits {limit}, constants {constant}")
            else:
                lines.append(f"{name}: excess risk about {limit:.6g} + {constant:.6g} / M")
        if np.ndim(self.crossover):
            lines.append(f"MAML is ahead from about these numbers of tasks on: {self.crossover}")
            lines.append(f"the expansions are used from these on: {self.fewest_tasks}")
        else:
            usual = f"MAML is ahead from about {self.crossover:.4g} tasks on"
            lines.append(self.crossover.reason or usual)
            lines.append(f"the expansions are used from {self.fewest_tasks} tasks on")
        lines.append(f"averages over the solver's rows: {self.averaged_by} (Results 8 and 9)")
        largest = {name: float(np.max(error)) for name, error in self.standard_error.items()}
        worst = max(largest, key=lambda name: largest[name])
        if largest[worst] > 0.0:
            lines.append(f"largest standard error: {largest[worst]:.2g}, of {worst}")
        return "\n".join(lines)


def rule_expansion(
    law: TaskLaw,
    rule: InnerRule,
    *,
    samples: float | None,
    split: bool = True,
    test_rule: InnerRule | None = None,
    test_samples: float | None = None,
    seed: int = 0,
) -> RuleExpansion:
    """Returns the O(1 / M) expansions of DRS and MAML for an inner solver, and their crossover.

    Args:
        law: distribution of tasks.
        rule: the inner solver of MAML's training: `GradientSteps`, `MatrixRate` or `Ridge`.
        samples: N. A task has 2 N rows: MAML adapts on N and queries N others if `split`, and uses
            all rows twice if not; DRS pools them. None for infinity.
        split: whether support and query rows are different rows.
        test_rule: the solver at test time; `rule` by default.
        test_samples: fresh support rows at test time; `samples` by default (`math.inf` for a
            solver that sees the exact risk).
        seed: of the random points, used where no exact or deterministic rule is affordable.

    Returns:
        RuleExpansion.

    Raises:
        TypeError: not a law, not a rule, not numbers.
        ValueError: N below 1; E Q, E A or E W not positive definite.

    Cost:
        One gradient step: as `expansion`, exact in any dimension. Otherwise J O(G p^3) for G nodes
        and J points: exact product rules (45 points for p = 2 and one step, 225 for two steps),
        a quadrature for p = 1, and else 16 randomisations of up to 2048 Sobol points, which carry a
        standard error.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        independent and M is large: no remainder bound. Checked: the mean weights are positive
        definite, that the crossover lies where the expansion is used, and whether averages are
        exact, which the result states.

    Source:
        Results 8 and 9 with the estimators of Results 14(a), 14(b), 15 and 16.

    >>> from innerloop.bounds.linear import published_law
    >>> from innerloop.bounds.linear import GradientSteps
    >>> found = rule_expansion(published_law(), GradientSteps(0.3), samples=5)
    >>> round(found.crossover, 6)
    32.258145
    """
    function = "rule_expansion"
    checked_law(law, function)
    for name, value in (("rule", rule), ("test_rule", test_rule or rule)):
        if not isinstance(value, InnerRule):
            raise TypeError(
                f"{function}: {name} must be GradientSteps, MatrixRate or Ridge "
                f"(got {type(value).__name__})"
            )
    rows = single_count(samples, function)
    test_rows = (
        rows if test_samples is None else single_count(test_samples, function, "test_samples")
    )
    joint = joint_training(law, 2.0 * rows, function)
    maml = train(
        law, rule, rows if split else 2.0 * rows, split=split, function=function, seed=seed
    )
    if split and test_rule is None and test_rows == rows:
        hessian, minimiser = maml.curvature, maml.target
    else:
        nodes = law.nodes()
        each = rule_moments(law, test_rule or rule, test_rows, seed=seed).hessian
        hessian = over_tasks(nodes, each)
        aimed = over_tasks(nodes, each @ nodes.theta[..., None])
        _arguments.positive_definite(hessian, function=function, name="E A", result="Result 3")
        minimiser = np.asarray(np.linalg.solve(hessian, aimed))[..., 0]
    size = float(np.abs(law.nodes().theta).max())
    joint_error, joint_constant = excess(joint, hessian, minimiser, size)
    maml_error, maml_constant = excess(maml, hessian, minimiser, size)
    numbers = {
        "drs_limit": joint_error,
        "maml_limit": maml_error,
        "drs": joint_constant,
        "maml": maml_constant,
    }
    means, errors = {}, {}
    for name, values in numbers.items():
        means[name], errors[name] = (float(x) for x in spread(values))
    gap = joint_error - maml_error
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = (maml_constant - joint_constant) / gap
    fewest = int(fewest_for_means(max(joint.dispersion, maml.dispersion)))
    crossover, reason = _crossover(means, fewest)
    errors["crossover"] = float(spread(crossings)[1]) if reason is None else 0.0
    found_by = Assumption(
        f"averages over the solver's rows: {maml.averaged_by}",
        "estimated" if len(maml.target) > 1 else "checked",
    )
    given = law_assumptions(law, LARGE_M, found_by)
    return RuleExpansion(
        drs_target=joint.target[0],
        maml_target=spread(maml.target)[0],
        minimiser=spread(minimiser)[0],
        fewest_tasks=fewest,
        crossover=quantity(
            crossover,
            name="tasks at which MAML overtakes DRS",
            source="Result 9",
            assumptions=given,
            reason=reason,
        ),
        standard_error=errors,
        averaged_by=maml.averaged_by,
        **{
            name: quantity(value, name=_NAMES[name], source="Result 8", assumptions=given)
            for name, value in means.items()
        },
    )


_NAMES = {
    "drs_limit": "excess of joint training for M to infinity",
    "maml_limit": "excess of MAML for M to infinity",
    "drs": "c of joint training in excess = limit + c / M",
    "maml": "c of MAML in excess = limit + c / M",
}


def stacked(found: list[RuleExpansion], shape: tuple[int, ...]) -> RuleExpansion:
    """Several expansions as one, its numbers arrays with leading axes `shape`."""

    def array(values: list[Any]) -> Array:
        parts = [np.asarray(value, dtype=np.float64) for value in values]
        return np.array(parts).reshape((*shape, *parts[0].shape))

    columns = {
        field.name: array([getattr(item, field.name) for item in found])
        for field in dataclasses.fields(RuleExpansion)
        if field.name not in ("standard_error", "averaged_by")
    }
    errors = {
        name: array([item.standard_error[name] for item in found])
        for name in found[0].standard_error
    }
    rules = ", ".join(sorted({item.averaged_by for item in found}))
    return RuleExpansion(**columns, standard_error=errors, averaged_by=rules)


def _crossover(means: dict[str, float], fewest: int) -> tuple[float, str | None]:
    """M* and, if it is no ordinary crossing, why."""
    gap = means["drs_limit"] - means["maml_limit"]
    extra = means["maml"] - means["drs"]
    every = f"at every number of tasks from {fewest} on"
    if abs(extra) <= SAME * (abs(means["maml"]) + abs(means["drs"])):
        extra = 0.0
    if gap == extra == 0.0:
        return math.nan, "both methods have the same error to rounding: neither is ahead"
    if gap > 0.0:
        if extra > fewest * gap:
            return extra / gap, None
        if extra > 0.0:
            return math.nan, (
                f"the crossing lies below {fewest} tasks, where Result 8 does not describe means: "
                f"MAML is ahead from {fewest} tasks on"
            )
        return 0.0, f"MAML is ahead {every}: both its terms are smaller"
    if extra >= 0.0:
        return math.inf, f"joint training is ahead {every}"
    if gap == 0.0:
        return 0.0, f"MAML is ahead {every}: the targets are equally good"
    return math.inf, (
        f"MAML's target is the worse one: MAML is ahead only below about {extra / gap:.4g} tasks"
    )
