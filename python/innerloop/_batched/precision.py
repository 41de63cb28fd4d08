"""bfloat16 storage: parameters as they are handed in and activations are bfloat16, sums float32.

What steps add up (adapted parameters, adjoints, gradients over tasks) is float32 all the way and
rounded where a layer reads it; losses and their derivatives in the outputs are float32. Layers that
take statistics or exponents compute, and keep what they keep, in float32; torch's products,
convolutions and sums of the others add up in float32 and round the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._batched.layer import Layer, Maybe, is_shared

NARROW = torch.bfloat16


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of sums of numbers of a dtype."""
    return torch.float32 if dtype is NARROW else dtype


def widened(value: Tensor) -> Tensor:
    """Returns a tensor in the dtype of its sums; one that tasks share stays expanded."""
    return value if value.dtype is not NARROW else _as(value, torch.float32)


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a tensor in another dtype; one that is expanded along its first axis stays so."""
    if value.ndim and len(value) > 1 and is_shared(value):
        return value[:1].to(dtype).expand_as(value)
    return value.to(dtype)


class InPrecision(Layer):
    """A layer whose values are bfloat16 and whose leaves are float32 outside of it, all of one
    dtype inside."""

    def __init__(self, layer: Layer, inside: torch.dtype) -> None:
        super().__init__(layer.node, layer.shapes)
        self._layer = layer
        self._inside = inside

    def _in(self, values: Sequence[Any]) -> list[Any]:
        """Returns values or leaves as the layer takes them."""
        return [None if value is None else _as(value, self._inside) for value in values]

    def _out(self, value: Maybe) -> Maybe:
        """Returns a value as it is kept."""
        return None if value is None else value.to(NARROW)

    def _both(self, gradients: tuple[list[Maybe], list[Maybe]]) -> tuple[list[Maybe], list[Maybe]]:
        """Returns gradients in inputs as values, in leaves as sums."""
        values, leaves = gradients
        sums = [None if leaf is None else leaf.to(torch.float32) for leaf in leaves]
        return [self._out(value) for value in values], sums

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """See `Layer`."""
        y, saved = self._layer.forward(self._in(inputs), self._in(leaves))
        return y.to(NARROW), saved

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """See `Layer`."""
        (inner,) = self._in([g])
        return self._both(self._layer.backward(saved, inner, self._in(leaves), wanted))

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """See `Layer`."""
        inside = self._in(dots), self._in(leaves), self._in(leaf_dots)
        y_dot, kept = self._layer.tangent(saved, *inside)
        return self._out(y_dot), kept

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
        """See `Layer`."""
        inner, inner_dot = self._in([g, g_dot])
        inside = self._in(dots), self._in(leaves), self._in(leaf_dots)
        found = self._layer.second(saved, tangent_saved, inner, inner_dot, *inside, wanted)
        return self._both(found)
