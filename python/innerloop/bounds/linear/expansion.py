"""Expected excess risk of both estimators to order 1 / M, and the number of tasks where they cross.

M is the number of training tasks throughout.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._results import Assumption, Record, quantity
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.risk import law_assumptions, population, rate_and_samples
from innerloop.bounds.linear.scores import Estimator, estimators

LARGE_M = Assumption("the number of tasks is large (no remainder bound)")


@dataclasses.dataclass(frozen=True)
class Expansion(Record):
    """Excess risk = limit + c / M + o(1 / M) for both methods, in the post-update test risk.

    Quantities for one rate and N, arrays over their broadcast otherwise.

    Members:
        drs, maml: the constants c.
        drs_limit, maml_limit: the limits for M to infinity. The first is the modelling error; the
            second is 0 unless training and test differ in rate or samples.
        drs_bias, maml_bias: [..., p], b in E[estimate - target] = b / M + ...
    """

    drs: Any
    maml: Any
    drs_limit: Any
    maml_limit: Any
    drs_bias: Array
    maml_bias: Array

    def at(self, tasks: Any) -> tuple[Array, Array]:
        """The expansion at M tasks, (joint, MAML); `tasks` broadcasts with the grid."""
        m = _arguments.counts(tasks, function="Expansion.at", name="tasks")
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
        lines.append("(Result 8: the mean of the limit law; the true mean may be infinite for few")
        lines.append("tasks, Result 13)")
        return "\n".join(lines)


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
        independent and M is large: no remainder bound. Checked: E Q and E A are positive definite.

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
    return Expansion(drs, maml, drs_limit, maml_limit, columns[4], columns[5])


def crossover(law: TaskLaw, *, inner_lr: Any, samples: Any = None) -> Any:
    """Returns M*, the number of tasks below which joint training has the smaller expected excess.

    Args:
        law: the task law.
        inner_lr, samples: as for `expansion`; training and test agree. Arrays broadcast.

    Returns:
        Quantity or float64 array: infinite if joint training wins for every M (no modelling error),
        0 if MAML does; `.reason` says so.

    Raises:
        TypeError: not real numbers.
        ValueError: E Q or E A is not positive definite (Result 3), N below 1, NaN.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        independent and M is large: no remainder bound. Checked: E Q and E A are positive definite.

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
    extra = np.asarray(found.maml, dtype=np.float64) - np.asarray(found.drs, dtype=np.float64)
    never = (gap <= 0.0) & (extra > 0.0)
    always = extra <= 0.0
    value = np.where(never, np.inf, np.where(always, 0.0, extra / np.where(gap > 0.0, gap, 1.0)))
    reason = None
    if value.ndim == 0:
        if never:
            reason = "joint training has no modelling error here, so MAML's larger variance decides"
        elif always:
            reason = "MAML's statistical error is no larger, so it wins at every number of tasks"
    return quantity(
        value,
        name="crossover number of tasks M*",
        source="Result 9",
        assumptions=law_assumptions(law, LARGE_M),
        reason=reason,
    )


def _test_side(
    rate: Array, count: Array, test_inner_lr: Any, test_samples: Any, function: str
) -> tuple[Array, Array]:
    """Rate and N of the test risk; those of training where nothing is given."""
    if test_inner_lr is not None:
        rate = _arguments.array(test_inner_lr, function=function, name="test_inner_lr")
    if test_samples is not None:
        count = _arguments.counts(test_samples, function=function, name="test_samples", none=np.inf)
    return rate, count


def _at_point(
    law: TaskLaw, rate: float, samples: float, test_rate: float, test_samples: float
) -> tuple[Any, ...]:
    """c of both methods, limits of both, biases of both."""
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
    return (*constants, *limits, found.drs.bias, found.maml.bias)


def _constant(estimator: Estimator, hessian: Array, offset: Array) -> float:
    """c = tr(H Sigma) / 2 + D' H b."""
    spread = 0.5 * np.trace(hessian @ estimator.covariance)
    return float(spread + offset @ hessian @ estimator.bias)
