"""What no unbiased linear estimator can beat, and Bayesian MAML, in the centroid model (Result 18).

Centroid model: given the inputs, theta_t has mean theta_0 and covariance tau2 I; noise has variance
sigma2 in all tasks. theta_0 is estimated.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._quantities import parted
from innerloop.bounds._results import Record
from innerloop.bounds._standing import joined
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.designs import designs
from innerloop.bounds.linear.laws import Mixture
from innerloop.bounds.linear.rules import each_block, mean, spread
from innerloop.bounds.linear.training import joint_training, sandwich


@dataclasses.dataclass(frozen=True)
class CentroidEstimate(Record):
    """An estimate of the centroid theta_0.

    Members:
        estimate: [p].
        covariance: [p, p], its exact covariance given the inputs.
    """

    estimate: Array
    covariance: Array

    def explain(self) -> str:
        """The estimate with standard errors."""
        error = np.sqrt(np.diag(self.covariance))
        return f"theta_0 = {self.estimate} with standard errors {error} (Result 18)"


@dataclasses.dataclass(frozen=True)
class EfficiencyBound(Record):
    """Covariances of sqrt(M) (estimate - theta_0) for many tasks of 2 N rows.

    Members:
        gls: [p, p], generalised least squares: the smallest of all estimators that are linear in y
            and unbiased given the inputs.
        bayes_maml: [p, p], Bayesian MAML with N support and N query rows.
        drs: [p, p], pooled least squares.
        information: [p, p], E I_t of 2 N rows; its inverse is `gls`.
        support_information: [p, p], E I_t of the N support rows, which Bayesian MAML discards.
        standard_error: largest standard error in the two informations; 0 for p = 1.
    """

    gls: Array
    bayes_maml: Array
    drs: Array
    information: Array
    support_information: Array
    standard_error: float

    def explain(self) -> str:
        """How many more tasks than the best estimator the others need."""
        best = np.trace(self.gls)
        return (
            f"total variance: least possible {best:.5g} / tasks; joint training needs "
            f"{np.trace(self.drs) / best:.3g} times as many tasks for it, Bayesian MAML with a "
            f"split {np.trace(self.bayes_maml) / best:.3g} times (Result 18)"
        )


def centroid_law(
    Q: Any, *, tau2: float, sigma2: float, centre: Any = None, weights: Any = None
) -> Mixture:
    """Returns a law with solutions scattered around a centre, independently of Q.

    Each Q is paired with the 2 p solutions centre +- sqrt(p tau2) e_i, which have mean `centre` and
    covariance tau2 I; nothing here depends on more than these.

    Args:
        Q: [p, p] or [G, p, p].
        tau2: variance of each coordinate of theta, non-negative.
        sigma2: noise variance, non-negative.
        centre: [p], zero by default.
        weights: [G], equal by default.

    Raises:
        TypeError, ValueError: as `Mixture`, or a negative tau2.

    Assumes:
        The centroid model: given the inputs, solutions scatter around one centre with covariance
        tau2 I, and all tasks have noise of variance sigma2. Checked: variances are not negative
        and Q holds covariance matrices.

    Source:
        Setting of Results 18 and 20.

    >>> centroid_law([[1.0]], tau2=4.0, sigma2=0.5).nodes().theta.ravel()
    array([ 2., -2.])
    """
    found = [parted(value)[1] for value in (Q, tau2, sigma2, centre, weights)]
    q = _covariance_stack(Q, "centroid_law")
    scatter, noise = _variances(sigma2, tau2, "centroid_law", tau2_positive=False)
    count, p = q.shape[:2]
    middle = np.zeros(p) if centre is None else centre
    middle = sizes.array(middle, function="centroid_law", name="centre", ndim=1)
    share = np.full(count, 1.0 / count) if weights is None else weights
    share = sizes.array(share, function="centroid_law", name="weights", ndim=1)
    if middle.shape != (p,) or share.shape != (count,):
        raise ValueError(
            f"centroid_law: centre must have shape {(p,)} and weights {(count,)} "
            f"(got {middle.shape}, {share.shape})"
        )
    reach = np.sqrt(p * scatter) * np.eye(p)
    around = np.concatenate([middle + reach, middle - reach])  # [2 p, p]
    law = Mixture(
        np.repeat(share / (2 * p), 2 * p),
        np.repeat(q, 2 * p, axis=0),
        np.tile(around, (count, 1)),
        np.full(count * 2 * p, float(noise)),
    )
    law.trust = joined([law.trust, *(known for known in found if known is not None)])
    return law


def information(X: Any, *, sigma2: float, tau2: float) -> Array:
    """Returns what a task's rows say about the centroid: X' (sigma2 I + tau2 X X')^-1 X.

    Args:
        X: [..., n, p], rows of inputs.
        sigma2: noise variance, positive.
        tau2: variance of the solutions, non-negative.

    Returns:
        [..., p, p] float64. No estimator that is linear in y and unbiased given the inputs has a
        covariance below the inverse of its sum over tasks.

    Raises:
        TypeError: not real numbers.
        ValueError: fewer than two axes, sigma2 not positive, tau2 negative.

    Cost:
        O(n p^2 + p^3) per task.

    Assumes:
        The centroid model: given the inputs, solutions scatter around one centre with covariance
        tau2 I, and all tasks have noise of variance sigma2. Checked: the variances' ranges.

    Source:
        Result 18 (Gauss-Markov theorem).

    >>> information([[1.0], [2.0]], sigma2=0.7, tau2=0.8).round(6)
    array([[1.06383]])
    """
    rows = sizes.array(X, function="information", name="X")
    if rows.ndim < 2:
        raise ValueError(f"information: X must have shape [..., n, p] (got {rows.shape})")
    scatter, noise = _variances(sigma2, tau2, "information", tau2_positive=False)
    frame = _frame(_t(rows) @ rows, noise, scatter)
    return frame.matrix(frame.values / frame.total)


def gls(X: Any, y: Any, *, sigma2: float, tau2: float) -> CentroidEstimate:
    """Returns the best linear unbiased estimate of the centroid from M tasks.

    Args:
        X: [M, n, p].
        y: [M, n].
        sigma2, tau2: as for `information`.

    Raises:
        TypeError, ValueError: as `information`, shapes that do not fit, or inputs that do not
            determine theta_0.

    Cost:
        O(M (n p^2 + p^3)).

    Assumes:
        The centroid model: given the inputs, solutions scatter around one centre with covariance
        tau2 I, and all tasks have noise of variance sigma2. Checked: the variances' ranges and
        that the rows determine the centre.

    Source:
        Result 18 (Gauss-Markov theorem; Aitken 1936).

    >>> rows, targets = [[[1.0], [1.0]], [[2.0], [0.0]]], [[1.0, 1.0], [2.0, 0.0]]
    >>> found = gls(rows, targets, sigma2=1.0, tau2=1.0)
    >>> found.estimate.round(12), found.covariance.round(4)
    (array([1.]), array([[0.6818]]))
    """
    rows, targets = _task_data(X, y, "gls", "")
    scatter, noise = _variances(sigma2, tau2, "gls", tau2_positive=False)
    frame = _frame(_t(rows) @ rows, noise, scatter)
    weight = frame.matrix(frame.values / frame.total)
    aimed = frame.solve(np.einsum("tni,tn->ti", rows, targets))
    return _estimate(weight.sum(0), aimed.sum(0), "gls")


def bayes_maml(
    X_support: Any, y_support: Any, X_query: Any, y_query: Any, *, sigma2: float, tau2: float
) -> CentroidEstimate:
    """Returns the maximiser of the query rows' predictive likelihood given the support rows.

    The inner solver is the posterior mean under the matching prior N(theta_0, tau2 I), a ridge with
    penalty sigma2 / (N tau2); the posterior covariance tau2 S enters the query likelihood.

    Args:
        X_support, y_support: [M, N, p] and [M, N].
        X_query, y_query: [M, N', p] and [M, N'].
        sigma2, tau2: noise variance and variance of the solutions, both positive.

    Raises:
        TypeError, ValueError: as `gls`, or tau2 not positive.

    Cost:
        O(M (N' p^2 + N p^2 + p^3)).

    Assumes:
        The centroid model: given the inputs, solutions scatter around one centre with covariance
        tau2 I, and all tasks have noise of variance sigma2. Solutions and noise are normal for the
        likelihood. Checked: as for `gls`.

    Source:
        Result 18.

    >>> two = [[[1.0]], [[2.0]]], [[1.0], [2.0]]
    >>> bayes_maml(*two, *two, sigma2=1.0, tau2=1.0).estimate.round(12)
    array([1.])
    """
    support, support_y = _task_data(X_support, y_support, "bayes_maml", "_support")
    query, query_y = _task_data(X_query, y_query, "bayes_maml", "_query")
    if support.shape[::2] != query.shape[::2]:
        raise ValueError(
            "bayes_maml: X_support and X_query must have the same tasks and inputs "
            f"(got {support.shape}, {query.shape})"
        )
    scatter, noise = _variances(sigma2, tau2, "bayes_maml", tau2_positive=True)
    frame = _frame(_t(support) @ support, noise, scatter)
    moved = scatter * frame.solve((_t(support) @ support_y[..., None])[..., 0])[..., None]
    # With R^2 = S the predictive covariance is noise I + scatter (X2 R) (X2 R)'.
    root = frame.matrix(np.sqrt(noise / frame.total))
    seen = query @ root
    rest = query_y[..., None] - query @ moved
    frame = _frame(_t(seen) @ seen, noise, scatter)
    weight = root @ frame.matrix(frame.values / frame.total) @ root
    aimed = root @ frame.solve((_t(seen) @ rest)[..., 0])[..., None]
    return _estimate(weight.sum(0), aimed.sum(0)[:, 0], "bayes_maml")


def efficiency_bound(
    Q: Any, *, sigma2: float, tau2: float, samples: int, weights: Any = None, seed: int = 0
) -> EfficiencyBound:
    """Returns the least asymptotic covariance in the centroid model, and those of DRS and BaMAML.

    Args:
        Q: [p, p] or [G, p, p], input covariances of the tasks.
        sigma2, tau2: noise variance and variance of the solutions, both positive.
        samples: N; a task has 2 N rows.
        weights: [G], equal by default.
        seed: of the random points (p > 1).

    Returns:
        EfficiencyBound. Compare with `rule_expansion(centroid_law(...), ...)` for other methods.

    Raises:
        TypeError, ValueError: arguments out of range; E Q singular, so that theta_0 cannot be
            estimated.

    Cost:
        p = 1: quadrature. p > 1: 16 randomisations of up to 2048 Sobol points, O(G p^3) each.

    Assumes:
        The centroid model: given the inputs, solutions scatter around one centre with covariance
        tau2 I, and all tasks have noise of variance sigma2. The bound is on estimators that are
        linear in y and unbiased given the inputs, which are Gaussian. Checked: the variances'
        ranges and that Q holds covariance matrices.

    Source:
        Result 18. Rows split into support and query carry I(all) = I(support) + W, W being Bayesian
        MAML's weight: the split loses the first term.

    >>> found = efficiency_bound([[1.5]], sigma2=0.7, tau2=0.8, samples=5)
    >>> found.information.round(6)
    array([[1.166664]])
    """
    function = "efficiency_bound"
    q = _covariance_stack(Q, function)
    scatter, noise = _variances(sigma2, tau2, function, tau2_positive=True)
    law = centroid_law(q, tau2=tau2, sigma2=sigma2, weights=weights)
    share = law.nodes().weights.reshape(len(q), -1).sum(1)
    n = _arguments.counts(samples, function=function, name="samples")
    n = sizes.array(n, function=function, name="samples", ndim=0)
    _arguments.positive_definite(
        np.tensordot(share, q, 1), function=function, name="E Q", result="Result 18"
    )
    (whole, missing, error), (support, more_missing, support_error) = (
        _mean_information(q, share, rows, noise, scatter, seed)
        for rows in (2.0 * float(n), float(n))
    )
    # I / scatter is the information of tasks known exactly. Two informations near it differ by what
    # they miss.
    query = whole - support if np.trace(whole) < np.trace(missing) else more_missing - missing
    joint = joint_training(law, 2.0 * float(n), function)
    return EfficiencyBound(
        gls=np.asarray(np.linalg.inv(whole)),
        bayes_maml=np.asarray(np.linalg.inv(query)),
        drs=sandwich(joint)[0],
        information=whole,
        support_information=support,
        standard_error=float(max(error.max(), support_error.max())),
    )


def _mean_information(
    q: Array, share: Array, rows: float, noise: float, scatter: float, seed: int
) -> tuple[Array, Array, Array]:
    """E I_t of tasks of so many rows, I / scatter less it, and the standard error of the first."""
    smallest = noise / scatter / rows / float(np.linalg.eigvalsh(q)[:, -1].max())
    points = designs(q.shape[-1], rows, None, tasks=len(q), seed=seed, smallest=min(smallest, 1.0))
    each = np.empty((2, len(points.values), *q.shape))
    for b, part, design in each_block(q, points):
        frame = _frame(rows * design, noise, scatter)
        each[0, b, part] = mean(points, frame.matrix(frame.values / frame.total))
        each[1, b, part] = mean(points, frame.matrix(noise / scatter / frame.total))
    known, missing = (np.einsum("g,bgij->bij", share, part) for part in each)
    return spread(known)[0], spread(missing)[0], spread(known)[1]


class _Frame(NamedTuple):
    """X'X in the frame of its eigenvectors, where nothing is inverted that may be singular.

    Members:
        values: [..., p], eigenvalues of X'X; 0 below rounding.
        total: [..., p], noise + scatter values.
        vectors: [..., p, p], eigenvectors as columns.
    """

    values: Array
    total: Array
    vectors: Array

    def matrix(self, diagonal: Array) -> Array:
        """The matrix with these eigenvalues."""
        return np.asarray((self.vectors * diagonal[..., None, :]) @ _t(self.vectors))

    def solve(self, vector: Array) -> Array:
        """(noise I + scatter X'X)^-1 times vectors [..., p] of the range of X'."""
        inside = (_t(self.vectors) @ vector[..., None])[..., 0]
        inside = np.where(self.values > 0.0, inside / self.total, 0.0)
        return np.asarray((self.vectors @ inside[..., None])[..., 0])


def _frame(gram: Array, noise: float, scatter: float) -> _Frame:
    """The frame of matrices X'X [..., p, p]."""
    values, vectors = np.linalg.eigh(gram)
    resolved = np.finfo(np.float64).eps * gram.shape[-1] * values[..., -1:]
    values = np.where(values > resolved, values, 0.0)
    return _Frame(values, noise + scatter * values, vectors)


def _t(matrix: Array) -> Array:
    """Transposes of the last two axes."""
    return np.swapaxes(matrix, -1, -2)


def _estimate(weight: Array, aimed: Array, function: str) -> CentroidEstimate:
    """The weighted least-squares solution."""
    _arguments.positive_definite(
        weight, function=function, name="the summed information", result="Result 18"
    )
    return CentroidEstimate(
        np.asarray(np.linalg.solve(weight, aimed)), np.asarray(np.linalg.inv(weight))
    )


def _task_data(X: Any, y: Any, function: str, suffix: str) -> tuple[Array, Array]:
    """X [M, n, p] and y [M, n]."""
    rows = sizes.array(X, function=function, name=f"X{suffix}", ndim=3)
    targets = sizes.array(y, function=function, name=f"y{suffix}", ndim=2)
    if targets.shape != rows.shape[:2]:
        raise ValueError(
            f"{function}: y{suffix} must have shape {rows.shape[:2]} to fit X{suffix} "
            f"(got {targets.shape})"
        )
    return rows, targets


def _covariance_stack(Q: Any, function: str) -> Array:
    """Q as [G, p, p]."""
    q = sizes.covariances(Q, function=function, name="Q")
    if q.ndim > 3:
        raise ValueError(f"{function}: Q must have shape [p, p] or [G, p, p] (got {q.shape})")
    return q.reshape(-1, *q.shape[-2:])


def _variances(
    sigma2: Any, tau2: Any, function: str, *, tau2_positive: bool
) -> tuple[float, float]:
    """(tau2, sigma2) as numbers in their ranges."""
    scatter = float(sizes.array(tau2, function=function, name="tau2", ndim=0))
    noise = float(sizes.array(sigma2, function=function, name="sigma2", ndim=0))
    if noise <= 0.0 and function != "centroid_law":
        raise ValueError(f"{function}: sigma2 must be positive (got {noise:g}); Result 18 needs it")
    if scatter < 0.0 or (tau2_positive and scatter == 0.0):
        bound = "positive" if tau2_positive else "non-negative"
        raise ValueError(f"{function}: tau2 must be {bound} (got {scatter:g}); Result 18 needs it")
    return scatter, noise
