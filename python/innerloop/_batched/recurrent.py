"""Recurrent layers that start from zeros, in one direction: plain, gated (GRU) and with a cell
(LSTM), with torch's order of gates.

With a_t = x_t w_x' + b_x and e_t = h_{t-1} w_h' + b_h, a state is s_t = f(a_t, e_t, s_{t-1}) for an
elementwise f, the `Cell`. Products with x, and those with w_h that need no recursion, are made for
all steps at once; each pass takes one product a step, with w_h. Steps are the first axis of what is
kept: [L, T, N, ...].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop._batched.layer import Layer, Maybe, plus
from innerloop._program import Node, Shape

State = tuple[Tensor, ...]  # h, or h and c


class Plain:
    """h = f(a + e) with tanh or relu."""

    states, gates = 1, 1

    def __init__(self, kind: str) -> None:
        self._is_tanh = kind == "tanh"

    def _slope(self, h: Tensor) -> Tensor:
        """Returns the derivative."""
        return 1 - h * h if self._is_tanh else (h > 0).to(h.dtype)

    def forward(self, a: Tensor, e: Tensor, state: State) -> tuple[State, Any]:
        """Returns the state, and what is kept."""
        h = torch.tanh(a + e) if self._is_tanh else torch.relu(a + e)
        return (h,), h

    def backward(self, kept: Any, g: State, state: State) -> tuple[Tensor, Tensor, list[Maybe]]:
        """Returns the gradients in a, e and the state before."""
        ga = g[0] * self._slope(kept)
        return ga, ga, [None]

    def tangent(
        self, kept: Any, a_dot: Tensor, e_dot: Tensor, state: State, dots: State
    ) -> tuple[State, Any]:
        """Returns the derivative of the state, and what is kept of it."""
        h_dot = (a_dot + e_dot) * self._slope(kept)
        return (h_dot,), h_dot

    def second(
        self, kept: Any, more: Any, g: State, g_dot: State, state: State, dots: State
    ) -> tuple[Tensor, Tensor, list[Maybe]]:
        """Returns the derivatives of the gradients."""
        ga_dot = g_dot[0] * self._slope(kept)
        if self._is_tanh:
            ga_dot = ga_dot - 2 * g[0] * kept * more
        return ga_dot, ga_dot, [None]


class Gated:
    """r = s(a_r + e_r), z = s(a_z + e_z), n = tanh(a_n + r e_n), h = n + z (h0 - n)."""

    states, gates = 1, 3

    def forward(self, a: Tensor, e: Tensor, state: State) -> tuple[State, Any]:
        """See `Plain`."""
        (h0,) = state
        size = h0.shape[-1]
        r, z = torch.sigmoid(a[..., : 2 * size] + e[..., : 2 * size]).chunk(2, -1)
        e_n = e[..., 2 * size :]
        n = torch.tanh(a[..., 2 * size :] + r * e_n)
        return (n + z * (h0 - n),), (r, z, n, e_n)

    def backward(self, kept: Any, g: State, state: State) -> tuple[Tensor, Tensor, list[Maybe]]:
        """See `Plain`."""
        (r, z, n, e_n), (gh,), (h0,) = kept, g, state
        inner = gh * (1 - z) * (1 - n * n)
        ga_r = inner * e_n * r * (1 - r)
        ga_z = gh * (h0 - n) * z * (1 - z)
        ga = torch.cat([ga_r, ga_z, inner], -1)
        return ga, torch.cat([ga_r, ga_z, inner * r], -1), [gh * z]

    def tangent(
        self, kept: Any, a_dot: Tensor, e_dot: Tensor, state: State, dots: State
    ) -> tuple[State, Any]:
        """See `Plain`."""
        (r, z, n, e_n), (h0,), (h0_dot,) = kept, state, dots
        size = n.shape[-1]
        r_dot, z_dot = (a_dot[..., : 2 * size] + e_dot[..., : 2 * size]).chunk(2, -1)
        r_dot, z_dot = r_dot * r * (1 - r), z_dot * z * (1 - z)
        e_n_dot = e_dot[..., 2 * size :]
        n_dot = (a_dot[..., 2 * size :] + r_dot * e_n + r * e_n_dot) * (1 - n * n)
        h_dot = n_dot * (1 - z) + z * h0_dot + z_dot * (h0 - n)
        return (h_dot,), (r_dot, z_dot, n_dot, e_n_dot)

    def second(
        self, kept: Any, more: Any, g: State, g_dot: State, state: State, dots: State
    ) -> tuple[Tensor, Tensor, list[Maybe]]:
        """See `Plain`."""
        (r, z, n, e_n), (r_dot, z_dot, n_dot, e_n_dot) = kept, more
        (gh,), (gh_dot,), (h0,), (h0_dot,) = g, g_dot, state, dots
        gn, gn_dot = gh * (1 - z), gh_dot * (1 - z) - gh * z_dot
        slope = 1 - n * n
        inner, inner_dot = gn * slope, gn_dot * slope - 2 * gn * n * n_dot
        gr, gr_dot = inner * e_n, inner_dot * e_n + inner * e_n_dot
        gz, gz_dot = gh * (h0 - n), gh_dot * (h0 - n) + gh * (h0_dot - n_dot)
        ga_r_dot = gr_dot * r * (1 - r) + gr * (1 - 2 * r) * r_dot
        ga_z_dot = gz_dot * z * (1 - z) + gz * (1 - 2 * z) * z_dot
        ga_dot = torch.cat([ga_r_dot, ga_z_dot, inner_dot], -1)
        ge_dot = torch.cat([ga_r_dot, ga_z_dot, inner_dot * r + inner * r_dot], -1)
        return ga_dot, ge_dot, [gh_dot * z + gh * z_dot]


class WithCell:
    """i, f, o = s(a + e), u = tanh(a_u + e_u), c = f c0 + i u, m = tanh(c), h = o m; the gates lie
    in the order i, f, u, o."""

    states, gates = 2, 4

    def forward(self, a: Tensor, e: Tensor, state: State) -> tuple[State, Any]:
        """See `Plain`."""
        _, c0 = state
        gates = a + e
        i, f, u, o = gates.chunk(4, -1)
        i, f, u, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(u), torch.sigmoid(o)
        c = f * c0 + i * u
        m = torch.tanh(c)
        return (o * m, c), (i, f, u, o, m)

    def backward(self, kept: Any, g: State, state: State) -> tuple[Tensor, Tensor, list[Maybe]]:
        """See `Plain`."""
        (i, f, u, o, m), (gh, gc), (_, c0) = kept, g, state
        gc = gc + gh * o * (1 - m * m)
        ga = torch.cat(
            [
                gc * u * i * (1 - i),
                gc * c0 * f * (1 - f),
                gc * i * (1 - u * u),
                gh * m * o * (1 - o),
            ],
            -1,
        )
        return ga, ga, [None, gc * f]

    def tangent(
        self, kept: Any, a_dot: Tensor, e_dot: Tensor, state: State, dots: State
    ) -> tuple[State, Any]:
        """See `Plain`."""
        (i, f, u, o, m), (_, c0), (_, c0_dot) = kept, state, dots
        i_dot, f_dot, u_dot, o_dot = (a_dot + e_dot).chunk(4, -1)
        i_dot, f_dot, o_dot = i_dot * i * (1 - i), f_dot * f * (1 - f), o_dot * o * (1 - o)
        u_dot = u_dot * (1 - u * u)
        c_dot = f_dot * c0 + f * c0_dot + i_dot * u + i * u_dot
        m_dot = (1 - m * m) * c_dot
        return (o_dot * m + o * m_dot, c_dot), (i_dot, f_dot, u_dot, o_dot, m_dot)

    def second(
        self, kept: Any, more: Any, g: State, g_dot: State, state: State, dots: State
    ) -> tuple[Tensor, Tensor, list[Maybe]]:
        """See `Plain`."""
        (i, f, u, o, m), (i_dot, f_dot, u_dot, o_dot, m_dot) = kept, more
        (gh, gc), (gh_dot, gc_dot), (_, c0), (_, c0_dot) = g, g_dot, state, dots
        slope = 1 - m * m
        gc = gc + gh * o * slope
        gc_dot = gc_dot + (gh_dot * o + gh * o_dot) * slope - 2 * gh * o * m * m_dot
        # gradients in the gates, and their derivatives
        gi, gi_dot = gc * u, gc_dot * u + gc * u_dot
        gf, gf_dot = gc * c0, gc_dot * c0 + gc * c0_dot
        gu, gu_dot = gc * i, gc_dot * i + gc * i_dot
        go, go_dot = gh * m, gh_dot * m + gh * m_dot
        ga_dot = torch.cat(
            [
                gi_dot * i * (1 - i) + gi * (1 - 2 * i) * i_dot,
                gf_dot * f * (1 - f) + gf * (1 - 2 * f) * f_dot,
                gu_dot * (1 - u * u) - 2 * gu * u * u_dot,
                go_dot * o * (1 - o) + go * (1 - 2 * o) * o_dot,
            ],
            -1,
        )
        return ga_dot, ga_dot, [None, gc_dot * f + gc * f_dot]


Cell = Plain | Gated | WithCell
_CELLS: dict[str, Cell] = {
    "rnn_tanh": Plain("tanh"),
    "rnn_relu": Plain("relu"),
    "gru": Gated(),
    "lstm": WithCell(),
}


class _Kept(NamedTuple):
    """Of a forward pass: x [L, T, N, I], the states before each step and after the last one, and
    what the cell keeps of each step."""

    x: Tensor
    states: list[State]
    steps: list[Any]


class Recurrent(Layer):
    """h [T, N, L, H] of x [T, N, L, I], or h and c side by side [T, N, L, 2 H]; leaves w_x
    [G H, I], w_h [G H, H], and the biases b_x, b_h [G H] or none, for G gates. Backwards in time
    where the second option says so."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        kind, self._is_backwards = node.options
        self._cell = _CELLS[str(kind)]

    def _steps(self, value: Tensor) -> Tensor:
        """Returns [T, N, L, *] as [L, T, N, *], in the order in which steps are taken."""
        turned = value.permute(2, 0, 1, 3)
        return turned.flip(0) if self._is_backwards else turned

    def _rows(self, steps: Tensor) -> Tensor:
        """Returns [L, T, N, *] as [T, N, L, *]."""
        ordered = steps.flip(0) if self._is_backwards else steps
        return ordered.permute(1, 2, 0, 3).contiguous()

    def _whole(self, states: Sequence[State]) -> Tensor:
        """Returns states after each step as the layer gives them."""
        return self._rows(torch.stack([torch.cat(state, -1) for state in states]))

    def _parts(self, g: Tensor) -> list[State]:
        """Returns gradients in what the layer gives, step by step."""
        return [step.chunk(self._cell.states, -1) for step in self._steps(g).unbind()]

    def _zeros(self, like: Tensor, w_h: Tensor) -> State:
        """Returns the state before the first step."""
        shape = (*like.shape[1:3], w_h.shape[-1])
        return tuple(like.new_zeros(shape) for _ in range(self._cell.states))

    def forward(self, inputs: list[Tensor], leaves: list[Any]) -> tuple[Tensor, Any]:
        """Returns the states of all steps."""
        w_x, w_h, b_x, b_h = _four(leaves)
        x = self._steps(inputs[0]).contiguous()
        states, kept = [self._zeros(x, w_h)], []
        for a in _products(x, w_x, b_x).unbind():
            e = _product(states[-1][0], w_h, b_h)
            state, more = self._cell.forward(a, e, states[-1])
            states.append(state)
            kept.append(more)
        return self._whole(states[1:]), _Kept(x, states, kept)

    def _back(self, saved: _Kept, g: Tensor, w_h: Tensor) -> tuple[Tensor, Tensor, list[State]]:
        """Returns the gradients in a and e of all steps, and the whole gradients in the states
        after each."""
        parts = self._parts(g)
        gas, ges, whole = [], [], []
        carried: list[Maybe] = [None] * self._cell.states
        for at in reversed(range(len(parts))):
            here = tuple(_sum(one, other) for one, other in zip(parts[at], carried, strict=True))
            ga, ge, before = self._cell.backward(saved.steps[at], here, saved.states[at])
            carried = [plus(before[0], torch.bmm(ge, w_h)), *before[1:]]
            gas.append(ga)
            ges.append(ge)
            whole.append(here)
        return torch.stack(gas[::-1]), torch.stack(ges[::-1]), whole[::-1]

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Any], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Any]]:
        """Back through time; sums over the steps for the leaves."""
        w_x, w_h, _, _ = _four(leaves)
        ga, ge, _ = self._back(saved, g, w_h)
        gx = self._rows(_backs(ga, w_x)) if wanted[0] else None
        return [gx], self._of_leaves(ga, ge, saved, len(leaves))

    def _before(self, saved: _Kept) -> Tensor:
        """Returns h before each step [L, T, N, H]."""
        return torch.stack([state[0] for state in saved.states[:-1]])

    def _of_leaves(self, ga: Tensor, ge: Tensor, saved: _Kept, leaves: int) -> list[Any]:
        """Returns the gradients of the leaves, given those in a and e."""
        found = [_outer(ga, saved.x), _outer(ge, self._before(saved))]
        return found if leaves == 2 else [*found, ga.sum((0, 2)), ge.sum((0, 2))]

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Any], leaf_dots: list[Any]
    ) -> tuple[Maybe, Any]:
        """Forward through time along a direction."""
        (x_dot,), (w_x, w_h, _, _) = dots, _four(leaves)
        wx_dot, wh_dot, bx_dot, bh_dot = _four(leaf_dots)
        if x_dot is None and all(dot is None for dot in leaf_dots):
            return None, None
        x = self._steps(x_dot).contiguous() if x_dot is not None else None
        a_dot = plus(
            None if x is None else _products(x, w_x, None),
            _along(saved.x, wx_dot, bx_dot),
        )
        given = _along(self._before(saved), wh_dot, bh_dot)  # of e., but for h.
        like = saved.states[1][0]
        shape = (len(saved.steps), *like.shape[:2], w_h.shape[1])
        a_dots = (like.new_zeros(shape) if a_dot is None else a_dot).unbind()
        givens = None if given is None else given.unbind()
        states, kept = [self._zeros(saved.x, w_h)], []
        for at, step in enumerate(saved.steps):
            e_dot = torch.bmm(states[-1][0], w_h.mT)
            if givens is not None:
                e_dot = e_dot + givens[at]
            state, more = self._cell.tangent(step, a_dots[at], e_dot, saved.states[at], states[-1])
            states.append(state)
            kept.append(more)
        return self._whole(states[1:]), (x, states, kept)

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
        """Back through time along a direction, beside the gradients themselves."""
        if tangent_saved is None:
            if g_dot is None:
                return [None], [None] * len(leaves)
            return self.backward(saved, g_dot, leaves, wanted)
        w_x, w_h, _, _ = _four(leaves)
        wx_dot, wh_dot, _, _ = _four(leaf_dots)
        x_dot, states, kept = tangent_saved
        ga, ge, whole = self._back(saved, g, w_h)
        turned = None if wh_dot is None else _backs(ge, wh_dot).unbind()
        parts = self._parts(torch.zeros_like(g) if g_dot is None else g_dot)
        ga_dots, ge_dots = [], []
        carried: list[Maybe] = [None] * self._cell.states
        for at in reversed(range(len(parts))):
            here = tuple(_sum(one, other) for one, other in zip(parts[at], carried, strict=True))
            ga_dot, ge_dot, before = self._cell.second(
                saved.steps[at], kept[at], whole[at], here, saved.states[at], states[at]
            )
            gh = torch.bmm(ge_dot, w_h)
            gh = gh if turned is None else gh + turned[at]
            carried = [plus(before[0], gh), *before[1:]]
            ga_dots.append(ga_dot)
            ge_dots.append(ge_dot)
        ga_dot, ge_dot = torch.stack(ga_dots[::-1]), torch.stack(ge_dots[::-1])
        gx: Maybe = None
        if wanted[0]:
            gx = _backs(ga_dot, w_x)
            gx = self._rows(gx if wx_dot is None else gx + _backs(ga, wx_dot))
        found = self._of_leaves(ga_dot, ge_dot, saved, len(leaves))
        if x_dot is not None:
            found[0] = found[0] + _outer(ga, x_dot)
        found[1] = found[1] + _outer(ge, torch.stack([state[0] for state in states[:-1]]))
        return [gx], found


def _four(leaves: Sequence[Any]) -> list[Any]:
    """Returns both weights and both biases, None where there are none."""
    return [*leaves, None, None][:4]


def _sum(part: Tensor, carried: Maybe) -> Tensor:
    """Returns a gradient with what the next step adds."""
    return part if carried is None else part + carried


def _product(h: Tensor, w: Tensor, b: Maybe) -> Tensor:
    """Returns h w' + b for h [T, N, H]."""
    return torch.bmm(h, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), h, w.mT)


def _merged(steps: Tensor) -> Tensor:
    """Returns [L, T, N, *] as [T, L N, *]."""
    return steps.transpose(0, 1).reshape(steps.shape[1], -1, steps.shape[-1])


def _products(x: Tensor, w: Tensor, b: Maybe) -> Tensor:
    """Returns x w' + b for all steps x [L, T, N, I]."""
    return _split(_product(_merged(x), w, b), x)


def _backs(g: Tensor, w: Tensor) -> Tensor:
    """Returns g w for all steps g [L, T, N, O]."""
    return _split(torch.bmm(_merged(g), w), g)


def _split(merged: Tensor, like: Tensor) -> Tensor:
    """Returns [T, L N, *] as [L, T, N, *]."""
    steps, tasks, rows = like.shape[:3]
    return merged.reshape(tasks, steps, rows, -1).transpose(0, 1).contiguous()


def _along(x: Tensor, w_dot: Maybe, b_dot: Maybe) -> Maybe:
    """Returns x w.' + b. for all steps, None where both are zero."""
    if w_dot is not None:
        return _products(x, w_dot, b_dot)
    if b_dot is None:
        return None
    return b_dot.unsqueeze(1).expand(*x.shape[:3], -1)


def _outer(g: Tensor, x: Tensor) -> Tensor:
    """Returns the sums over steps and rows of g x' [T, O, I]."""
    return torch.bmm(_merged(g).mT, _merged(x))
