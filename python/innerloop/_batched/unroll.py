"""The inner loop and its adjoint for a few tasks at a time, by the passes of a program.

With H_s the Hessian of the support loss at phi_s and the numbers of the solver (`Solver`: momentum
mu, gradient_share a, velocity_share b, decay w), whose steps subtract rate_s u_s,

    lambda_S = grad query_loss(phi_S),  dL / drate_s = -lambda_{s+1} u_s,
    m_s = mu m_{s+1} + b rate_s lambda_{s+1},  p_s = m_s + a rate_s lambda_{s+1},
    lambda_s = lambda_{s+1} - H_s p_s - w p_s

on the adapted leaves, with m_S = 0; the others collect -H_s p_s as well. What a step keeps are its
parameters, and u where there is a velocity; activations are kept of as many of the last steps as
fit `_KEPT_BYTES` (of one at least), and computed again for the others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop._batched.factored import Moved, Outer, joined
from innerloop._batched.losses import Outputs, Rows, loss_of, value_of
from innerloop._batched.native import room_for
from innerloop._batched.passes import Passes, Tape
from innerloop._batched.precision import wide_dtype
from innerloop._one_task import rate_of
from innerloop._params import InnerLr, is_per_step
from innerloop._solver import Solver
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
        return Step(passes, phi, outputs, Tape([], [], {}), {})
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
    step, the last steps with what they leave behind, and what the steps took, but for their rates,
    if there are velocities."""

    path: list[Leaves]
    losses: list[Tensor]
    kept: deque[Step]
    taken: list[Leaves]


class Loop:
    """An inner loop on the support rows of some tasks."""

    def __init__(
        self,
        objective: Objective,
        support: Side,
        *,
        inner_lr: InnerLr,
        steps: int,
        solver: Solver,
        adapted: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._objective = objective
        self._support = support
        self._inner_lr = inner_lr
        self._steps = steps
        self._solver = solver
        self._adapted = adapted
        self._shapes = shapes

    def _rate(self, name: str, step: int) -> Any:
        """Returns the rate of one leaf at one step, a number or a tensor that broadcasts to it."""
        return rate_of(self._inner_lr, name, self._shapes[name], step)

    def _common_rate(self, step: int) -> float | Tensor | None:
        """Returns a step's rate where it is one number for all leaves that nothing else is mixed
        with, and of usual size: products along the adjoint times the rate are then the rate times
        those along it, which might leave the dtype if the rate were very small."""
        plain = not (self._solver.has_velocity or self._solver.decay)
        if isinstance(self._inner_lr, Mapping) or not plain or not self._adapted:
            return None
        rate: float | Tensor = self._rate(self._adapted[0], step)
        known = not isinstance(rate, Tensor) or rate.device.type == "cpu"  # without waiting
        usual = not known or _is_usual(float(rate))
        return rate if usual else None

    def _step(self, step: Step, before: Leaves) -> tuple[Leaves, Leaves]:
        """Returns what a step takes, but for the rates, and its velocities, given those before."""
        solver, gradient = self._solver, step.gradient
        if solver.decay:
            gradient = {name: self._with_decay(step, name) for name in self._adapted}
        if not solver.has_velocity:
            return gradient, {}
        taken: Leaves = {}
        velocity: Leaves = {}
        for name in self._adapted:
            if name in gradient:
                v = velocity[name] = _velocity(gradient[name], before.get(name), solver.momentum)
                taken[name] = _mixed(gradient[name], before.get(name), v, solver)
            elif name in before:  # a step that does not use it goes on with its velocity
                velocity[name] = _scaled(before[name], solver.momentum)
                taken[name] = _scaled(velocity[name], solver.velocity_share)
        return taken, velocity

    def _with_decay(self, step: Step, name: str) -> Tensor:
        """Returns a leaf's gradient and what the decay adds to it."""
        pull = step.phi[name] * self._solver.decay
        found: Tensor = pull + step.gradient[name] if name in step.gradient else pull
        return found

    def _moved(self, phi: Leaves, taken: Leaves, step: int) -> Leaves:
        """Returns the parameters after a step."""
        after = dict(phi)
        for name in self._adapted:
            if name in taken:
                rate = self._rate(name, step)
                known = phi[name]
                if isinstance(known, Moved):
                    change = taken[name].scaled(-rate)
                    if self._solver.has_velocity:  # it holds the rows of all steps
                        change = change.plus(known.change)
                    else:
                        change = joined(known.change, change)
                    after[name] = Moved(known.base, change)
                    continue
                room = room_for(taken[name])
                if isinstance(rate, Tensor):
                    after[name] = torch.addcmul(known, rate, taken[name], value=-1, out=room)
                else:
                    after[name] = torch.sub(known, taken[name], alpha=rate, out=room)
        return after

    def path(self, phi: Leaves, *, every: bool) -> list[Leaves]:
        """Returns the parameters after 0..S steps, or after the last alone."""
        path = [phi]
        velocity: Leaves = {}
        for s in range(self._steps):
            step = support_step(self._objective, self._support, path[-1], s)
            taken, velocity = self._step(step, velocity)
            after = self._moved(path[-1], taken, s)
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
            taken, velocity = self._step(step, velocity)
            if self._solver.has_velocity:
                trace.taken.append(taken)
            trace.path.append(self._moved(step.phi, taken, s))
            trace.kept.append(step)
            size = size or _bytes(step)
            if len(trace.kept) > 1 and len(trace.kept) * size > _KEPT_BYTES:
                trace.kept.popleft()
        return trace

    def adjoint(self, trace: Trace, adjoint: Leaves, order: int, rates: RateGrad) -> Leaves:
        """Returns the gradient in the initial parameters, given that in the last ones; adds to the
        gradient in the rates."""
        solver = self._solver
        carried: Leaves = {}
        for s in reversed(range(self._steps)):
            if trace.kept:
                step = trace.kept.pop()
            else:
                step = support_step(self._objective, self._support, trace.path[s], s)
            taken = trace.taken[s] if solver.has_velocity else self._step(step, {})[0]
            common = self._common_rate(s)
            direction: Leaves = {}
            for name in self._adapted:
                if name in adjoint:
                    if name in taken:
                        rates.add(name, s, adjoint[name], taken[name])
                    direction[name] = adjoint[name]
                    if common is None:
                        direction[name] = _scaled(adjoint[name], self._rate(name, s))
            if solver.has_velocity:
                carried, direction = _carried(carried, direction, solver)
            if solver.decay:
                for name, value in direction.items():
                    adjoint[name].sub_(value, alpha=solver.decay)
            if order == 2 and direction:
                for name, product in hessian_product(step, direction).items():
                    rate = 1.0 if common is None else common
                    adjoint[name] = _less(adjoint.get(name), product, rate)
        return adjoint


def _is_usual(rate: float) -> bool:
    """Says whether a rate changes the size of a product little."""
    return 1e-6 < abs(rate) < 1e6


def _velocity(gradient: Any, before: Any, momentum: float) -> Any:
    """Returns a leaf's velocity after a step, given the one before it, if there was one."""
    if before is None:
        return gradient
    if isinstance(gradient, Outer):
        return joined(before.scaled(momentum), gradient)
    return torch.add(gradient, before, alpha=momentum)


def _mixed(gradient: Any, before: Any, velocity: Any, solver: Solver) -> Any:
    """Returns what a step takes of a leaf, but for the rate."""
    a, b = solver.gradient_share, solver.velocity_share
    if (a, b) == (0, 1):
        return velocity
    if not isinstance(gradient, Outer):
        return torch.add(gradient * a, velocity, alpha=b)
    mixed = velocity.scaled(a + b)  # a G + b v in the rows of v
    return mixed if before is None else mixed.plus(before.scaled(-a * solver.momentum))


def _carried(later: Leaves, direction: Leaves, solver: Solver) -> tuple[Leaves, Leaves]:
    """Returns m_s and p_s of all leaves, given m_{s+1} and the adjoint times the rates."""
    a, b = solver.gradient_share, solver.velocity_share
    carried, mixed = {}, {}
    for name, value in direction.items():
        m = value if (a, b) == (0, 1) else _scaled(value, b)
        if name in later:
            m = _sum(m, _scaled(later[name], solver.momentum))
        carried[name] = m
        mixed[name] = _sum(_scaled(value, a), m) if a else m
    return carried, mixed


def _scaled(value: Any, factor: float | Tensor) -> Any:
    """Returns factor times a leaf's adjoint."""
    return value.scaled(factor) if isinstance(value, Outer) else value * factor


def _sum(value: Any, past: Any) -> Any:
    """Returns the sum of a direction and an earlier one, whose rows it has."""
    return value.plus(past) if isinstance(value, Outer) else value.add_(past)


def _less(value: Any, product: Any, factor: float | Tensor) -> Any:
    """Returns a leaf's adjoint less a factor times a product; None stands for zero."""
    if isinstance(product, Outer):
        return joined(value, product.scaled(-factor))
    if value is None:
        return product * -factor
    if isinstance(factor, Tensor):
        return value.addcmul_(product, factor, value=-1)
    return value.sub_(product, alpha=factor)


class RateGrad:
    """The gradient in the inner rates, in their own structure; NaN if it is not wanted."""

    def __init__(self, inner_lr: InnerLr, like: Tensor, wanted: bool) -> None:
        self._wanted = wanted
        self._whole = not isinstance(inner_lr, Mapping)
        entries = inner_lr if isinstance(inner_lr, Mapping) else {"": inner_lr}
        start = 0.0 if wanted else math.nan
        self._total = {
            key: like.new_full(value.shape if isinstance(value, Tensor) else (), start)
            for key, value in entries.items()
        }

    def add(self, name: str, step: int, adjoint: Any, gradient: Any) -> None:
        """Adds what one leaf contributes at one step: minus adjoint times gradient [T, ...]."""
        if not self._wanted:
            return
        total = self._total["" if self._whole else name]
        if isinstance(adjoint, Outer):
            place = total[step] if total.ndim else total
            place -= adjoint.dot(gradient)
            return
        stepped = total.ndim == 1 if self._whole else is_per_step(total, tuple(adjoint.shape[1:]))
        place = total[step] if stepped else total
        if place.ndim and place.shape == adjoint.shape[1:]:
            place -= (adjoint * gradient).sum(0)
        else:
            # in the order of memory, which is that of the kernels for weights of convolutions
            order = sorted(range(adjoint.ndim), key=adjoint.stride, reverse=True)
            one, other = (value.permute(order).reshape(-1) for value in (adjoint, gradient))
            place -= torch.dot(one, other)

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
    return outputs.values, _owned(passes.backward(phi, tape, g))


def _owned(found: Leaves) -> Leaves:
    """Returns leaves that may be changed in place: no two numbers of them lie in one memory, as
    those of the gradient of a sum may."""
    taken: set[int] = set()
    owned: Leaves = {}
    for name, value in found.items():
        if isinstance(value, Tensor):
            memory = value.untyped_storage().data_ptr()
            spread = any(
                stride == 0 and size > 1
                for stride, size in zip(value.stride(), value.shape, strict=True)
            )
            if spread or memory in taken:
                value = value.clone(memory_format=torch.contiguous_format)
                memory = value.untyped_storage().data_ptr()
            taken.add(memory)
        owned[name] = value
    return owned


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
