"""Layers with weights that mix values: linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._batched.factored import Moved, Outer, joined
from innerloop._batched.layer import Layer, Maybe, is_shared, stacked
from innerloop._program import Node, Shape

_convolve = torch.ops.aten.convolution
_convolve_back = torch.ops.aten.convolution_backward


class LinearLayer(Layer):
    """y = x w' + b over the last axis; x [T, N, *, I], w [T, O, I], b [T, O]. Where w is `Moved`,
    its gradients and directions are sums of outer products."""

    def forward(self, inputs: list[Tensor], leaves: list[Any]) -> tuple[Tensor, Any]:
        """Returns the products; keeps x [T, M, I]."""
        (x,), (w, b) = inputs, leaves
        rows = x.reshape(x.shape[0], -1, x.shape[-1])  # [T, M, I]
        return _products(rows, w, b).reshape(*x.shape[:-1], -1), rows

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Any], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Any]]:
        """gx = g w, gw = g' x, gb = sum g."""
        w, b = leaves
        flat = g.reshape(g.shape[0], -1, g.shape[-1])  # [T, M, O]
        gx = _back(flat, w).reshape(*g.shape[:-1], -1) if wanted[0] else None
        outer = Outer(flat, saved)
        gw = outer if isinstance(w, Moved) else _written(outer)
        return [gx], [gw, None if b is None else flat.sum(1)]

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Any], leaf_dots: list[Any]
    ) -> tuple[Maybe, Any]:
        """y. = x. w' + x w.' + b."""
        (x_dot,), w, (w_dot, b_dot) = dots, leaves[0], leaf_dots
        y_dot: Maybe = None
        if x_dot is not None:
            y_dot = _products(x_dot.reshape(saved.shape), w, b_dot)
        if w_dot is not None:
            other = _products(saved, w_dot, b_dot if y_dot is None else None)
            y_dot = other if y_dot is None else y_dot.add_(other)
        elif y_dot is None and b_dot is not None:
            y_dot = b_dot.unsqueeze(1).expand(-1, saved.shape[1], -1)
        return None if y_dot is None else y_dot.reshape(len(saved), -1, *self.node.shape), None

    def second(
        self,
        saved: Any,
        tangent_saved: Any,
        g: Tensor,
        g_dot: Maybe,
        dots: list[Maybe],
        leaves: list[Any],
        leaf_dots: list[Any],
        wanted: Sequence[bool],
    ) -> tuple[list[Maybe], list[Any]]:
        """gx. = g. w + g w., gw. = g.' x + g' x., gb. = sum g."""
        (x_dot,), (w, b), w_dot = dots, leaves, leaf_dots[0]
        flat = g.reshape(g.shape[0], -1, g.shape[-1])
        flat_dot = None if g_dot is None else g_dot.reshape(flat.shape)
        gx: Maybe = None
        if wanted[0]:
            gx = None if flat_dot is None else _back(flat_dot, w)
            gx = _added(gx, None if w_dot is None else _back(flat, w_dot))
            gx = None if gx is None else gx.reshape(*g.shape[:-1], -1)
        parts = [
            None if flat_dot is None else Outer(flat_dot, saved),
            None if x_dot is None else Outer(flat, x_dot.reshape(saved.shape)),
        ]
        gw: Any = None
        if any(part is not None for part in parts):
            gw = joined(*parts)
            gw = gw if isinstance(w, Moved) else _written(gw)
        return [gx], [gw, None if b is None or flat_dot is None else flat_dot.sum(1)]


def _written(outer: Outer) -> Tensor:
    """Returns a sum of outer products written out."""
    return torch.bmm(outer.left.transpose(1, 2), outer.right)


def _products(x: Tensor, w: Tensor | Outer | Moved, b: Maybe) -> Tensor:
    """Returns x w' + b for x [T, M, I]."""
    if isinstance(w, Moved):
        y = _products(x, w.base, b)
        return y if w.change is None else y.add_(w.change.times(x))
    if isinstance(w, Outer):
        y = w.times(x)
        return y if b is None else y.add_(b.unsqueeze(1))
    if is_shared(w) and (b is None or is_shared(b)):
        flat = x.reshape(-1, x.shape[-1])
        y = torch.nn.functional.linear(flat, w[0], None if b is None else b[0])
        return y.view(*x.shape[:2], -1)
    if is_shared(w):
        return _products(x, w, None).add_(_there(b).unsqueeze(1))
    if b is None:
        return torch.bmm(x, w.transpose(1, 2))
    return torch.baddbmm(b.unsqueeze(1), x, w.transpose(1, 2))


def _there(b: Maybe) -> Tensor:
    """Returns a bias that is one."""
    assert b is not None
    return b


def _back(g: Tensor, w: Tensor | Outer | Moved) -> Tensor:
    """Returns g w for g [T, M, O]."""
    if isinstance(w, Moved):
        gx = _back(g, w.base)
        return gx if w.change is None else gx.add_(w.change.back(g))
    if isinstance(w, Outer):
        return w.back(g)
    if is_shared(w):
        return (g.reshape(-1, g.shape[-1]) @ w[0]).view(*g.shape[:2], -1)
    return torch.bmm(g, w)


class Convolution(Layer):
    """x [T, N, C, *places], w [T, K, C / groups, *kernel], b [T, K]. Tasks that share a weight go
    in one call, others in one each: a call of torch's convolution is faster than its own
    groups, and than products over gathered patches."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        stride, padding, dilation, groups = node.options
        none = (0,) * (len(shapes[0]) - 1)
        # stride, padding, dilation, whether it is transposed, output padding, groups
        self._options: tuple[Any, ...] = (stride, padding, dilation, False, none, groups)

    def _apply(self, x: Tensor, w: Tensor, b: Maybe) -> Tensor:
        """Returns the convolution of every task."""
        if is_shared(w) and (b is None or is_shared(b)):
            bias = None if b is None else b[0]
            y: Tensor = _convolve(x.flatten(0, 1), w[0], bias, *self._options)
            return y.reshape(*x.shape[:2], *y.shape[1:])
        biases = [None] * len(w) if b is None else list(b.unbind())
        parts = zip(x.unbind(), w.unbind(), biases, strict=True)
        return stacked([_convolve(xt, wt, bt, *self._options) for xt, wt, bt in parts])

    def _input_gradient(self, g: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """Returns the gradient in x of <g, convolution(x, w)>."""
        mask = [True, False, False]
        if is_shared(w):
            flat = g.flatten(0, 1), x.flatten(0, 1), w[0]
            gx: Tensor = _convolve_back(*flat, None, *self._options, mask)[0]
            return gx.reshape(x.shape)
        parts = zip(g.unbind(), x.unbind(), w.unbind(), strict=True)
        return stacked([_convolve_back(*part, None, *self._options, mask)[0] for part in parts])

    def _weight_gradient(self, g: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """Returns the gradient [T, ...] in w of <g, convolution(x, w)>."""
        mask = [False, True, False]
        parts = zip(g.unbind(), x.unbind(), w.unbind(), strict=True)
        return torch.stack([_convolve_back(*part, None, *self._options, mask)[1] for part in parts])

    def _both_gradients(self, g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both gradients."""
        if is_shared(w):
            return self._input_gradient(g, x, w), self._weight_gradient(g, x, w)
        parts = zip(g.unbind(), x.unbind(), w.unbind(), strict=True)
        found = [_convolve_back(*part, None, *self._options, [True, True, False]) for part in parts]
        return stacked([each[0] for each in found]), torch.stack([each[1] for each in found])

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns the convolution; keeps x."""
        (x,), (w, b) = inputs, leaves
        assert w is not None
        return self._apply(x, w, b), x

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """The two transposed convolutions, and sums for the bias."""
        w, b = leaves
        assert w is not None
        gx: Maybe = None
        if wanted[0]:
            gx, gw = self._both_gradients(g, saved, w)
        else:
            gw = self._weight_gradient(g, saved, w)
        return [gx], [gw, None if b is None else _channel_sums(g)]

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """y. = x. * w + x * w. + b."""
        (x_dot,), w, (w_dot, b_dot) = dots, leaves[0], leaf_dots
        assert w is not None
        y_dot = None if x_dot is None else self._apply(x_dot, w, None)
        if w_dot is not None:
            other = self._apply(saved, w_dot, b_dot)
            return other if y_dot is None else y_dot.add_(other), None
        if b_dot is not None:
            places = [1] * (saved.ndim - 3)
            shift = b_dot.reshape(len(b_dot), 1, -1, *places)
            if y_dot is None:
                y_dot = shift.expand(-1, saved.shape[1], *self.node.shape)
            else:
                y_dot = y_dot + shift
        return y_dot, None

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
        """gx. = g. *' w + g *' w., gw. = <g., x> + <g, x.>, gb. = sum g."""
        (x_dot,), (w, b), w_dot = dots, leaves, leaf_dots[0]
        assert w is not None
        gx: Maybe = None
        gw: Maybe = None
        if g_dot is not None:
            if wanted[0]:
                gx, gw = self._both_gradients(g_dot, saved, w)
            else:
                gw = self._weight_gradient(g_dot, saved, w)
        wants_x, wants_w = wanted[0] and w_dot is not None, x_dot is not None
        other = saved if x_dot is None else x_dot
        if wants_x and wants_w:
            assert w_dot is not None
            more_x, more_w = self._both_gradients(g, other, w_dot)
            gx, gw = _added(gx, more_x), _added(gw, more_w)
        elif wants_x:
            assert w_dot is not None
            gx = _added(gx, self._input_gradient(g, other, w_dot))
        elif wants_w:
            gw = _added(gw, self._weight_gradient(g, other, w))
        gb = None if b is None or g_dot is None else _channel_sums(g_dot)
        return [gx], [gw, gb]


class TransposedConvolution(Convolution):
    """x [T, N, C, *places], w [T, C, K / groups, *kernel], b [T, K]: the gradient in its input of
    the convolution by w."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        Layer.__init__(self, node, shapes)
        stride, padding, dilation, groups, more = node.options
        self._options = (stride, padding, dilation, True, more, groups)


def _added(a: Maybe, b: Maybe) -> Maybe:
    """Returns a + b, in the memory of a."""
    return b if a is None else a if b is None else a.add_(b)


def _channel_sums(g: Tensor) -> Tensor:
    """Returns the sums [T, K] of g [T, N, K, *places]."""
    return g.sum((1, *range(3, g.ndim)))
