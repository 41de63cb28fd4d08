"""Distributions of linear-regression tasks, as the averages the theory needs and as samplers.

A task is (Q, theta, sigma2): x ~ N(0, Q), y = theta . x + noise of variance sigma2 (D4).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._quantities import parted
from innerloop.bounds._standing import CERTAIN, Trust, joined
from innerloop.bounds.linear import sizes

Sampler = Callable[[np.random.Generator, int], tuple[Any, Any, Any]]

# Nodes that stand for the published law when no exact rule is at hand, and their seed.
_DRAWS = 20000
_SEED = 20201
_MOST_ENTRIES = 2**27  # of their Q
_MOST_DRAWS = 10**7
_MOST_DIMENSIONS = 1024


class Nodes(NamedTuple):
    """G weighted tasks whose weighted sums stand for averages over a law.

    Members:
        weights: [G] float64, non-negative, summing to 1.
        Q: [G, p, p] float64, input covariances.
        theta: [G, p] float64, regression vectors.
        sigma2: [G] float64, noise variances.
    """

    weights: Array
    Q: Array
    theta: Array
    sigma2: Array


class LowOrder(NamedTuple):
    """Averages of the four matrices F = Q, Q^2, Q^3, tr(Q^2) Q that the post-update risk needs.

    Members:
        matrices: [4, p, p], E F.
        vectors: [4, p], E[F theta].
        scalars: [4], E[theta' F theta].
        noise: E sigma2.
        noise_trace: E[sigma2 tr(Q^2)].
    """

    matrices: Array
    vectors: Array
    scalars: Array
    noise: float
    noise_trace: float


class TaskLaw:
    """A distribution of tasks: what every function of `innerloop.bounds.linear` takes.

    Subclasses give `p`, `exact`, `nodes` and `sample`.

    Members:
        p: the dimension of x and theta.
        exact: whether sums over `nodes()` equal the law's averages of the polynomials in
            Results 1-11 (up to rounding), rather than estimate them.
        trust: standing of the numbers that describe the law, where they carry one.
    """

    p: int
    exact: bool
    trust: Trust = CERTAIN

    def nodes(self) -> Nodes:
        """The tasks and weights that stand for the law; the same object on every call."""
        raise NotImplementedError

    def sample(self, rng: np.random.Generator, size: int) -> Nodes:
        """`size` independent tasks with weights 1 / size."""
        raise NotImplementedError

    def low_order(self) -> LowOrder:
        """The averages behind Results 2-4, from the nodes unless a closed form is known."""
        weights, q, theta, sigma2 = self.nodes()
        square = q @ q
        trace = np.trace(square, axis1=1, axis2=2)
        family = np.stack([q, square, square @ q, trace[:, None, None] * q])  # [4, G, p, p]
        times_theta = np.einsum("fgij,gj->fgi", family, theta)
        return LowOrder(
            np.einsum("g,fgij->fij", weights, family),
            np.einsum("g,fgi->fi", weights, times_theta),
            np.einsum("g,fgi,gi->f", weights, times_theta, theta),
            float(weights @ sigma2),
            float(weights @ (sigma2 * trace)),
        )


class Mixture(TaskLaw):
    """A law with finitely many tasks; every average over it is exact.

    Args:
        weights: [G], non-negative, summing to 1 within 1e-9.
        Q: [G, p, p], symmetric positive semidefinite.
        theta: [G, p].
        sigma2: [G], non-negative. All may be NumPy arrays, nested lists or torch tensors.

    Raises:
        TypeError: not real numbers.
        ValueError: a shape does not fit, a value is not finite, weights that do not sum to 1, a
            negative variance, or a Q that is no covariance matrix.

    Source:
        Definition D4 of docs/theory.md.

    >>> law = Mixture([0.5, 0.5], [[[1.0]], [[2.0]]], [[0.0], [1.0]], [0.1, 0.2])
    >>> law.p, law.exact
    (1, True)
    """

    exact = True

    def __init__(self, weights: Any, Q: Any, theta: Any, sigma2: Any) -> None:
        self._nodes = _checked(weights, Q, theta, sigma2, "Mixture")
        self.trust = _carried(weights, Q, theta, sigma2)
        self.p = self._nodes.Q.shape[-1]

    def nodes(self) -> Nodes:
        """The tasks of the mixture themselves."""
        return self._nodes

    def sample(self, rng: np.random.Generator, size: int) -> Nodes:
        """`size` tasks drawn with the mixture's weights."""
        drawn = rng.choice(len(self._nodes.weights), size=size, p=self._nodes.weights)
        _, q, theta, sigma2 = self._nodes
        return Nodes(np.full(size, 1.0 / size), q[drawn], theta[drawn], sigma2[drawn])


class PublishedLaw(TaskLaw):
    """The law of Gao and Sener's linear-regression experiment (made by `published_law`).

    Members:
        p: dimension.
        beta: scale of the eigenvalues, regression coefficients and noise variances.
        exact: True for p <= 4. Beyond, `nodes` is a seeded sample of 20000 tasks.
    """

    def __init__(self, p: int, beta: float) -> None:
        self.p = p
        self.beta = beta
        self.exact = p <= 4

    def nodes(self) -> Nodes:
        """A product rule: Gauss-Legendre in each eigenvalue, a rotation rule, sigma2's mean.

        The averages in question have degree at most 8 in an eigenvalue and at most 4 in the
        rotation (powers of Q count 2), and are linear in sigma2, which is independent of the rest.
        """
        return self._rule

    def with_noise_levels(self) -> Nodes:
        """`nodes` with sigma2 at two Gauss-Legendre points, so that its square averages exactly."""
        weights, q, theta, sigma2 = self._rule
        reach = self.beta / np.sqrt(12.0)
        return Nodes(
            np.tile(weights / 2.0, 2),
            np.tile(q, (2, 1, 1)),
            np.tile(theta, (2, 1)),
            np.concatenate([sigma2 - reach, sigma2 + reach]),
        )

    def sample(self, rng: np.random.Generator, size: int) -> Nodes:
        """`size` tasks: eigenvalues U(0, beta), rotation Haar, sigma2 U(0, beta)."""
        eigenvalues = rng.uniform(0.0, self.beta, (size, self.p))
        rotations = haar_rotations(rng, size, self.p)
        sigma2 = rng.uniform(0.0, self.beta, size)
        q = _rotated(rotations, eigenvalues)
        return Nodes(np.full(size, 1.0 / size), q, eigenvalues, sigma2)

    def low_order(self) -> LowOrder:
        """The closed form of Result 5, for any p."""
        m = self.beta ** np.arange(6.0) / np.arange(1.0, 7.0)  # moments of U(0, beta)
        p, r = self.p, self.p - 1
        matrices = np.array([m[1], m[2], m[3], m[3] + r * m[1] * m[2]])
        vectors = [m[k + 1] + r * m[k] * m[1] for k in (1, 2, 3)]
        vectors.append(m[4] + 2 * r * m[3] * m[1] + r * m[2] ** 2 + r * (p - 2) * m[2] * m[1] ** 2)
        scalars = [m[k + 2] + r * m[k] * m[2] for k in (1, 2, 3)]
        scalars.append(
            m[5] + r * m[4] * m[1] + 2 * r * m[3] * m[2] + r * (p - 2) * m[2] ** 2 * m[1]
        )
        return LowOrder(
            matrices[:, None, None] * np.eye(p),
            np.repeat(np.array(vectors)[:, None] / p, p, axis=1),
            np.array(scalars),
            self.beta / 2.0,
            self.beta / 2.0 * p * m[2],
        )

    @cached_property
    def _rule(self) -> Nodes:
        """What `nodes` returns."""
        if not self.exact:
            if _DRAWS * self.p**2 > _MOST_ENTRIES:
                most = math.isqrt(_MOST_ENTRIES // _DRAWS)
                raise ValueError(
                    f"published_law: p must be at most {most} for averages over drawn tasks, "
                    f"which Results 6-20 need (got {self.p}); Results 2-5 have a closed form"
                )
            drawn = self.sample(np.random.default_rng(_SEED), _DRAWS)
            return drawn._replace(sigma2=np.full(_DRAWS, self.beta / 2.0))
        points, mass = np.polynomial.legendre.leggauss({1: 16, 2: 8, 3: 6, 4: 5}[self.p])
        points, mass = self.beta * (points + 1.0) / 2.0, mass / 2.0
        eigenvalues = np.array(list(itertools.product(points, repeat=self.p)))  # [E, p]
        weights = np.array([np.prod(w) for w in itertools.product(mass, repeat=self.p)])
        rotations, share = _rotation_rule(self.p)  # [R, p, p], [R]
        q = _rotated(rotations[:, None], eigenvalues[None])  # [R, E, p, p]
        count = len(share)
        return Nodes(
            np.outer(share, weights).ravel(),
            q.reshape(-1, self.p, self.p),
            np.tile(eigenvalues, (count, 1)),
            np.full(count * len(weights), self.beta / 2.0),
        )


class SampledLaw(TaskLaw):
    """A law known through a sampler (made by `from_sampler`); its nodes are a seeded sample."""

    exact = False

    def __init__(self, sampler: Sampler, draws: int, seed: int) -> None:
        self._sampler = sampler
        self._rule = self.sample(np.random.default_rng(seed), draws)
        self.p = self._rule.Q.shape[-1]

    def nodes(self) -> Nodes:
        """The tasks drawn at construction."""
        return self._rule

    def sample(self, rng: np.random.Generator, size: int) -> Nodes:
        """`size` tasks from the sampler."""
        found = self._sampler(rng, size)
        if not isinstance(found, (tuple, list)) or len(found) != 3:
            count = f" of {len(found)}" if isinstance(found, (tuple, list)) else ""
            raise TypeError(
                f"from_sampler: sampler must return three arrays, Q [{size}, p, p], theta "
                f"[{size}, p] and sigma2 [{size}] (got {type(found).__name__}{count})"
            )
        q, theta, sigma2 = found
        return _checked(np.full(size, 1.0 / size), q, theta, sigma2, "from_sampler")


def published_law(p: int = 1, beta: float = 2.0) -> PublishedLaw:
    """Returns the task law of the published linear-regression experiment.

    Eigenvalues l_1..l_p are independent U(0, beta), Q = U diag(l) U' with U uniform among
    rotations, theta = (l_1..l_p) (the same numbers), sigma2 ~ U(0, beta) independent.

    Args:
        p: dimension, from 1 to 1024.
        beta: scale, from 1e-30 to 1e30.

    Returns:
        PublishedLaw. Its averages are exact for p <= 4; beyond, a seeded sample of 20000 tasks
        gives about two digits, while Results 2-4 use the closed form for any p.

    Raises:
        TypeError: not numbers.
        ValueError: p or beta out of range.

    Assumes:
        None: the law is that of the public code. Checked: p and beta in range.

    Source:
        Law: Gao and Sener, NeurIPS 2020, published code. Averages: Result 5.

    >>> published_law(p=2, beta=1.0).nodes().Q.shape[1:]
    (2, 2)
    """
    size = _arguments.counts(p, function="published_law", name="p", at_most=_MOST_DIMENSIONS)
    scale = sizes.array(beta, function="published_law", name="beta", ndim=0)
    if size.ndim or scale < 1.0 / sizes.LARGEST:
        raise ValueError(
            f"published_law: beta must be at least {1.0 / sizes.LARGEST:g} and p one number "
            f"(got {p}, {beta})"
        )
    law = PublishedLaw(int(size), float(scale))
    law.trust = _carried(beta)
    return law


def from_sampler(sampler: Sampler, draws: int = 20000, seed: int = 0) -> SampledLaw:
    """Returns the law of the tasks that a function draws.

    Args:
        sampler: called with (numpy Generator, size); returns Q [size, p, p], theta [size, p] and
            sigma2 [size].
        draws: tasks drawn once to stand for the law, at most 10^7. Averages have relative errors
            of order 1 / sqrt(draws).
        seed: of that draw.

    Raises:
        TypeError: the sampler is no function, or does not return three arrays of numbers.
        ValueError: the sampler's arrays do not describe tasks.

    Assumes:
        Draws are independent and of one law. Checked: every drawn task is one (a covariance
        matrix, a variance that is not negative).

    Source:
        Definition D4 of docs/theory.md; averages are sample means.

    >>> import numpy as np
    >>> def tasks(rng, size):
    ...     q = rng.uniform(0.5, 1.5, size)
    ...     return q[:, None, None], q[:, None], np.ones(size)
    >>> from_sampler(tasks, draws=100).p
    1
    """
    if not callable(sampler):
        raise TypeError(
            "from_sampler: sampler must be a function of (numpy Generator, size) (got "
            f"{type(sampler).__name__})"
        )
    size = int(_arguments.counts(draws, function="from_sampler", name="draws", at_most=_MOST_DRAWS))
    return SampledLaw(sampler, size, seed)


def haar_rotations(rng: np.random.Generator, size: int, p: int) -> Array:
    """`size` uniform rotation matrices [size, p, p] (p > 2: QR with the signs made unique)."""
    if p == 1:
        return np.ones((size, 1, 1))
    if p == 2:
        angle = rng.uniform(0.0, 2.0 * np.pi, size)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    q, r = np.linalg.qr(rng.standard_normal((size, p, p)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    q[:, :, 0] *= np.sign(np.linalg.det(q))[:, None]
    return np.asarray(q, dtype=np.float64)


def _checked(weights: Any, Q: Any, theta: Any, sigma2: Any, function: str) -> Nodes:
    """The four arrays as `Nodes`, or an error that names the wrong one."""
    w = sizes.array(weights, function=function, name="weights", ndim=1)
    q = sizes.array(Q, function=function, name="Q", ndim=3)
    q = sizes.covariances(q, function=function, name="Q")
    t = sizes.array(theta, function=function, name="theta", ndim=2)
    s = sizes.array(sigma2, function=function, name="sigma2", ndim=1)
    count, p = len(w), q.shape[-1]
    for name, value, shape in (("Q", q, (count, p, p)), ("theta", t, (count, p))):
        if value.shape != shape:
            raise ValueError(f"{function}: {name} must have shape {shape} (got {value.shape})")
    if s.shape != (count,):
        raise ValueError(f"{function}: sigma2 must have shape {(count,)} (got {s.shape})")
    if (w < 0.0).any() or abs(w.sum() - 1.0) > 1e-9:
        raise ValueError(
            f"{function}: weights must be non-negative and sum to 1 (sum {w.sum():.12g})"
        )
    if (s < 0.0).any():
        raise ValueError(
            f"{function}: sigma2 of task {int(np.argmin(s))} must be non-negative "
            f"(got {s.min():g}); definition D4 needs it"
        )
    return Nodes(*map(np.asarray, (w / w.sum(), q, t, s)))


def _carried(*values: Any) -> Trust:
    """What the numbers that describe a law carry; plain ones define it."""
    return joined(trust for _, trust in map(parted, values) if trust is not None)


def _rotated(rotations: Array, eigenvalues: Array) -> Array:
    """U diag(l) U' for matching leading axes."""
    return (rotations * eigenvalues[..., None, :]) @ np.swapaxes(rotations, -1, -2)


def _rotation_rule(p: int) -> tuple[Array, Array]:
    """Rotations [R, p, p] and weights [R], exact for degree 4 in U of functions of U diag(l) U'.

    p = 2: equispaced angles. p = 3, 4: groups of quaternions that are spherical designs on the
    3-sphere, of strength 11 (the 600-cell, for x -> a x a^-1, quadratic in a) and 5 (the 24-cell,
    for x -> a x b, linear in each of a and b); Delsarte, Goethals and Seidel 1977. Rotations that
    differ by the sign of columns give the same Q and are merged.
    """
    if p == 1:
        return np.ones((1, 1, 1)), np.ones(1)
    if p == 2:
        angle = np.pi * np.arange(3) / 3.0
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2), np.full(
            3, 1 / 3
        )
    units = _quaternion_group(icosians=p == 3)
    if p == 3:
        inverse = units * np.array([1.0, -1.0, -1.0, -1.0])
        rotations = (_left(units) @ _right(inverse))[:, 1:, 1:]
    else:
        rotations = (_left(units)[:, None] @ _right(units)[None]).reshape(-1, 4, 4)
    images = _rotated(rotations, np.arange(1.0, p + 1.0))
    _, first, count = np.unique(
        np.round(images.reshape(len(images), -1), 9) + 0.0,
        axis=0, return_index=True, return_counts=True,
    )  # fmt: skip
    return rotations[first], count / count.sum()


def _quaternion_group(icosians: bool) -> Array:
    """The 24 Hurwitz units, or the 120 unit icosians that contain them, [., 4]."""
    units = [sign * row for row in np.eye(4) for sign in (1.0, -1.0)]
    units += [np.array(signs) / 2.0 for signs in itertools.product((1.0, -1.0), repeat=4)]
    if icosians:
        golden = (1.0 + np.sqrt(5.0)) / 2.0
        for order in itertools.permutations(range(4)):
            if round(np.linalg.det(np.eye(4)[list(order)])) == 1:
                for signs in itertools.product((1.0, -1.0), repeat=3):
                    entries = np.array([*signs, 0.0]) * [golden, 1.0, 1.0 / golden, 0.0] / 2.0
                    units.append(entries[list(order)])
    return np.array(units)


def _left(units: Array) -> Array:
    """Matrices of x -> a x for quaternions a [., 4]."""
    a, b, c, d = units.T
    rows = [[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]]
    return np.moveaxis(np.array(rows), -1, 0)


def _right(units: Array) -> Array:
    """Matrices of x -> x a for quaternions a [., 4]."""
    a, b, c, d = units.T
    rows = [[a, -b, -c, -d], [b, a, d, -c], [c, -d, a, b], [d, c, -b, a]]
    return np.moveaxis(np.array(rows), -1, 0)
