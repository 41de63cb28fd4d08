"""Layers that move values or take means of them: other shapes, joined values, means and pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._batched.layer import Layer, Linear, Maybe, channels_last
from innerloop._program import Node, Shape

_aten = torch.ops.aten


class Reshape(Linear):
    """Rows in another shape."""

    def apply(self, x: Tensor, saved: Any) -> Tensor:
        """Returns rows in the new shape."""
        return channels_last(x.reshape(*x.shape[:2], *self.node.shape))

    def back(self, g: Tensor, saved: Any) -> Tensor:
        """Returns rows in the old shape."""
        return channels_last(g.reshape(*g.shape[:2], *self.shapes[0]))


class Mean(Linear):
    """The mean over the last axes of rows."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        kept = node.options[0]
        assert isinstance(kept, int)
        self._kept = shapes[0][:kept]
        self._gone = shapes[0][kept:]

    def apply(self, x: Tensor, saved: Any) -> Tensor:
        """Returns the means."""
        axes = tuple(range(2 + len(self._kept), x.ndim))
        return x.mean(axes).reshape(*x.shape[:2], *self.node.shape)

    def back(self, g: Tensor, saved: Any) -> Tensor:
        """Returns shares."""
        ones = [1] * len(self._gone)
        share = g.reshape(*g.shape[:2], *self._kept, *ones)
        wide = share.expand(*g.shape[:2], *self._kept, *self._gone)
        return channels_last(wide / float(torch.Size(self._gone).numel()))


class Permute(Linear):
    """Rows with their axes in another order."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        order = node.options[0]
        assert isinstance(order, tuple)
        self._order = [int(axis) + 1 for axis in order]
        self._back = [self._order.index(axis + 2) + 2 for axis in range(len(order))]

    def apply(self, x: Tensor, saved: Any) -> Tensor:
        """Returns rows in the new order."""
        return channels_last(x.permute(0, 1, *self._order))

    def back(self, g: Tensor, saved: Any) -> Tensor:
        """Returns rows in the old order."""
        return channels_last(g.permute(0, 1, *self._back))


class Slice(Linear):
    """Every so many of the entries along the axes of the rows."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        bounds: Any = node.options  # starts, stops and steps of the axes
        self._index: Any = (..., *(slice(*each) for each in zip(*bounds, strict=True)))

    def apply(self, x: Tensor, saved: Any) -> Tensor:
        """Returns the entries."""
        return channels_last(x[self._index])

    def back(self, g: Tensor, saved: Any) -> Tensor:
        """Returns a value with the entries, zeros elsewhere."""
        gx = g.new_zeros(*g.shape[:2], *self.shapes[0])
        gx[self._index] = g
        return channels_last(gx)


class Take(Linear):
    """Some of the entries along one axis of the rows, as often and in the order as asked for; -1
    stands for a constant."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        options: Any = node.options
        axis, entries, self._constant = options
        self._axis = axis + 1  # after the tasks
        self._size = shapes[0][axis - 1]
        places = [at for at, entry in enumerate(entries) if entry >= 0]
        self._is_whole = len(places) == len(entries)
        self._places = torch.tensor(places, dtype=torch.int64)
        self._entries = torch.tensor([entries[at] for at in places], dtype=torch.int64)
        self._on = {self._places.device: (self._entries, self._places)}  # kept, for CUDA graphs

    def _indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns entries and the places they go to, where x is."""
        if x.device not in self._on:
            self._on[x.device] = self._entries.to(x.device), self._places.to(x.device)
        return self._on[x.device]

    def _filled(self, x: Tensor, size: int, constant: float) -> Tensor:
        """Returns a value like x of another size along the axis, with one number everywhere."""
        return x.new_full((*x.shape[: self._axis], size, *x.shape[self._axis + 1 :]), constant)

    def _taken(self, x: Tensor, constant: float) -> Tensor:
        """Returns the entries."""
        entries, places = self._indices(x)
        y = x.index_select(self._axis, entries)
        if not self._is_whole:
            whole = self._filled(x, self.node.shape[self._axis - 2], constant)
            y = whole.index_copy_(self._axis, places, y)
        return channels_last(y)

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns the entries, the constant among them."""
        return self._taken(inputs[0], self._constant), None

    def apply(self, x: Tensor, saved: Any) -> Tensor:
        """Returns the entries, zeros in the place of the constant."""
        return self._taken(x, 0.0)

    def back(self, g: Tensor, saved: Any) -> Tensor:
        """Returns sums at the entries."""
        entries, places = self._indices(g)
        chosen = g.index_select(self._axis, places)
        gx = self._filled(g, self._size, 0.0).index_add_(self._axis, entries, chosen)
        return channels_last(gx)


class Joined(Layer):
    """Values one after the other along an axis of the rows."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        axis = node.options[0]
        assert isinstance(axis, int)
        self._axis = axis + 1  # after the tasks
        self._sizes = [shape[axis - 1] for shape in shapes]

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        """Returns the parts in one."""
        return channels_last(torch.cat(list(parts), self._axis))

    def _split(self, g: Maybe, wanted: Sequence[bool]) -> list[Maybe]:
        """Returns the parts of a value."""
        if g is None:
            return [None] * len(wanted)
        parts = g.split(self._sizes, self._axis)
        return [part if wants else None for part, wants in zip(parts, wanted, strict=True)]

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns the values in one; keeps the numbers of tasks and rows, and a tensor alike."""
        return self._join(inputs), (inputs[0].shape[:2], inputs[0].new_empty(0))

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns the parts of g."""
        return self._split(g, wanted), []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns the derivatives in one."""
        if all(dot is None for dot in dots):
            return None, None
        front, like = saved
        return self._join(
            [
                like.new_zeros(*front, *shape) if dot is None else dot
                for dot, shape in zip(dots, self.shapes, strict=True)
            ]
        ), None

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
        """Returns the parts of g."""
        return self._split(g_dot, wanted), []


def _planes(x: Tensor) -> Tensor:
    """Returns [T, N, C, *places] as images [T N, C, H, W], a signal as images of width 1."""
    flat = x.flatten(0, 1)
    return flat.unsqueeze(-1) if flat.ndim == 3 else flat


class _Pool(Linear):
    """Base of pools, which see images."""

    def _two(self, option: Any, fill: int) -> list[int]:
        """Returns an option for both axes of an image."""
        return [*option, fill] if len(option) == 1 else list(option)

    def _values(self, y: Tensor, like: Tensor, shape: Shape) -> Tensor:
        """Returns images as a value with rows of a shape."""
        return (
            y.reshape(*like.shape[:2], *shape)
            if len(shape) == 2
            else y.unflatten(0, like.shape[:2])
        )


class AveragePool(_Pool):
    """The mean over windows."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        kernel, stride, padding, ceils, counts_padding = node.options
        self._windows = (
            self._two(kernel, 1),
            self._two(stride, 1),
            self._two(padding, 0),
            ceils,
            counts_padding,
            None,
        )

    def apply(self, x: Tensor, saved: Any) -> Tensor:
        """Returns the means."""
        return self._values(_aten.avg_pool2d(_planes(x), *self._windows), x, self.node.shape)

    def back(self, g: Tensor, saved: Any) -> Tensor:
        """Returns shares."""
        planes = _planes(g)
        like = _image_like(planes, self.shapes[0])
        gx = _aten.avg_pool2d_backward(planes, like, *self._windows)
        return self._values(gx, g, self.shapes[0])


class AdaptiveAveragePool(_Pool):
    """The mean over windows of as many places as there are."""

    def apply(self, x: Tensor, saved: Any) -> Tensor:
        """Returns the means."""
        size = self._two(self.node.options[0], 1)
        return self._values(_aten._adaptive_avg_pool2d(_planes(x), size), x, self.node.shape)

    def back(self, g: Tensor, saved: Any) -> Tensor:
        """Returns shares."""
        planes = _planes(g)
        like = _image_like(planes, self.shapes[0])
        gx = _aten._adaptive_avg_pool2d_backward(planes, like)
        return self._values(gx, g, self.shapes[0])


def _image_like(planes: Tensor, shape: Shape) -> Tensor:
    """Returns images of a row's shape of which nobody reads the numbers."""
    sizes = (len(planes), *shape) if len(shape) == 3 else (len(planes), *shape, 1)
    return planes.new_empty(1).expand(sizes)


class MaxPool(_Pool):
    """The largest of each window. Which that is stays the same in all passes."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        if node.kind == "adaptive_max_pool":
            self._size = self._two(node.options[0], 1)
            return
        kernel, stride, padding, dilation, ceils = node.options
        self._windows = (
            self._two(kernel, 1),
            self._two(stride, 1),
            self._two(padding, 0),
            self._two(dilation, 1),
            ceils,
        )

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns the largest values; keeps x and their places."""
        planes = _planes(inputs[0])
        if self.node.kind == "adaptive_max_pool":
            y, places = _aten.adaptive_max_pool2d(planes, self._size)
        else:
            y, places = _aten.max_pool2d_with_indices(planes, *self._windows)
        return self._values(y, inputs[0], self.node.shape), (planes, places)

    def apply(self, x: Tensor, saved: Any) -> Tensor:
        """Returns the values at the places kept."""
        planes, places = _planes(x), saved[1]
        flat = planes.flatten(2).transpose(1, 2)  # [T N, H W, C]: channels are last in memory
        chosen = flat.gather(1, places.flatten(2).transpose(1, 2))
        y = chosen.transpose(1, 2).unflatten(2, places.shape[2:])
        return self._values(y, x, self.node.shape)

    def back(self, g: Tensor, saved: Any) -> Tensor:
        """Returns g at the places kept."""
        planes, places = saved
        if self.node.kind == "adaptive_max_pool":
            gx = _aten.adaptive_max_pool2d_backward(_planes(g), planes, places)
        else:
            gx = _aten.max_pool2d_with_indices_backward(_planes(g), planes, *self._windows, places)
        return self._values(gx, g, self.shapes[0])
