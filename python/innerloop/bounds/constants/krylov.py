"""Extreme eigenvalues from matrix-vector products: batched Lanczos and power iteration from random
starts, and how likely each is to be wrong (Result 32)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from innerloop.bounds._arguments import array, scipy_module
from innerloop.bounds._results import Assumption, quantity
from innerloop.bounds.constants._oracle import check_count, check_fraction

Product = Callable[[Tensor], Tensor]
Method = Literal["lanczos", "power"]

_ASSUMED = (
    Assumption("the matrix is symmetric positive semidefinite"),
    Assumption("the start is Gaussian and independent of the matrix", "checked"),
    Assumption("arithmetic is exact (float64 with full reorthogonalisation comes close)"),
)


def lanczos_failure(eps: Any, products: Any, size: Any, *, sharp: bool = False) -> Any:
    """Returns a bound on the probability that Lanczos misses the largest eigenvalue by a relative
    error above `eps`.

    Args:
        eps: relative error in (0, 1); products: matrix-vector products k >= 1; size: dimension p.
            Numbers or arrays that broadcast.
        sharp: the smaller bound that docs/theory/constants.md proves, which needs SciPy.

    Returns:
        min(1, 1.648 sqrt(p) exp(-sqrt(eps) (2k - 1))): a Quantity, or a float64 array. Sharp:
        P(b <= 1 / cosh^2((2k - 1) artanh sqrt(eps))) for b ~ Beta(1/2, (p - 1)/2).

    Raises:
        ValueError: an argument is outside its range.
        ModuleNotFoundError: `sharp` without SciPy.

    Assumes:
        A symmetric positive semidefinite matrix, a Gaussian start independent of it, exact
        arithmetic. Checked: ranges.

    Source: Result 32; Kuczyński and Woźniakowski 1992. The sharp form is this project's own.

    Example:
        >>> print(f"{lanczos_failure(0.1, 20, 400):.4e}")
        1.4517e-04
    """
    eps, products, size = _ranges("lanczos_failure", eps, products, size)
    steps = 2.0 * products - 1.0
    if sharp:
        special = scipy_module("special", function="lanczos_failure")
        reach = np.cosh(np.minimum(steps * np.arctanh(np.sqrt(eps)), 350.0)) ** -2.0
        others = np.maximum((size - 1.0) / 2.0, 0.5)
        bound = np.where(size == 1.0, 0.0, special.betainc(0.5, others, reach))
    else:
        bound = 1.648 * np.sqrt(size) * np.exp(-np.sqrt(eps) * steps)
    return quantity(
        np.minimum(bound, 1.0),
        name="probability that Lanczos under-estimates by more than eps",
        source="Result 32",
        assumptions=_ASSUMED,
        standing="certified",
    )


def power_failure(eps: Any, products: Any, size: Any) -> Any:
    """Returns the same bound for the power method.

    Args, Raises: see `lanczos_failure`.

    Returns:
        min(1, min(0.824, 0.354 / sqrt(eps (k - 1))) sqrt(p) (1 - eps)^(k - 1/2)).

    Assumes:
        A symmetric positive semidefinite matrix, a Gaussian start independent of it, exact
        arithmetic. Checked: ranges.

    Source: Result 32; Kuczyński and Woźniakowski 1992.

    Example:
        >>> round(float(power_failure(0.1, 20, 400)), 3)
        0.658
    """
    eps, products, size = _ranges("power_failure", eps, products, size)
    with np.errstate(divide="ignore"):
        factor = np.minimum(0.824, 0.354 / np.sqrt(eps * (products - 1.0)))
    bound = factor * np.sqrt(size) * (1.0 - eps) ** (products - 0.5)
    return quantity(
        np.minimum(bound, 1.0),
        name="probability that the power method under-estimates by more than eps",
        source="Result 32",
        assumptions=_ASSUMED,
        standing="certified",
    )


def products_needed(eps: float, delta: float, size: int, *, method: Method = "lanczos") -> int:
    """Returns the number of products after which the failure bound is at most `delta`.

    Args:
        eps: relative error in (0, 1).
        delta: failure probability in (0, 1).
        size: dimension p of the matrix.
        method: "lanczos" or "power".

    Raises:
        ValueError: an argument is outside its range.

    Assumes:
        A symmetric positive semidefinite matrix, a Gaussian start independent of it, exact
        arithmetic. Checked: ranges.

    Source: Result 32.

    Example:
        >>> products_needed(0.05, 0.01, 10**6)
        28
    """
    eps = check_fraction("products_needed", "eps", eps)
    delta = check_fraction("products_needed", "delta", delta)
    size = check_count("products_needed", "size", size, 1)
    if method == "lanczos":
        root = math.log(1.648 * math.sqrt(size) / delta) / math.sqrt(eps)
        return max(1, math.ceil(0.5 * (1.0 + root)))
    _check_method("products_needed", method)
    low, high = 0, 1
    while float(power_failure(eps, high, size)) > delta:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if float(power_failure(eps, middle, size)) > delta:
            low = middle
        else:
            high = middle
    return high


class Krylov(NamedTuple):
    """What `lanczos` finds: for every task the tridiagonal matrix of its Krylov space.

    Members:
        diagonal: [T, k]; offdiagonal: [T, k], its last entry the norm of the next residual.
        basis: [T, k, P] with orthonormal rows (zero rows after an invariant subspace is full).
    """

    diagonal: Tensor
    offdiagonal: Tensor
    basis: Tensor


class Ritz(NamedTuple):
    """Approximate eigenpairs at one end: value [T], unit vector [T, P], residual [T].

    There is an eigenvalue within `residual` of `value`, whatever the start was.
    """

    value: Tensor
    vector: Tensor
    residual: Tensor


def lanczos(product: Product, start: Tensor, products: int) -> Krylov:
    """Returns the Lanczos decomposition of T symmetric matrices at once.

    Args:
        product: [T, P] -> [T, P], each row times its own symmetric matrix.
        start: [T, P], one start per matrix, not zero.
        products: k >= 1; more than P gives nothing new and is cut to P.

    Returns:
        Krylov. Every new vector is orthogonalised twice against all before it. Where the Krylov
        space is exhausted early the matrix is continued by its own first entry, a Rayleigh
        quotient, which leaves the extreme eigenvalues as they are.

    Raises:
        ValueError: `products` is not a positive integer, or `start` is zero for some task.

    Cost: k products; time O(T k^2 P) besides; memory O(T k P).

    Assumes:
        The matrices are symmetric. Not checked.

    Source: Result 32; Lanczos 1950, Paige 1971 (why to reorthogonalise).

    Example:
        >>> matrix = torch.diag(torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64))
        >>> found = lanczos(lambda v: v @ matrix, torch.ones(1, 3, dtype=torch.float64), 3)
        >>> [round(float(end.value), 6) for end in ritz(found, lambda v: v @ matrix)]
        [-2.0, 3.0]
    """
    tasks, size = start.shape
    k = min(check_count("lanczos", "products", products, 1), size)
    norm = start.norm(dim=1, keepdim=True)
    if bool((norm == 0).any()):
        raise ValueError("lanczos: start must not be zero (got a zero row)")
    basis = start.new_zeros(tasks, k, size)
    diagonal, offdiagonal = start.new_zeros(tasks, k), start.new_zeros(tasks, k)
    live = torch.ones(tasks, dtype=torch.bool, device=start.device)
    scale = start.new_zeros(tasks)
    tolerance = torch.finfo(start.dtype).eps * max(size, 10)
    vector = start / norm
    for j in range(k):
        basis[:, j] = vector
        image = product(vector)
        entry = (image * vector).sum(1)
        diagonal[:, j] = torch.where(live, entry, diagonal[:, 0])
        seen = basis[:, : j + 1]
        for _ in range(2):
            overlap = torch.einsum("tkp,tp->tk", seen, image)
            image = image - torch.einsum("tk,tkp->tp", overlap, seen)
        length = image.norm(dim=1)
        scale = torch.maximum(scale, torch.maximum(entry.abs(), length))
        live = live & (length > tolerance * scale)
        offdiagonal[:, j] = torch.where(live, length, 0)
        vector = torch.where(live[:, None], image / length.clamp(min=1e-300)[:, None], 0)
        if not bool(live.any()):
            diagonal[:, j + 1 :] = diagonal[:, :1]
            break
    return Krylov(diagonal, offdiagonal, basis)


def ritz(found: Krylov, product: Product) -> tuple[Ritz, Ritz]:
    """Returns the smallest and the largest Ritz pair of every task, with measured residuals.

    Cost: 2 products.

    Assumes:
        The matrices are symmetric. Not checked; residuals are measured.

    Source: Result 32.
    """
    k = found.diagonal.shape[1]
    matrix = torch.diag_embed(found.diagonal)
    if k > 1:
        off = found.offdiagonal[:, : k - 1]
        matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    # a Ritz vector may lie wholly in the continuation where both ends are one eigenvalue
    vectors = torch.where((found.basis.abs().sum(2) > 0)[:, :, None], vectors, 0)
    ends = []
    for end in (0, k - 1):
        vector = torch.einsum("tk,tkp->tp", vectors[:, :, end], found.basis)
        length = vector.norm(dim=1, keepdim=True)
        vector = torch.where(length > 0.5, vector / length.clamp(min=0.5), found.basis[:, 0])
        value = values[:, end]
        residual = (product(vector) - value[:, None] * vector).norm(dim=1)
        ends.append(Ritz(value, vector, residual))
    return ends[0], ends[1]


def power_iteration(product: Product, start: Tensor, products: int) -> Ritz:
    """Returns the Rayleigh quotient of T positive semidefinite matrices after k products.

    Args:
        product, start, products: as `lanczos`; products is not cut.

    Returns:
        Ritz: value = v'Av for v = A^(k-1) start, normalised.

    Raises: see `lanczos`.

    Cost: k products; memory O(T P).

    Assumes:
        The matrices are symmetric positive semidefinite. Not checked.

    Source: Result 32.

    Example:
        >>> matrix = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
        >>> start = torch.ones(1, 2, dtype=torch.float64)
        >>> round(float(power_iteration(lambda v: v @ matrix, start, 40).value), 9)
        3.0
    """
    check_count("power_iteration", "products", products, 1)
    norm = start.norm(dim=1, keepdim=True)
    if bool((norm == 0).any()):
        raise ValueError("power_iteration: start must not be zero (got a zero row)")
    vector = start / norm
    for _ in range(products - 1):
        image = product(vector)
        length = image.norm(dim=1, keepdim=True)
        vector = torch.where(length > 0, image / length.clamp(min=1e-300), vector)
    image = product(vector)
    value = (image * vector).sum(1)
    return Ritz(value, vector, (image - value[:, None] * vector).norm(dim=1))


def largest_eigenvalue(
    product: Product, start: Tensor, products: int, *, method: Method = "lanczos"
) -> Ritz:
    """Returns a lower bound of the largest eigenvalue of T positive semidefinite matrices.

    Args:
        method: "lanczos" (2 products more, for the residuals) or "power".
        others: see `lanczos`.

    Returns:
        Ritz. value / (1 - eps) is an upper bound with the confidence that `lanczos_failure` or
        `power_failure` gives.

    Raises: see `lanczos`; ValueError for another method.

    Assumes:
        The matrices are symmetric positive semidefinite. Not checked.

    Source: Result 32.
    """
    if method == "lanczos":
        return ritz(lanczos(product, start, products), product)[1]
    _check_method("largest_eigenvalue", method)
    return power_iteration(product, start, products)


def _check_method(function: str, method: str) -> None:
    """Raises unless the method is the power method (Lanczos was handled before)."""
    if method != "power":
        raise ValueError(f'{function}: method must be "lanczos" or "power" (got {method!r})')


def _ranges(
    function: str, eps: Any, products: Any, size: Any
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns the three arguments as float64 arrays in range, or raises."""
    eps, products, size = (
        array(value, function=function, name=name)
        for name, value in (("eps", eps), ("products", products), ("size", size))
    )
    if not ((eps > 0) & (eps < 1)).all():
        raise ValueError(f"{function}: eps must lie strictly in (0, 1) (got {eps.tolist()})")
    for name, value in (("products", products), ("size", size)):
        if not (value >= 1).all():
            raise ValueError(f"{function}: {name} must be at least 1 (got {value.tolist()})")
    return eps, products, size
