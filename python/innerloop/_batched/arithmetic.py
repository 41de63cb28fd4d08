"""Sums and products: of two values, of values with numbers, and of values with leaves. What is
smaller is spread over the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._batched.layer import Layer, Linear, Maybe, channels_last, plus, total
from innerloop._program import Node, Shape


def _times(a: Maybe, b: Maybe) -> Maybe:
    """Returns a b."""
    return None if a is None or b is None else a * b


class _OfTwo(Layer):
    """Base of functions of two values."""

    def _own(self, g: Maybe, at: int) -> Maybe:
        """Returns a gradient in the shape of an input."""
        if g is None or self.shapes[at] == self.node.shape:
            return g
        return total(g, (*g.shape[:2], *self.shapes[at]))

    def _wide(self, dot: Maybe) -> Maybe:
        """Returns a derivative in the shape of the output."""
        return None if dot is None else dot.expand(*dot.shape[:2], *self.node.shape)


def _number(option: object) -> float:
    """Returns an option that is a number."""
    assert isinstance(option, float)
    return option


class Sum(_OfTwo):
    """y = a + f b with a number f."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        self._factor = _number(node.options[0])

    def _scaled(self, x: Maybe) -> Maybe:
        """Returns f x."""
        return x if x is None or self._factor == 1 else x * self._factor

    def _parts(self, g: Maybe, wanted: Sequence[bool]) -> list[Maybe]:
        """Returns g and f g, as far as they are used."""
        return [
            self._own(g, 0) if wanted[0] else None,
            self._scaled(self._own(g, 1)) if wanted[1] else None,
        ]

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns a + f b."""
        return inputs[0].add(inputs[1], alpha=self._factor), None

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns g and f g."""
        return self._parts(g, wanted), []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns a. + f b."""
        return self._wide(plus(dots[0], self._scaled(dots[1]))), None

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
        """Returns g. and f g."""
        return self._parts(g_dot, wanted), []


class Product(_OfTwo):
    """y = a b: ga = g b, y. = a. b + a b., ga. = g. b + g b., and so for b."""

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns a b; keeps both."""
        return inputs[0] * inputs[1], inputs

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns g b and g a."""
        return [self._own(g * saved[1 - at], at) if wanted[at] else None for at in (0, 1)], []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns a. b + a b."""
        return plus(_times(dots[0], saved[1]), _times(dots[1], saved[0])), None

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
        """Returns g. b + g b. and g. a + g a."""
        found: list[Maybe] = [None, None]
        for at in (0, 1):
            if wanted[at]:
                both = plus(_times(g_dot, saved[1 - at]), _times(g, dots[1 - at]))
                found[at] = self._own(both, at)
        return found, []


class Quotient(_OfTwo):
    """y = a / b, or c / b with a number c. With h = g / b: ga = h, gb = -h y, y. = (a. - y b.) / b,
    h. = (g. - h b.) / b, ga. = h., gb. = -h. y - h y.. Nothing is divided by a power of b, which
    may leave the dtype where the quotients do not."""

    def _both(self, values: Sequence[Maybe]) -> list[Maybe]:
        """Returns what belongs to a and to b, None for a number."""
        return [None, *values] if len(values) == 1 else list(values)

    def _parts(self, ga: Maybe, gb: Maybe, wanted: Sequence[bool]) -> list[Maybe]:
        """Returns gradients in the shapes of the inputs, as far as they are used."""
        given = [ga, gb][-len(wanted) :]
        return [self._own(g, at) if wants else None for at, (g, wants) in
                enumerate(zip(given, wanted, strict=True))]  # fmt: skip

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns the quotient; keeps b and y."""
        a, b = self._both(inputs)
        assert b is not None
        y = b.new_full((), _number(self.node.options[0])) / b if a is None else a / b
        return y, (b, y)

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns h and -h y."""
        b, y = saved
        h = g / b
        return self._parts(h, -h * y if wanted[-1] else None, wanted), []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns (a. - y b.) / b, twice."""
        b, y = saved
        a_dot, b_dot = self._both(dots)
        along = plus(a_dot, None if b_dot is None else -y * b_dot)
        y_dot = None if along is None else along / b
        return y_dot, y_dot

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
        """Returns h. and -h. y - h y.."""
        (b, y), b_dot = saved, dots[-1]
        h = g / b
        along = plus(g_dot, None if b_dot is None else -h * b_dot)
        h_dot = None if along is None else along / b
        gb: Maybe = None
        if wanted[-1]:
            gb = plus(
                None if h_dot is None else -h_dot * y,
                None if tangent_saved is None else -h * tangent_saved,
            )
        return self._parts(h_dot, gb, wanted), []


class Length(Layer):
    """The 2-norm y over the last axes of rows. With h = x / y, which is 0 where y is: gx = g h,
    y. = sum h x., h. = (x. - h y.) / y, gx. = g. h + g h.."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        kept = node.options[0]
        assert isinstance(kept, int)
        self._axes = tuple(range(2 + kept, 2 + len(shapes[0])))

    def _spread(self, y: Tensor) -> Tensor:
        """Returns norms in a shape that broadcasts to rows."""
        return y.reshape(*y.shape, *[1] * len(self._axes))

    def _over(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns x / y, 0 where y is."""
        spread = self._spread(y)
        return torch.where(spread > 0, x / spread, 0.0)

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns the norms; keeps them and h."""
        y = torch.linalg.vector_norm(inputs[0], dim=self._axes)
        return y, (y, self._over(inputs[0], y))

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns g h."""
        return [self._spread(g) * saved[1] if wanted[0] else None], []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns sum h x., and keeps h.."""
        (y, h), x_dot = saved, dots[0]
        if x_dot is None:
            return None, None
        y_dot = (h * x_dot).sum(self._axes)
        return y_dot, self._over(x_dot - h * self._spread(y_dot), y)

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
        """Returns g. h + g h.."""
        if not wanted[0]:
            return [None], []
        gx = None if g_dot is None else self._spread(g_dot) * saved[1]
        return [plus(gx, None if tangent_saved is None else self._spread(g) * tangent_saved)], []


class Scale(Linear):
    """y = a x + c with numbers a and c."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        self._factor, self._constant = map(_number, node.options)

    def apply(self, x: Tensor, saved: Any) -> Tensor:
        """Returns a x."""
        return x * self._factor

    def back(self, g: Tensor, saved: Any) -> Tensor:
        """Returns a g."""
        return g * self._factor

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns a x + c."""
        return inputs[0] * self._factor + self._constant, None


class _WithLeaf(Layer):
    """Base of functions of a value and a leaf that is spread over its rows."""

    def _spread(self, leaf: Tensor) -> Tensor:
        """Returns a leaf [T, *shape] in a shape that broadcasts."""
        ndim = len(self.node.shape)
        own = leaf.shape[1:] if leaf.ndim <= ndim + 1 else leaf.shape[2:]
        return leaf.reshape(len(leaf), 1, *[1] * (ndim - len(own)), *own)

    def _gathered(self, g: Tensor, leaf: Tensor) -> Tensor:
        """Returns g summed to the shape of a leaf."""
        return total(g, self._spread(leaf).shape).reshape(leaf.shape)


class Shift(_WithLeaf):
    """y = x + f b with a leaf b and a number f."""

    def _scaled(self, x: Tensor) -> Tensor:
        """Returns f x."""
        return x * _number(self.node.options[0])

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns x + f b; keeps the number of rows."""
        (x,), (b,) = inputs, leaves
        assert b is not None
        return x + self._scaled(self._spread(b)), x.shape

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns g, and its sums."""
        (b,) = leaves
        assert b is not None
        return [g if wanted[0] else None], [self._scaled(self._gathered(g, b))]

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns x. + f b."""
        (b_dot,) = leaf_dots
        more = None if b_dot is None else self._scaled(self._spread(b_dot)).expand(saved)
        return plus(dots[0], more), None

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
        """Returns g., and its sums."""
        (b,) = leaves
        assert b is not None
        gb = None if g_dot is None else self._scaled(self._gathered(g_dot, b))
        return [g_dot if wanted[0] else None], [gb]


class Spread(_WithLeaf):
    """y = b for every row, with a leaf b."""

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns b in each row; keeps the shape of all."""
        (x,), (b,) = inputs, leaves
        assert b is not None
        shape = (*x.shape[:2], *self.node.shape)
        return channels_last(self._spread(b).expand(shape)), shape

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns the sums of g."""
        (b,) = leaves
        assert b is not None
        return [None], [self._gathered(g, b)]

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns b."""
        (b_dot,) = leaf_dots
        return None if b_dot is None else channels_last(self._spread(b_dot).expand(saved)), None

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
        """Returns the sums of g."""
        (b,) = leaves
        assert b is not None
        return [None], [None if g_dot is None else self._gathered(g_dot, b)]


class Constant(Layer):
    """y = c for every row, with a number c."""

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns c in each row."""
        (x,) = inputs
        shape = (*x.shape[:2], *self.node.shape)
        return channels_last(x.new_full(shape, _number(self.node.options[0]))), None

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns nothing."""
        return [None], []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns nothing."""
        return None, None

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
        """Returns nothing."""
        return [None], []


class Masked(_WithLeaf):
    """y = x where a leaf is not zero, or along the last two axes on and below the diagonal, and
    elsewhere a number c. The leaf holds truth values and has no gradient."""

    def _kept(self, x: Maybe, keep: Tensor, other: float = 0.0) -> Maybe:
        """Returns x where it is kept."""
        return None if x is None else torch.where(keep, x, other)

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns y; keeps where it is x."""
        (x,) = inputs
        if leaves:
            assert leaves[0] is not None
            keep = self._spread(leaves[0]) != 0
        else:
            keep = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).tril()
        return torch.where(keep, x, _number(self.node.options[0])), keep

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns g where it is kept."""
        return [self._kept(g, saved) if wanted[0] else None], [None] * len(leaves)

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns x. where it is kept."""
        return self._kept(dots[0], saved), None

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
        """Returns g. where it is kept."""
        return [self._kept(g_dot, saved) if wanted[0] else None], [None] * len(leaves)


class Gain(_WithLeaf):
    """y = w x with a leaf w: gx = w g, gw = sum g x, y. = w x. + w. x."""

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns w x; keeps x."""
        (x,), (w,) = inputs, leaves
        assert w is not None
        return x * self._spread(w), x

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns w g, and the sums of g x."""
        (w,) = leaves
        assert w is not None
        gx = g * self._spread(w) if wanted[0] else None
        return [gx], [self._gathered(g * saved, w)]

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns w x. + w. x."""
        (w,), (w_dot,) = leaves, leaf_dots
        assert w is not None
        y_dot = _times(dots[0], self._spread(w))
        return plus(y_dot, None if w_dot is None else saved * self._spread(w_dot)), None

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
        """gx. = w g. + w. g, gw. = sum g. x + g x."""
        (w,), (w_dot,) = leaves, leaf_dots
        assert w is not None
        gx: Maybe = None
        if wanted[0]:
            gx = _times(g_dot, self._spread(w))
            gx = plus(gx, None if w_dot is None else g * self._spread(w_dot))
        gw = plus(_times(g_dot, saved), _times(g, dots[0]))
        return [gx], [None if gw is None else self._gathered(gw, w)]
