"""Upper bounds on the statistical errors from coarse parameters of the tasks (Result 12)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._quantities import computed
from innerloop.bounds._results import Assumption, Record, quantity
from innerloop.bounds._standing import CERTAIN
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.averages import averages
from innerloop.bounds.linear.laws import Mixture, PublishedLaw, TaskLaw
from innerloop.bounds.linear.quadratic import post_update
from innerloop.bounds.linear.risk import population, rate_and_samples
from innerloop.bounds.linear.scores import grid, stacked

_BOUNDED = Assumption("every task has ||Q|| <= beta, noise variance and distance as stated")


def joint_score_bound(
    *, p: int, curvature: Any, noise: Any, distance: Any, smallest: Any, samples: Any
) -> Any:
    """Returns an upper bound on v of joint training.

    v is tr((E Q)^-1 Psi) with Psi the score covariance; the excess of the joint risk behaves like
    v / (2 M). The bound is heterogeneity plus p noise / n, n = 2 N.

    Args:
        p: dimension.
        curvature: beta, with ||Q|| <= beta for every task.
        noise: largest noise variance.
        distance: largest ||theta - theta_drs||.
        smallest: smallest eigenvalue of E Q, positive.
        samples: N; None for infinity. All but p may be arrays.

    Raises:
        TypeError: not real numbers.
        ValueError: a negative value, N below 1, NaN.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Every task
        respects the coarse parameters given. Checked: their ranges.

    Source:
        Result 12 (this project's own).

    >>> bound = joint_score_bound(p=1, curvature=1.0, noise=1.0, distance=0.0, smallest=1.0,
    ...                           samples=5)
    >>> float(bound)
    0.1
    """
    name = "joint_score_bound"
    beta, s2, reach, low = _constants(
        name, curvature=curvature, noise=noise, distance=distance, smallest=smallest
    )
    pooled = 2.0 * _arguments.counts(samples, function=name, name="samples", none=np.inf)
    spread = (1.0 + 1.0 / pooled) * (beta * reach) ** 2
    return quantity(
        (spread + p * beta / pooled * (beta * reach**2 + s2)) / low,
        name="v of joint training, at most",
        source="Result 12",
        assumptions=(_BOUNDED,),
    )


def maml_score_bound(
    *,
    curvature: Any,
    noise: Any,
    distance: Any,
    smallest: Any,
    inner_lr: Any,
    samples: Any,
    step_square: Any,
    step_noise: Any,
    step_trace: Any,
) -> Any:
    """Returns an upper bound on v of MAML, whose excess risk behaves like v / (2 M).

    With S = I - rate Qh1 on the support, it is heterogeneity plus p noise / N, times moments of S.

    Args:
        curvature, noise: as for `joint_score_bound`.
        distance: largest ||theta - theta_maml||.
        smallest: smallest eigenvalue of E A, positive.
        inner_lr, samples: rate and N.
        step_square: largest E (tr S^2)^2 over the tasks.
        step_noise: largest E tr S^2 tr Qh1.
        step_trace: largest E tr S^2.

    Raises:
        TypeError: not real numbers.
        ValueError: a negative value, N below 1, NaN.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Every task
        respects the coarse parameters given. Checked: their ranges.

    Source:
        Result 12 (this project's own).

    >>> float(maml_score_bound(curvature=1.0, noise=1.0, distance=0.0, smallest=1.0, inner_lr=0.0,
    ...                        samples=5, step_square=1.0, step_noise=1.0, step_trace=1.0))
    0.2
    """
    name = "maml_score_bound"
    rate, n = rate_and_samples(inner_lr, samples, name)
    beta, s2, reach, low, square, cross, trace = _constants(
        name,
        curvature=curvature,
        noise=noise,
        distance=distance,
        smallest=smallest,
        step_square=step_square,
        step_noise=step_noise,
        step_trace=step_trace,
    )
    spread = beta**2 * (1.0 + 2.0 / n) * (reach**2 * square + rate**2 * s2 / n * cross)
    return quantity(
        (spread + s2 * beta / n * trace) / low,
        name="v of MAML, at most",
        source="Result 12",
        assumptions=(_BOUNDED,),
    )


@dataclasses.dataclass(frozen=True)
class CoarseRates(Record):
    """The coarse parameters of a law and the bounds on v they give.

    Members:
        drs, maml: upper bounds on v = tr((E W)^-1 Psi) of each method.
        curvature, noise: largest ||Q|| and largest noise variance.
        drs_distance, maml_distance: largest distance of a task's theta from each target.
        drs_smallest, maml_smallest: smallest eigenvalues of E Q and E A.
        step_square, step_noise, step_trace: largest E (tr S^2)^2, E tr S^2 tr Qh1 and E tr S^2.
    """

    drs: Any
    maml: Any
    curvature: float
    noise: float
    drs_distance: float
    maml_distance: Any
    drs_smallest: float
    maml_smallest: Any
    step_square: Any
    step_noise: Any
    step_trace: Any

    def explain(self) -> str:
        """Both bounds and what they are made of."""
        rows = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]
        return "\n".join(f"{name} = {value}" for name, value in rows) + "\n(Result 12)"


def coarse_rates(law: TaskLaw, *, inner_lr: Any, samples: Any = None) -> CoarseRates:
    """Returns the coarse parameters of a bounded law and the bounds on v that follow.

    Args:
        law: a `Mixture` or the published law. For the latter, the largest moments of S are
            replaced by their values at Q = beta I with the rate -|rate|, which are no smaller.
        inner_lr, samples: rate and N; arrays broadcast.

    Raises:
        TypeError: not real numbers, or a law whose bounds are not known.
        ValueError: E Q or E A is not positive definite (Result 3), N below 1, NaN.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). The law is
        bounded. Checked: it is a mixture or the published law, and E Q and E A are positive
        definite.

    Source:
        Result 12 (this project's own).

    >>> from innerloop.bounds import linear
    >>> law = linear.Mixture([1.0], [[[1.0]]], [[1.0]], [0.5])
    >>> found = linear.coarse_rates(law, inner_lr=0.3, samples=5)
    >>> float(found.drs)
    0.05
    """
    name = "coarse_rates"
    rate, n = rate_and_samples(inner_lr, samples, name)
    found = population(law, rate, n, name)
    if isinstance(law, Mixture):
        _, q, theta, sigma2 = law.nodes()
        beta = float(np.linalg.eigvalsh(q)[:, -1].max())
        noise = float(sigma2.max())
        extreme, bounding, sign = theta, averages(law), 1.0
    elif isinstance(law, PublishedLaw):
        beta = noise = law.beta
        extreme = None
        top = Mixture([1.0], law.beta * np.eye(law.p)[None], np.zeros((1, law.p)), [0.0])
        bounding, sign = averages(top), -1.0
    else:
        raise TypeError(
            f"{name}: the bounds of a {type(law).__name__} are not known; Result 12 needs them "
            "(give them to joint_score_bound and maml_score_bound)"
        )

    def moments(a: float, count: float) -> list[float]:
        a = sign * abs(a) if sign < 0.0 else a
        words: tuple[dict[str, float], ...] = ({"|SS|SS": 1.0}, {"|SS|h": 1.0}, {"|SS": 1.0})
        return [float(bounding.scalar(word, a, count).max()) for word in words]

    square, cross, trace = np.moveaxis(stacked(grid(rate, n, moments), lambda row: row), -1, 0)
    drs_distance = _largest_distance(extreme, found.drs, beta)
    maml_distance = _largest_distance(extreme, found.maml, beta)
    drs_smallest = float(np.linalg.eigvalsh(post_update(law).joint)[0])
    maml_smallest = np.linalg.eigvalsh(found.curvature)[..., 0]
    largest = beta if law.trust == CERTAIN else computed(beta, law.trust)
    return CoarseRates(
        joint_score_bound(
            p=law.p,
            curvature=largest,
            noise=noise,
            distance=drs_distance,
            smallest=drs_smallest,
            samples=n,
        ),
        maml_score_bound(
            curvature=largest,
            noise=noise,
            distance=maml_distance,
            smallest=maml_smallest,
            inner_lr=rate,
            samples=n,
            step_square=square,
            step_noise=cross,
            step_trace=trace,
        ),
        beta,
        noise,
        float(drs_distance),
        maml_distance,
        drs_smallest,
        maml_smallest,
        square,
        cross,
        trace,
    )


def _largest_distance(theta: Array | None, target: Array, beta: float) -> Array:
    """max ||theta - target|| over the rows of theta [G, p], or over the cube [0, beta]^p."""
    if theta is None:
        return np.asarray(
            np.linalg.norm(np.maximum(np.abs(target), np.abs(beta - target)), axis=-1)
        )
    return np.asarray(np.linalg.norm(theta - target[..., None, :], axis=-1).max(axis=-1))


def _constants(function: str, **values: Any) -> list[Array]:
    """Non-negative arrays by name."""
    found = []
    for name, value in values.items():
        made = sizes.array(value, function=function, name=name)
        if (made < 0.0).any() or (name == "smallest" and (made == 0.0).any()):
            raise ValueError(f"{function}: {name} must be non-negative (got {made.min():g})")
        found.append(made)
    return found
