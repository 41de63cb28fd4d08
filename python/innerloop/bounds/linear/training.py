"""Training through an inner solver: targets, score covariances and second-order bias.

The meta-estimator is (sum W_t)^-1 sum z_t, with scores psi_t = z_t - W_t theta* of mean zero
(Result 6). Split data: the solver sees N support rows and the loss N query rows; W = S' Qh_2 S and
psi = S' (Qh_2 v + e_2) with v = S delta - T e_1. Whole data: the same rows serve twice;
W = S' Qh S and psi = W delta + S' (I - Qh T) e. Averages over query rows and noise are taken in
closed form, those over the solver's rows by `designs`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds.linear.averages import Averages, averages
from innerloop.bounds.linear.designs import Designs
from innerloop.bounds.linear.laws import Nodes, TaskLaw
from innerloop.bounds.linear.quadratic import post_update
from innerloop.bounds.linear.rules import (
    GradientSteps,
    InnerRule,
    each_block,
    mean,
    over_tasks,
    rule_designs,
)
from innerloop.bounds.linear.scores import Estimator, dispersion, estimators


class Training(NamedTuple):
    """What the expansion of the excess risk needs to know of an estimator (Result 8).

    The leading axis B holds independent randomisations of the averages over designs; it is 1 when
    these averages are deterministic.

    Members:
        target: [B, p], the limit theta* of the estimator for many tasks.
        curvature: [B, p, p], E W.
        scores: [B, p, p], covariance of psi.
        shift: [B, p], b: theta* + b / M is the mean of the estimator's limit law to that order.
        dispersion: of W, as `scores.Estimator` has it.
        averaged_by: how the averages over designs were taken.
    """

    target: Array
    curvature: Array
    scores: Array
    shift: Array
    dispersion: float
    averaged_by: str


def train(
    law: TaskLaw, rule: InnerRule, rows: float, *, split: bool, function: str, seed: int = 0
) -> Training:
    """The constants of training through `rule`.

    One gradient step goes by the Wick rule, exactly in any dimension; the rest by `designs`.

    Args:
        law: distribution of tasks.
        rule: the inner solver.
        rows: N support and N query rows if `split`, else all rows of a task.
        split: whether the solver and the loss see different rows.
        function: the public function, for messages.
        seed: of the random points, where such are used.

    Raises:
        ValueError: E W is not positive definite, so the estimator has no limit.
    """
    if isinstance(rule, GradientSteps) and rule.steps <= 1:
        rule.smallest(post_update(law).largest, law.p, rows)
        alpha = float(rule.inner_lr) * int(rule.steps)
        if split:
            return _training(estimators(law, alpha, rows, function).maml)
        return _whole_step(averages(law), alpha, rows, function)
    nodes = law.nodes()
    solves, extra = (4, 0) if split else (4, 2)
    points = rule_designs(rule, nodes.Q, rows, solves=solves, extra=extra, seed=seed)
    each = _curvatures(nodes, rule, points, split)  # [B, G, p, p]
    aimed = over_tasks(nodes, (each @ nodes.theta[..., None])[..., 0])
    curvature, inverse, target = _target(over_tasks(nodes, each), aimed, function)
    offset = nodes.theta - target[:, None]  # [B, G, p]
    scores, second = _scores(nodes, rule, points, split, offset, inverse)
    pull = over_tasks(nodes, second @ offset[..., None])
    scatter = dispersion(over_tasks(nodes, second).mean(axis=0), inverse.mean(axis=0))
    return Training(
        target,
        curvature,
        over_tasks(nodes, scores),
        -(inverse @ pull)[..., 0],
        scatter,
        points.rule,
    )


def joint_training(law: TaskLaw, rows: float, function: str) -> Training:
    """The constants of DRS, which pools `rows` rows per task."""
    return _training(estimators(law, 0.0, rows / 2.0, function).drs)


def sandwich(training: Training) -> Array:
    """[B, p, p], the covariance of sqrt(M) (estimate - target) in the limit of many tasks."""
    inverse = np.linalg.inv(training.curvature)
    return np.asarray(inverse @ training.scores @ inverse)


def excess(
    training: Training, hessian: Array, minimiser: Array, size: float
) -> tuple[Array, Array]:
    """The two terms of Result 8 for a quadratic risk: (error of the target [B], c [B] of c / M).

    Args:
        training: the estimator.
        hessian: [B, p, p], H of the risk.
        minimiser: [B, p], where the risk is smallest.
        size: of the tasks' theta, to tell a distance from rounding.
    """
    gap = training.target - minimiser
    rounding = 64.0 * np.finfo(np.float64).eps * size * np.linalg.cond(hessian)[:, None]
    gap = np.where(np.abs(gap) <= rounding, 0.0, gap)
    pull = (hessian @ gap[..., None])[..., 0]
    spread = np.trace(hessian @ sandwich(training), axis1=-2, axis2=-1)
    return 0.5 * (gap * pull).sum(-1), 0.5 * spread + (pull * training.shift).sum(-1)


def _target(curvature: Array, aimed: Array, function: str) -> tuple[Array, Array, Array]:
    """E W [B, p, p] itself, its inverse, and theta* = (E W)^-1 E z [B, p]."""
    _arguments.positive_definite(
        curvature, function=function, name="the mean curvature E W of MAML", result="Result 3"
    )
    inverse = np.asarray(np.linalg.inv(curvature))
    return curvature, inverse, (inverse @ aimed[..., None])[..., 0]


def _whole_step(law: Averages, alpha: float, rows: float, function: str) -> Training:
    """`train` for one gradient step without a split: words of at most six factors."""
    each = law.each({"ShS": 1.0}, alpha, rows)
    aimed = np.einsum("g,gij,gj->i", law.weights, each, law.theta)
    each_mean = np.tensordot(law.weights, each, 1)
    curvature, inverse, target = _target(each_mean[None], aimed[None], function)
    offset = law.theta - target
    second = {"ShSBShS": 1.0}
    scores = law.matrix({"SShSS": 1.0}, alpha, rows, law.sigma2 / rows)
    scores = scores + law.outer(second, alpha, rows, offset, offset)
    pull = law.sandwich_times(second, alpha, rows, inverse[0], offset)
    scatter = dispersion(law.sandwich(second, alpha, rows, inverse[0]), inverse[0])
    return Training(target, curvature, scores[None], -inverse @ pull, scatter, "Wick rule")


def _training(found: Estimator) -> Training:
    """The constants that Results 6-8 give, in the form used here."""
    return Training(
        found.target[None],
        found.weight[None],
        found.score[None],
        found.bias[None],
        found.dispersion,
        "Wick rule",
    )


def _curvatures(nodes: Nodes, rule: InnerRule, points: Designs, split: bool) -> Array:
    """E[W | task], [B, G, p, p]."""
    result = np.empty((len(points.values), *nodes.Q.shape))
    for b, part, design in each_block(nodes.Q, points):
        keep = rule.maps(design).keep
        inside = nodes.Q[part, None] if split else design
        result[b, part] = mean(points, keep.swapaxes(-1, -2) @ inside @ keep)
    return result


def _scores(
    nodes: Nodes, rule: InnerRule, points: Designs, split: bool, offset: Array, inverse: Array
) -> tuple[Array, Array]:
    """E[psi psi' | task] and E[W (E W)^-1 W | task], [B, G, p, p] each.

    offset: [B, G, p], theta_t - theta*. inverse: [B, p, p], (E W)^-1.
    """
    scores = np.empty((len(points.values), *nodes.Q.shape))
    second = np.empty_like(scores)
    for b, part, design in each_block(nodes.Q, points):
        transfer, keep, residual = rule.maps(design)
        turned = keep.swapaxes(-1, -2)
        delta = offset[b, part]
        outer = (delta[:, :, None] * delta[:, None, :])[:, None]  # [g, 1, p, p]
        noise = nodes.sigma2[part, None, None, None] / points.samples
        if split:
            q = nodes.Q[part, None]
            moved = keep @ outer @ turned + noise * transfer @ design @ transfer.swapaxes(-1, -2)
            mixed = keep @ inverse[b] @ turned
            scores[b, part] = mean(points, turned @ (_query(q, moved, points) + noise * q) @ keep)
            second[b, part] = mean(points, turned @ _query(q, mixed, points) @ keep)
        else:
            weight = turned @ design @ keep
            left = turned @ residual
            heard = noise * left @ design @ left.swapaxes(-1, -2)
            scores[b, part] = mean(points, weight @ outer @ weight + heard)
            second[b, part] = mean(points, weight @ inverse[b] @ weight)
    return scores, second


def _query(q: Array, inner: Array, points: Designs) -> Array:
    """E[Qh_2 B Qh_2] over N query rows, for symmetric B (Result 1)."""
    traces = np.trace(inner @ q, axis1=-2, axis2=-1)[..., None, None]
    straight = q @ inner @ q
    return np.asarray(straight + (straight + traces * q) / points.samples)
