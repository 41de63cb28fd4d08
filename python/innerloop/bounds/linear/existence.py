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
        finite: True, False, or None where neither is proved here.
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

    Source:
        Result 13 (this project's own), with the cases that docs/theory/linear.md adds.

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
    if not _has_noisy_task(law):
        return Existence(None, "the argument needs a task with noise and positive definite Q")
    if method == "drs":
        return _joint(law, 2 * int(count) * int(m), int(m))
    return _maml(law, float(rate), int(count), int(m))


def _joint(law: TaskLaw, rows: int, tasks: int) -> Existence:
    """Least squares on all rows: the mean of an inverse Wishart matrix."""
    if rows < law.p:
        return Existence(None, f"{rows} rows in {law.p} dimensions leave the estimate undetermined")
    if rows < law.p + 2:
        return Existence(
            False, f"{rows} rows in {law.p} dimensions, and the inverse needs {law.p + 2}"
        )
    if _bounded_below(law):
        return Existence(True, f"{rows} rows, at least {law.p + 2}, and no Q is singular")
    if isinstance(law, PublishedLaw):
        if tasks == 1:
            return Existence(False, "one task, whose eigenvalues have positive density at 0")
        if law.p == 1:
            return Existence(True, "the mean weight of two or more tasks is rarely near 0")
    return Existence(None, "Q may come close to singular")


def _maml(law: TaskLaw, rate: float, samples: int, tasks: int) -> Existence:
    """MAML's weight is nearly singular whenever the support's curvature comes close to 1 / rate."""
    p = law.p
    bounded = _bounded_below(law)
    if rate > 0.0 and tasks <= 2 and (p == 1 or (tasks == 1 and samples >= p)):
        return Existence(
            False,
            "the curvature of a support set has positive density at 1 / rate, and "
            f"{tasks} task{'s' * (tasks > 1)} cannot average that out, whatever N is",
        )
    if rate > 0.0 and p == 1 and (bounded or isinstance(law, PublishedLaw)):
        return Existence(True, "three or more tasks average the nearly singular weights out")
    if rate <= 0.0 and p == 1 and samples * tasks <= 2:
        return Existence(False, f"{samples * tasks} query row(s), and the inverse needs 3")
    if rate <= 0.0 and p == 1 and bounded:
        return Existence(True, f"{samples * tasks} query rows, at least 3, and no Q is 0")
    return Existence(None, "no proof either way for this dimension and number of tasks")


def _bounded_below(law: TaskLaw) -> bool:
    """Whether all tasks have eigenvalues above a positive number (known for mixtures only)."""
    if not isinstance(law, Mixture):
        return False
    weights, q, _, _ = law.nodes()
    return bool(np.linalg.eigvalsh(q[weights > 0.0]).min() > 0.0)


def _has_noisy_task(law: TaskLaw) -> bool:
    """Whether tasks with noise and positive definite Q have positive probability."""
    weights, q, _, sigma2 = law.nodes()
    return bool(((weights > 0.0) & (sigma2 > 0.0) & (np.linalg.eigvalsh(q)[:, 0] > 0.0)).any())
