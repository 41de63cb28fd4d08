"""From how many tasks on the expansions in 1 / M are used: those of means (Results 8, 9, 14-16, 20
and 36) and the normal approximation of probabilities (Result 10).

Both are first terms for many tasks, without a bound on the rest. What is left out grows with the
relative scatter of the mean weight of M tasks, dispersion / M, and, for probabilities, with how
unequally tasks contribute to the scores. The multiples below were found by comparison with the
exact law; docs/theory/linear.md has the tables, and tests hold them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from innerloop.bounds._arguments import Array
from innerloop.bounds._results import Record
from innerloop.bounds.linear.averages import Averages, averages
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.risk import rate_and_samples
from innerloop.bounds.linear.scores import (
    Estimator,
    estimators,
    grid,
    joint_noise_words,
    joint_words,
    maml_noise_words,
    maml_words,
    stacked,
    symmetric_inverse,
)

MEANS = 5.0  # dispersions
NORMAL = 200.0  # of the larger of the dispersions of weights and scores
FEWEST_NORMAL = 1025  # below, the exact law is always affordable


@dataclasses.dataclass(frozen=True)
class TasksNeeded(Record):
    """Numbers of tasks from which expansions are used, over a broadcast of rates and samples.

    Members:
        means: for expected excess risks and their crossover: the statistical error c / M is then
            within a factor of two of the exact one, usually within a fifth.
        probabilities: for the normal approximation of Result 10, then within 0.03 of the exact
            probability.
        weight_dispersion: the larger one of both methods: M tasks' mean weight scatters by the root
            of (weight_dispersion - 1) / M.
        score_dispersion: mean square over squared mean of what a task contributes to the score's
            variance, the larger one of both methods; at least 1.
    """

    means: Array
    probabilities: Array
    weight_dispersion: Array
    score_dispersion: Array

    def explain(self) -> str:
        """The two numbers in words."""
        return (
            f"expected excess risks and crossovers hold from {self.means} tasks on, the normal "
            f"approximation of probabilities from {self.probabilities} (dispersions: weights "
            f"{self.weight_dispersion}, scores {self.score_dispersion})"
        )


def tasks_needed(law: TaskLaw, *, inner_lr: Any, samples: Any = None) -> TasksNeeded:
    """Returns from how many tasks on the expansions in 1 / M are used, and why.

    Args:
        law: the task law.
        inner_lr, samples: MAML's training rate and N; None for N = infinity. Arrays broadcast.

    Returns:
        TasksNeeded: float64 arrays of whole numbers and of dispersions.

    Raises:
        TypeError: not real numbers.
        ValueError: E Q or E A is not positive definite (Result 3), N below 1, NaN.

    Cost:
        That of `expansion`.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). The multiples of
        the dispersions are measured ones, on the families of docs/theory/linear.md: they are no
        bounds. Checked: E Q and E A are positive definite.

    Source:
        Results 8 and 10, compared with Result 10a.

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> float(linear.tasks_needed(law, inner_lr=0.3, samples=5).means)
    11.0
    """
    rate, count = rate_and_samples(inner_lr, samples, "tasks_needed")
    parts = grid(rate, count, lambda a, n: _dispersions(law, a, n, "tasks_needed"))
    weight, score = np.moveaxis(stacked(parts, lambda pair: pair), -1, 0)
    probabilities = np.maximum(np.ceil(NORMAL * np.maximum(weight, score)), FEWEST_NORMAL)
    return TasksNeeded(fewest_for_means(weight), probabilities, weight, score)


def fewest_for_means(dispersion: Any) -> Array:
    """The number of tasks from which an expansion of means is used."""
    return np.asarray(np.ceil(MEANS * np.asarray(dispersion, dtype=np.float64)))


def weight_dispersion(law: TaskLaw, rate: float, samples: float, function: str) -> float:
    """The larger dispersion of the weights of both methods."""
    found = estimators(law, rate, samples, function)
    return max(found.drs.dispersion, found.maml.dispersion)


def fewest_for_normal(law: TaskLaw, rate: float, samples: float, function: str) -> float:
    """The number of tasks from which the normal approximation is used."""
    return max(NORMAL * max(_dispersions(law, rate, samples, function)), FEWEST_NORMAL)


def _dispersions(law: TaskLaw, rate: float, samples: float, function: str) -> tuple[float, float]:
    """Of weights and of scores, the larger one of both methods; kept for the life of the law."""
    return averages(law).kept(
        ("dispersions", rate, samples), lambda: _compute(law, rate, samples, function)
    )


def _compute(law: TaskLaw, rate: float, samples: float, function: str) -> tuple[float, float]:
    """What `_dispersions` keeps."""
    found, tasks = estimators(law, rate, samples, function), averages(law)
    pooled = 2.0 * samples
    scores = (
        _score_dispersion(tasks, found.drs, joint_words(), joint_noise_words(pooled), 0.0, pooled),
        _score_dispersion(
            tasks, found.maml, maml_words(samples), maml_noise_words(rate, samples), rate, samples
        ),
    )
    return max(found.drs.dispersion, found.maml.dispersion), max(scores)


def _score_dispersion(
    tasks: Averages,
    estimator: Estimator,
    words: dict[str, float],
    noise_words: dict[str, float],
    rate: float,
    samples: float,
) -> float:
    """E v^2 / (E v)^2 for v = tr((E W)^-1 E[psi psi' | task])."""
    inverse = symmetric_inverse(estimator.weight)
    distance = tasks.theta - estimator.target
    each = tasks.outer_trace(words, rate, samples, distance, distance, inverse)
    each = each + tasks.sigma2 * tasks.matrix_trace(noise_words, rate, samples, inverse)
    mean = float(tasks.weights @ each)
    if mean <= 0.0 or not math.isfinite(mean):
        return 1.0
    return float(tasks.weights @ (each / mean) ** 2)
