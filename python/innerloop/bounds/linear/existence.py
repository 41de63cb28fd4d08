"""When the mean excess risk of an estimator is finite at all (Result 13)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._results import Record
from innerloop.bounds.linear.guarantee import Method, check_method
from innerloop.bounds.linear.laws import Mixture, PublishedLaw, TaskLaw
from innerloop.bounds.linear.risk import rate_and_samples


@dataclasses.dataclass(frozen=True)
class Existence(Record):
    """Whether the mean excess risk is finite.

    Members:
        finite: True, False, or None where neither is proved: for laws given by a sampler, mixtures
            with a singular Q, tasks without noise, and some laws at N = infinity.
        reason: why, in words.
    """

    finite: bool | None
    reason: str

    def explain(self) -> str:
        """The verdict with its reason."""
        word = {True: "finite", False: "infinite", None: "not decided"}[self.finite]
        return f"mean excess risk: {word}; {self.reason} (Result 13)"


def mean_excess_exists(
    law: TaskLaw, *, method: Method, inner_lr: Any, samples: Any, tasks: Any
) -> Existence:
    """Returns whether the expected excess risk of an estimator is finite.

    Where it is infinite, tables of means say nothing: use medians, trimmed means or exceedance
    frequencies. The expansions of Result 8 describe the limit law either way.

    Args:
        law: the task law.
        method: "drs" (2 N samples per task) or "maml".
        inner_lr: MAML's training rate (joint training ignores it).
        samples: N, one number; None for infinity.
        tasks: M, one number.

    Returns:
        Existence.

    Raises:
        TypeError: not real numbers.
        ValueError: unknown method, a count below 1, NaN, or arrays.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        independent. Checked: no Q of a mixture is singular, and a task with noise has positive
        probability; without them the answer may be None.

    Source:
        Result 13 (this project's own); docs/theory/linear.md has the proof for every p, M and N.

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> linear.mean_excess_exists(law, method="maml", inner_lr=0.3, samples=400, tasks=2).finite
    False
    """
    name = "mean_excess_exists"
    check_method(method, name)
    rate, count = rate_and_samples(inner_lr, samples, name)
    m = _arguments.counts(tasks, function=name, name="tasks")
    if rate.ndim or count.ndim or m.ndim:
        raise ValueError(f"{name}: inner_lr, samples and tasks must be single numbers")
    if np.isinf(count):
        if isinstance(law, Mixture) or (law.p == 1 and isinstance(law, PublishedLaw)):
            return Existence(True, "without sampling the estimates take bounded values")
        return Existence(None, "no proof for this law without sampling")
    m_tasks, rows = int(m), int(count)
    if method == "drs":
        return _decide(law, m_tasks, 2 * rows, _deepest(law), "rows")
    # A support set whose curvature is near 1 / rate blinds its task to one direction in p.
    deepest = float(law.p) if rate > 0.0 else _deepest(law)
    return _decide(law, m_tasks, rows, deepest, "query rows")


def _decide(law: TaskLaw, tasks: int, per_task: int, deepest: float, noun: str) -> Existence:
    """The verdict from how fast the smallest singular value s of the stacked rows may vanish.

    Up to logarithms P(s < e) is e^exponent; the mean of 1 / s^2 is finite for exponents above 2.
    """
    p, rows = law.p, tasks * per_task
    if rows < p:
        exponent = float(p - rows + 1)
        why = f"{rows} {noun} in {p} dimensions (the solution of least norm)"
    else:
        exponent = tasks * min(per_task, deepest) - p + 1
        why = f"{rows} {noun} in {p} dimensions"
        if deepest < per_task:
            why += f", at most {deepest:g} of which count in each of {tasks} task{'s'[: tasks - 1]}"
    why += f": exponent {exponent:g}, and a finite mean needs 3"
    if exponent > 2.0:
        if _bounded_below(law) or isinstance(law, PublishedLaw):
            return Existence(True, why)
        return Existence(None, f"{why}, but Q may come close to singular in an unknown way")
    if _has_noisy_task(law):
        return Existence(False, why)
    return Existence(None, f"{why}, but the argument needs noise in a task with nonsingular Q")


def _deepest(law: TaskLaw) -> float:
    """How many rows of one task count at most: p + 1 where Q can be singular by one eigenvalue."""
    return float(law.p + 1) if isinstance(law, PublishedLaw) else np.inf


def _bounded_below(law: TaskLaw) -> bool:
    """Whether all tasks have eigenvalues above a positive number (known for mixtures only)."""
    if not isinstance(law, Mixture):
        return False
    weights, q, _, _ = law.nodes()
    return bool(np.linalg.eigvalsh(q[weights > 0.0]).min() > 0.0)


def _has_noisy_task(law: TaskLaw) -> bool:
    """Whether tasks with noise and positive definite Q have positive probability."""
    if isinstance(law, PublishedLaw):
        return True
    weights, q, _, sigma2 = law.nodes()
    return bool(((weights > 0.0) & (sigma2 > 0.0) & (np.linalg.eigvalsh(q)[:, 0] > 0.0)).any())
