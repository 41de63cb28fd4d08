"""The static facts of one call (architecture, objectives, inner loop, options) under a canonical
text, which is what torch's ops can carry."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from innerloop._chain import KINDS
from innerloop._params import RateForm
from innerloop._solver import GRADIENT_DESCENT, Solver
from innerloop.models import ACTIVATIONS, MLP, from_key
from innerloop.objectives import CODES, FusedObjective


@dataclasses.dataclass(frozen=True)
class InnerLoop:
    """How parameters move: S steps of a solver; `order` of their derivative; a flag per leaf
    (none: no leaf adapts) and the layout of the flat rates."""

    steps: int
    order: int
    solver: Solver
    adapt: tuple[bool, ...]
    rates: RateForm


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a call is computed, which is no part of what it means."""

    allow_tf32: bool = False


@dataclasses.dataclass(frozen=True)
class Options:
    """What a call fixes besides the architecture. An operation on one batch has its objective as
    `support`."""

    support: FusedObjective
    query: FusedObjective
    inner: InnerLoop
    stepwise: bool
    execution: Execution


def options_of_one(objective: FusedObjective, allow_tf32: bool) -> Options:
    """Returns the options of an operation on one batch."""
    inner = InnerLoop(0, 2, GRADIENT_DESCENT, (), RateForm(False, False, "model"))
    return Options(objective, objective, inner, False, Execution(allow_tf32))


class Plan:
    """One architecture with its options. Equal plans are the same object within a process."""

    __slots__ = ("key", "leaves", "model", "native", "options", "outputs", "parameters", "text")

    def __init__(self, model: MLP, options: Options) -> None:
        self.key = model.key
        self.model = model
        self.options = options
        self.text = _text(model.key, options)
        self.leaves = model.leaves
        self.outputs = model.outputs
        self.parameters = model.parameters
        self.native: dict[Any, Any] = {}  # by extension module: its plan, made at the first call

    def native_arguments(self) -> dict[str, Any]:
        """Returns what the extension's Plan is made of."""
        layers, options, inner = self.model.layers, self.options, self.options.inner
        return {
            "layers": [
                (
                    (KINDS.index(layer.kind), layer.eps),
                    (layer.inputs, layer.outputs),
                    (ACTIVATIONS.index(layer.activation), layer.slope),
                    layer.weight is not None,
                    layer.bias is not None,
                )
                for layer in layers
            ],
            "free": self.model.free,
            "support": (CODES[options.support.name], options.support.constants),
            "query": (CODES[options.query.name], options.query.constants),
            "steps": inner.steps,
            "order": inner.order,
            "solver": inner.solver.numbers,
            "adapts": inner.adapt,
            "stepwise": options.stepwise,
            "rate_axes": (inner.rates.per_task, inner.rates.per_step),
            "rate_unit": inner.rates.unit,
        }

    def rate_shape(self, tasks: int) -> tuple[int, ...]:
        """Returns the shape of the flat rates: [T if per_task][S if per_step][leaves or P by
        unit]."""
        form = self.options.inner.rates
        shape = [tasks] if form.per_task else []
        if form.per_step:
            shape.append(self.options.inner.steps)
        if form.unit != "model":
            shape.append(len(self.leaves) if form.unit == "leaf" else self.parameters)
        return tuple(shape)


_PLANS: dict[Any, Plan] = {}
_LIMIT = 4096


def _text(key: str, options: Options) -> str:
    """Returns the canonical text of a plan."""
    inner = options.inner
    return "|".join(
        (
            key,
            options.support.text,
            options.query.text,
            str(inner.steps),
            str(inner.order),
            inner.solver.text,
            "".join("1" if a else "0" for a in inner.adapt),
            f"{int(inner.rates.per_task)}{int(inner.rates.per_step)}{inner.rates.unit}",
            f"{int(options.stepwise)}{int(options.execution.allow_tf32)}",
        )
    )


def find_plan(model: MLP, options: Options) -> Plan:
    """Returns the plan of a description and options."""
    if torch.compiler.is_compiling():  # a dict that grows would be guarded on, and recompiled for
        return Plan(model, options)
    plan = _PLANS.get((model.key, options))
    if plan is None:
        plan = _remember((model.key, options), Plan(from_key(model.key), options))
    return plan


def parse_plan(text: str) -> Plan:
    """Returns the plan that a canonical text stands for (in any process)."""
    plan = _PLANS.get(text)
    if plan is None:
        key, support, query, steps, order, solver, adapt, rates, flags = text.split("|")
        form = RateForm(rates[0] == "1", rates[1] == "1", rates[2:])
        adapts = tuple(a == "1" for a in adapt)
        options = Options(
            FusedObjective.of(support),
            FusedObjective.of(query),
            InnerLoop(int(steps), int(order), Solver.of(solver), adapts, form),
            flags[0] == "1",
            Execution(flags[1] == "1"),
        )
        plan = _remember(text, Plan(from_key(key), options))
    return plan


def _remember(key: Any, plan: Plan) -> Plan:
    """Keeps a plan for the next call; forgets all when there are absurdly many."""
    if len(_PLANS) >= _LIMIT:
        _PLANS.clear()
    _PLANS[key] = plan
    return plan
