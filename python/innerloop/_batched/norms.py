"""Normalisation by the statistics of each row (layer, group and RMS norm), by constants, and of
probabilities.

With h = (x - mean) r, r = (variance + eps)^(-1/2) over a group of values, and with the projection
P(u) = u - mean(u) - h mean(u h): the gradient in x of <u, h> is r P(u), and along a direction x.
h. = r P(x.), r. = -r^2 mean(h x.). Differentiating r P(u) once more along x., u.:

    (r P(u)). = r P(u.) - r mean(h x.) r P(u) - r mean(u h) h. - r mean(u h.) h

RMS norm is the same with h = x r, r = (mean(x^2) + eps)^(-1/2), P(u) = u - h mean(u h).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._batched.layer import Layer, Maybe, plus, total
from innerloop._program import Node, Shape


class Norm(Layer):
    """y = w h + b. Values are seen as `_view` of them, in which a group lies along `_axes` and
    w and b broadcast."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        eps = node.options[0]
        assert isinstance(eps, float)
        self._eps = eps
        row = shapes[0]
        self._view: Shape = row
        size = node.options[1]  # of axes, or of groups
        assert isinstance(size, int)
        self._centres = node.kind != "rms_norm"
        if node.kind != "group_norm":
            self._axes = tuple(range(len(row) + 2 - size, len(row) + 2))
            self._affine: Shape = (*[1] * (len(row) - size), *row[len(row) - size :])
        else:
            self._view = (size, row[0] // size, *row[1:])
            self._axes = tuple(range(3, len(row) + 3))
            self._affine = (size, row[0] // size, *[1] * (len(row) - 1))

    def _seen(self, x: Tensor) -> Tensor:
        """Returns a value as `_view` of it."""
        return x if self._view == self.shapes[0] else x.unflatten(2, self._view[:2])

    def _unseen(self, x: Tensor) -> Tensor:
        """Returns a value as it is."""
        return x if self._view == self.shapes[0] else x.flatten(2, 3)

    def _spread(self, leaf: Tensor) -> Tensor:
        """Returns w or b [T, ...] in a shape that broadcasts to the view."""
        return leaf.reshape(len(leaf), 1, *self._affine)

    def _mean(self, x: Tensor) -> Tensor:
        """Returns the means over groups."""
        return x.mean(self._axes, keepdim=True)

    def _gathered(self, x: Tensor, leaf: Tensor) -> Tensor:
        """Returns x summed to the shape of w or b."""
        return total(x, (x.shape[0], 1, *self._affine)).reshape(leaf.shape)

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns y; keeps h and r."""
        x, (w, b) = self._seen(inputs[0]), leaves
        centred = x - self._mean(x) if self._centres else x
        r = (self._mean(centred * centred) + self._eps).rsqrt_()
        h = centred.mul_(r) if self._centres else x * r
        return self._unseen(self._scaled(h, w, b)), (h, r)

    def _scaled(self, h: Tensor, w: Maybe, b: Maybe) -> Tensor:
        """Returns w h + b."""
        if w is not None and b is not None:
            return torch.addcmul(self._spread(b), h, self._spread(w))
        if w is not None:
            return h * self._spread(w)
        return h if b is None else h + self._spread(b)

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """gx = r P(w g), gw = sum g h, gb = sum g."""
        (h, r), (w, b) = saved, leaves
        g = self._seen(g)
        gh = g * h
        grads = [
            None if w is None else self._gathered(gh, w),
            None if b is None else self._gathered(g, b),
        ]
        if not wanted[0]:
            return [None], grads
        u = g if w is None else g * self._spread(w)
        return [self._unseen(self._project(u, h).mul_(r))], grads

    def _project(self, u: Tensor, h: Tensor) -> Tensor:
        """Returns P(u)."""
        return self._off(u, h, self._mean(u * h))

    def _off(self, u: Tensor, h: Tensor, along: Tensor) -> Tensor:
        """Returns u - mean(u) - h along."""
        if not self._centres:
            return torch.addcmul(u, h, -along)
        return torch.addcmul(-self._mean(u), h, -along).add_(u)

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """y. = w. h + w h. + b.; keeps h. and mean(h x.)."""
        (h, r), (w, _), (w_dot, b_dot) = saved, leaves, leaf_dots
        y_dot: Maybe = None
        kept: Any = None
        if dots[0] is not None:
            x_dot = self._seen(dots[0])
            along = self._mean(x_dot * h)
            h_dot = self._off(x_dot, h, along).mul_(r)
            kept = h_dot, along
            y_dot = h_dot if w is None else h_dot * self._spread(w)
            if y_dot is h_dot and not (w_dot is None and b_dot is None):
                y_dot = h_dot.clone()  # what is kept stays
        if w_dot is not None:
            spread = self._spread(w_dot)
            y_dot = h * spread if y_dot is None else y_dot.addcmul_(h, spread)
        if b_dot is not None:
            spread = self._spread(b_dot)
            y_dot = spread.expand_as(h) if y_dot is None else y_dot.add_(spread)
        return None if y_dot is None else self._unseen(y_dot), kept

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
        """See the head of this file, with u = w g, u. = w g. + w. g."""
        (h, r), (w, b), w_dot = saved, leaves, leaf_dots[0]
        g = self._seen(g)
        g_dot = None if g_dot is None else self._seen(g_dot)
        h_dot: Maybe = None if tangent_saved is None else tangent_saved[0]
        gw: Maybe = None
        if w is not None:
            gw = None if g_dot is None else self._gathered(g_dot * h, w)
            gw = plus(gw, None if h_dot is None else self._gathered(g * h_dot, w))
        gb = None if b is None or g_dot is None else self._gathered(g_dot, b)
        if not wanted[0]:
            return [None], [gw, gb]
        u = g if w is None else g * self._spread(w)
        u_dot = g_dot if w is None or g_dot is None else g_dot * self._spread(w)
        if w_dot is not None:
            spread = self._spread(w_dot)
            u_dot = g * spread if u_dot is None else u_dot.addcmul_(g, spread)
        gx: Maybe = None if u_dot is None else self._project(u_dot, h)
        if h_dot is not None:
            uh, uh_dot, fall = self._mean(u * h), self._mean(u * h_dot), tangent_saved[1] * r
            # -mean(h x.) r P(u) - mean(u h) h. - mean(u h.) h
            shift = h * (uh * fall - uh_dot)
            if self._centres:
                shift.add_(self._mean(u) * fall)
            shift.addcmul_(u, -fall).addcmul_(h_dot, -uh)
            gx = shift if gx is None else gx.add_(shift)
        return [None if gx is None else self._unseen(gx.mul_(r))], [gw, gb]


class FixedNorm(Layer):
    """y = w (x - mean) r + b with constants [T, C] in place of statistics, the last two leaves."""

    def _constants(self, mean: Maybe, variance: Maybe) -> tuple[Tensor, Tensor]:
        """Returns mean and r in shapes that broadcast."""
        eps = self.node.options[0]
        assert isinstance(eps, float)
        assert mean is not None
        assert variance is not None
        return self._spread(mean), self._spread((variance + eps).rsqrt())

    def _spread(self, leaf: Tensor) -> Tensor:
        """Returns w or b [T, C] in a shape that broadcasts."""
        return leaf.reshape(len(leaf), 1, -1, *[1] * (len(self.shapes[0]) - 1))

    def _gathered(self, x: Tensor) -> Tensor:
        """Returns sums [T, C]."""
        return x.sum((1, *range(3, x.ndim)))

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns y; keeps h = (x - mean) r, and r."""
        w, b, *constants = leaves
        mean, r = self._constants(*constants)
        h = (inputs[0] - mean) * r
        y = h if w is None else h * self._spread(w)
        return y if b is None else y + self._spread(b), (h, r)

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """gx = r w g, gw = sum g h, gb = sum g."""
        (h, r), (w, b) = saved, leaves[:2]
        grads = [
            None if w is None else self._gathered(g * h),
            None if b is None else self._gathered(g),
        ]
        if not wanted[0]:
            return [None], grads
        return [g * (r if w is None else r * self._spread(w))], grads

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """y. = w. h + w r x. + b."""
        (h, r), w, (w_dot, b_dot) = saved, leaves[0], leaf_dots[:2]
        y_dot = None
        if dots[0] is not None:
            y_dot = dots[0] * (r if w is None else r * self._spread(w))
        y_dot = plus(y_dot, None if w_dot is None else h * self._spread(w_dot))
        shift = None if b_dot is None else self._spread(b_dot).expand_as(h)
        return plus(y_dot, shift), None

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
        """gx. = r (w g. + w. g), gw. = sum g. h + g r x., gb. = sum g."""
        (h, r), (w, b), w_dot = saved, leaves[:2], leaf_dots[0]
        gw: Maybe = None
        if w is not None:
            gw = None if g_dot is None else self._gathered(g_dot * h)
            gw = plus(gw, None if dots[0] is None else self._gathered(g * r * dots[0]))
        gb = None if b is None or g_dot is None else self._gathered(g_dot)
        gx: Maybe = None
        if wanted[0]:
            gx = None if g_dot is None else g_dot * (r if w is None else r * self._spread(w))
            gx = plus(gx, None if w_dot is None else g * r * self._spread(w_dot))
        return [gx], [gw, gb]


class _Probabilities(Layer):
    """Base of functions of probabilities over one axis."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        axis = node.options[0]
        assert isinstance(axis, int)
        self._axis = axis + 1  # after the tasks

    def _sum(self, x: Tensor) -> Tensor:
        """Returns the sums."""
        return x.sum(self._axis, keepdim=True)


class Softmax(_Probabilities):
    """y = exp z / sum exp z over one axis. With J(u) = y (u - sum(y u)): gz = J(g), y. = J(z.),
    gz. = J(g.) + y. (g - sum(y g)) - y sum(y. g)."""

    def _through(self, y: Tensor, u: Tensor) -> Tensor:
        """Returns J(u)."""
        return y * (u - self._sum(y * u))

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns y; keeps it."""
        y = torch.softmax(inputs[0], self._axis)
        return y, y

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns J(g)."""
        return [self._through(saved, g) if wanted[0] else None], []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns J(z.), twice."""
        y_dot = None if dots[0] is None else self._through(saved, dots[0])
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
        """Returns J(g.) + y. (g - sum(y g)) - y sum(y. g)."""
        if not wanted[0]:
            return [None], []
        gz: Maybe = None if g_dot is None else self._through(saved, g_dot)
        if tangent_saved is not None:
            along = tangent_saved * (g - self._sum(saved * g))
            gz = plus(gz, along - saved * self._sum(tangent_saved * g))
        return [gz], []


class AttentionSoftmax(Softmax):
    """A softmax that is 0 where all scores are minus infinity, as of attention to nothing."""

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns y; keeps it."""
        nothing = (inputs[0] == -torch.inf).all(self._axis, keepdim=True)
        y = torch.softmax(inputs[0], self._axis).masked_fill(nothing, 0.0)
        return y, y


class LogSoftmax(_Probabilities):
    """y = z - log sum exp z over one axis. With p = exp y: gz = g - p sum(g), y. = z. - sum(p z.),
    gz. = g. - p sum(g.) - p y. sum(g)."""

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns y; keeps it."""
        y = torch.log_softmax(inputs[0], self._axis)
        return y, y

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns g - p sum(g)."""
        return [g - saved.exp() * self._sum(g) if wanted[0] else None], []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns z. - sum(p z.), twice."""
        z_dot = dots[0]
        if z_dot is None:
            return None, None
        y_dot = z_dot - self._sum(saved.exp() * z_dot)
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
        """Returns g. - p sum(g.) - p y. sum(g)."""
        if not wanted[0]:
            return [None], []
        p = saved.exp()
        gz: Maybe = None if g_dot is None else g_dot - p * self._sum(g_dot)
        if tangent_saved is not None:
            gz = plus(gz, -p * tangent_saved * self._sum(g))
        return [gz], []
