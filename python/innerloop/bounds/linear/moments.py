"""Closed forms for moments of the empirical second-moment matrix of a Gaussian design (Result 1).

Qh = X'X / N with N independent rows x ~ N(0, Q). `wick.py` has the general rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds.linear import sizes

_MOST_ORDER = 150


def sandwich_moment(Q: Any, B: Any, samples: Any, *, kurtosis: Any = None) -> Array:
    """Returns E[Qh B Qh] for any matrix B.

    Args:
        Q: [..., p, p], covariance of x.
        B: [..., p, p], any matrix; leading axes broadcast with those of Q.
        samples: N, [...] or a number; None for N = infinity.
        kurtosis: fourth moment of the independent entries of z in x = Q^(1/2) z, which have mean 0
            and variance 1 (3, the Gaussian value, by default). Symmetric square root.

    Returns:
        [..., p, p] float64.

    Raises:
        TypeError: not real numbers.
        ValueError: a shape does not fit, Q is no covariance matrix, N below 1, kurtosis below 1.

    Cost:
        O(p^3) per matrix.

    Assumes:
        Rows are independent and N(0, Q); with a kurtosis, Q^(1/2) times independent entries.
        Checked: Q is a covariance matrix.

    Source:
        Result 1 (classical; Isserlis 1918).

    >>> sandwich_moment([[2.0, 0.5], [0.5, 1.0]], [[1.0, 2.0], [0.0, -1.0]], 5).round(6)
    array([[7.7, 4.9],
           [2.1, 0.7]])
    """
    q = sizes.covariances(Q, function="sandwich_moment", name="Q")
    b = sizes.array(B, function="sandwich_moment", name="B")
    if b.ndim < 2 or b.shape[-2:] != q.shape[-2:]:
        raise ValueError(
            f"sandwich_moment: B must have shape [..., {q.shape[-1]}, {q.shape[-1]}] "
            f"(got {b.shape})"
        )
    n = _per_matrix(
        _arguments.counts(samples, function="sandwich_moment", name="samples", none=np.inf)
    )
    noise = q @ np.swapaxes(b, -1, -2) @ q + _trace(b @ q) * q
    if kurtosis is not None:
        kappa = sizes.array(kurtosis, function="sandwich_moment", name="kurtosis")
        if (kappa < 1.0).any():
            raise ValueError(f"sandwich_moment: kurtosis must be at least 1 (got {kappa.min():g})")
        values, vectors = np.linalg.eigh(q)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ np.swapaxes(
            vectors, -1, -2
        )
        diagonal = np.einsum("...ij,...jk,...ki->...i", root, b, root)
        noise = noise + _per_matrix(kappa - 3.0) * (root * diagonal[..., None, :]) @ root
    return np.asarray(q @ b @ q + noise / n)


def square_moment(Q: Any, samples: Any) -> Array:
    """Returns E[Qh^2] = Q^2 + (Q^2 + tr(Q) Q) / N (arguments as `sandwich_moment`).

    Assumes:
        Rows are independent and N(0, Q). Checked: Q is a covariance matrix.

    Source:
        Result 1 (classical).

    >>> float(square_moment([[1.0]], 2)[0, 0])
    2.0
    """
    q = sizes.covariances(Q, function="square_moment", name="Q")
    n = _per_matrix(
        _arguments.counts(samples, function="square_moment", name="samples", none=np.inf)
    )
    square = q @ q
    return np.asarray(square + (square + _trace(q) * q) / n)


def cube_moment(Q: Any, samples: Any) -> Array:
    """Returns E[Qh^3] (arguments as `sandwich_moment`).

    Assumes:
        Rows are independent and N(0, Q). Checked: Q is a covariance matrix.

    Source:
        Result 1 (classical).

    >>> cube_moment([[2.0, 0.5], [0.5, 1.0]], 5).round(6)
    array([[25.76,  9.38],
           [ 9.38,  7.  ]])
    """
    q = sizes.covariances(Q, function="cube_moment", name="Q")
    n = _per_matrix(_arguments.counts(samples, function="cube_moment", name="samples", none=np.inf))
    square = q @ q
    trace, trace_square = _trace(q), _trace(square)
    once = 3.0 * square @ q + 2.0 * trace * square + trace_square * q
    twice = 4.0 * square @ q + 2.0 * trace * square + (trace_square + trace**2) * q
    return np.asarray(square @ q + once / n + twice / n**2)


def design_noise(Q: Any) -> Array:
    """Returns V(Q) = E[(xx' - Q) Q (xx' - Q)] = Q^3 + tr(Q^2) Q for x ~ N(0, Q).

    V / N is what sampling the inner step's Hessian adds to the post-update risk (Result 2).

    Args:
        Q: [..., p, p].

    Returns:
        [..., p, p] float64.

    Raises:
        TypeError, ValueError: Q is no covariance matrix.

    Assumes:
        Rows are independent and N(0, Q). Checked: Q is a covariance matrix.

    Source:
        Result 1. Gao and Sener's code estimates V by simulation.

    >>> design_noise([[2.0, 0.5], [0.5, 1.0]])
    array([[20.25 ,  6.375],
           [ 6.375,  7.5  ]])
    """
    q = sizes.covariances(Q, function="design_noise", name="Q")
    square = q @ q
    return np.asarray(square @ q + _trace(square) * q)


def scalar_moments(order: int, samples: Any) -> Array:
    """Returns chi_k = E[qh^k] / q^k for k = 0..order in one dimension.

    chi_k is the product of (1 + 2 j / N) over j < k: qh is q times a chi-square over N.

    Args:
        order: highest power, from 0 to 150 (chi_151 leaves float64 for N = 1).
        samples: N, any shape; None for infinity (all ones).

    Returns:
        [order + 1, ...] float64.

    Raises:
        ValueError: N below 1 or an order out of range.

    Assumes:
        Rows are independent and normal. Checked: order and N in range.

    Source:
        Result 1 (classical).

    >>> scalar_moments(3, 2)
    array([1., 1., 2., 6.])
    """
    n = _arguments.counts(samples, function="scalar_moments", name="samples", none=np.inf)
    top = _arguments.counts(
        order, function="scalar_moments", name="order", at_least=0, at_most=_MOST_ORDER
    )
    moments = [np.ones_like(n)]
    for j in range(int(top)):
        moments.append(moments[-1] * (1.0 + 2.0 * j / n))
    return np.array(moments)


def _trace(matrix: Array) -> Array:
    """Traces with two trailing axes of length 1."""
    return np.asarray(np.trace(matrix, axis1=-2, axis2=-1))[..., None, None]


def _per_matrix(value: Array) -> Array:
    """`value` with two trailing axes, to scale matrices."""
    return value[..., None, None]
