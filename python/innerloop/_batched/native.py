"""Convolutions and blocks of batch norm by the CPU kernels (csrc/cpu/convolution.h, norm_block.h),
with the same four passes as the layers of torch operations: one call a pass, for all tasks.

A convolution of one or two axes without groups, of any stride, padding and dilation, has kernels; a
batch norm with its relu has them for any places, with its max pool where windows do not overlap and
have no padding. They take plain tensors of float32 and float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop import _native
from innerloop._batched.layer import Layer, Maybe, is_shared
from innerloop._program import Node, Shape, size_of

_MOST_VALUES = 64  # of a window, of the kernels
_LARGE_BYTES = 1 << 16


def runs_natively(x: Tensor, leaves: Iterable[Tensor]) -> bool:
    """Says whether kernels take rows x and leaves."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and _native.is_available()
        and all(_native.runs_directly(value) for value in (x, *leaves))
    )


def laid_out(weight: Tensor) -> Tensor:
    """Returns a leaf [T, ...] whose numbers lie in memory as the kernels want those of a
    convolution [T, out, in, *kernel]: each place of the kernel a matrix [in, out]. Others stay."""
    if weight.ndim not in (4, 5) or weight.device.type != "cpu":
        return weight
    if is_shared(weight):
        return _as_leaf(_matrices(weight[:1])).expand(weight.shape)
    return _as_leaf(_matrices(weight))


def over_tasks(leaf: Tensor) -> Tensor:
    """Returns the sum of a leaf [T, ...] over the tasks, made in the order of memory."""
    order = sorted(range(1, leaf.ndim), key=leaf.stride, reverse=True)
    back = sorted(range(leaf.ndim - 1), key=order.__getitem__)
    return leaf.permute(0, *order).sum(0).permute(back)


def _matrices(weight: Tensor) -> Tensor:
    """Returns [T, out, in, *kernel] as [T, *kernel, in, out]."""
    return weight.permute(0, *range(3, weight.ndim), 2, 1).contiguous()


def _as_leaf(matrices: Tensor) -> Tensor:
    """Returns [T, *kernel, in, out] as [T, out, in, *kernel]."""
    last = matrices.ndim - 1
    return matrices.permute(0, last, last - 1, *range(1, last - 1))


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns a new tensor whose memory, if it is much, goes back to the kernels' workspace."""
    count = math.prod(shape)
    size = count * like.element_size()
    if size < _LARGE_BYTES:
        return like.new_empty(shape)
    block = _native.native().Block(size)
    return torch.frombuffer(block, dtype=like.dtype, count=count).view(shape)


def room_for(value: Tensor) -> Tensor | None:
    """Returns an `out=` for numbers laid out as those of a value are, or None where torch's own
    memory serves as well: fresh pages of much memory take longer than what is written there."""
    size = value.numel() * value.element_size()
    if size < _LARGE_BYTES or torch.is_grad_enabled() or not runs_natively(value, ()):
        return None
    order = sorted(range(value.ndim), key=value.stride, reverse=True)
    back = sorted(range(value.ndim), key=order.__getitem__)
    return _empty(value, [value.shape[axis] for axis in order]).permute(back)


def _rows(x: Tensor) -> Tensor:
    """Returns a value [T, N, C, *places] as [T, N, *places, C], dense."""
    return x.permute(0, 1, *range(3, x.ndim), 2).contiguous()


def _channels_second(x: Tensor) -> Tensor:
    """Returns a view [T, N, C, *places] of [T, N, *places, C]."""
    return x.permute(0, 1, x.ndim - 1, *range(2, x.ndim - 1))


def _maybe_rows(x: Maybe) -> Maybe:
    """Returns a value, if it is one, as `_rows` does."""
    return None if x is None else _rows(x)


def _once(leaf: Maybe) -> Maybe:
    """Returns a leaf [T, ...], or [1, ...] where all tasks share it."""
    return leaf if leaf is None or not is_shared(leaf) else leaf[:1]


def _weights(leaf: Maybe) -> Maybe:
    """Returns the weights of a convolution as kernels read them."""
    once = _once(leaf)
    return None if once is None else _matrices(once)


class NativeConvolution(Layer):
    """`affine.Convolution` by a kernel."""

    @staticmethod
    def takes(node: Node, shapes: Sequence[Shape]) -> bool:
        """Says whether there is a kernel for a node."""
        return len(shapes[0]) in (2, 3) and node.options[3] == 1

    def _sizes(self, x: Tensor, w: Tensor) -> list[int]:
        """Returns what the kernels must know of rows x [T, N, *places, C] and of weights."""
        options: Any = self.node.options
        stride, padding, dilation, _ = options
        front = [1] * (5 - x.ndim)  # a signal is an image of height 1
        none = [0] * len(front)
        return [
            *(x.shape[1], x.shape[-1], *front, *x.shape[2:-1]),
            *(self.node.shape[0], *front, *self.node.shape[1:]),
            *(*front, *w.shape[3:], *front, *stride, *none, *padding, *front, *dilation),
        ]

    def _apply(self, xs: Sequence[Maybe], ws: Sequence[Maybe], b: Maybe) -> Tensor:
        """Returns the sum of the convolutions of pairs, and b."""
        x, w = next((x, w) for x, w in zip(xs, ws, strict=True) if x is not None and w is not None)
        y = _empty(x, (*x.shape[:2], *self.node.shape[1:], self.node.shape[0]))
        _native.native().convolve(
            self._sizes(x, w), tuple(xs), tuple(map(_weights, ws)), _once(b), y,
            torch.get_num_threads(),
        )  # fmt: skip
        return _channels_second(y)

    def _gradients(
        self,
        like: tuple[Tensor, Tensor],
        gs: Sequence[Maybe],
        xs: Sequence[Maybe],
        ws: Sequence[Maybe],
        wants_x: bool,
        wants_b: bool,
    ) -> tuple[Maybe, Maybe, Maybe]:
        """Returns the gradients in x, w and b of the sum of <g, x * w>; `like` are an x and a w."""
        x, w = like
        wants_x = wants_x and any(
            g is not None and w is not None for g, w in zip(gs, ws, strict=True)
        )
        wants_w = any(g is not None and x is not None for g, x in zip(gs, xs, strict=True))
        wants_b = wants_b and gs[0] is not None
        if not (wants_x or wants_w or wants_b):
            return None, None, None
        gx = _empty(x, x.shape) if wants_x else None
        gw = _empty(x, (len(x), *w.shape[3:], w.shape[2], w.shape[1])) if wants_w else None
        gb = _empty(x, (len(x), w.shape[1])) if wants_b else None
        weights = tuple(map(_weights, ws)) if wants_x else (None, None)
        _native.native().convolve_back(
            self._sizes(x, w), tuple(map(_maybe_rows, gs)), tuple(xs), weights, gx, gw, gb,
            torch.get_num_threads(),
        )  # fmt: skip
        return (
            None if gx is None else _channels_second(gx),
            None if gw is None else _as_leaf(gw),
            gb,
        )

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns the convolution; keeps x."""
        x, (w, b) = _rows(inputs[0]), leaves
        return self._apply((x, None), (w, None), b), x

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """The two transposed convolutions, and sums for the bias."""
        w, b = leaves
        assert w is not None
        gx, gw, gb = self._gradients(
            (saved, w), (g, None), (saved, None), (w, None), wanted[0], b is not None
        )
        return [gx], [gw, gb]

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """y. = x. * w + x * w. + b.; keeps x."""
        w, (w_dot, b_dot) = leaves[0], leaf_dots
        x_dot = _maybe_rows(dots[0])
        if x_dot is not None or w_dot is not None:
            xs = x_dot, None if w_dot is None else saved
            return self._apply(xs, (w if x_dot is not None else None, w_dot), b_dot), x_dot
        if b_dot is None:
            return None, None
        shift = b_dot.reshape(len(b_dot), 1, -1, *[1] * (saved.ndim - 3))
        return shift.expand(-1, saved.shape[1], *self.node.shape), None

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
        (w, b), w_dot = leaves, leaf_dots[0]
        assert w is not None
        gx, gw, gb = self._gradients(
            (saved, w), (g_dot, g), (saved, tangent_saved), (w, w_dot), wanted[0], b is not None
        )
        return [gx], [gw, gb]


class _Kept(NamedTuple):
    """What the forward pass keeps: x, its mean and s [2, T, C] of `blocks.py`, the values of x that
    the pool chose, y; and of the backward pass G0 and G1 [2, T, C], and g itself."""

    x: Tensor
    statistics: Tensor
    chosen: Maybe
    y: Tensor
    sums: list[Tensor]


class NativeNormBlock(Layer):
    """`blocks.NormBlock` by a kernel."""

    @staticmethod
    def takes(pool: Node | None) -> bool:
        """Says whether there is a kernel for a block with a pool."""
        if pool is None:
            return True
        windows: Any = pool.options
        kernel, stride, padding, dilation, ceils = windows
        return bool(
            kernel == stride
            and not any(padding)
            and all(step == 1 for step in dilation)
            and not ceils
            and size_of(kernel) <= _MOST_VALUES
        )

    def __init__(self, norm: Node, relu: Node | None, pool: Node | None, shape: Shape) -> None:
        super().__init__(pool or relu or norm, [shape])
        eps = norm.options[0]
        assert isinstance(eps, float)
        self._eps = eps
        self._has_pool = pool is not None
        window: Any = pool.options[0] if pool is not None else ()
        places = shape[1:] if pool is not None else (size_of(shape[1:]),)
        front = (1,) * (2 - len(places))
        self._sizes = (
            *(shape[0], *front, *places),
            *(*((1,) * (2 - len(window))), *window),
            int(relu is not None),
        )

    def _call(self, name: str, rows: int, **tensors: Maybe) -> None:
        """Calls a pass of the kernel."""
        sizes = (rows, *self._sizes)
        getattr(_native.native(), name)(sizes, self._eps, tensors, torch.get_num_threads())

    def _known(self, kept: _Kept, w: Maybe) -> dict[str, Maybe]:
        """Returns what all later passes read."""
        return {
            "x": kept.x, "statistics": kept.statistics, "chosen": kept.chosen, "y": kept.y,
            "w": _once(w),
        }  # fmt: skip

    def _sums(self, x: Tensor, *sets: int) -> Tensor:
        """Returns a new tensor for sums [..., T, C]."""
        return x.new_empty((*sets, len(x), x.shape[-1]))

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns y."""
        x, (w, b) = _rows(inputs[0]), leaves
        statistics = self._sums(x, 2)
        y = _empty(x, (*x.shape[:2], *self.node.shape[1:], x.shape[-1]))
        chosen = _empty(x, y.shape) if self._has_pool else None
        self._call(
            "norm_forward", x.shape[1],
            x=x, statistics=statistics, chosen=chosen, y=y, w=_once(w), b=_once(b),
        )  # fmt: skip
        return _channels_second(y), _Kept(x, statistics, chosen, y, [])

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """See the head of `blocks.py`."""
        (w, b), x, g = leaves, saved.x, _rows(g)
        sums = self._sums(x, 2)
        saved.sums[:] = sums, g
        gx = _empty(x, x.shape) if wanted[0] else None
        gw = None if w is None else self._sums(x)
        gb = None if b is None else self._sums(x)
        self._call(
            "norm_backward", x.shape[1],
            **self._known(saved, w), g=g, gx=gx, gw=gw, gb=gb, sums=sums,
        )  # fmt: skip
        return [None if gx is None else _channels_second(gx)], [gw, gb]

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns y., and keeps A, K, E [3, T, C], and x."""
        x_dot, w, (w_dot, b_dot) = _maybe_rows(dots[0]), leaves[0], leaf_dots
        if x_dot is None and w_dot is None and b_dot is None:
            return None, None
        y_dot = _empty(saved.y, saved.y.shape)
        sums = self._sums(saved.x, 3)
        self._call(
            "norm_tangent", saved.x.shape[1],
            **self._known(saved, w), g=saved.sums[1], x_dot=x_dot, w_dot=_once(w_dot),
            b_dot=_once(b_dot), y_dot=y_dot, dot_sums=sums,
        )  # fmt: skip
        return _channels_second(y_dot), (sums, x_dot)

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
        """See the head of `blocks.py`."""
        (w, b), w_dot = leaves, leaf_dots[0]
        sums, g = saved.sums
        if tangent_saved is None:
            dot_sums, x_dot = self._sums(saved.x, 3).zero_(), None
        else:
            dot_sums, x_dot = tangent_saved
        gx = _empty(saved.x, saved.x.shape) if wanted[0] else None
        gw = None if w is None else self._sums(saved.x)
        gb = None if b is None else self._sums(saved.x)
        self._call(
            "norm_second", saved.x.shape[1],
            **self._known(saved, w), g=g, g_dot=_maybe_rows(g_dot), x_dot=x_dot,
            w_dot=_once(w_dot), sums=sums, dot_sums=dot_sums, gx=gx, gw=gw, gb=gb,
        )  # fmt: skip
        return [None if gx is None else _channels_second(gx)], [gw, gb]
