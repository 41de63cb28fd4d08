"""Expected excess risk of both estimators to order 1 / M, and the number of tasks where they cross.

M is the number of training tasks throughout.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._quantities import hands_on
from innerloop.bounds._results import Assumption, Record, quantity
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.risk import check_some, law_assumptions, population, rate_and_samples
from innerloop.bounds.linear.scores import Estimator, estimators
from innerloop.bounds.linear.validity import fewest_for_means

LARGE_M = Assumption("the number of tasks is large (no remainder bound)")
SAME = 1e-12  # constants that differ by less of their size differ by rounding


@dataclasses.dataclass(frozen=True)
class Expansion(Record):
    """Excess risk = limit + c / M + o(1 / M) for both methods, in the post-update test risk.

    Quantities for one rate and N, arrays over their broadcast otherwise.

    Members:
        drs, maml: the constants c.
        drs_limit, maml_limit: the limits for M to infinity. The first is the modelling error; the
            second is 0 unless training and test differ in rate or samples.
        drs_bias, maml_bias: [..., p], b in E[estimate - target] = b / M + ...
        fewest_tasks: M from which c / M is within a factor of two of the exact mean, usually within
            a fifth (`tasks_needed`).
    """

    drs: Any
    maml: Any
    drs_limit: Any
    maml_limit: Any
    drs_bias: Array
    maml_bias: Array
    fewest_tasks: Array

    def at(self, tasks: Any) -> tuple[Array, Array]:
        """The expansion at M tasks, (joint, MAML); `tasks` broadcasts with the grid.

        Raises:
            ValueError: M below `fewest_tasks`, where the exact mean is another or infinite.
        """
        m = _arguments.counts(tasks, function="Expansion.at", name="tasks")
        few = np.broadcast_arrays(m < self.fewest_tasks, m, self.fewest_tasks)
        if few[0].any():
            place = int(np.argmax(few[0]))
            raise ValueError(
                f"Expansion.at: tasks must be at least {few[2].flat[place]:g} here "
                f"(got {few[1].flat[place]:g}); for fewer, Result 8 does not describe means, and "
                "exact_probability_drs_worse says who wins"
            )
        return (
            np.asarray(self.drs_limit + np.asarray(self.drs) / m),
            np.asarray(self.maml_limit + np.asarray(self.maml) / m),
        )

    def explain(self) -> str:
        """Both expansions in words."""
        lines = []
        for name, limit, constant in (
            ("joint training", self.drs_limit, self.drs),
            ("MAML", self.maml_limit, self.maml),
        ):
            if np.ndim(constant) == 0:
                lines.append(f"{name}: excess risk about {limit:.6g} + {constant:.6g} / M")
            else:
                lines.append(f"{name}: limits {limit}, constants {constant}")
        fewest = np.array2string(np.asarray(self.fewest_tasks))
        lines.append(f"(Result 8; used from M = {fewest} on)")
        return "\n".join(lines)


@hands_on
def expansion(
    law: TaskLaw,
    *,
    inner_lr: Any,
    samples: Any = None,
    test_inner_lr: Any = None,
    test_samples: Any = None,
) -> Expansion:
    """Returns the O(1 / M) expansion of the expected post-update excess risk of both methods.

    Args:
        law: the task law.
        inner_lr, samples: MAML's training rate and N; the joint estimator pools 2 N samples a task.
        test_inner_lr, test_samples: of the test risk; None for the same as in training
            (`math.inf` for a population step at test). All broadcast.

    Raises:
        TypeError: not real numbers.
        ValueError: E Q or E A (training or test) is not positive definite, N below 1, NaN.

    Cost:
        O(G p^3) per training pair of rate and samples, kept for the life of the law.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        independent and M is large: no remainder bound. Checked: E Q and E A are positive definite;
        `fewest_tasks` says what large means here.

    Source:
        Result 8 (this project's own: sandwich covariance and second-order bias).

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> found = linear.expansion(law, inner_lr=0.3, samples=5)
    >>> round(found.drs, 6), round(found.maml, 6)
    (0.069249, 0.225316)
    """
    rate, count = rate_and_samples(inner_lr, samples, "expansion")
    test_rate, test_count = _test_side(rate, count, test_inner_lr, test_samples, "expansion")
    sides = np.broadcast_arrays(rate, count, test_rate, test_count)
    rows = [
        _at_point(law, *(float(side[index]) for side in sides))
        for index in np.ndindex(sides[0].shape)
    ]
    columns = [
        np.array(column).reshape((*sides[0].shape, *np.shape(column[0])))
        for column in zip(*rows, strict=True)
    ]
    assumptions = law_assumptions(law, LARGE_M)
    names = (
        "c of joint training in excess = limit + c / M",
        "c of MAML in excess = limit + c / M",
        "excess of joint training for M to infinity",
        "excess of MAML for M to infinity",
    )
    drs, maml, drs_limit, maml_limit = (
        quantity(column, name=name, source="Result 8", assumptions=assumptions)
        for column, name in zip(columns[:4], names, strict=True)
    )
    fewest = fewest_for_means(columns[6])
    return Expansion(drs, maml, drs_limit, maml_limit, columns[4], columns[5], fewest)


@hands_on
def crossover(law: TaskLaw, *, inner_lr: Any, samples: Any = None) -> Any:
    """Returns M*, the number of tasks below which joint training has the smaller expected excess.

    Args:
        law: the task law.
        inner_lr, samples: as for `expansion`; training and test agree. Arrays broadcast.

    Returns:
        Quantity or float64 array. Where `.reason` says so: infinite if joint training wins for
        every M that Result 8 describes (no modelling error), 0 if MAML does, and NaN if the
        crossing lies below the number of tasks from which it describes means (`tasks_needed`), or
        if both constants agree to rounding.

    Raises:
        TypeError: not real numbers.
        ValueError: E Q or E A is not positive definite (Result 3), N below 1, NaN.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        independent and M is large: no remainder bound. Checked: E Q and E A are positive definite,
        and that the crossing lies where the expansion is used.

    Source:
        Result 9 (this project's own).

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> round(linear.crossover(law, inner_lr=0.3, samples=5), 3)
    32.258
    """
    rate, count = rate_and_samples(inner_lr, samples, "crossover")
    found = expansion(law, inner_lr=rate, samples=count)
    gap = np.asarray(found.drs_limit, dtype=np.float64)
    drs, maml = (np.asarray(c, dtype=np.float64) for c in (found.drs, found.maml))
    value = crossing(maml - drs, gap, np.abs(maml) + np.abs(drs), found.fewest_tasks)
    reason = None
    if value.ndim == 0:
        reason = _reason(float(value), float(gap), int(found.fewest_tasks))
    return quantity(
        value,
        name="crossover number of tasks M*",
        source="Result 9",
        assumptions=law_assumptions(law, LARGE_M),
        reason=reason,
    )


def crossing(extra: Array, gap: Array, size: Array, fewest: Array) -> Array:
    """M* = extra / gap where Result 8 describes it, else as `crossover` says.

    Args:
        extra: MAML's constant less joint training's; size: the sum of their sizes.
        gap: joint training's limit less MAML's, not negative.
        fewest: tasks from which the expansion is used.
    """
    same = np.abs(extra) <= SAME * size
    value = np.where(gap > 0.0, extra / np.where(gap > 0.0, gap, 1.0), np.inf)
    value = np.where(extra <= 0.0, 0.0, np.where(value < fewest, np.nan, value))
    return np.where(same, np.where(gap > 0.0, 0.0, np.nan), value)


def _reason(value: float, gap: float, fewest: int) -> str | None:
    """Why a crossover is no ordinary one."""
    alternative = "exact_probability_drs_worse says who wins there"
    if math.isinf(value):
        return "joint training has no modelling error here, so MAML's larger variance decides"
    if value == 0.0:
        return (
            "MAML's statistical error is no larger, so it wins at every number of tasks from "
            f"{fewest} on; for fewer, {alternative}"
        )
    if math.isnan(value) and gap > 0.0:
        return (
            f"the crossing lies below {fewest} tasks, where Result 8 does not describe means: MAML "
            f"wins from {fewest} tasks on; for fewer, {alternative}"
        )
    if math.isnan(value):
        return "both methods have the same error to rounding: neither wins"
    return None


def _test_side(
    rate: Array, count: Array, test_inner_lr: Any, test_samples: Any, function: str
) -> tuple[Array, Array]:
    """Rate and N of the test risk; those of training where nothing is given."""
    if test_inner_lr is not None:
        rate = sizes.array(test_inner_lr, function=function, name="test_inner_lr")
    if test_samples is not None:
        count = _arguments.counts(test_samples, function=function, name="test_samples", none=np.inf)
    check_some(rate, function, "test_inner_lr")
    check_some(count, function, "test_samples")
    return rate, count


def _at_point(
    law: TaskLaw, rate: float, samples: float, test_rate: float, test_samples: float
) -> tuple[Any, ...]:
    """c of both methods, limits of both, biases of both, the dispersion of the weights."""
    found = estimators(law, rate, samples, "expansion")
    test = population(law, np.asarray(test_rate), np.asarray(test_samples), "expansion")
    same = (rate, samples) == (test_rate, test_samples)
    offsets = (
        test.offset,
        np.zeros(law.p) if same else found.maml.target - test.maml,
    )
    constants = [
        _constant(estimator, test.curvature, offset)
        for estimator, offset in zip((found.drs, found.maml), offsets, strict=True)
    ]
    # The slope of the test objective at the joint minimiser is exact for small rates.
    limits = [0.5 * test.slope @ offsets[0], 0.5 * offsets[1] @ test.curvature @ offsets[1]]
    dispersion = max(found.drs.dispersion, found.maml.dispersion)
    return (*constants, *limits, found.drs.bias, found.maml.bias, dispersion)


def _constant(estimator: Estimator, hessian: Array, offset: Array) -> float:
    """c = tr(H Sigma) / 2 + D' H b."""
    spread = 0.5 * np.trace(hessian @ estimator.covariance)
    return float(spread + offset @ hessian @ estimator.bias)
