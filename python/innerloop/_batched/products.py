"""Products that sum over axes: of two values as matrices, and of any two factors by an equation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._batched.layer import Layer, Maybe, channels_last, plus
from innerloop._program import Node, Shape


class OfFactors(Layer):
    """Base of functions y = a b that are linear in each of two factors: two values, or a value and
    a leaf. With the transposed maps g b' and a' g: ga = g b', gb = a' g, y. = a. b + a b.,
    ga. = g. b' + g b.', gb. = a' g. + a.' g."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns a b."""
        raise NotImplementedError

    def _to_first(self, g: Tensor, b: Tensor) -> Tensor:
        """Returns g b'."""
        raise NotImplementedError

    def _to_second(self, a: Tensor, g: Tensor) -> Tensor:
        """Returns a' g."""
        raise NotImplementedError

    def _factors(self, values: Sequence[Maybe], leaves: Sequence[Maybe]) -> tuple[Any, Any]:
        """Returns both factors, or what belongs to them."""
        a, b = [*values, *leaves]
        return a, b

    def _parts(self, g: Maybe, factors: tuple[Any, Any], wanted: Sequence[bool]) -> list[Maybe]:
        """Returns g b' and a' g, as far as they are used; the gradient of a leaf always is."""
        a, b = factors
        found: list[Maybe] = [None, None]
        if g is not None and b is not None and wanted[0]:
            found[0] = channels_last(self._to_first(g, b))
        if g is not None and a is not None and (len(wanted) == 1 or wanted[1]):
            gb = self._to_second(a, g)
            found[1] = gb if len(wanted) == 1 else channels_last(gb)
        return found

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns a b; keeps the values among a and b."""
        a, b = self._factors(inputs, leaves)
        return channels_last(self._product(a, b)), inputs

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns g b' and a' g."""
        found = self._parts(g, self._factors(saved, leaves), wanted)
        return found[: len(saved)], found[len(saved) :]

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns a. b + a b."""
        a, b = self._factors(saved, leaves)
        a_dot, b_dot = self._factors(dots, leaf_dots)
        y_dot = plus(
            None if a_dot is None else self._product(a_dot, b),
            None if b_dot is None else self._product(a, b_dot),
        )
        return None if y_dot is None else channels_last(y_dot), None

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
        """Returns g. b' + g b.' and a' g. + a.' g."""
        one = self._parts(g_dot, self._factors(saved, leaves), wanted)
        other = self._parts(g, self._factors(dots, leaf_dots), wanted)
        found = [plus(first, second) for first, second in zip(one, other, strict=True)]
        return found[: len(saved)], found[len(saved) :]


class MatrixProduct(OfFactors):
    """y = a b of matrices along the last two axes of two values."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def _to_first(self, g: Tensor, b: Tensor) -> Tensor:
        return g @ b.mT

    def _to_second(self, a: Tensor, g: Tensor) -> Tensor:
        return a.mT @ g


class Contraction(OfFactors):
    """y = the sum of the products of the entries of two factors over the axes that y lacks, as
    torch.einsum writes it: "ncl,ld->ncd". Every axis of a factor is one of the other or of y, so
    its gradient is a contraction, too."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        factors, y = str(node.options[0]).split("->")
        a, b = factors.split(",")
        self._equations = [f"T{p},T{q}->T{r}" for p, q, r in ((a, b, y), (y, b, a), (a, y, b))]

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum(self._equations[0], a, b)

    def _to_first(self, g: Tensor, b: Tensor) -> Tensor:
        return torch.einsum(self._equations[1], g, b)

    def _to_second(self, a: Tensor, g: Tensor) -> Tensor:
        return torch.einsum(self._equations[2], a, g)
