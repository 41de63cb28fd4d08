"""Weights that are computed from parameters alone, by the computations that were noted of a forward
pass, with torch's own derivatives of them: rows have no part in it, so it is little work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from innerloop._batched.layer import Layer, Maybe, is_shared
from innerloop._program import Node, Shape, function_of


class Computed(Layer):
    """y = f(leaves) for each task, [T, *shape]; it has no inputs, or where there are no leaves the
    network's, for the number of tasks. With J its derivative in the
    leaves that are not integers or truth values, gradients are J' g, y. = J dots, and dots of
    gradients J' g. + H dots with the Hessian H of <f, g>. All by backward passes, since torch's
    forward mode lacks some functions."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        expression: Any = node.options[0]
        self._of_one = function_of(expression)
        self._of_all = vmap(self._of_one)

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns y; once for all tasks that share the leaves."""
        there = [leaf for leaf in leaves if leaf is not None]
        tasks = len([*there, *inputs][0])
        if all(map(is_shared, there)):
            y = self._of_one(*_dense([leaf[0] for leaf in there]))
            return y.expand(tasks, *y.shape), None
        return self._of_all(*_dense(there)), None

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns J' g."""
        if not leaves:
            return [None], []
        with torch.enable_grad():
            at, there, y = self._differentiably(leaves)
            return [], _spread(_grad(y, there, g), at, len(leaves))

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns J dots, as the derivative of <J' u, dots> in u."""
        if all(dot is None for dot in leaf_dots):
            return None, None
        with torch.enable_grad():
            at, there, y = self._differentiably(leaves)
            u = torch.ones_like(y, requires_grad=True)  # any would do, but for functions of |u|
            slopes = _grad(y, there, u, create_graph=True)
            y_dot = _grad(slopes, [u], _filled([leaf_dots[place] for place in at], there))[0]
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
        """Returns J' g. and the Hessian of <f, g> times dots."""
        if not leaves or (g_dot is None and all(dot is None for dot in leaf_dots)):
            return [None] * len(dots), [None] * len(leaves)
        with torch.enable_grad():
            at, there, y = self._differentiably(leaves)
            outputs, along = [y], [torch.zeros_like(g) if g_dot is None else g_dot]
            if any(dot is not None for dot in leaf_dots):
                slopes = _grad(y, there, g, create_graph=True)
                outputs += slopes
                along += _filled([leaf_dots[place] for place in at], there)
            return [], _spread(_grad(outputs, there, along), at, len(leaves))

    def _differentiably(self, leaves: Sequence[Maybe]) -> tuple[list[int], list[Tensor], Tensor]:
        """Returns which leaves are differentiated in, these leaves, and y of them, with a graph."""
        every = list(_dense(leaves))
        at = [place for place, leaf in enumerate(every) if leaf.is_floating_point()]
        for place in at:
            every[place] = every[place].detach().requires_grad_()
        return at, [every[place] for place in at], self._of_all(*every)


def _dense(leaves: Sequence[Maybe]) -> list[Tensor]:
    """Returns leaves that are there, in memory as a view of them may need it."""
    return [leaf.contiguous() for leaf in leaves if leaf is not None]


def _grad(outputs: Any, inputs: Sequence[Tensor], along: Any, **options: bool) -> list[Tensor]:
    """Returns the gradients of <outputs, along>, zeros for what does not depend on the inputs."""
    if not isinstance(outputs, list):
        outputs, along = [outputs], [along]
    pairs = [(y, g) for y, g in zip(outputs, along, strict=True) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(value) for value in inputs]
    ys, gs = zip(*pairs, strict=True)
    found: tuple[Tensor, ...] = torch.autograd.grad(
        ys, list(inputs), gs, allow_unused=True, materialize_grads=True, **options
    )
    return list(found)


def _filled(dots: Sequence[Maybe], like: Sequence[Tensor]) -> list[Tensor]:
    """Returns derivatives with zeros where there are none."""
    pairs = zip(dots, like, strict=True)
    return [torch.zeros_like(leaf) if dot is None else dot for dot, leaf in pairs]


def _spread(found: Sequence[Tensor], at: Sequence[int], size: int) -> list[Maybe]:
    """Returns what was found of some leaves in the places of all."""
    by_place = dict(zip(at, found, strict=True))
    return [by_place.get(place) for place in range(size)]
