"""Recurrent layers that start from zeros, in one direction: plain, gated (GRU) and with a cell
(LSTM), with torch's order of gates.

With a = x w_x' + b_x and e = h w_h' + b_h for the state h before a step, the states after it are an
elementwise function of a, e and those before. What needs no other step is made for all steps at
once, the slopes of that function among it, so that each pass takes a few operations a step, one of
them a product with w_h. Steps are the first axis of what is kept: [L, T, N, ...].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop._batched.layer import Layer, Maybe, plus
from innerloop._program import Node, Shape


def _spread(g: Tensor, slopes: Tensor) -> Tensor:
    """Returns g [..., H] times slopes [..., G H], for each gate."""
    found: Tensor = (slopes.unflatten(-1, (-1, g.shape[-1])) * g.unsqueeze(-2)).flatten(-2)
    return found


def _gathered(dots: Tensor, slopes: Tensor, size: int) -> Tensor:
    """Returns the sum [..., size] over the gates of dots times slopes [..., G size]."""
    found: Tensor = (dots * slopes).unflatten(-1, (-1, size)).sum(-2)
    return found


def _before(after: list[Tensor]) -> Tensor:
    """Returns states before each step, given those after it."""
    return torch.stack([torch.zeros_like(after[0]), *after[:-1]])


class Slopes(NamedTuple):
    """Of a state h after a step, in a and e [L, T, N, G H] and in h before (None: 0)."""

    a: Tensor
    e: Tensor
    h: Maybe


class WithoutCell:
    """Base of kinds whose only state is h."""

    states = 1

    def run(self, a: Tensor, w_h: Tensor, b_h: Maybe) -> tuple[Tensor, Any]:
        """Returns h after each step, and what is kept: first of all h before each."""
        raise NotImplementedError

    def slopes(self, kept: Any) -> Slopes:
        """Returns the slopes of all steps."""
        raise NotImplementedError

    def slopes_dot(self, kept: Any, a_dot: Tensor, e_dot: Tensor, h_dot: Tensor) -> Slopes | None:
        """Returns their derivatives along a direction, given those of a, e and h before; None for
        zeros."""
        raise NotImplementedError

    def back(self, kept: Any, g: Tensor, w_h: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Returns the gradients in a and e of all steps, and the whole ones in h after each."""
        slopes, whole = self.slopes(kept), []
        carried: Maybe = None
        for at in reversed(range(len(g))):
            here = g[at] if carried is None else g[at] + carried
            whole.append(here)
            if at:
                carried = torch.bmm(_spread(here, slopes.e[at]), w_h)
                if slopes.h is not None:
                    carried = torch.addcmul(carried, here, slopes.h[at])
        all_steps = torch.stack(whole[::-1])
        return _spread(all_steps, slopes.a), _spread(all_steps, slopes.e), all_steps

    def along(
        self, kept: Any, a_dot: Tensor, e_dot: Maybe, w_h: Tensor
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Returns the derivative of h after each step, and what `second` wants of it. `e_dot` is
        that of e, but for what h before has in it."""
        slopes, size = self.slopes(kept), w_h.shape[-1]
        of_a = _gathered(a_dot, slopes.a, size)
        es, hs = [], []
        h: Maybe = None
        for at in range(len(a_dot)):
            given = a_dot.new_zeros(slopes.e.shape[1:]) if e_dot is None else e_dot[at]
            e = given if h is None else torch.baddbmm(given, h, w_h.mT)
            after = of_a[at] + _gathered(e, slopes.e[at], size)
            if h is not None and slopes.h is not None:
                after = torch.addcmul(after, h, slopes.h[at])
            h = after
            es.append(e)
            hs.append(h)
        before = _before(hs)
        return torch.stack(hs), (before, self.slopes_dot(kept, a_dot, torch.stack(es), before))

    def second(
        self, kept: Any, more: Any, whole: Any, g_dot: Tensor, turned: Maybe, w_h: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the derivatives of the gradients in a and e. `turned`: what a derivative of w_h
        adds to the gradient in h before each step."""
        slopes, dots = self.slopes(kept), more[1]
        given = turned
        if dots is not None and dots.h is not None:
            given = plus(given, whole * dots.h)
        of_e = None if dots is None else _spread(whole, dots.e)
        here_dots, es = [], []
        carried: Maybe = None
        for at in reversed(range(len(g_dot))):
            here = g_dot[at] if carried is None else g_dot[at] + carried
            e = _spread(here, slopes.e[at])
            e = e if of_e is None else e + of_e[at]
            here_dots.append(here)
            es.append(e)
            carried = torch.bmm(e, w_h) if given is None else torch.baddbmm(given[at], e, w_h)
            if slopes.h is not None:
                carried = torch.addcmul(carried, here, slopes.h[at])
        ga_dot = _spread(torch.stack(here_dots[::-1]), slopes.a)
        if dots is not None:
            ga_dot = ga_dot + _spread(whole, dots.a)
        return ga_dot, torch.stack(es[::-1])


class Plain(WithoutCell):
    """h = f(a + e) with tanh or relu."""

    def __init__(self, kind: str) -> None:
        self._is_tanh = kind == "tanh"

    def run(self, a: Tensor, w_h: Tensor, b_h: Maybe) -> tuple[Tensor, Any]:
        """See `WithoutCell`."""
        a = a if b_h is None else a + b_h.unsqueeze(1)
        after: list[Tensor] = []
        for at in a.unbind():
            z = torch.baddbmm(at, after[-1], w_h.mT) if after else at
            after.append(torch.tanh(z) if self._is_tanh else torch.relu(z))
        whole = torch.stack(after)
        return whole, (_before(after), whole)

    def slopes(self, kept: Any) -> Slopes:
        """See `WithoutCell`."""
        h = kept[1]
        slope = 1 - h * h if self._is_tanh else (h > 0).to(h.dtype)
        return Slopes(slope, slope, None)

    def slopes_dot(self, kept: Any, a_dot: Tensor, e_dot: Tensor, h_dot: Tensor) -> Slopes | None:
        """See `WithoutCell`."""
        if not self._is_tanh:
            return None
        h = kept[1]
        dot = -2 * h * (1 - h * h) * (a_dot + e_dot)
        return Slopes(dot, dot, None)


class Gated(WithoutCell):
    """r = s(a_r + e_r), z = s(a_z + e_z), n = tanh(a_n + r e_n), h = n + z (h0 - n) with h0 before;
    the gates lie in this order."""

    def run(self, a: Tensor, w_h: Tensor, b_h: Maybe) -> tuple[Tensor, Any]:
        """See `WithoutCell`."""
        size = w_h.shape[-1]
        start = a.new_zeros(a.shape[1:]) if b_h is None else b_h.unsqueeze(1).expand(a.shape[1:])
        after: list[Tensor] = []
        gates, news, es = [], [], []
        for at in a.unbind():
            e = torch.baddbmm(start, after[-1], w_h.mT) if after else start
            both = torch.sigmoid(at[..., : 2 * size] + e[..., : 2 * size])
            n = torch.tanh(torch.addcmul(at[..., 2 * size :], both[..., :size], e[..., 2 * size :]))
            z = both[..., size:]
            after.append(torch.lerp(n, after[-1], z) if after else n - z * n)
            gates.append(both)
            news.append(n)
            es.append(e[..., 2 * size :])
        r, z = torch.stack(gates).chunk(2, -1)
        return torch.stack(after), (_before(after), r, z, torch.stack(news), torch.stack(es))

    def slopes(self, kept: Any) -> Slopes:
        """See `WithoutCell`."""
        h0, r, z, n, e_n = kept
        of_n = (1 - z) * (1 - n * n)
        of_r, of_z = of_n * e_n * r * (1 - r), (h0 - n) * z * (1 - z)
        return Slopes(torch.cat([of_r, of_z, of_n], -1), torch.cat([of_r, of_z, of_n * r], -1), z)

    def slopes_dot(self, kept: Any, a_dot: Tensor, e_dot: Tensor, h_dot: Tensor) -> Slopes | None:
        """See `WithoutCell`."""
        h0, r, z, n, e_n = kept
        size = n.shape[-1]
        r_dot, z_dot = (a_dot[..., : 2 * size] + e_dot[..., : 2 * size]).chunk(2, -1)
        r_dot, z_dot = r_dot * r * (1 - r), z_dot * z * (1 - z)
        en_dot = e_dot[..., 2 * size :]
        n_dot = (a_dot[..., 2 * size :] + r_dot * e_n + r * en_dot) * (1 - n * n)
        of_n, slope = (1 - z) * (1 - n * n), r * (1 - r)
        n_part = -z_dot * (1 - n * n) - 2 * (1 - z) * n * n_dot
        r_part = (n_part * e_n + of_n * en_dot) * slope + of_n * e_n * (1 - 2 * r) * r_dot
        z_part = (h_dot - n_dot) * z * (1 - z) + (h0 - n) * (1 - 2 * z) * z_dot
        return Slopes(
            torch.cat([r_part, z_part, n_part], -1),
            torch.cat([r_part, z_part, n_part * r + of_n * r_dot], -1),
            z_dot,
        )


class _Cell(NamedTuple):
    """Of an LSTM: the slopes of c in the gates' a + e, but of h in those of o, [L, T, N, 4 H]; of h
    in c; and of c in c before."""

    gates: Tensor
    h: Tensor
    c: Tensor


class WithCell:
    """i, f, o = s(a + e), u = tanh(a_u + e_u), c = f c0 + i u, m = tanh(c), h = o m; the gates lie
    in the order i, f, u, o. The methods are those of `WithoutCell`, with h and c side by side."""

    states = 2

    def run(self, a: Tensor, w_h: Tensor, b_h: Maybe) -> tuple[Tensor, Any]:
        """See `WithoutCell`."""
        size = w_h.shape[-1]
        a = a if b_h is None else a + b_h.unsqueeze(1)
        hs: list[Tensor] = []
        cs: list[Tensor] = []
        gates, news, ms = [], [], []
        for at in a.unbind():
            z = torch.baddbmm(at, hs[-1], w_h.mT) if hs else at
            s, u = torch.sigmoid(z), torch.tanh(z[..., 2 * size : 3 * size])
            c = s[..., :size] * u
            c = torch.addcmul(c, s[..., size : 2 * size], cs[-1]) if cs else c
            m = torch.tanh(c)
            hs.append(s[..., 3 * size :] * m)
            cs.append(c)
            gates.append(s)
            news.append(u)
            ms.append(m)
        i, f, _, o = torch.stack(gates).chunk(4, -1)
        kept = _before(hs), _before(cs), i, f, torch.stack(news), o, torch.stack(ms)
        return torch.cat([torch.stack(hs), torch.stack(cs)], -1), kept

    def _slopes(self, kept: Any) -> _Cell:
        """Returns the slopes of all steps."""
        _, c0, i, f, u, o, m = kept
        gates = [u * i * (1 - i), c0 * f * (1 - f), i * (1 - u * u), m * o * (1 - o)]
        return _Cell(torch.cat(gates, -1), o * (1 - m * m), f)

    def back(self, kept: Any, g: Tensor, w_h: Tensor) -> tuple[Tensor, Tensor, Any]:
        """See `WithoutCell`."""
        slopes, whole = self._slopes(kept), []
        gh, gc = g.chunk(2, -1)
        h: Maybe = None
        c: Maybe = None
        for at in reversed(range(len(g))):
            here = gh[at] if h is None else gh[at] + h
            cell = torch.addcmul(gc[at] if c is None else gc[at] + c, here, slopes.h[at])
            both = torch.cat([cell, cell, cell, here], -1)
            whole.append(both)
            if at:
                h, c = torch.bmm(both * slopes.gates[at], w_h), cell * slopes.c[at]
        all_steps = torch.stack(whole[::-1])
        ga = all_steps * slopes.gates
        return ga, ga, all_steps

    def along(
        self, kept: Any, a_dot: Tensor, e_dot: Maybe, w_h: Tensor
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """See `WithoutCell`."""
        slopes = self._slopes(kept)
        given = a_dot if e_dot is None else a_dot + e_dot
        zs: list[Tensor] = []
        hs: list[Tensor] = []
        cs: list[Tensor] = []
        for at in range(len(given)):
            z = torch.baddbmm(given[at], hs[-1], w_h.mT) if hs else given[at]
            i, f, u, o = (z * slopes.gates[at]).chunk(4, -1)
            c = i + f + u
            c = torch.addcmul(c, slopes.c[at], cs[-1]) if cs else c
            zs.append(z)
            cs.append(c)
            hs.append(torch.addcmul(o, slopes.h[at], c))
        h_before, c_before, c_dot = _before(hs), _before(cs), torch.stack(cs)
        dots = self._slopes_dot(kept, torch.stack(zs), c_before, c_dot)
        return torch.cat([torch.stack(hs), c_dot], -1), (h_before, dots)

    def _slopes_dot(self, kept: Any, z_dot: Tensor, c0_dot: Tensor, c_dot: Tensor) -> _Cell:
        """Returns the derivatives of the slopes."""
        _, c0, i, f, u, o, m = kept
        i_dot, f_dot, u_dot, o_dot = z_dot.chunk(4, -1)
        i_dot, f_dot, o_dot = i_dot * i * (1 - i), f_dot * f * (1 - f), o_dot * o * (1 - o)
        u_dot, m_dot = u_dot * (1 - u * u), c_dot * (1 - m * m)
        gates = [
            u_dot * i * (1 - i) + u * (1 - 2 * i) * i_dot,
            c0_dot * f * (1 - f) + c0 * (1 - 2 * f) * f_dot,
            i_dot * (1 - u * u) - 2 * i * u * u_dot,
            m_dot * o * (1 - o) + m * (1 - 2 * o) * o_dot,
        ]
        return _Cell(torch.cat(gates, -1), o_dot * (1 - m * m) - 2 * o * m * m_dot, f_dot)

    def second(
        self, kept: Any, more: Any, whole: Any, g_dot: Tensor, turned: Maybe, w_h: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `WithoutCell`."""
        slopes, dots, size = self._slopes(kept), more[1], w_h.shape[-1]
        cells, here_before = whole[..., :size], whole[..., 3 * size :]
        gh, gc = g_dot.chunk(2, -1)
        gc, of_c = gc + here_before * dots.h, cells * dots.c
        of_gates = whole * dots.gates
        found = []
        h: Maybe = None
        c: Maybe = None
        for at in reversed(range(len(g_dot))):
            here = gh[at] if h is None else gh[at] + h
            cell = torch.addcmul(gc[at] if c is None else gc[at] + c, here, slopes.h[at])
            both = torch.cat([cell, cell, cell, here], -1)
            ga = torch.addcmul(of_gates[at], both, slopes.gates[at])
            found.append(ga)
            h = torch.bmm(ga, w_h) if turned is None else torch.baddbmm(turned[at], ga, w_h)
            c = torch.addcmul(of_c[at], cell, slopes.c[at])
        ga_dot = torch.stack(found[::-1])
        return ga_dot, ga_dot


_KINDS: dict[str, WithoutCell | WithCell] = {
    "rnn_tanh": Plain("tanh"),
    "rnn_relu": Plain("relu"),
    "gru": Gated(),
    "lstm": WithCell(),
}


class Recurrent(Layer):
    """h [T, N, L, H] of x [T, N, L, I], or h and c side by side [T, N, L, 2 H]; leaves w_x
    [G H, I], w_h [G H, H], and the biases b_x, b_h [G H] or none, for G gates. Backwards in time
    where the second option says so."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        kind, self._is_backwards = node.options
        self._kind = _KINDS[str(kind)]

    def _steps(self, value: Tensor) -> Tensor:
        """Returns [T, N, L, *] as [L, T, N, *], in the order in which steps are taken."""
        turned = value.permute(2, 0, 1, 3)
        return (turned.flip(0) if self._is_backwards else turned).contiguous()

    def _rows(self, steps: Tensor) -> Tensor:
        """Returns [L, T, N, *] as [T, N, L, *]."""
        ordered = steps.flip(0) if self._is_backwards else steps
        return ordered.permute(1, 2, 0, 3).contiguous()

    def forward(self, inputs: list[Tensor], leaves: list[Any]) -> tuple[Tensor, Any]:
        """Returns the states of all steps; keeps x and what the kind keeps."""
        w_x, w_h, b_x, b_h = _four(leaves)
        x = self._steps(inputs[0])
        states, kept = self._kind.run(_products(x, w_x, b_x), w_h, b_h)
        return self._rows(states), (x, kept)

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Any], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Any]]:
        """Back through time; sums over the steps for the leaves."""
        w_x, w_h, _, _ = _four(leaves)
        ga, ge, _ = self._kind.back(saved[1], self._steps(g), w_h)
        gx = self._rows(_backs(ga, w_x)) if wanted[0] else None
        return [gx], _of_leaves(ga, ge, saved, len(leaves))

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Any], leaf_dots: list[Any]
    ) -> tuple[Maybe, Any]:
        """Forward through time along a direction."""
        (x_dot,), (w_x, w_h, _, _), (x, kept) = dots, _four(leaves), saved
        wx_dot, wh_dot, bx_dot, bh_dot = _four(leaf_dots)
        if x_dot is None and all(dot is None for dot in leaf_dots):
            return None, None
        steps = None if x_dot is None else self._steps(x_dot)
        a_dot = plus(
            None if steps is None else _products(steps, w_x, None), _along(x, wx_dot, bx_dot)
        )
        if a_dot is None:
            a_dot = x.new_zeros((*x.shape[:3], w_h.shape[1]))
        e_dot = _along(kept[0], wh_dot, bh_dot)
        states, more = self._kind.along(kept, a_dot, e_dot, w_h)
        return self._rows(states), (steps, more)

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
        """Back through time along a direction, after the gradients themselves."""
        if tangent_saved is None:
            if g_dot is None:
                return [None], [None] * len(leaves)
            return self.backward(saved, g_dot, leaves, wanted)
        w_x, w_h, _, _ = _four(leaves)
        wx_dot, wh_dot, _, _ = _four(leaf_dots)
        x_dot, more = tangent_saved
        ga, ge, whole = self._kind.back(saved[1], self._steps(g), w_h)
        turned = None if wh_dot is None else _backs(ge, wh_dot)
        along = self._steps(torch.zeros_like(g) if g_dot is None else g_dot)
        ga_dot, ge_dot = self._kind.second(saved[1], more, whole, along, turned, w_h)
        gx: Maybe = None
        if wanted[0]:
            gx = _backs(ga_dot, w_x)
            gx = self._rows(gx if wx_dot is None else gx + _backs(ga, wx_dot))
        found = _of_leaves(ga_dot, ge_dot, saved, len(leaves))
        if x_dot is not None:
            found[0] = found[0] + _outer(ga, x_dot)
        found[1] = found[1] + _outer(ge, more[0])
        return [gx], found


def _four(leaves: Sequence[Any]) -> list[Any]:
    """Returns both weights and both biases, None where there are none."""
    return [*leaves, None, None][:4]


def _of_leaves(ga: Tensor, ge: Tensor, saved: Any, leaves: int) -> list[Any]:
    """Returns the gradients of the leaves, given those in a and e."""
    x, kept = saved
    of_a = _merged(ga)
    of_e = of_a if ge is ga else _merged(ge)
    found = [torch.bmm(of_a.mT, _merged(x)), torch.bmm(of_e.mT, _merged(kept[0]))]
    return found if leaves == 2 else [*found, of_a.sum(1), of_e.sum(1)]


def _merged(steps: Tensor) -> Tensor:
    """Returns [L, T, N, *] as [T, L N, *]."""
    return steps.transpose(0, 1).reshape(steps.shape[1], -1, steps.shape[-1])


def _split(merged: Tensor, like: Tensor) -> Tensor:
    """Returns [T, L N, *] as [L, T, N, *]."""
    steps, tasks, rows = like.shape[:3]
    return merged.reshape(tasks, steps, rows, -1).transpose(0, 1).contiguous()


def _products(x: Tensor, w: Tensor, b: Maybe) -> Tensor:
    """Returns x w' + b for all steps x [L, T, N, I]."""
    rows = _merged(x)
    found = torch.bmm(rows, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), rows, w.mT)
    return _split(found, x)


def _backs(g: Tensor, w: Tensor) -> Tensor:
    """Returns g w for all steps g [L, T, N, O]."""
    return _split(torch.bmm(_merged(g), w), g)


def _along(x: Tensor, w_dot: Maybe, b_dot: Maybe) -> Maybe:
    """Returns x w.' + b. for all steps, None where both are zero."""
    if w_dot is not None:
        return _products(x, w_dot, b_dot)
    return None if b_dot is None else b_dot.unsqueeze(1).expand(*x.shape[:3], -1)


def _outer(g: Tensor, x: Tensor) -> Tensor:
    """Returns the sums over steps and rows of g x' [T, O, I]."""
    return torch.bmm(_merged(g).mT, _merged(x))
