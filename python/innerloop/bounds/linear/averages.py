"""Averages over a law of the expectations that `wick.reduce_word` describes.

A task's matrices Q^a (I - rate Q)^b are diagonal in the frame of its eigenvectors, so that all sums
over terms are sums of vectors, and I - rate Q is accurate where it is small. Arrays have the nodes
on their last axis, G, so that every operation runs along it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from innerloop.bounds._arguments import Array
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.wick import Kind, Power, Term, reduce_word

Value = TypeVar("Value")
Words = Mapping[str, float]
# A matrix at every node as a sum of columns [p, G] times rows [p, G].
Products = list[tuple[Array, Array]]
_RECENT = 4


class Reduced(NamedTuple):
    """E[words | task] at every node, in the frame of the task's eigenvectors.

    For a free matrix B the entry (i, j) is left_ij B_ij + right_ij B_ji, plus on the diagonal
    power_i and the sum over j of trace_ij B_jj.

    Members:
        power: [p, G], terms without the free matrix.
        left, right, trace: the matrices of the others.
    """

    power: Array
    left: Products
    right: Products
    trace: Products


class Averages:
    """The nodes of a law in their eigenframes, and averages of words over them.

    `words` is a linear combination {word: factor} of words as `reduce_word` takes them; their rate
    is `inner_lr` and their N is `samples` (maybe infinite).

    Members:
        weights, Q, theta, sigma2: the nodes.
        largest: largest eigenvalue of any Q.
    """

    def __init__(self, law: TaskLaw) -> None:
        self.p = law.p
        self.weights, self.Q, self.theta, self.sigma2 = law.nodes()
        values, frames = np.linalg.eigh(self.Q)
        self._values = np.ascontiguousarray(np.maximum(values, 0.0).T)  # [p, G]
        self.largest = float(self._values.max())
        self._frames = np.ascontiguousarray(np.moveaxis(frames, 0, -1))  # [p, eigenvector, G]
        self._kept: dict[object, object] = {}
        self._recent: dict[object, Reduced] = {}

    def reduced(self, words: Words, inner_lr: float, samples: float) -> Reduced:
        """The words' expectations at every node; the last few are kept, being used repeatedly."""
        key = (tuple(words.items()), inner_lr, samples)
        if key not in self._recent:
            if len(self._recent) == _RECENT:
                self._recent.pop(next(iter(self._recent)))
            self._recent[key] = self._reduced(words, inner_lr, samples)
        return self._recent[key]

    def _reduced(self, words: Words, inner_lr: float, samples: float) -> Reduced:
        """What `reduced` keeps."""
        powers = _Powers(self._values, 1.0 - inner_lr * self._values)
        weights: dict[tuple[Kind, Power, Power], Array] = {}
        for word, factor in words.items():
            for term in reduce_word(word):
                scale = _scale(term, factor, inner_lr, samples)
                if scale != 0.0:
                    weight = scale * powers.traces(term.traces)
                    key = (term.kind, term.left, term.right)
                    weights[key] = weights[key] + weight if key in weights else weight
        alone = np.zeros_like(self._values)
        rows: dict[Kind, dict[Power, Array]] = {"left": {}, "right": {}, "trace": {}}
        for (kind, left, right), weight in weights.items():
            if kind == "power":
                alone += weight * powers(left)
                continue
            row, kept = weight * powers(right), rows[kind]
            kept[left] = kept[left] + row if left in kept else row
        products = ([(powers(left), row) for left, row in kept.items()] for kept in rows.values())
        return Reduced(alone, *products)

    def each(self, words: Words, inner_lr: float, samples: float) -> Array:
        """E[words | task] at every node, [G, p, p], for words without a free matrix."""
        power = self.reduced(words, inner_lr, samples).power
        made = np.einsum("aig,big->abg", self._frames * power, self._frames)
        return np.ascontiguousarray(np.moveaxis(made, -1, 0))

    def matrix(
        self, words: Words, inner_lr: float, samples: float, scale: Array | float = 1.0
    ) -> Array:
        """E[scale words] for words without a free matrix, [p, p]; scale is [G] or a number."""
        power = self.reduced(words, inner_lr, samples).power
        return self._over_tasks(self._frames * (power * (self.weights * scale)))

    def scalar(self, words: Words, inner_lr: float, samples: float) -> Array:
        """The expectation at every node, [G], of words that are only traces ("|SS")."""
        return np.asarray(self.reduced(words, inner_lr, samples).power[0])

    def times(
        self, words: Words, inner_lr: float, samples: float, vectors: Array
    ) -> tuple[Array, float]:
        """E[words vector] for words without a free matrix and vectors [G, p], as [p]; and the mean
        size of what is averaged.
        """
        moved = self.reduced(words, inner_lr, samples).power * self._turned(vectors)
        size = float(np.sqrt((moved**2).sum(axis=0)) @ self.weights)
        return np.asarray(self._back(moved) @ self.weights), size

    def squares(self, words: Words, inner_lr: float, samples: float, vectors: Array) -> Array:
        """E[vector' words vector | task], [G], for words without a free matrix; vectors [G, p]."""
        power = self.reduced(words, inner_lr, samples).power
        return np.asarray((power * self._turned(vectors) ** 2).sum(axis=0))

    def outer(
        self, words: Words, inner_lr: float, samples: float, first: Array, second: Array
    ) -> Array:
        """E[words] with B = first second' at every node (both [G, p]), as [p, p]."""
        found = self.reduced(words, inner_lr, samples)
        u, v = self._turned(first), self._turned(second)
        power = (found.power + _applied(found.trace, u * v)) * self.weights
        total = self._over_tasks(self._frames * power)
        for products, one, other in ((found.left, u, v), (found.right, v, u)):
            for column, row in products:
                ahead = self._back(column * one) * self.weights
                total += ahead @ self._back(row * other).T
        return total

    def outer_trace(
        self,
        words: Words,
        inner_lr: float,
        samples: float,
        first: Array,
        second: Array,
        matrix: Array,
    ) -> Array:
        """tr(matrix E[words | task]) with B = first second' at every node, [G]; matrix [p, p] is
        symmetric.
        """
        found = self.reduced(words, inner_lr, samples)
        u, v = self._turned(first), self._turned(second)
        framed = self._framed(matrix)
        total = (_diagonal(framed) * (found.power + _applied(found.trace, u * v))).sum(axis=0)
        for products, one, other in ((found.left, u, v), (found.right, v, u)):
            for column, row in products:
                total += (np.einsum("ijg,ig->jg", framed, column * one) * row * other).sum(axis=0)
        return np.asarray(total)

    def matrix_trace(self, words: Words, inner_lr: float, samples: float, matrix: Array) -> Array:
        """tr(matrix E[words | task]) at every node, [G], for words without a free matrix."""
        power = self.reduced(words, inner_lr, samples).power
        return np.asarray((_diagonal(self._framed(matrix)) * power).sum(axis=0))

    def sandwich(self, words: Words, inner_lr: float, samples: float, matrix: Array) -> Array:
        """E[words] with B = a fixed symmetric matrix [p, p], as [p, p]."""
        inside = self._sandwich(words, inner_lr, samples, matrix) * self.weights
        return self._over_tasks(np.einsum("aig,ijg->ajg", self._frames, inside))

    def sandwich_times(
        self, words: Words, inner_lr: float, samples: float, matrix: Array, vectors: Array
    ) -> Array:
        """E[words vector] with B = a fixed symmetric matrix [p, p] and vectors [G, p], as [p]."""
        inside = self._sandwich(words, inner_lr, samples, matrix)
        moved = np.einsum("ijg,jg->ig", inside, self._turned(vectors))
        return np.asarray(self._back(moved) @ self.weights)

    def kept(self, key: object, compute: Callable[[], Value]) -> Value:
        """`compute()`, remembered under `key` for as long as the law lives."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]  # type: ignore[return-value]

    def _sandwich(self, words: Words, inner_lr: float, samples: float, matrix: Array) -> Array:
        """The words' expectation with a symmetric B, in the eigenframes, [p, p, G]."""
        found = self.reduced(words, inner_lr, samples)
        framed = self._framed(matrix)
        inside = np.zeros_like(framed)
        for column, row in (*found.left, *found.right):
            inside += column[:, None] * row
        inside *= framed
        places = np.arange(self.p)
        inside[places, places] += found.power + _applied(found.trace, _diagonal(framed))
        return inside

    def _turned(self, vectors: Array) -> Array:
        """Vectors [G, p] in the eigenframes, [p, G]."""
        return np.asarray(np.einsum("aig,ag->ig", self._frames, np.ascontiguousarray(vectors.T)))

    def _back(self, vectors: Array) -> Array:
        """Vectors of the eigenframes in the common frame, [p, G] both."""
        return np.asarray(np.einsum("aig,ig->ag", self._frames, vectors))

    def _framed(self, matrix: Array) -> Array:
        """A fixed matrix in the eigenframes, [p, p, G]."""
        moved = np.tensordot(matrix, self._frames, 1)
        return np.asarray(np.einsum("aig,ajg->ijg", self._frames, moved))

    def _over_tasks(self, columns: Array) -> Array:
        """The sum over tasks of columns [p, eigenvector, G] times the transposed eigenvectors."""
        flat = self._frames.reshape(self.p, -1)
        return np.asarray(columns.reshape(self.p, -1) @ flat.T)


class _Powers:
    """Eigenvalues [p, G] of Q^a D^b, and products of their traces, each computed once."""

    def __init__(self, values: Array, steps: Array) -> None:
        self._columns = [[np.ones_like(values)], [np.ones_like(values)]]
        self._bases = (values, steps)
        self._products: dict[Power, Array] = {}
        self._traces: dict[tuple[Power, ...], Array] = {}

    def __call__(self, power: Power) -> Array:
        """Q^a D^b."""
        if power not in self._products:
            parts = []
            for column, base, exponent in zip(self._columns, self._bases, power, strict=True):
                while len(column) <= exponent:
                    column.append(column[-1] * base)
                parts.append(column[exponent])
            self._products[power] = parts[0] * parts[1]
        return self._products[power]

    def traces(self, powers: tuple[Power, ...]) -> Array:
        """The product of their traces, [G]."""
        if powers not in self._traces:
            made = np.ones(self._bases[0].shape[1])
            for power in powers:
                made = made * self(power).sum(axis=0)
            self._traces[powers] = made
        return self._traces[powers]


def _scale(term: Term, factor: float, inner_lr: float, samples: float) -> float:
    """The term's number in front."""
    weight = factor * term.count * inner_lr**term.rate_power
    return weight / samples**term.sample_power if term.sample_power else weight


def _applied(products: Products, vectors: Array) -> Array:
    """The matrix times vectors [p, G]."""
    total = np.zeros_like(vectors)
    for column, row in products:
        total += column * (row * vectors).sum(axis=0)
    return total


def _diagonal(matrices: Array) -> Array:
    """The diagonals [p, G] of matrices [p, p, G]."""
    places = np.arange(len(matrices))
    return np.asarray(matrices[places, places])


_KNOWN: WeakKeyDictionary[TaskLaw, Averages] = WeakKeyDictionary()


def averages(law: TaskLaw) -> Averages:
    """The averages of `law`, made once per law object."""
    found = _KNOWN.get(law)
    if found is None:
        found = _KNOWN[law] = Averages(law)
    return found
