"""What a layer is to the passes: the contract, and how values lie in memory.

A value is [T, N, *row], one block of rows for each of T tasks. Where rows have channels and places
[C, *places], the channels are last in memory: torch's convolutions and pools on the CPU are several
times faster so, and elementwise operations keep it. A leaf is [T, *shape]; one that all tasks share
is expanded (stride 0), and layers make use of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._program import Node, Shape

Maybe = Tensor | None


class Layer:
    """One call of a program, with its four passes. None stands for a tensor of zeros.

    forward(inputs, leaves) -> output, saved
        `saved` is what the other passes are given back.
    backward(saved, g, leaves, wanted) -> input gradients, leaf gradients
        g is the gradient in the output; `wanted` says for each input whether its gradient is used.
    tangent(saved, dots, leaves, leaf_dots) -> output's dot, saved by it
        dots are derivatives along the direction in the leaves (R{} of Pearlmutter 1994).
    second(saved, tangent_saved, g, g_dot, dots, leaves, leaf_dots, wanted)
        -> dots of input gradients, dots of leaf gradients
    """

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        self.node = node
        self.shapes = tuple(shapes)  # of a row of each input

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns the output and what is kept."""
        raise NotImplementedError

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns gradients in inputs and leaves."""
        raise NotImplementedError

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns the derivative of the output along a direction."""
        raise NotImplementedError

    def second(
        self,
        saved: Any,
        tangent_saved: Any,
        g: Tensor,
        g_dot: Maybe,
        dots: list[Maybe],
        leaves: list[Maybe],
        leaf_dots: list[Maybe],
        wanted: Sequence[bool],
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns the derivatives of both gradients along a direction."""
        raise NotImplementedError


class Linear(Layer):
    """Base of layers without leaves that are linear in one input: `apply` and its transpose
    `back`."""

    def apply(self, x: Tensor, saved: Any) -> Tensor:
        """Returns the map of x, given what `forward` saved."""
        raise NotImplementedError

    def back(self, g: Tensor, saved: Any) -> Tensor:
        """Returns the transposed map of g."""
        raise NotImplementedError

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns apply(x)."""
        return self.apply(inputs[0], None), None

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns back(g)."""
        return [self.back(g, saved) if wanted[0] else None], []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns apply(dot)."""
        return None if dots[0] is None else self.apply(dots[0], saved), None

    def second(
        self,
        saved: Any,
        tangent_saved: Any,
        g: Tensor,
        g_dot: Maybe,
        dots: list[Maybe],
        leaves: list[Maybe],
        leaf_dots: list[Maybe],
        wanted: Sequence[bool],
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns back(g_dot)."""
        return [self.back(g_dot, saved) if wanted[0] and g_dot is not None else None], []


def is_shared(leaf: Tensor) -> bool:
    """Says whether all tasks of a leaf [T, ...] have the same numbers."""
    return leaf.shape[0] == 1 or leaf.stride(0) == 0


def plus(a: Maybe, b: Maybe) -> Maybe:
    """Returns a + b."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def channels_last(x: Tensor) -> Tensor:
    """Returns a value [T, N, C, *places] with its channels last in memory."""
    if x.ndim < 4:
        return x
    order = (0, 1, *range(3, x.ndim), 2)
    return x.permute(order).contiguous().movedim(-1, 2)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Returns values of single tasks [N, C, *places] as one of all, channels last in memory."""
    if len(parts) == 1:
        return parts[0].unsqueeze(0)
    return torch.stack([part.movedim(1, -1) for part in parts]).movedim(-1, 2)


def total(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns x summed to a shape that broadcasts to its own."""
    axes = [at for at, (n, m) in enumerate(zip(x.shape, shape, strict=True)) if m == 1 and n > 1]
    return x.sum(axes, keepdim=True) if axes else x
