"""Averages over a law of the expectations that `wick.reduce_word` describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from innerloop.bounds._arguments import Array
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.wick import Kind, reduce_word

Value = TypeVar("Value")
Words = Mapping[str, float]


class Averages:
    """The nodes of a law with the powers of their Q, and averages of words over them.

    `words` is a linear combination {word: factor} of words as `reduce_word` takes them; their rate
    is `inner_lr` and their N is `samples` (maybe infinite).
    """

    def __init__(self, law: TaskLaw) -> None:
        self.p = law.p
        self.weights, self.Q, self.theta, self.sigma2 = law.nodes()
        self._powers = [np.broadcast_to(np.eye(self.p), self.Q.shape), self.Q]
        self._traces: dict[int, Array] = {}
        self._kept: dict[object, object] = {}

    def power(self, exponent: int) -> Array:
        """Q^exponent, [G, p, p]."""
        while len(self._powers) <= exponent:
            self._powers.append(self._powers[-1] @ self.Q)
        return self._powers[exponent]

    def trace(self, exponent: int) -> Array:
        """tr(Q^exponent), [G]."""
        if exponent not in self._traces:
            self._traces[exponent] = np.trace(self.power(exponent), axis1=1, axis2=2)
        return self._traces[exponent]

    def coefficients(
        self, words: Words, inner_lr: float, samples: float
    ) -> dict[tuple[Kind, int, int], Array]:
        """The words' expectation at every node: {(kind, left, right): [G]}, as in `Term`."""
        found: dict[tuple[Kind, int, int], Array] = {}
        products: dict[tuple[int, ...], Array] = {(): np.ones(len(self.weights))}
        for word, factor in words.items():
            for term in reduce_word(word):
                weight = factor * term.count * inner_lr**term.rate_power
                weight = weight / samples**term.sample_power if term.sample_power else weight
                if weight == 0.0:
                    continue
                product = products.get(term.traces)
                if product is None:
                    product = np.prod([self.trace(k) for k in term.traces], axis=0)
                    products[term.traces] = product
                key = (term.kind, term.left, term.right)
                found[key] = found[key] + weight * product if key in found else weight * product
        return found

    def matrix(
        self, words: Words, inner_lr: float, samples: float, scale: Array | float = 1.0
    ) -> Array:
        """E[scale words] for words without a free matrix, [p, p]; scale is [G] or a number."""
        total = np.zeros((self.p, self.p))
        for (_, left, _), c in self.coefficients(words, inner_lr, samples).items():
            total += np.tensordot(self.weights * scale * c, self.power(left), 1)
        return total

    def scalar(self, words: Words, inner_lr: float, samples: float) -> Array:
        """The expectation at every node, [G], of words that are only traces ("|SS")."""
        found = self.coefficients(words, inner_lr, samples)
        return np.asarray(sum(found.values()) + np.zeros(len(self.weights)))

    def outer(
        self, words: Words, inner_lr: float, samples: float, first: Array, second: Array
    ) -> Array:
        """E[words] with B = first second' at every node (both [G, p]), as [p, p]."""
        u, v = self._powers_times(first), self._powers_times(second)
        total = np.zeros((self.p, self.p))
        for (kind, left, right), c in self.coefficients(words, inner_lr, samples).items():
            w = self.weights * c
            if kind == "left":
                total += (w[:, None] * u(left)).T @ v(right)
            elif kind == "right":
                total += (w[:, None] * v(left)).T @ u(right)
            else:
                w = w * (u(right) * second).sum(axis=1)
                total += np.tensordot(w, self.power(left), 1)
        return total

    def sandwich(self, words: Words, inner_lr: float, samples: float, matrix: Array) -> Array:
        """E[words] with B = a fixed symmetric matrix [p, p], as [p, p]."""
        total = np.zeros((self.p, self.p))
        for (kind, left, right), c in self.coefficients(words, inner_lr, samples).items():
            w = self.weights * c
            if kind == "trace":
                w = w * self._inner(right, matrix)
                total += np.tensordot(w, self.power(left), 1)
            else:
                middle = w[:, None, None] * (matrix @ self.power(right))
                total += self._rows(left).T @ middle.reshape(-1, self.p)
        return total

    def sandwich_times(
        self, words: Words, inner_lr: float, samples: float, matrix: Array, vectors: Array
    ) -> Array:
        """E[words vector] with B = a fixed symmetric matrix [p, p] and vectors [G, p], as [p]."""
        u = self._powers_times(vectors)
        total = np.zeros(self.p)
        by_left: dict[int, Array] = {}
        for (kind, left, right), c in self.coefficients(words, inner_lr, samples).items():
            w = self.weights * c
            if kind == "trace":
                total += (w * self._inner(right, matrix)) @ u(left)
            else:
                by_left[left] = by_left.get(left, 0.0) + w[:, None] * u(right)
        for left, sums in by_left.items():
            total += self._rows(left).T @ (sums @ matrix).ravel()
        return total

    def kept(self, key: object, compute: Callable[[], Value]) -> Value:
        """`compute()`, remembered under `key` for as long as the law lives."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]  # type: ignore[return-value]

    def _powers_times(self, vectors: Array) -> Callable[[int], Array]:
        """A function that gives Q^k times each node's vector, [G, p], remembering the result."""
        found = [vectors]

        def times(exponent: int) -> Array:
            while len(found) <= exponent:
                found.append(np.matmul(self.Q, found[-1][:, :, None])[:, :, 0])
            return found[exponent]

        return times

    def _rows(self, exponent: int) -> Array:
        """Q^exponent of all nodes stacked, [G p, p]; its transpose sums over nodes in one product
        because Q is symmetric.
        """
        return self.power(exponent).reshape(-1, self.p)

    def _inner(self, exponent: int, matrix: Array) -> Array:
        """tr(Q^exponent B), [G]."""
        flat = self.power(exponent).reshape(len(self.weights), -1)
        return np.asarray(flat @ matrix.T.ravel())


_KNOWN: WeakKeyDictionary[TaskLaw, Averages] = WeakKeyDictionary()


def averages(law: TaskLaw) -> Averages:
    """The averages of `law`, made once per law object."""
    found = _KNOWN.get(law)
    if found is None:
        found = _KNOWN[law] = Averages(law)
    return found
