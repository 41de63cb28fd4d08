"""Bounds on the excess risk that hold with a stated probability for any number of tasks.

M is the number of training tasks; docs/theory/linear.md has the proof.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._quantities import hands_on
from innerloop.bounds._results import Assumption, Record, quantity
from innerloop.bounds.linear import exponential as exponential_moments
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.risk import law_assumptions, population, rate_and_samples
from innerloop.bounds.linear.scores import (
    estimators,
    grid,
    stacked,
    symmetric_inverse,
)

Method = Literal["drs", "maml"]


@dataclasses.dataclass(frozen=True)
class GuaranteeConstants(Record):
    """What the finite-sample guarantee of one method needs, over a broadcast of rates and samples.

    With W a task's weight, Wb = E W, psi its score, H the Hessian of the post-update risk:

    Members:
        offset: ||target - minimiser||_H; 0 for MAML.
        kappa_weight: norm of Wb^(-1/2) E[W Wb^-1 W] Wb^(-1/2), at least 1.
        kappa_hessian: norm of Wb^(-1/2) H Wb^(-1/2); 1 for MAML.
        score_trace: E||Wb^(-1/2) psi||^2 = tr(Wb^-1 Psi).
        score_square: squared Frobenius norm of Wb^(-1/2) Psi Wb^(-1/2).
    """

    offset: Array
    kappa_weight: Array
    kappa_hessian: Array
    score_trace: Array
    score_square: Array

    def explain(self) -> str:
        """The constants by name."""
        rows = dataclasses.asdict(self).items()
        return "\n".join(f"{name} = {np.array2string(v, precision=6)}" for name, v in rows)


def guarantee_constants(
    law: TaskLaw, *, method: Method, inner_lr: Any, samples: Any = None
) -> GuaranteeConstants:
    """Returns the constants of Result 11 for one method.

    Args:
        law: the task law.
        method: "drs" (joint training on 2 N samples per task) or "maml".
        inner_lr, samples: as for `guarantee`.

    Raises:
        TypeError, ValueError: as `guarantee`.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Checked: E Q and
        E A are positive definite.

    Source:
        Result 11.

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> float(linear.guarantee_constants(law, method="maml", inner_lr=0.3, samples=5).offset)
    0.0
    """
    name = "guarantee_constants"
    check_method(method, name)
    rate, count = rate_and_samples(inner_lr, samples, name)
    parts = grid(rate, count, lambda a, n: _constants(law, method, a, n))
    return GuaranteeConstants(*np.moveaxis(stacked(parts, lambda row: row), -1, 0))


@hands_on
def guarantee(
    law: TaskLaw,
    *,
    method: Method,
    inner_lr: Any,
    samples: Any = None,
    tasks: Any,
    delta: Any,
    split: float | None = 0.1,
    fourth_moment: Any = None,
    sharp: bool = False,
    exponential: bool = False,
) -> Any:
    """Returns a bound on the excess post-update risk that holds with probability 1 - delta.

    Excess is over the best initial point for the post-update risk with the same rate and N, so the
    bound of joint training contains its modelling error. It is valid for every M.

    Args:
        law: the task law.
        method: "drs" (joint training on 2 N samples per task) or "maml".
        inner_lr, samples: rate and N of training and test; None for N = infinity.
        tasks: M >= 1.
        delta: probability of failure, in (0, 1). All four broadcast.
        split: share of delta spent on the lower tail of the weights, in (0, 1); None for the best
            of 99 shares (which depends on the law and the sizes alone, so the bound stays valid).
        fourth_moment: an upper bound on E||(E W)^(-1/2) psi||^4 if one is known
            (`score_fourth_moment` computes it); the bound is then never larger.
        sharp: use Result 11a, this project's tighter form of the same two steps (never larger).
        exponential: use Result 11b for the scores where it is smaller: it grows with ln(1 / delta)
            instead of a power. Joint training and mixtures only: MAML's scores are of degree six in
            normal variables and have no exponential moments.

    Returns:
        Quantity or float64 array; infinite with a reason where M is too small for the result.

    Raises:
        TypeError: not real numbers.
        ValueError: unknown method, E Q or E A not positive definite (Result 3), a value out of
            range, NaN; exponential for MAML or a law that is no mixture.

    Cost:
        That of `expansion`; O(1) for further M and delta.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        independent; fourth_moment, if given, is an upper bound. Checked: E Q and E A are positive
        definite, M is large enough (else infinite), and the law is a mixture (exponential).

    Source:
        Results 11, 11a and 11b (this project's own; the lower tail by the matrix Laplace transform,
        Tropp 2012; the exponential one after Pinelis 1994).

    >>> from innerloop.bounds import linear
    >>> law = linear.Mixture([1.0], [[[1.0]]], [[1.0]], [0.5])
    >>> bound = linear.guarantee(law, method="drs", inner_lr=0.1, samples=5, tasks=2, delta=0.1)
    >>> float(bound)
    inf
    """
    name = "guarantee"
    check_method(method, name)
    rate, count = rate_and_samples(inner_lr, samples, name)
    m = _arguments.counts(tasks, function=name, name="tasks")
    failure = _arguments.probability(delta, function=name, name="delta")
    c = guarantee_constants(law, method=method, inner_lr=rate, samples=count)
    m, failure = np.broadcast_arrays(m, failure, *dataclasses.astuple(c))[:2]
    shares: Array = (
        np.linspace(0.01, 0.99, 99)
        if split is None
        else np.atleast_1d(_arguments.probability(split, function=name, name="split"))
    )
    known = None
    if fourth_moment is not None:
        known = sizes.array(fourth_moment, function=name, name="fourth_moment", largest=1e300)
        if not (np.asarray(known) > 0).all():
            raise ValueError(f"{name}: fourth_moment must be positive (got {fourth_moment})")
    tail = _exponential_tail(law, method, rate, count) if exponential else None
    bounds = [_bound(c, law.p, m, failure, float(share), known, sharp, tail) for share in shares]
    value: Array = np.min(np.array(bounds), axis=0)
    reason = None
    if value.ndim == 0 and np.isinf(value):
        reason = f"says nothing for {int(m)} tasks: Result 11 needs more"
        if not sharp:
            need = 2.0 * float(c.kappa_weight) * np.log(law.p / (shares.max() * float(failure)))
            reason += f" than {need:.1f} (2 kappa_W ln(p / delta_1))"
    return quantity(
        value,
        name=f"excess risk of {_NAMES[method]}, exceeded with probability at most delta",
        source="Result 11b" if exponential else "Result 11a" if sharp else "Result 11",
        assumptions=law_assumptions(
            law, Assumption("tasks and their samples are independent"), *_fourth(known)
        ),
        reason=reason,
    )


@hands_on
def expected_excess_bound(
    law: TaskLaw,
    *,
    method: Method,
    inner_lr: Any,
    samples: Any = None,
    tasks: Any,
    margin: Any = 0.5,
    sharp: bool = False,
) -> tuple[Any, Any]:
    """Returns a bound on the expected excess risk over a good event, and on the event's failure.

    The event is that the mean weight of the M tasks is at least (1 - margin) times its
    expectation. Outside it the excess may have no mean (Result 13).

    Args:
        law, method, inner_lr, samples, tasks: as for `guarantee`.
        margin: in (0, 1).
        sharp: bound the event's failure by Result 11a (never larger).

    Returns:
        (bound on E[excess on the event], bound on the probability of its complement, at most 1);
        Quantities or float64 arrays.

    Raises:
        TypeError, ValueError: as `guarantee`.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        independent. Checked: E Q and E A are positive definite.

    Source:
        Results 11 and 11a, second part.

    >>> from innerloop.bounds import linear
    >>> law = linear.Mixture([1.0], [[[1.0]]], [[1.0]], [0.5])
    >>> bound, failure = linear.expected_excess_bound(
    ...     law, method="drs", inner_lr=0.1, samples=5, tasks=200)
    >>> bool(failure < 1e-8)
    True
    """
    name = "expected_excess_bound"
    check_method(method, name)
    rate, count = rate_and_samples(inner_lr, samples, name)
    m = _arguments.counts(tasks, function=name, name="tasks")
    tau = _arguments.probability(margin, function=name, name="margin")
    c = guarantee_constants(law, method=method, inner_lr=rate, samples=count)
    reach = np.sqrt(c.kappa_hessian * c.score_trace / m) / (1.0 - tau)
    exponent = tau**2 / (2.0 * c.kappa_weight)
    if sharp:
        s = _exponents(tau / c.kappa_weight)
        log_mean = _log_mean(s, c.kappa_weight)
        exponent = np.maximum(exponent, (-s * (1.0 - tau) - log_mean).max(axis=0))
    failure = np.minimum(1.0, law.p * np.exp(-m * exponent))
    assumptions = law_assumptions(law, Assumption("tasks and their samples are independent"))
    return (
        quantity(
            0.5 * (c.offset + reach) ** 2,
            name=f"expected excess risk of {_NAMES[method]} on the good event",
            source="Result 11",
            assumptions=assumptions,
        ),
        quantity(
            failure,
            name="probability that the good event fails, at most",
            source="Result 11",
            assumptions=assumptions,
        ),
    )


_NAMES = {"drs": "joint training", "maml": "MAML"}


def check_method(method: str, function: str) -> None:
    """Raises ValueError unless the method is one of the two."""
    if method not in _NAMES:
        raise ValueError(f'{function}: method must be "drs" or "maml" (got {method!r})')


def _fourth(known: Array | None) -> tuple[Assumption, ...]:
    """The assumption that comes with a fourth moment."""
    text = "fourth_moment bounds the fourth moment of the weighted score"
    return () if known is None else (Assumption(text),)


def _exponential_tail(
    law: TaskLaw, method: Method, rate: Array, count: Array
) -> tuple[Array, Array]:
    """The two arrays [*grid, L] that `squared_tail` takes."""
    if method != "drs":
        raise ValueError(
            "guarantee: exponential must be False for MAML, whose scores have no exponential "
            "moments (Result 11b)"
        )
    mixture = exponential_moments.mixture_of(law, "guarantee")

    def at_point(a: float, n: float) -> tuple[Array, Array]:
        own = estimators(law, a, n, "guarantee").drs
        target = population(law, np.asarray(a), np.asarray(n), "guarantee").drs
        trace = float(np.trace(symmetric_inverse(own.weight) @ own.score))
        return exponential_moments.log_moments(mixture, target, 2.0 * n, trace)

    parts = grid(rate, count, at_point)
    return stacked(parts, lambda pair: pair[0]), stacked(parts, lambda pair: pair[1])


def _constants(law: TaskLaw, method: Method, rate: float, samples: float) -> tuple[float, ...]:
    """The members of `GuaranteeConstants` at one point."""
    found = estimators(law, rate, samples, "guarantee")
    own = found.maml if method == "maml" else found.drs
    inverse = symmetric_inverse(own.weight)
    half = _root(inverse)
    if method == "maml":
        offset, hessian = 0.0, 1.0
    else:
        test = population(law, np.asarray(rate), np.asarray(samples), "guarantee")
        offset = max(float(test.slope @ test.offset), 0.0) ** 0.5
        hessian = float(np.linalg.eigvalsh(half @ test.curvature @ half)[-1])
    spread = half @ own.score @ half
    return (
        offset,
        own.dispersion,
        hessian,
        float(np.trace(spread)),
        float((spread**2).sum()),
    )


def _bound(
    c: GuaranteeConstants,
    p: int,
    m: Array,
    delta: Array,
    share: float,
    fourth: Array | None,
    sharp: bool,
    tail: tuple[Array, Array] | None,
) -> Array:
    """The bound for one split of delta; infinite where it says nothing."""
    lower, upper = share * delta, (1.0 - share) * delta
    level = np.log(p / lower) / m
    tau: Array = np.sqrt(2.0 * c.kappa_weight * level)
    if sharp:
        s = _exponents(np.sqrt(2.0 * level / c.kappa_weight))
        tau = np.minimum(tau, 1.0 + ((_log_mean(s, c.kappa_weight) + level) / s).min(axis=0))
    q = c.score_trace / (m * upper)
    if fourth is not None:
        mean = fourth + (m - 1.0) * (c.score_trace**2 + 2.0 * c.score_square)
        q = np.minimum(q, np.sqrt(mean / m**3 / upper))
        if sharp:
            variance = fourth - c.score_trace**2 + 2.0 * (m - 1.0) * c.score_square
            variance = np.maximum(variance, 0.0) / m**3
            q = np.minimum(q, c.score_trace / m + np.sqrt(variance * (1.0 - upper) / upper))
    if tail is not None:
        q = np.minimum(q, exponential_moments.squared_tail(*tail, m, upper))
    with np.errstate(divide="ignore", invalid="ignore"):
        value: Array = 0.5 * (c.offset + np.sqrt(c.kappa_hessian * q) / (1.0 - tau)) ** 2
    return np.asarray(np.where(tau < 1.0, value, np.inf))


def _exponents(around: Array) -> Array:
    """Trial values of the Laplace exponent on a new first axis; any positive value is valid."""
    ladder = np.geomspace(0.3, 30.0, 300)
    return np.asarray(np.multiply.outer(ladder, around))


def _log_mean(s: Array, kappa: Array) -> Array:
    """ln(1 - s + kappa s^2 / 2), an upper bound on the log of E exp(-s W) for whitened W."""
    return np.asarray(np.log1p(-s + kappa * s**2 / 2.0))


def _root(matrix: Array) -> Array:
    """Symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)
