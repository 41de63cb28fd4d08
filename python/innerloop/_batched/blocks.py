"""Batch norm with the relu and the max pool that follow it, as one layer.

Only the values that the pool chooses have a gradient, so most of the work is at their number; what
is left for all values is a few sums and one update in place. With c = x - mean over the M values of
a channel, s = (variance + eps)^(-1/2), c_p the chosen ones of c, y = [w s c_p + b]_+ and g the
gradient where y > 0:

    gb = G0 = sum g,  gw = s G1, G1 = sum g c_p,
    gx = scatter(w s g) - w s G0 / M - w s^3 G1 / M c

Along a direction with A = mean x., C = mean c x., E = sum g x._p, D0 = sum g., D1 = sum g. c_p:

    h._p = s (x._p - A - s^2 C c_p),   y. = w. s c_p + w h._p + b. where y > 0
    gb. = D0,  gw. = s D1 + H, H = sum g h._p = s (E - A G0 - s^2 C G1)
    gx. = s scatter(w g. + w. g - s^2 C w g)
          + s / M (s^2 C w G0 + s^2 A w G1 - w D0 - w. G0)
          + s^2 / M (2 s^3 C w G1 - s w D1 - s w. G1 - w H) c - s^3 / M w G1 x.

which follows from the projections of `norms.py`, with means over all values written as sums over
the chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop._batched.layer import Layer, Maybe
from innerloop._batched.shapes import MaxPool
from innerloop._program import Node, Shape

_threshold_back = torch.ops.aten.threshold_backward


class _Saved(NamedTuple):
    """What the forward pass keeps: c, s, w s, c_p, y (for its sign), and what the pool keeps."""

    centred: Tensor
    scale: Tensor
    weighted: Tensor
    chosen: Tensor
    output: Tensor
    places: Any
    sums: list[Tensor]  # G0 and G1, of the backward pass; and g itself


class NormBlock(Layer):
    """y = pool(relu(batch_norm(x))); relu and pool may be absent."""

    def __init__(
        self, norm: Node, relu: Node | None, pool: Node | None, shape: Shape, *, owns_input: bool
    ) -> None:
        super().__init__(pool or relu or norm, [shape])
        eps = norm.options[0]
        assert isinstance(eps, float)
        self._eps = eps
        self._leaves = norm.leaves
        self._has_relu = relu is not None
        self._pool = None if pool is None else MaxPool(pool, [shape])
        self._owns_input = owns_input
        self._axes = (1, *range(3, len(shape) + 2))

    # ------------------------------------------------------------ sums and choices

    def _sum(self, x: Tensor) -> Tensor:
        """Returns the sums over the values of a channel, in a shape that broadcasts."""
        return x.sum(self._axes, keepdim=True)

    def _spread(self, leaf: Tensor) -> Tensor:
        """Returns w or b [T, C] in a shape that broadcasts."""
        return leaf.reshape(len(leaf), 1, -1, *[1] * (len(self.shapes[0]) - 1))

    def _flat(self, total: Tensor) -> Tensor:
        """Returns sums as a leaf [T, C]."""
        return total.reshape(len(total), -1)

    def _choose(self, x: Tensor, places: Any) -> Tensor:
        """Returns the chosen values."""
        return x if self._pool is None else self._pool.apply(x, places)

    def _scatter(self, g: Tensor, places: Any) -> Tensor:
        """Returns a new tensor with values at the places that were chosen, zeros elsewhere."""
        return g if self._pool is None else self._pool.back(g, places)

    def _masked(self, g: Tensor, saved: _Saved) -> Tensor:
        """Returns g where y > 0."""
        return _threshold_back(g, saved.output, 0) if self._has_relu else g

    # ------------------------------------------------------------ passes

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns y."""
        x, (w, b) = inputs[0], leaves
        count = x.numel() // (x.shape[0] * x.shape[2])
        mean = self._sum(x).div_(count)
        centred = x.sub_(mean) if self._owns_input else x - mean
        s = self._sum(centred * centred).div_(count).add_(self._eps).rsqrt_()
        places: Any = None
        chosen = centred
        if self._pool is not None:
            if w is None or bool((w > 0).all()):
                chosen, places = self._pool.forward([centred], [])
            else:  # of a channel with a negative weight the smallest is the largest
                _, places = self._pool.forward([centred * self._spread(w).sign()], [])
                chosen = self._pool.apply(centred, places)
        scale = s if w is None else s * self._spread(w)
        y = chosen * scale if b is None else torch.addcmul(self._spread(b), chosen, scale)
        if self._has_relu:
            y.relu_()
        return y, _Saved(centred, s, scale, chosen, y, places, [])

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """See the head of this file."""
        w, b = leaves
        s, count = saved.scale, self._count(saved)
        g = self._masked(g, saved)
        g0, g1 = self._sum(g), self._sum(g * saved.chosen)
        saved.sums[:] = [g0, g1, g]
        grads = [None if w is None else self._flat(s * g1), None if b is None else self._flat(g0)]
        if not wanted[0]:
            return [None], grads
        ws = saved.weighted
        gx = self._scatter(g * ws, saved.places)
        share = ws / -count
        gx.addcmul_(saved.centred, share * g1 * (s * s)).add_(share * g0)
        return [gx], grads

    def _count(self, saved: _Saved) -> int:
        """Returns the number of values of a channel."""
        c = saved.centred
        return c.numel() // (c.shape[0] * c.shape[2])

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns y., and keeps A, K = s^2 C, E and x."""
        x_dot, (w_dot, b_dot) = dots[0], leaf_dots
        s, count = saved.scale, self._count(saved)
        factor = None if w_dot is None else s * self._spread(w_dot)  # of c_p
        shift = None if b_dot is None else self._spread(b_dot)
        y_dot: Maybe = None
        kept: Any = None
        if x_dot is not None:
            ws = saved.weighted
            a = self._sum(x_dot).div_(count)
            k = self._sum(saved.centred * x_dot).mul_(s * s / count)
            chosen = self._choose(x_dot, saved.places)
            kept = a, k, self._sum(saved.sums[2] * chosen), x_dot
            factor = ws * -k if factor is None else factor.addcmul_(ws, k, value=-1)
            shift = ws * -a if shift is None else torch.addcmul(shift, ws, a, value=-1)
            y_dot = chosen * ws
        if factor is not None:
            y_dot = saved.chosen * factor if y_dot is None else y_dot.addcmul_(saved.chosen, factor)
        if shift is not None:
            y_dot = shift.expand_as(saved.chosen) if y_dot is None else y_dot.add_(shift)
        return None if y_dot is None else self._masked(y_dot, saved), kept

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
        """See the head of this file."""
        (w, b), w_dot = leaves, leaf_dots[0]
        s, ws, count = saved.scale, saved.weighted, self._count(saved)
        g0, g1, g = saved.sums
        zero = torch.zeros_like(g0)
        d0 = d1 = h = a = k = zero
        if g_dot is not None:
            g_dot = self._masked(g_dot, saved)
            d0, d1 = self._sum(g_dot), self._sum(g_dot * saved.chosen)
        if tangent_saved is not None:
            a, k, e, x_dot = tangent_saved
            h = torch.addcmul(e, a, g0, value=-1).addcmul_(k, g1, value=-1).mul_(s)
        grads = [
            None if w is None else self._flat(torch.addcmul(h, s, d1)),
            None if b is None else self._flat(d0),
        ]
        if not wanted[0]:
            return [None], grads
        w_dot = zero if w_dot is None else self._spread(w_dot)
        sw_dot = s * w_dot
        along = g * torch.addcmul(sw_dot, k, ws, value=-1)
        if g_dot is not None:
            along.addcmul_(g_dot, ws)
        gx = self._scatter(along, saved.places)
        # the last two lines of the formula, with w s = ws taken in
        constant = torch.addcmul(k * g0, s * s * a, g1).sub_(d0).mul_(ws)
        constant.addcmul_(sw_dot, g0, value=-1)
        linear = torch.addcmul(-d1, k, g1, value=2).mul_(ws).addcmul_(sw_dot, g1, value=-1)
        linear.mul_(s).addcmul_(ws, h, value=-1).mul_(s / count)
        gx.addcmul_(saved.centred, linear).add_(constant.div_(count))
        if tangent_saved is not None:
            gx.addcmul_(x_dot, ws * g1 * (s * s / -count))
        return [gx], grads
