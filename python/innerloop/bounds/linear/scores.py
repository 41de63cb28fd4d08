"""Exact covariances of the per-task scores of joint training and MAML (Result 7).

Both estimators solve sum_t (W_t theta - z_t) = 0; the score psi = z - W theta* has mean zero, and
estimate - theta* = (mean W)^-1 (mean psi). `word` names are explained at `wick.reduce_word`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from innerloop.bounds._arguments import Array
from innerloop.bounds._results import Record
from innerloop.bounds.linear.averages import averages
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.quadratic import post_update
from innerloop.bounds.linear.risk import population, rate_and_samples


@dataclasses.dataclass(frozen=True)
class Scores(Record):
    """Second moments of the scores of one task, over a broadcast of rates and samples.

    Members:
        drs: [..., p, p], of the joint estimator (n = 2 N samples).
        maml: [..., p, p], of MAML (N support and N query samples).
        cross: [..., p, p], E[psi_drs psi_maml'] when both see the same 2 N samples, the first N of
            which are MAML's support.
    """

    drs: Array
    maml: Array
    cross: Array

    def explain(self) -> str:
        """The three matrices."""
        rows = (("joint", self.drs), ("MAML", self.maml), ("joint x MAML", self.cross))
        return "\n".join(
            [f"score covariance, {name}:\n{np.array2string(m, precision=6)}" for name, m in rows]
            + ["(Result 7)"]
        )


def score_covariances(law: TaskLaw, *, inner_lr: Any, samples: Any = None) -> Scores:
    """Returns the exact covariances of the scores of joint training and MAML, and their cross term.

    Args:
        law: the task law.
        inner_lr: MAML's training rate, any sign.
        samples: N per side (the joint estimator pools 2 N); None for infinity. Arrays broadcast.

    Raises:
        TypeError: not real numbers.
        ValueError: E Q or E A is not positive definite (Result 3), N below 1, NaN.

    Cost:
        O(G p^3) per pair of rate and samples, kept for the life of the law.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Support and query
        are independent given the task. Checked: E Q and E A are positive definite.

    Source:
        Result 7 (this project's own; Wick moments up to order 4).

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> scores = linear.score_covariances(law, inner_lr=0.3, samples=5)
    >>> round(float(scores.drs[0, 0]), 6)
    0.384444
    """
    rate, count = rate_and_samples(inner_lr, samples, "score_covariances")
    parts = grid(rate, count, lambda a, n: estimators(law, a, n, "score_covariances"))
    return Scores(
        stacked(parts, lambda e: e.drs.score),
        stacked(parts, lambda e: e.maml.score),
        stacked(parts, lambda e: e.cross),
    )


@dataclasses.dataclass(frozen=True)
class Estimator:
    """What the asymptotics of one estimator need.

    Members:
        target: [p], its limit for many tasks.
        weight: [p, p], E W.
        score: [p, p], E[psi psi'].
        bias: [p], b in E[estimate - target] = b / M + ...
        dispersion: norm of (E W)^(-1/2) E[W (E W)^-1 W] (E W)^(-1/2), at least 1: what a mean over
            M tasks of W scatters by, relative to E W, is the root of (dispersion - 1) / M.
    """

    target: Array
    weight: Array
    score: Array
    bias: Array
    dispersion: float

    @property
    def covariance(self) -> Array:
        """[p, p], of sqrt(M) (estimate - target) in the limit."""
        inverse = np.linalg.inv(self.weight)
        return np.asarray(inverse @ self.score @ inverse)


@dataclasses.dataclass(frozen=True)
class Estimators:
    """Both estimators at one rate and N, and E[psi_drs psi_maml']."""

    drs: Estimator
    maml: Estimator
    cross: Array

    @property
    def cross_covariance(self) -> Array:
        """[p, p], of the two estimates times M in the limit, joint x MAML."""
        return np.asarray(
            np.linalg.solve(self.drs.weight, self.cross) @ np.linalg.inv(self.maml.weight)
        )


def estimators(law: TaskLaw, rate: float, samples: float, function: str) -> Estimators:
    """Both estimators at one rate and N; kept for the life of the law."""
    return averages(law).kept(
        ("estimators", rate, samples), lambda: _estimators(law, rate, samples, function)
    )


def _estimators(law: TaskLaw, rate: float, samples: float, function: str) -> Estimators:
    """What `estimators` keeps."""
    tasks = averages(law)
    found = population(law, np.asarray(rate), np.asarray(samples), function)
    joint = tasks.kept(("drs", samples), lambda: _drs(law, 2.0 * samples, found.drs))
    maml = _maml(law, rate, samples, found.curvature, found.maml)
    noise = tasks.sigma2
    cross = 0.5 * tasks.outer(
        {"hBSQS": 1.0, "QBSQS": 1.0, "QSbQS": 1.0 / samples, "QS|BSQ": 1.0 / samples},
        rate,
        samples,
        tasks.theta - found.drs,
        tasks.theta - found.maml,
    )
    cross += tasks.matrix({"hQS": -0.5 * rate / samples, "QS": 0.5 / samples}, rate, samples, noise)
    return Estimators(joint, maml, cross)


def joint_words() -> dict[str, float]:
    """E[W B W] of the joint estimator's weight W = Qh (all n samples)."""
    return {"hBh": 1.0}


def maml_words(samples: float) -> dict[str, float]:
    """E[W B W] of MAML's weight W = S Qh2 S: E[Qh2 C Qh2] of the query with C = S B S."""
    return {"SQSBSQS": 1.0 + 1.0 / samples, "SQS|SQSB": 1.0 / samples}


def joint_noise_words(pooled: float) -> dict[str, float]:
    """What a unit of noise variance adds to the joint estimator's score covariance."""
    return {"Q": 1.0 / pooled}


def maml_noise_words(rate: float, samples: float) -> dict[str, float]:
    """What a unit of noise variance adds to MAML's, through the support and through the query."""
    support_noise = rate**2 / samples
    return {
        "SQhQS": support_noise * (1.0 + 1.0 / samples),
        "SQS|Qh": support_noise / samples,
        "SQS": 1.0 / samples,
    }


def dispersion(square: Array, inverse: Array) -> float:
    """An estimator's `dispersion` from E[W (E W)^-1 W] and (E W)^-1."""
    values, vectors = np.linalg.eigh(inverse)
    half = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return float(np.linalg.eigvalsh(half @ square @ half)[-1])


def symmetric_inverse(matrix: Array) -> Array:
    """The inverse of a symmetric matrix, exactly symmetric."""
    inverse = np.linalg.inv(matrix)
    return np.asarray((inverse + inverse.T) / 2.0)


def _drs(law: TaskLaw, pooled: float, target: Array) -> Estimator:
    """The joint estimator with `pooled` samples per task: W = Qh, psi = Qh (theta - target) + e."""
    tasks = averages(law)
    weight = post_update(law).joint
    distance = tasks.theta - target
    words = joint_words()
    score = tasks.outer(words, 0.0, pooled, distance, distance)
    score += tasks.matrix(joint_noise_words(pooled), 0.0, pooled, tasks.sigma2)
    return _estimator(law, words, 0.0, pooled, target, weight, score)


def _maml(law: TaskLaw, rate: float, samples: float, weight: Array, target: Array) -> Estimator:
    """MAML: W = S Qh2 S, psi = S (Qh2 v + e2) with v = S (theta - target) - rate e1."""
    tasks = averages(law)
    words = maml_words(samples)
    distance = tasks.theta - target
    score = tasks.outer(words, rate, samples, distance, distance)
    score += tasks.matrix(maml_noise_words(rate, samples), rate, samples, tasks.sigma2)
    return _estimator(law, words, rate, samples, target, weight, score)


def _estimator(
    law: TaskLaw,
    words: dict[str, float],
    rate: float,
    samples: float,
    target: Array,
    weight: Array,
    score: Array,
) -> Estimator:
    """Adds the bias to what is known; `words` give E[W B W] for a task."""
    tasks = averages(law)
    inverse = symmetric_inverse(weight)
    drift = tasks.sandwich_times(words, rate, samples, inverse, tasks.theta - target)
    square = tasks.sandwich(words, rate, samples, inverse)
    return Estimator(
        target, weight, (score + score.T) / 2.0, -inverse @ drift, dispersion(square, inverse)
    )


Grid = tuple[tuple[int, ...], list[Any]]


def grid(rate: Array, samples: Array, compute: Callable[[float, float], Any]) -> Grid:
    """`compute` at every entry of the broadcast of both arrays, with the shape."""
    a, n = np.broadcast_arrays(rate, samples)
    return a.shape, [compute(float(x), float(y)) for x, y in zip(a.ravel(), n.ravel(), strict=True)]


def stacked(parts: Grid, pick: Callable[[Any], Any]) -> Array:
    """The picked arrays of a grid as one array [*grid, ...]."""
    shape, items = parts
    made = np.array([pick(item) for item in items], dtype=np.float64)
    return made.reshape((*shape, *made.shape[1:]))
