"""Weights of linear layers that are never written out for each task.

A task's weight after some steps is the one that all tasks share plus a sum of outer products of
gradients and inputs, one for each row and step. As long as these take fewer numbers than the weight
itself, products with them are cheaper than the traffic of a weight for each task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop._params import InnerLr, is_per_step
from innerloop._program import Program, Shape, size_of


class Outer(NamedTuple):
    """left' right: left [T, R, O], right [T, R, I]."""

    left: Tensor
    right: Tensor

    def scaled(self, factor: float | Tensor) -> Outer:
        """Returns factor times it."""
        return Outer(self.left * factor, self.right)

    def plus(self, part: Outer | None) -> Outer:
        """Returns the sum with one whose right factor is the beginning of this one's."""
        if part is None:
            return self
        rows = part.left.shape[1]
        left = torch.cat([self.left[:, :rows] + part.left, self.left[:, rows:]], 1)
        return Outer(left, self.right)

    def times(self, x: Tensor) -> Tensor:
        """Returns x [T, M, I] times its transpose."""
        return torch.bmm(torch.bmm(x, self.right.transpose(1, 2)), self.left)

    def back(self, g: Tensor) -> Tensor:
        """Returns g [T, M, O] times it."""
        return torch.bmm(torch.bmm(g, self.left.transpose(1, 2)), self.right)

    def dot(self, other: Outer) -> Tensor:
        """Returns the sum over tasks of the inner products with another."""
        lefts = torch.bmm(self.left, other.left.transpose(1, 2))
        return (lefts * torch.bmm(self.right, other.right.transpose(1, 2))).sum()


class Moved(NamedTuple):
    """A weight [T, O, I] that tasks share, and what steps have added to it."""

    base: Tensor
    change: Outer | None


def joined(*parts: Outer | None) -> Outer:
    """Returns the sum."""
    there = [part for part in parts if part is not None]
    if len(there) == 1:
        return there[0]
    return Outer(torch.cat([p.left for p in there], 1), torch.cat([p.right for p in there], 1))


def factored_names(
    programs: Sequence[Program],
    rows: Sequence[int],
    shapes: Mapping[str, Shape],
    inner_lr: InnerLr,
    steps: int,
) -> list[str]:
    """Returns the weights of linear layers whose outer products, of the rows of both sides and in
    both directions of all steps, take fewer numbers than they do; their rates must be numbers."""
    found: dict[str, int] = {}
    unsuited: set[str] = set()  # in one of the programs
    for program, number in zip(programs, (2 * steps * rows[0], rows[1]), strict=True):
        used = [name for node in program.nodes for name in node.names]
        for node in program.nodes:
            weight = node.leaves[0] if node.kind == "linear" else None
            if isinstance(weight, str) and weight in shapes and used.count(weight) == 1:
                per_row = size_of(node.shape[:-1])
                found[weight] = found.get(weight, 0) + number * per_row
            else:
                unsuited.update(node.names)
            unsuited.update(name for name in node.names if name != weight)
    names = []
    for name, rank in found.items():
        if name in unsuited:
            continue
        shape = shapes[name]
        rate: Any = inner_lr.get(name, 0.0) if isinstance(inner_lr, Mapping) else inner_lr
        whole = not isinstance(inner_lr, Mapping)
        per_element = isinstance(rate, Tensor) and rate.ndim > (
            1 if whole or is_per_step(rate, shape) else 0
        )
        if rank * sum(shape) < size_of(shape) and not per_element:
            names.append(name)
    return names
