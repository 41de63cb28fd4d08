"""The inner loop and its adjoint for a few tasks at a time, by the passes of a program.

With H_s the Hessian of the support loss at phi_s, g_s its gradient and mu the momentum,

    v_{s+1} = mu v_s + g_s,  phi_{s+1} = phi_s - rate_s v_{s+1},  lambda_S = grad query_loss(phi_S),
    p_s = rate_s lambda_{s+1} + mu p_{s+1},  lambda_s = lambda_{s+1} - H_s p_s,
    dL / drate_s = -lambda_{s+1} v_{s+1}

on the adapted leaves, with v_0 = p_S = 0; the others collect -H_s p_s as well. What a step keeps
are its parameters, and v where there is momentum; activations are kept of as many of the last steps
as fit `_KEPT_BYTES` (of one at least), and computed again for the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop._batched.factored import Moved, Outer, joined
from innerloop._batched.losses import Outputs, Rows, loss_of, value_of
from innerloop._batched.passes import Passes, Tape
from innerloop._batched.precision import wide_dtype
from innerloop._one_task import rate_of
from innerloop._params import InnerLr, is_per_step
from innerloop.objectives import Objective

Leaves = dict[str, Any]  # tensors [T, ...]; weights of linear layers may be `Moved`, theirs `Outer`
_KEPT_BYTES = 256 << 20


class Side(NamedTuple):
    """Rows with the programs that run on them: one, or one for each inner step."""

    programs: Sequence[Passes]
    rows: Rows

    def at(self, step: int) -> Passes:
        """Returns what runs in a step."""
        return self.programs[step if len(self.programs) > 1 else 0]


class Step(NamedTuple):
    """A support pass at some parameters: everything that its products with the Hessian need."""

    passes: Passes
    phi: Leaves
    outputs: Outputs
    tape: Tape
    gradient: Leaves


def support_step(objective: Objective, side: Side, phi: Leaves, at: int = 0) -> Step:
    """Returns loss and gradient at phi, in an inner step, with what they leave behind."""
    passes = side.at(at)
    if side.rows.x.shape[1] == 0:
        nothing = _no_losses(side)
        outputs = Outputs(nothing, nothing, torch.zeros_like)
        return Step(passes, phi, outputs, Tape([], []), {})
    z, tape = passes.forward(phi, side.rows.x)
    outputs = loss_of(objective, z, side.rows)
    return Step(passes, phi, outputs, tape, passes.backward(phi, tape, outputs.gradient))


def hessian_product(step: Step, direction: Leaves) -> Leaves:
    """Returns the Hessian of a step's loss times a direction in some of the leaves."""
    if not step.tape.saved:
        return {}
    return step.passes.product(step.phi, step.tape, direction, step.outputs.curvature)


class Trace(NamedTuple):
    """What an inner loop passed through: parameters after 0..S steps, support losses before each
    step, the last steps with what they leave behind, and velocities after 1..S steps, unless they
    are the gradients."""

    path: list[Leaves]
    losses: list[Tensor]
    kept: deque[Step]
    velocities: list[Leaves]


class Loop:
    """An inner loop on the support rows of some tasks."""

    def __init__(
        self,
        objective: Objective,
        support: Side,
        *,
        inner_lr: InnerLr,
        steps: int,
        momentum: float,
        adapted: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._objective = objective
        self._support = support
        self._inner_lr = inner_lr
        self._steps = steps
        self._momentum = momentum
        self._adapted = adapted
        self._shapes = shapes

    def _rate(self, name: str, step: int) -> Any:
        """Returns the rate of one leaf at one step, a number or a tensor that broadcasts to it."""
        return rate_of(self._inner_lr, name, self._shapes[name], step)

    def _velocity(self, before: Leaves, gradient: Leaves) -> Leaves:
        """Returns what a step subtracts, but for the rates, given what the one before did."""
        if not self._momentum or not before:
            return gradient
        velocity: Leaves = {}
        for name in self._adapted:
            if name in gradient:
                g, v = gradient[name], before[name]
                if isinstance(g, Outer):
                    velocity[name] = joined(v.scaled(self._momentum), g)
                else:
                    velocity[name] = torch.add(g, v, alpha=self._momentum)
        return velocity

    def _moved(self, phi: Leaves, velocity: Leaves, step: int) -> Leaves:
        """Returns the parameters after a step."""
        after = dict(phi)
        for name in self._adapted:
            if name in velocity:
                rate = self._rate(name, step)
                known = phi[name]
                if isinstance(known, Moved):
                    change = velocity[name].scaled(-rate)
                    if self._momentum:  # it holds the rows of all steps
                        change = change.plus(known.change)
                    else:
                        change = joined(known.change, change)
                    after[name] = Moved(known.base, change)
                elif isinstance(rate, Tensor):
                    after[name] = torch.addcmul(phi[name], rate, velocity[name], value=-1)
                else:
                    after[name] = torch.sub(phi[name], velocity[name], alpha=rate)
        return after

    def path(self, phi: Leaves, *, every: bool) -> list[Leaves]:
        """Returns the parameters after 0..S steps, or after the last alone."""
        path = [phi]
        velocity: Leaves = {}
        for s in range(self._steps):
            step = support_step(self._objective, self._support, path[-1], s)
            velocity = self._velocity(velocity, step.gradient)
            after = self._moved(path[-1], velocity, s)
            path = [*path, after] if every else [after]
        return path

    def trace(self, phi: Leaves) -> Trace:
        """Returns everything that the adjoint needs."""
        trace = Trace([phi], [], deque(), [])
        velocity: Leaves = {}
        size = 0
        for s in range(self._steps):
            step = support_step(self._objective, self._support, trace.path[-1], s)
            trace.losses.append(step.outputs.values)
            velocity = self._velocity(velocity, step.gradient)
            if self._momentum:
                trace.velocities.append(velocity)
            trace.path.append(self._moved(step.phi, velocity, s))
            trace.kept.append(step)
            size = size or _bytes(step)
            if len(trace.kept) > 1 and len(trace.kept) * size > _KEPT_BYTES:
                trace.kept.popleft()
        return trace

    def adjoint(self, trace: Trace, adjoint: Leaves, order: int, rates: RateGrad) -> Leaves:
        """Returns the gradient in the initial parameters, given that in the last ones; adds to the
        gradient in the rates."""
        direction: Leaves = {}
        for s in reversed(range(self._steps)):
            if trace.kept:
                step = trace.kept.pop()
            else:
                step = support_step(self._objective, self._support, trace.path[s], s)
            velocity = trace.velocities[s] if self._momentum else step.gradient
            later, direction = direction, {}
            for name in self._adapted:
                if name in adjoint:
                    if name in velocity:
                        rates.add(name, s, adjoint[name], velocity[name])
                    direction[name] = _scaled(adjoint[name], self._rate(name, s))
                    if self._momentum and name in later:
                        past = _scaled(later[name], self._momentum)
                        direction[name] = _sum(direction[name], past)
            if order == 2 and direction:
                for name, product in hessian_product(step, direction).items():
                    adjoint[name] = _less(adjoint.get(name), product)
        return adjoint


def _scaled(value: Any, factor: float | Tensor) -> Any:
    """Returns factor times a leaf's adjoint."""
    return value.scaled(factor) if isinstance(value, Outer) else value * factor


def _sum(value: Any, past: Any) -> Any:
    """Returns the sum of a direction and an earlier one, whose rows it has."""
    return value.plus(past) if isinstance(value, Outer) else value.add_(past)


def _less(value: Any, product: Any) -> Any:
    """Returns a leaf's adjoint less a product; None stands for zero."""
    if isinstance(product, Outer):
        return joined(value, product.scaled(-1.0))
    return -product if value is None else value.sub_(product)


class RateGrad:
    """The gradient in the inner rates, in their own structure."""

    def __init__(self, inner_lr: InnerLr, like: Tensor) -> None:
        self._whole = not isinstance(inner_lr, Mapping)
        entries = inner_lr if isinstance(inner_lr, Mapping) else {"": inner_lr}
        self._total = {
            key: like.new_zeros(value.shape if isinstance(value, Tensor) else ())
            for key, value in entries.items()
        }

    def add(self, name: str, step: int, adjoint: Any, gradient: Any) -> None:
        """Adds what one leaf contributes at one step: minus adjoint times gradient [T, ...]."""
        total = self._total["" if self._whole else name]
        if isinstance(adjoint, Outer):
            place = total[step] if total.ndim else total
            place -= adjoint.dot(gradient)
            return
        stepped = total.ndim == 1 if self._whole else is_per_step(total, tuple(adjoint.shape[1:]))
        place = total[step] if stepped else total
        if place.ndim:
            place -= (adjoint * gradient).sum(0)
        else:
            place -= torch.dot(adjoint.reshape(-1), gradient.reshape(-1))

    def result(self) -> Tensor | Leaves:
        """Returns the gradient."""
        return self._total[""] if self._whole else self._total


def _no_losses(side: Side) -> Tensor:
    """Returns the losses [T] of sides without rows."""
    return side.rows.x.new_zeros(len(side.rows.x), dtype=wide_dtype(side.rows.x.dtype))


def query_values(objective: Objective, side: Side, phi: Leaves, updates: int) -> Tensor:
    """Returns the losses [T] at phi, which so many updates gave."""
    if side.rows.x.shape[1] == 0:
        return _no_losses(side)
    z, _ = side.at(max(updates - 1, 0)).forward(phi, side.rows.x, tape=False)
    return value_of(objective, z, side.rows)


def query_gradient(
    objective: Objective, side: Side, phi: Leaves, updates: int, weight: Tensor
) -> tuple[Tensor, Leaves]:
    """Returns the losses [T] at phi, which so many updates gave, and the gradient of each task's
    times its weight."""
    if side.rows.x.shape[1] == 0:
        return _no_losses(side), {}
    passes = side.at(max(updates - 1, 0))
    z, tape = passes.forward(phi, side.rows.x)
    outputs = loss_of(objective, z, side.rows)
    g = outputs.gradient * weight.reshape(-1, *[1] * (z.ndim - 1))
    return outputs.values, passes.backward(phi, tape, g)


def _bytes(step: Step) -> int:
    """Returns the size of what a step leaves behind."""
    sizes = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            sizes[value.data_ptr()] = value.numel() * value.element_size()
        elif isinstance(value, (tuple, list)):
            for part in value:
                visit(part)

    visit(step.tape)
    return sum(sizes.values())
