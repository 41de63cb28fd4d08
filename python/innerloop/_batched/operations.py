"""The operations of `reference` for networks whose programs are known, some tasks at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from innerloop import _native, _params, reference
from innerloop._batched.differentiation import Problem, as_constants, mean_loss, task_losses
from innerloop._batched.factored import Moved, Outer, factored_names
from innerloop._batched.losses import prepared
from innerloop._batched.native import laid_out, over_tasks, runs_natively
from innerloop._batched.passes import Passes, passes_of
from innerloop._batched.precision import NARROW, wide_dtype, widened
from innerloop._batched.unroll import (
    Leaves,
    Loop,
    RateGrad,
    Side,
    hessian_product,
    query_gradient,
    query_values,
    support_step,
)
from innerloop._callable_loss import LooksElsewhere, remember_reason, watching
from innerloop._networks import Places
from innerloop._params import InnerLr, Params
from innerloop._program import Program, Shape, size_of
from innerloop._reading import Rows, rows_of
from innerloop._solver import Solver
from innerloop.objectives import Loss, Objective, resolve
from innerloop.reference import ReferenceMetaGrad

P = ParamSpec("P")
R = TypeVar("R")

# parameters and activations that are in use at a time
_CHUNK_BYTES = {"cpu": 128 << 20}
_CHUNK_ELSEWHERE = 1 << 30


def _or_reference(operation: Callable[P, R]) -> Callable[P, R]:
    """Returns an operation that watches callable losses: where one is no function of outputs and
    targets alone, the torch back end runs in its place."""

    @functools.wraps(operation)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        batched: Any = args[0]
        losses: list[Any] = [kwargs[name] for name in ("loss", "query_loss") if name in kwargs]
        callables = [loss for loss in losses if getattr(loss, "function", None) is not None]
        if not callables:
            return operation(*args, **kwargs)
        model = kwargs.get("model")
        try:
            with watching(model, batched.written):
                return operation(*args, **kwargs)
        except LooksElsewhere as found:
            reason = str(found)
        for loss in callables:
            remember_reason(loss, model, reason)
        batched.fall_back(reason)
        batched.ran = "torch"
        result: R = getattr(reference, operation.__name__)(*args[1:], **kwargs)
        return result

    return wrapped


class Batched:
    """The operations for one network, with the arguments of those in `reference`.

    Args:
        programs: what it computes of each kind of rows: one program, or one for each inner step.
        shapes: of its floating-point parameters, in its order.
        buffers: its constants, by name.
        written: where its forward pass writes to the module.

    Members:
        fall_back: raises or warns where the torch back end has to run instead, for a reason.
        ran: the back end that ran.
    """

    def __init__(
        self,
        programs: Mapping[Rows, tuple[Program, ...]],
        shapes: Mapping[str, Shape],
        buffers: Mapping[str, Tensor],
        written: Places = (),
    ) -> None:
        self._programs = programs
        self._shapes = shapes
        self._buffers = buffers
        self.written = written
        self.fall_back: Callable[[str], None] = lambda reason: None
        self.ran = "batched"

    @property
    def takes_statistics(self) -> bool:
        """Whether rows of a task are normalised by statistics of all of them."""
        every = [program for programs in self._programs.values() for program in programs]
        return any(node.kind == "batch_norm" for program in every for node in program.nodes)

    def output_shape(self, x: Tensor) -> Shape:
        """Returns the shape of a row of the outputs for x."""
        program = self._programs[rows_of(x)][0]
        return program.shape_of(program.output)

    def predict(self, params: Params, x: Tensor, *, model: Any = None, at: int = 0) -> Tensor:
        """Returns outputs [T, N, ...], in an inner step."""
        passes = self._passes(x, params)[at]
        with torch.no_grad():
            parts = []
            for part in self._chunks(x):
                if x.shape[1] == 0:
                    parts.append(x.new_zeros(len(x[part]), 0, *passes.shape))
                    continue
                phi = self._leaves(params, part, len(x))
                outputs = passes.forward(phi, x[part], tape=False)[0]
                parts.append(outputs.to(x.dtype).contiguous())
            result = torch.cat(parts)
        return as_constants("predict", [result], params.values())[0]

    @_or_reference
    def loss_and_grad(
        self, params: Params, batch: _params.Side, *, model: Any = None, loss: Loss
    ) -> tuple[Tensor, Leaves]:
        """Returns losses [T] and gradients {name: [T, ...]}."""
        objective = resolve("loss_and_grad", loss)
        with torch.no_grad():
            values, found = [], []
            for part, (side,) in self._sides(params, (objective, batch)):
                step = support_step(objective, side, self._leaves(params, part, len(batch[0])))
                values.append(step.outputs.values)
                found.append(self._complete(step.gradient, part, batch[0]))
            results = [torch.cat(values), *_like(_joined(found), params).values()]
        losses, *grads = as_constants("loss_and_grad", results, params.values())
        return losses, dict(zip(self._shapes, grads, strict=True))

    @_or_reference
    def hvp(
        self, params: Params, batch: _params.Side, vector: Params, *, model: Any = None, loss: Loss
    ) -> Leaves:
        """Returns Hessian-vector products {name: [T, ...]}."""
        objective = resolve("hvp", loss)
        tasks = len(batch[0])
        with torch.no_grad():
            found = []
            for part, (side,) in self._sides(params, (objective, batch)):
                step = support_step(objective, side, self._leaves(params, part, tasks))
                direction = {k: self._leaf(vector[k], k, part, tasks) for k in self._shapes}
                product = hessian_product(step, direction)
                found.append(self._complete(product, part, batch[0]))
            result = list(_like(_joined(found), params).values())
        constants = as_constants("hvp", result, [*params.values(), *vector.values()])
        return dict(zip(self._shapes, constants, strict=True))

    @_or_reference
    def adapt(
        self,
        params: Params,
        support: _params.Side,
        *,
        model: Any = None,
        inner_lr: InnerLr,
        steps: int,
        loss: Loss,
        solver: Solver,
        adapt_params: Sequence[str],
        stepwise: bool = False,
    ) -> Leaves:
        """Returns the parameters after the inner loop {name: [T, ...]}, or after 0..S steps
        [T, S + 1, ...]."""
        objective = resolve("adapt", loss)
        tasks = len(support[0])
        found = []
        with torch.no_grad():
            for part, (side,) in self._sides(params, (objective, support)):
                loop = self._loop(objective, side, inner_lr, steps, solver, adapt_params)
                path = loop.path(self._leaves(params, part, tasks), every=stepwise)
                if stepwise:
                    found.append({k: torch.stack([p[k] for p in path], 1) for k in self._shapes})
                else:
                    found.append({k: path[-1][k].clone() for k in self._shapes})
            joined = _like(_joined(found), params)
        names, constants = list(joined), list(joined.values())
        inputs = [*params.values(), *_tensors(inner_lr)]
        result = dict(zip(names, as_constants("adapt", constants, inputs), strict=True))
        front = (tasks, steps + 1) if stepwise else (tasks,)
        constant = {k: v.expand(*front, *v.shape) for k, v in params.items() if k not in result}
        return {k: result[k] if k in result else constant[k] for k in params}

    @_or_reference
    def meta_loss(
        self,
        params: Params,
        support: _params.Side,
        query: _params.Side,
        *,
        model: Any = None,
        inner_lr: InnerLr,
        **options: Any,
    ) -> Tensor:
        """Returns query losses after the inner loop [T], with their derivative."""
        return task_losses(self._problem(params, support, query, inner_lr, options))

    @_or_reference
    def mean_meta_loss(
        self,
        params: Params,
        support: _params.Side,
        query: _params.Side,
        *,
        model: Any = None,
        inner_lr: InnerLr,
        task_weight: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """Returns sum_t task_weight_t loss_t (1/T if None), with its derivative from the same
        pass."""
        return mean_loss(self._problem(params, support, query, inner_lr, options), task_weight)

    @_or_reference
    def meta_grad(
        self,
        params: Params,
        support: _params.Side,
        query: _params.Side,
        *,
        model: Any = None,
        inner_lr: InnerLr,
        task_weight: Tensor | None = None,
        **options: Any,
    ) -> ReferenceMetaGrad:
        """Returns losses and the gradient of sum_t task_weight_t loss_t (1/T if None)."""
        with torch.no_grad():
            return self._meta_grad(
                params, support, query, inner_lr=inner_lr, task_weight=task_weight, **options
            )

    # ------------------------------------------------------------ meta-gradients

    def _problem(
        self,
        params: Params,
        support: _params.Side,
        query: _params.Side,
        inner_lr: InnerLr,
        options: Mapping[str, Any],
    ) -> Problem:
        """Returns a meta-loss as a function of parameters and rates."""

        wants_rates = any(rate.requires_grad for rate in _tensors(inner_lr))

        def value(params: Params, rates: InnerLr) -> Tensor:
            return self._values(params, support, query, inner_lr=rates, **options)

        def gradient(params: Params, rates: InnerLr, weight: Tensor | None) -> ReferenceMetaGrad:
            return self._meta_grad(
                params,
                support,
                query,
                inner_lr=rates,
                task_weight=weight,
                with_rates=wants_rates,
                **options,
            )

        data = [*support, *query, *self._buffers.values(), *params.values()]
        own = {id(params[name]) for name in self._shapes}
        return Problem(
            value,
            gradient,
            dict(params),
            inner_lr,
            tuple(self._shapes),
            [v for v in data if isinstance(v, Tensor) and id(v) not in own],
        )

    def _values(
        self,
        params: Params,
        support: _params.Side,
        query: _params.Side,
        *,
        inner_lr: InnerLr,
        steps: int,
        loss: Loss,
        query_loss: Loss,
        solver: Solver,
        order: int,
        adapt_params: Sequence[str],
    ) -> Tensor:
        """Returns query losses after the inner loop [T]."""
        objective, outer = resolve("meta_loss", loss), resolve("meta_loss", query_loss)
        factored = self._factored(params, support, query, inner_lr, steps, solver)
        values = []
        for part, (side, other) in self._sides(params, (objective, support), (outer, query)):
            loop = self._loop(objective, side, inner_lr, steps, solver, adapt_params)
            phi = self._leaves(params, part, len(support[0]), factored)
            path = loop.path(phi, every=False)
            values.append(query_values(outer, other, path[-1], steps))
        return torch.cat(values)

    def _meta_grad(
        self,
        params: Params,
        support: _params.Side,
        query: _params.Side,
        *,
        inner_lr: InnerLr,
        steps: int,
        loss: Loss,
        query_loss: Loss,
        solver: Solver,
        order: int,
        adapt_params: Sequence[str],
        task_weight: Tensor | None = None,
        stepwise: bool = False,
        with_rates: bool = True,
    ) -> ReferenceMetaGrad:
        """See `meta_grad`; without `with_rates` the gradient in the rates is NaN."""
        objective, outer = resolve("meta_grad", loss), resolve("meta_grad", query_loss)
        tasks, like = len(support[0]), params[next(iter(self._shapes))]
        if task_weight is None:
            task_weight = widened(like).new_full((tasks,), 1 / tasks)
        task_weight = widened(task_weight.detach())
        rates = RateGrad(_constant(inner_lr), widened(like), with_rates)
        sums = wide_dtype(like.dtype)
        grads = {k: torch.zeros_like(params[k], dtype=sums) for k in self._shapes}
        factored = self._factored(params, support, query, inner_lr, steps, solver)
        values, before, after = [], [], []
        for part, (side, other) in self._sides(params, (objective, support), (outer, query)):
            loop = self._loop(objective, side, inner_lr, steps, solver, adapt_params)
            trace = loop.trace(self._leaves(params, part, tasks, factored))
            last = trace.path[-1]
            value, adjoint = query_gradient(outer, other, last, steps, task_weight[part])
            values.append(value)
            before.append(torch.stack(trace.losses, 1) if steps else value.new_empty(len(value), 0))
            if stepwise:
                path = enumerate(trace.path[:-1])
                earlier = [query_values(outer, other, phi, updates) for updates, phi in path]
                after.append(torch.stack([*earlier, value], 1))
            for name, part_grad in loop.adjoint(trace, adjoint, order, rates).items():
                if name not in grads:
                    continue
                if isinstance(part_grad, Outer):
                    left, right = (v.flatten(0, 1) for v in part_grad)
                    grads[name].addmm_(left.t(), right)
                elif params[name].ndim > len(self._shapes[name]):
                    grads[name][part] = part_grad
                else:
                    grads[name] += over_tasks(part_grad)
        of_rates = rates.result()
        if isinstance(of_rates, Tensor):
            of_rates = of_rates.to(like.dtype)
        else:
            of_rates = {k: v.to(like.dtype) for k, v in of_rates.items()}
        return ReferenceMetaGrad(
            torch.cat(values),
            _like(grads, params),
            of_rates,
            torch.cat(before),
            torch.cat(after) if stepwise else None,
        )

    def _loop(
        self,
        objective: Objective,
        support: Side,
        inner_lr: InnerLr,
        steps: int,
        solver: Solver,
        adapted: Sequence[str],
    ) -> Loop:
        """Returns the inner loop of some tasks."""
        return Loop(
            objective,
            support,
            inner_lr=_constant(inner_lr),
            steps=steps,
            solver=solver,
            adapted=adapted,
            shapes=self._shapes,
        )

    # ------------------------------------------------------------ some tasks at a time

    def _chunks(self, *inputs: Tensor) -> Iterator[slice]:
        """Yields the tasks that are computed together."""
        size, like = 0, inputs[0]
        for x in inputs:
            program = self._programs[rows_of(x)][0]
            made = [size_of(node.shape) for node in program.nodes if node.kind == "computed"]
            rows = [size_of(node.shape) for node in program.nodes if node.kind != "computed"]
            size = max(size, (size_of(program.shape) + sum(rows)) * x.shape[1] + sum(made))
        size += sum(map(size_of, self._shapes.values()))
        tasks, most = len(like), _CHUNK_BYTES.get(like.device.type, _CHUNK_ELSEWHERE)
        step = max(1, most // (size * like.element_size()))
        for start in range(0, tasks, step):
            yield slice(start, min(start + step, tasks))

    def _sides(
        self, params: Params, *batches: tuple[Objective, _params.Side]
    ) -> Iterator[tuple[slice, list[Side]]]:
        """Yields some tasks with their rows, ready for the passes and for the losses on them."""
        for part in self._chunks(*(batch[0] for _, batch in batches)):
            sides = []
            for objective, batch in batches:
                x, y, count, weight = (None if v is None else v.detach()[part] for v in batch)
                assert x is not None
                assert y is not None
                passes = self._passes(x, params)
                sides.append(Side(passes, prepared(objective, x, y, count, weight)))
            yield part, sides

    def _passes(self, x: Tensor, params: Params) -> list[Passes]:
        """Returns what runs on x, by kernels where there are some: one for all inner steps, or one
        for each."""
        native = runs_natively(x.detach(), params.values())
        return [passes_of(program, x.dtype, native) for program in self._programs[rows_of(x)]]

    def _leaf(self, value: Tensor, name: str, part: slice, tasks: int) -> Tensor:
        """Returns one parameter of some tasks [t, ...]."""
        value = widened(value.detach())
        if value.ndim > len(self._shapes[name]):
            return value[part]
        return value.expand(part.stop - part.start, *value.shape)

    def _factored(
        self,
        params: Params,
        support: _params.Side,
        query: _params.Side,
        inner_lr: InnerLr,
        steps: int,
        solver: Solver,
    ) -> list[str]:
        """Returns the weights that are not written out for each task: shared ones, where that
        saves numbers, unless they are themselves a part of their steps."""
        if solver.decay:
            return []
        found = [self._programs[rows_of(side[0])] for side in (support, query)]
        if any(len(programs) > 1 for programs in found):  # steps may use other weights
            return []
        if support[0].dtype is NARROW:  # sums of rounded products
            return []
        programs = [each[0] for each in found]
        rows = [side[0].shape[1] for side in (support, query)]
        names = factored_names(programs, rows, self._shapes, inner_lr, steps)
        return [name for name in names if params[name].ndim == len(self._shapes[name])]

    def _leaves(
        self, params: Params, part: slice, tasks: int, factored: Sequence[str] = ()
    ) -> Leaves:
        """Returns parameters and constants of some tasks, {name: [t, ...]}, those of convolutions
        as the kernels read them."""
        leaves: Leaves = {k: self._leaf(params[k], k, part, tasks) for k in self._shapes}
        if _native.is_available():
            leaves = {k: laid_out(v) for k, v in leaves.items()}
        for name in factored:
            leaves[name] = Moved(leaves[name], None)
        for name, value in self._buffers.items():
            leaves[name] = widened(value.detach()).expand(part.stop - part.start, *value.shape)
        return leaves

    def _complete(self, found: Leaves, part: slice, like: Tensor) -> Leaves:
        """Returns what was found for each parameter, zeros for those that nothing reaches."""
        tasks, sums = part.stop - part.start, wide_dtype(like.dtype)
        return {
            name: found[name] if name in found else like.new_zeros(tasks, *shape, dtype=sums)
            for name, shape in self._shapes.items()
        }


def _joined(parts: Sequence[Leaves]) -> Leaves:
    """Returns leaves of all tasks."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _like(found: Leaves, params: Params) -> Leaves:
    """Returns sums in the dtypes of the parameters."""
    return {name: value.to(params[name].dtype) for name, value in found.items()}


def _constant(inner_lr: InnerLr) -> InnerLr:
    """Returns rates without history, in the dtype of sums."""
    if isinstance(inner_lr, Mapping):
        return {k: widened(v.detach()) if isinstance(v, Tensor) else v for k, v in inner_lr.items()}
    return widened(inner_lr.detach()) if isinstance(inner_lr, Tensor) else inner_lr


def _tensors(inner_lr: InnerLr) -> list[Tensor]:
    """Returns the rates that are tensors."""
    values = inner_lr.values() if isinstance(inner_lr, Mapping) else [inner_lr]
    return [value for value in values if isinstance(value, Tensor)]
