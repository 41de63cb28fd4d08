"""Losses as functions of the outputs alone: value, gradient and curvature for all tasks at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn import functional as F

from innerloop._batched.precision import wide_dtype, widened
from innerloop._callable_loss import watched_value
from innerloop._rows import spare_rows
from innerloop.objectives import Objective, check_shapes


class Rows(NamedTuple):
    """The rows of one side, ready for the passes.

    Members:
        x: [T, N, ...], with zeros in rows that are not in use.
        y: likewise.
        share: what each row's loss weighs in its task's, [T, N] or a number for all.
        used: which rows are in use [T, N]; None for all.
        weight: as it was given.
    """

    x: Tensor
    y: Tensor
    share: Tensor | float
    used: Tensor | None
    weight: Tensor | None


def prepared(
    objective: Objective, x: Tensor, y: Tensor, count: Tensor | None, weight: Tensor | None
) -> Rows:
    """Returns the rows of a side, for a loss. What unused rows hold reaches nothing."""
    rows, sums = x.shape[1], wide_dtype(x.dtype)
    y, weight = widened(y), None if weight is None else widened(weight)
    used: Tensor | None = None
    if count is not None:
        used = torch.arange(rows, device=x.device) < count[:, None]
    if weight is not None:
        used = weight != 0 if used is None else used & (weight != 0)
    x = x if used is None else torch.where(_wide(used, x), x, spare_rows(x, used))
    if objective.rows is not None and objective.ignored is not None:
        kept = y != objective.ignored
        used = kept if used is None else used & kept
    y = y if used is None else torch.where(_wide(used, y), y, 0)
    share: Tensor | float
    if weight is not None and used is not None:
        share = torch.where(used, weight, 0)
    elif used is None and not objective.class_weights:
        share = 1.0 / max(rows, 1)
    else:
        counted = used
        if counted is None:
            counted = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        share = torch.where(counted, 1 / objective.divisor(counted, y, sums)[:, None], 0)
    return Rows(x, y, share, used, weight)


def _wide(used: Tensor, like: Tensor) -> Tensor:
    """Returns a mask [T, N] in a shape that broadcasts."""
    return used.reshape(*used.shape, *[1] * (like.ndim - 2))


class Outputs(NamedTuple):
    """A loss at given outputs [T, N, ...]: values of the tasks [T], the gradient in the outputs,
    and the Hessian in the outputs times a tensor like them."""

    values: Tensor
    gradient: Tensor
    curvature: Callable[[Tensor], Tensor]


def value_of(objective: Objective, z: Tensor, side: Rows) -> Tensor:
    """Returns the losses of the tasks [T]."""
    if objective.rows is None:
        return torch.stack([_one(objective, z[t], side, t) for t in range(len(z))])
    return _named_value(objective, z, side)


def loss_of(objective: Objective, z: Tensor, side: Rows) -> Outputs:
    """Returns a loss with its derivatives in the outputs."""
    if objective.rows is None:
        return _of_callable(objective, z, side)
    values = _named_value(objective, z, side)
    share = side.share
    if isinstance(share, Tensor):
        share = _wide(share, z)
    name = objective.fused.name
    if name not in _CLOSED:
        return _of_rows(objective, z, side)
    if name == "cross_entropy":
        p = F.softmax(z, 2)
        g = share * (p - F.one_hot(side.y, z.shape[2]).to(z.dtype))

        def curved(v: Tensor) -> Tensor:
            pv = p * v
            return share * (pv - p * pv.sum(2, keepdim=True))

        return Outputs(values, g, curved)
    y = side.y.reshape(z.shape)
    share = share / max(z[0, 0].numel(), 1)
    if name in ("mse", "half_mse"):
        scale = share * (2.0 if name == "mse" else 1.0)
        return Outputs(values, scale * (z - y), lambda v: scale * v)
    if name == "huber":
        delta, slope = objective.constants
        d, bend = z - y, slope / delta if delta else 0.0
        g = torch.where(d.abs() < delta, bend * d, slope * d.sign())
        scale = share * bend * (d.abs() < delta).to(z.dtype)
        return Outputs(values, share * g, lambda v: scale * v)
    assert name == "bce_with_logits"
    p = torch.sigmoid(z)
    scale = share * p * (1 - p)
    return Outputs(values, share * (p - y), lambda v: scale * v)


# the losses whose derivatives are written out; those of others are torch's
_CLOSED = ("cross_entropy", "mse", "half_mse", "huber", "bce_with_logits")


def _of_rows(objective: Objective, z: Tensor, side: Rows) -> Outputs:
    """Returns a loss of rows with its derivatives by autograd in the outputs alone."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        values = _named_value(objective, leaf, side)
        (g,) = torch.autograd.grad(values.sum(), leaf, create_graph=True)

    def curved(v: Tensor) -> Tensor:
        with torch.enable_grad():
            slope = (g * v).sum()
        (product,) = torch.autograd.grad(
            slope, leaf, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return product

    return Outputs(values.detach(), g.detach(), curved)


def _named_value(objective: Objective, z: Tensor, side: Rows) -> Tensor:
    """Returns the values of a loss that is a mean or weighted sum over rows."""
    assert objective.rows is not None
    check_shapes(objective, z[0], side.y[0])
    values = objective.rows(z.flatten(0, 1), side.y.flatten(0, 1)).reshape(z.shape[:2])
    if side.used is not None:
        values = torch.where(side.used, values, 0)
    return (side.share * values).sum(1)


# ---------------------------------------------------------------- callables


def _one(
    objective: Objective, z: Tensor, side: Rows, task: int, leaf: Tensor | None = None
) -> Tensor:
    """Returns what a callable makes of one task's rows in use; 0 without any. `leaf`: what z is
    differentiated in."""
    y = side.y[task]
    weight = None if side.weight is None else side.weight[task]
    if side.used is not None:
        chosen = side.used[task]
        z, y = z[chosen], y[chosen]
        weight = None if weight is None else weight[chosen]
    if len(z) == 0:
        return z.sum()
    check_shapes(objective, z, y)
    return watched_value(objective, z, y, weight, leaf)


def _of_callable(objective: Objective, z: Tensor, side: Rows) -> Outputs:
    """Returns a callable with its derivatives by autograd in the outputs alone: of all tasks by
    torch.vmap where rows are the same for all and vmap takes the callable, else task by task."""
    if side.used is None and objective.function not in _LOOPED:
        try:
            return _mapped(objective, z, side)
        except RuntimeError:
            looped = _one_by_one(objective, z, side)  # had it failed as well, vmap was not to blame
            with contextlib.suppress(TypeError):
                _LOOPED.add(objective.function)
            return looped
    return _one_by_one(objective, z, side)


_LOOPED: WeakSet[Any] = WeakSet()  # callables that vmap has refused


def _mapped(objective: Objective, z: Tensor, side: Rows) -> Outputs:
    """Returns a callable with its derivatives by torch.vmap."""

    def task(leaf: Tensor, y: Tensor) -> Tensor:
        check_shapes(objective, leaf, y)
        return watched_value(objective, leaf.clone(), y, None)  # which it may change in place

    def slope(leaf: Tensor, y: Tensor, direction: Tensor) -> Tensor:
        product: Tensor = torch.func.grad(task)(leaf, y) * direction
        return product.sum()

    z = z.detach()
    with torch.enable_grad():
        both = torch.func.vmap(torch.func.grad_and_value(task), randomness="different")
        g, values = both(z, side.y)

    def curved(v: Tensor) -> Tensor:
        with torch.enable_grad():
            second = torch.func.vmap(torch.func.grad(slope), randomness="different")
            product: Tensor = second(z, side.y, v).detach()
        return product

    return Outputs(values.detach(), g.detach(), curved)


def _one_by_one(objective: Objective, z: Tensor, side: Rows) -> Outputs:
    """Returns a callable with its derivatives by graphs of the loss of one task after the other."""
    leaves, values, gradients = [], [], []
    with torch.enable_grad():
        for t in range(len(z)):
            leaf = z[t].detach().requires_grad_()
            value = _one(objective, leaf.clone(), side, t, leaf)
            (g,) = torch.autograd.grad(value, leaf, create_graph=True)
            leaves.append(leaf)
            values.append(value.detach())
            gradients.append(g)

    def curved(v: Tensor) -> Tensor:
        parts = []
        for leaf, g, direction in zip(leaves, gradients, v, strict=True):
            if g.requires_grad:
                with torch.enable_grad():
                    slope = (g * direction).sum()
                (part,) = torch.autograd.grad(
                    slope, leaf, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            else:  # a loss that is linear in the outputs
                part = torch.zeros_like(leaf)
            parts.append(part)
        return torch.stack(parts)

    return Outputs(torch.stack(values), torch.stack([g.detach() for g in gradients]), curved)
