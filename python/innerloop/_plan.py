"""The static facts of one call (architecture, loss, steps, options) under a canonical text, which
is what torch's ops can carry, and the layout of flat gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from innerloop import objectives
from innerloop._params import RateForm
from innerloop.models import ACTIVATIONS, MLP, from_key


@dataclasses.dataclass(frozen=True)
class Options:
    """What a call fixes besides the architecture. `loss` is a name; `adapt` has a flag per leaf."""

    loss: str
    steps: int
    order: int
    adapt: tuple[bool, ...]
    rates: RateForm
    stepwise: bool
    allow_tf32: bool = False


def options_without_rates(
    loss: str = "mse",
    steps: int = 0,
    order: int = 2,
    stepwise: bool = False,
    allow_tf32: bool = False,
) -> Options:
    """Returns the options of a call whose inner loop is not known yet, or that has none."""
    return Options(loss, steps, order, (), RateForm(False, False, "model"), stepwise, allow_tf32)


class Plan:
    """One architecture with its options. Equal plans are the same object within a process."""

    __slots__ = (
        "key",
        "leaves",
        "loss_code",
        "loss_parameter",
        "model",
        "native",
        "options",
        "outputs",
        "parameters",
        "text",
    )

    def __init__(self, model: MLP, options: Options) -> None:
        self.key = model.key
        self.model = model
        self.options = options
        self.text = _text(model.key, options)
        self.leaves = model.leaves
        self.outputs = model.outputs
        self.parameters = model.parameters
        self.loss_code = objectives.CODES[options.loss]
        self.loss_parameter = objectives.PARAMETERS.get(options.loss, 0.0)
        self.native: dict[Any, Any] = {}  # by extension module: its model, made at the first call

    def native_arguments(self) -> tuple[list[int], list[int], list[float], list[bool]]:
        """Returns what the extension's Model is made of: widths, activations, slopes, has_bias."""
        layers = self.model.layers
        return (
            [layers[0].inputs, *(layer.outputs for layer in layers)],
            [ACTIVATIONS.index(layer.activation) for layer in layers],
            [layer.slope for layer in layers],
            [layer.bias is not None for layer in layers],
        )

    def rate_shape(self, tasks: int) -> tuple[int, ...]:
        """Returns the shape of the flat rates: [T if per_task][S if per_step][leaves or P by
        unit]."""
        form = self.options.rates
        shape = [tasks] if form.per_task else []
        if form.per_step:
            shape.append(self.options.steps)
        if form.unit != "model":
            shape.append(len(self.leaves) if form.unit == "leaf" else self.parameters)
        return tuple(shape)


_PLANS: dict[Any, Plan] = {}
_LIMIT = 4096


def _text(key: str, options: Options) -> str:
    """Returns the canonical text of a plan."""
    form = options.rates
    return "|".join(
        (
            key,
            options.loss,
            str(options.steps),
            str(options.order),
            "".join("1" if a else "0" for a in options.adapt),
            f"{int(form.per_task)}{int(form.per_step)}{form.unit}",
            f"{int(options.stepwise)}{int(options.allow_tf32)}",
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
        key, loss, steps, order, adapt, rates, flags = text.split("|")
        form = RateForm(rates[0] == "1", rates[1] == "1", rates[2:])
        adapts = tuple(a == "1" for a in adapt)
        options = Options(
            loss, int(steps), int(order), adapts, form, flags[0] == "1", flags[1] == "1"
        )
        plan = _remember(text, Plan(from_key(key), options))
    return plan


def _remember(key: Any, plan: Plan) -> Plan:
    """Keeps a plan for the next call; forgets all when there are absurdly many."""
    if len(_PLANS) >= _LIMIT:
        _PLANS.clear()
    _PLANS[key] = plan
    return plan
