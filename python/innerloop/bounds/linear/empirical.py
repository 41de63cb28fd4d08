"""Modelling error, statistical errors and crossover estimated from data of tasks (Result 36).

Nothing here assumes a Gaussian design: both estimators solve averages of per-task equations
W_t theta = z_t, so the spread of z_t - W_t theta over tasks gives their errors (sandwich).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from innerloop.bounds._arguments import (
    Array,
    array,
    counts,
    positive_definite,
    probability,
    scipy_module,
)
from innerloop.bounds._results import Assumption, Quantity, Record, quantity
from innerloop.bounds.linear.equations import Equations, drs_equations, maml_equations
from innerloop.bounds.linear.scores import dispersion, symmetric_inverse
from innerloop.bounds.linear.sizes import check_finite
from innerloop.bounds.linear.validity import fewest_for_means

SOURCE = "Result 36"
# More deleted groups than this cost time and hardly steady the jackknife.
MOST_GROUPS = 200
# A method is said to be ahead from this many tasks on, and so many per parameter, where M is this
# factor outside the interval: few such statements are wrong (docs/compare.md counts them).
FEWEST_TO_TELL, FEWEST_PER_PARAMETER, FAR_OUTSIDE = 20, 5, 2.0
# Tails of the tasks' curvature are heavy if the largest exceeds the median this many times, or if
# Hill's tail index of the largest tenth (of so many tasks at least) is this or less.
HEAVY_RATIO, HEAVY_INDEX = 8.0, 2.5
_FEWEST_IN_TAIL = 10

ASSUMPTIONS = (
    Assumption("tasks are drawn independently from one distribution"),
    Assumption("support and query rows of a task are independent given the task"),
    Assumption("leading order in 1/M: no bound on the remainder"),
    Assumption("the averaged equations of both methods are positive definite", "checked"),
)


@dataclasses.dataclass(frozen=True)
class Estimate(Record):
    """What the data of M tasks say about joint training (DRS) against MAML.

    Args:
        tasks: M.
        inner_lr: rate of the inner steps.
        steps: number of inner steps.
        level: coverage of `interval`.
        theta_drs: [p] ([p, K] for K outputs), the DRS estimate.
        theta_maml: the same of MAML.
        modelling_error: bias-corrected estimate; sampling can make it negative, and it is kept so.
        drs: constant c of DRS's statistical error c/M.
        maml: the same of MAML.
        crossover: number of tasks from which MAML has the lower expected excess risk; NaN with a
            reason if it, or M itself, is below `fewest_tasks`.
        fewest_tasks: number of tasks from which the expansion in 1/M is used, 5 times the
            dispersion of these tasks' equations (as `tasks_needed` explains): heavy tails raise it.
        interval: confidence interval of `crossover`; (0, inf) says nothing.
        standard_errors: jackknife standard errors of `modelling_error`, `drs` and `maml`.
        heavy_tails: why a few tasks that are not among these may decide everything; None if the
            tails of the tasks' curvature give no cause for it.
    """

    tasks: int
    inner_lr: float
    steps: int
    level: float
    theta_drs: Array
    theta_maml: Array
    modelling_error: Quantity
    drs: Quantity
    maml: Quantity
    crossover: Quantity
    fewest_tasks: int
    interval: tuple[float, float]
    standard_errors: dict[str, float]
    heavy_tails: str | None = None

    @property
    def ahead(self) -> str | None:
        """The method with the lower expected excess risk at M tasks ("drs" or "maml"), or None
        where these tasks do not tell.

        Told only for M of 20 and five per parameter or more, outside twice the interval and without
        heavy tails.
        """
        low, high = self.interval
        least = max(FEWEST_TO_TELL, FEWEST_PER_PARAMETER * len(self.theta_drs), self.fewest_tasks)
        if self.tasks < least or self.heavy_tails is not None:
            return None
        if self.tasks < low / FAR_OUTSIDE:
            return "drs"
        return "maml" if self.tasks > high * FAR_OUTSIDE else None

    def explain(self) -> str:
        """The estimates with their standard errors, the crossover and what they assume."""
        error = self.standard_errors
        count = f"{self.steps} inner step" + "s" * (self.steps > 1)
        lines = [
            f"From {self.tasks} tasks, inner rate {self.inner_lr:g}, {count} ({SOURCE}):",
            f"  modelling error of DRS  {self.modelling_error:.4g} "
            f"(standard error {error['modelling_error']:.2g})",
            f"  statistical error, DRS  {self.drs / self.tasks:.4g} = {self.drs:.4g}/M "
            f"({error['drs']:.2g})",
            f"  statistical error, MAML {self.maml / self.tasks:.4g} = {self.maml:.4g}/M "
            f"({error['maml']:.2g})",
        ]
        if self.tasks >= self.fewest_tasks:
            at, low, high = (self._shown(value) for value in (self.crossover, *self.interval))
            lines.append(
                f"  crossover M* {'' if at.startswith('below') else '= '}{at} tasks, "
                f"{100 * self.level:g}% jackknife interval {low} to {high}"
            )
        reasons = (self.modelling_error.reason, self.crossover.reason)
        lines += [f"  {reason}" for reason in (*reasons, self.heavy_tails) if reason is not None]
        names = {"drs": "DRS is ahead", "maml": "MAML is ahead", None: "neither is clearly ahead"}
        lines.append(f"  at {self.tasks} tasks {names[self.ahead]}")
        lines += [f"  {item.standing}: {item.text}" for item in ASSUMPTIONS]
        return "\n".join(lines)

    def _shown(self, tasks: float) -> str:
        """A number of tasks, or that it lies below where the expansion counts them."""
        below = math.isnan(tasks) or 0.0 < tasks < self.fewest_tasks
        return f"below {self.fewest_tasks}" if below else f"{tasks:.4g}"


def estimate(
    support_x: Any,
    support_y: Any,
    query_x: Any,
    query_y: Any,
    *,
    inner_lr: float,
    steps: int = 1,
    level: float = 0.95,
) -> Estimate:
    """Returns modelling error, statistical errors and crossover estimated from tasks' own data.

    DRS solves least squares on all rows, every task weighing the same; MAML minimises the risk of
    the query rows after the inner steps on the support rows. Add a column of ones to x for an
    intercept.

    Args:
        support_x: [M, N, p]; support_y: [M, N], or [M, N, K] for K outputs.
        query_x: [M, Q, p]; query_y: [M, Q] or [M, Q, K]. Q = N is the published protocol.
        inner_lr: rate alpha of the inner steps, any sign. The loss is half the squared error,
            averaged over outputs.
        steps: inner steps, at least 1.
        level: coverage of the crossover's interval.

    Returns:
        Estimate, in units of the risk with its factor 1/2.

    Raises:
        TypeError: an argument is not numeric.
        ValueError: shapes do not fit, values are not finite, M < p + 2, or the rows leave a
            direction of theta undetermined.

    Cost: O(M (N + Q) p^2) time, then min(M, 200) + 1 times O(M p^2) for the jackknife.

    Assumes:
        Tasks are independent and of one law; support and query rows are independent given the
        task; M is large: no remainder bound. Nothing Gaussian. Checked: the averaged equations of
        both methods are positive definite, and M and the crossover are large enough for how much
        the tasks differ.

    Source: Result 36 (sandwich covariance of M-estimators; the jackknife is over tasks, the only
        independent level; the interval is Fieller's with jackknife covariances).

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> slope = rng.uniform(0, 2, 400)
        >>> x = rng.standard_normal((400, 10)) * np.sqrt(slope)[:, None]
        >>> y = slope[:, None] * x
        >>> x = x[..., None]
        >>> found = estimate(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:], inner_lr=0.3)
        >>> bool(found.maml > found.drs > 0), 0 < found.crossover < 400
        (True, True)
    """
    function = "estimate"
    parts = _sides(function, support_x, support_y, query_x, query_y)
    rate = float(array(inner_lr, function=function, name="inner_lr", ndim=0))
    count = int(counts(steps, function=function, name="steps"))
    return from_equations(
        drs_equations(*parts),
        maml_equations(*parts, inner_lr=rate, steps=count),
        inner_lr=rate,
        steps=count,
        level=level,
        is_vector=np.ndim(support_y) == 2,
    )


def from_equations(
    drs: Equations,
    maml: Equations,
    *,
    inner_lr: float,
    steps: int,
    level: float = 0.95,
    is_vector: bool = False,
) -> Estimate:
    """Returns the `Estimate` from per-task equations, however they were averaged within a task.

    Args:
        drs, maml: equations of the same M tasks.
        inner_lr, steps, level: as for `estimate`.
        is_vector: give the parameters as [p] instead of [p, 1].
    """
    function = "estimate"
    coverage = float(probability(level, function=function, name="level"))
    tasks, size, _ = drs.right.shape
    if tasks < size + 2:
        raise ValueError(
            f"{function}: M must be at least p + 2 = {size + 2} tasks for p = {size} parameters "
            f"(got M = {tasks}); {SOURCE} needs more tasks than parameters, its jackknife one more"
        )
    groups = min(tasks, MOST_GROUPS)
    member = np.arange(tasks) % groups
    with np.errstate(over="ignore", invalid="ignore"):
        point = _point(drs, maml, np.ones(tasks))
        replicates = np.array(
            [_point(drs, maml, (member != group).astype(float))[2:] for group in range(groups)]
        )
        centred = replicates - replicates.mean(axis=0)
        covariance = centred.T @ centred * ((groups - 1) / groups)
        # The jackknife sees the slope of the squared distance, and none where the estimates agree.
        covariance[0, 0] += _curvature_variance(drs, maml)
    for part in (np.array(point[2:]), covariance):
        check_finite(part, function, "an error or its variance")
    quantile = float(
        scipy_module("special", function=function).stdtrit(groups - 1, 0.5 + coverage / 2.0)
    )
    theta_drs, theta_maml, error, drs_constant, maml_constant = point
    fewest = int(fewest_for_means(max(_dispersion(drs), _dispersion(maml))))
    spread = np.sqrt(np.diag(covariance))
    contrast = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, 0.0]])  # (c_maml - c_drs, modelling error)
    interval = crossover_interval(
        maml_constant - drs_constant, error, contrast @ covariance @ contrast.T, quantile
    )
    return Estimate(
        tasks=tasks,
        inner_lr=float(inner_lr),
        steps=int(steps),
        level=coverage,
        theta_drs=theta_drs[:, 0] if is_vector else theta_drs,
        theta_maml=theta_maml[:, 0] if is_vector else theta_maml,
        modelling_error=_number(
            error,
            "modelling error of DRS",
            None
            if error > 0
            else "the bias-corrected estimate is not positive: these tasks show no modelling "
            "error beyond its noise",
        ),
        drs=_number(drs_constant, "statistical error of DRS times M"),
        maml=_number(maml_constant, "statistical error of MAML times M"),
        crossover=_crossover(maml_constant - drs_constant, error, tasks, fewest),
        fewest_tasks=fewest,
        interval=interval,
        standard_errors=dict(zip(("modelling_error", "drs", "maml"), spread.tolist(), strict=True)),
        heavy_tails=_heavy_tails(drs),
    )


def crossover_interval(
    gap: float, error: float, covariance: Array, quantile: float
) -> tuple[float, float]:
    """Returns the numbers of tasks at which neither method is ahead beyond noise, as an interval.

    At M tasks the sign of gap - M error says which method has the lower expected excess risk; the
    interval holds every M >= 0 with |gap - M error| <= quantile standard errors (Fieller), or the
    smallest interval around them. A true modelling error is never negative: an estimate clearly
    below zero counts as zero (no crossover). A gap clearly below zero means that MAML is ahead
    from the first task: (0, 0).

    Args:
        gap: c_maml - c_drs; error: the modelling error; covariance: [2, 2] of (gap, error).
        quantile: two-sided quantile of Student's distribution.
    """
    _, exponent = math.frexp(max(abs(gap), abs(error), math.sqrt(np.abs(covariance).max())))
    gap, error = math.ldexp(gap, -exponent), math.ldexp(error, -exponent)  # of ordinary size
    covariance = np.ldexp(covariance, -2 * exponent)
    square = quantile**2
    # gap - M error is within noise where a M^2 - 2 b M + c <= 0.
    a = error**2 - square * covariance[1, 1]
    b = gap * error - square * covariance[0, 1]
    c = gap**2 - square * covariance[0, 0]
    if c > 0 and gap < 0:
        return 0.0, 0.0
    if a > 0 and error < 0:
        return (math.inf if c > 0 else 0.0), math.inf
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0:
        return max((b - root) / a, 0.0), max((b + root) / a, 0.0)
    if c <= 0:
        return 0.0, math.inf
    if a == 0:
        return (c / (2.0 * b) if b > 0 else math.inf), math.inf
    return (b - root) / a, math.inf


def _point(
    drs: Equations, maml: Equations, weight: Array
) -> tuple[Array, Array, float, float, float]:
    """Both estimates, the modelling error and both constants, from the tasks of weight one."""
    count = float(weight.sum())
    theta_drs, influence_drs, inverse = _solve("DRS", drs, weight)
    theta_maml, influence_maml, _ = _solve("MAML", maml, weight)
    hessian = np.tensordot(weight, maml.left, axes=1) / count
    outputs = drs.right.shape[2]
    free = (count - len(theta_drs)) * outputs

    def half_square(vectors: Array) -> float:
        return 0.5 * float(np.sum(vectors * (hessian @ vectors)))

    difference = theta_drs - theta_maml
    bias = -inverse @ np.mean(drs.left @ influence_drs, axis=0) * (len(weight) / count)
    constant_drs = half_square(influence_drs) / free
    constant_drs += float(np.sum(difference * (hessian @ bias))) / outputs
    constant_maml = half_square(influence_maml) / free
    error = half_square(difference) / outputs
    error -= half_square(influence_drs - influence_maml) / (free * count)
    return theta_drs, theta_maml, error, constant_drs, constant_maml


def _heavy_tails(drs: Equations) -> str | None:
    """Why tasks beyond those at hand may decide: how far their largest curvatures spread, by their
    largest over their median and by Hill's estimate of the tail index.
    """
    curvature = np.sort(np.linalg.eigvalsh(drs.left)[:, -1])[::-1]
    ratio = float(curvature[0] / max(np.median(curvature), 1e-300))
    if ratio > HEAVY_RATIO:
        return (
            f"heavy tails: one task has {ratio:.2g} times the median curvature, and may decide the "
            "averages alone"
        )
    count = len(curvature) // 10
    if count < _FEWEST_IN_TAIL or curvature[count] <= 0.0:
        return None
    index = 1.0 / max(float(np.mean(np.log(curvature[:count] / curvature[count]))), 1e-300)
    if index > HEAVY_INDEX:
        return None
    return (
        f"heavy tails: the largest curvatures of the tasks fall off like a power (index {index:.2g}"
        "), so that a few tasks decide the averages"
    )


def _curvature_variance(drs: Equations, maml: Equations) -> float:
    """The variance of half the squared length of a centred Gaussian, tr((H C / M)^2) / 2, for the
    covariance C / M of the difference of the two estimates.
    """
    every = np.ones(len(drs.left))
    tasks, size, outputs = drs.right.shape
    difference = _solve("DRS", drs, every)[1] - _solve("MAML", maml, every)[1]
    hessian = maml.left.mean(axis=0)
    flat = difference.reshape(tasks, -1)
    weighted = (hessian @ difference).reshape(tasks, -1)
    product = weighted.T @ flat / ((tasks - size) * tasks * outputs)  # [p K, p K]
    return 0.5 * float(np.sum(product * product.T))


def _solve(method: str, equations: Equations, weight: Array) -> tuple[Array, Array, Array]:
    """The estimate [p, K], each task's influence on it [M, p, K], and the inverse average [p, p].

    Tasks of weight zero have no influence.
    """
    average = np.tensordot(weight, equations.left, axes=1) / weight.sum()
    check_finite(average, "estimate", f"the average of {method}'s equations")
    left_out = "" if weight.all() else f" without task {int(np.argmin(weight))}"
    positive_definite(
        average,
        function="estimate",
        name=f"the average of {method}'s equations{left_out}",
        result=SOURCE,
    )
    inverse = np.linalg.inv(average)
    theta = inverse @ (np.tensordot(weight, equations.right, axes=1) / weight.sum())
    score = (equations.right - equations.left @ theta) * weight[:, None, None]
    return theta, inverse @ score, inverse


def _dispersion(equations: Equations) -> float:
    """How much the tasks' W scatter, as `scores.Estimator.dispersion`."""
    inverse = symmetric_inverse(equations.left.mean(axis=0))
    return dispersion((equations.left @ inverse @ equations.left).mean(axis=0), inverse)


def _crossover(gap: float, error: float, tasks: int, fewest: int) -> Quantity:
    """The number of tasks at which both expected excess risks agree."""
    name = "crossover number of tasks"
    if tasks < fewest:
        return _number(
            math.nan,
            name,
            "where tasks' equations differ as these do, the expansion in 1/M is used from "
            f"{fewest} tasks on, and there are {tasks}",
        )
    if gap <= 0:
        return _number(0.0, name, "MAML's statistical error is estimated no larger than DRS's")
    if error <= 0:
        return _number(math.inf, name, "the estimated modelling error of DRS is not positive")
    if gap < fewest * error:
        return _number(
            math.nan,
            name,
            f"the estimate lies below the {fewest} tasks from which the expansion in 1/M is used",
        )
    return _number(gap / error, name)


def _number(value: float, name: str, reason: str | None = None) -> Quantity:
    made = quantity(
        value, name=name, source=SOURCE, assumptions=ASSUMPTIONS, reason=reason, standing="plug-in"
    )
    assert isinstance(made, Quantity)
    return made


def _sides(function: str, *values: Any) -> tuple[Array, Array, Array, Array]:
    """The four arrays as x [M, rows, p] and y [M, rows, K], checked against each other."""
    names = ("support_x", "support_y", "query_x", "query_y")
    arrays = [
        array(value, function=function, name=name)
        for name, value in zip(names, values, strict=True)
    ]
    first, outputs = arrays[0], arrays[1]
    for position, (name, made) in enumerate(zip(names, arrays, strict=True)):
        if position % 2 == 0:
            fits = made.ndim == 3 and made.shape[2] == first.shape[-1] and made.shape[1] > 0
            wanted = "[M, rows, p]"
        else:
            beside = arrays[position - 1].shape
            fits = made.ndim == outputs.ndim in (2, 3) and made.shape[:2] == beside[:2]
            fits = fits and made.shape[2:] == outputs.shape[2:]
            wanted = f"[M, rows] or [M, rows, K] like {names[position - 1]}"
        if not fits or len(made) != len(first) or made.size == 0:
            raise ValueError(
                f"{function}: {name} must have shape {wanted}, with the same M, p and K in all "
                f"four arrays (got {tuple(a.shape for a in arrays)})"
            )
    shaped = [made[..., None] if made.ndim == 2 else made for made in arrays]
    return shaped[0], shaped[1], shaped[2], shaped[3]
