"""Objective: from what was passed as `loss=` to the Objective that it means."""

from __future__ import annotations

import difflib
import inspect
from typing import Any, NoReturn

import torch
from torch import nn

from innerloop._checks.messages import type_error, value_error
from innerloop.objectives.named import NAMED, NAMES
from innerloop.objectives.objective import Function, Objective, name_of
from innerloop.objectives.recognition import is_elementwise, torch_objective

Loss = str | Function | Objective  # what callers pass; learners resolve it once a call


def resolve(op: str, loss: object, argument: str = "loss") -> Objective:
    """Returns what a loss means.

    Args:
        op: who asks, for messages.
        loss: a name; a torch loss, as an instance or a function; or a callable (outputs [N, ...],
            targets [N, ...]) of one task that returns a 0-d tensor, or values of its rows [N]. An
            Objective stays what it is.
        argument: what the caller calls it, for messages.

    Raises:
        ValueError: the name is unknown.
        TypeError: neither a name nor a callable of outputs and targets.

    Cost: 0.1 us for a name, some microseconds for anything else (torch's losses are looked at anew
        each time, as layers are).

    Example:
        >>> from torch.nn import functional as F
        >>> [resolve("", loss).name for loss in ("mse", nn.CrossEntropyLoss(), F.smooth_l1_loss)]
        ['mse', 'cross_entropy', 'huber']
        >>> resolve("", nn.HuberLoss(delta=2.0)).fused
        FusedObjective(name='huber', constants=(2.0, 2.0), text='huber:2.0:2.0')
        >>> resolve("", nn.MSELoss(reduction="sum")).reason
        "the loss MSELoss(reduction='sum') has no kernel, only MSELoss(reduction='mean') has one"
    """
    if isinstance(loss, str):
        found = NAMED.get(loss)
        if found is None:
            _refuse_name(op, loss, argument)
        return found
    if isinstance(loss, Objective):
        return loss
    if isinstance(loss, type) or not callable(loss):
        _refuse_kind(op, loss, argument)
    of_torch = torch_objective(loss)
    if of_torch is not None:
        return of_torch
    name = "function"
    if not torch.compiler.is_compiling():  # which reads neither names nor signatures
        name = name_of(loss)
        _check_parameters(op, loss, name, argument)
    reason = f"the loss {name} has no kernel"
    return Objective(name, function=loss, reason=reason, strict=is_elementwise(loss))


_OTHER_NAMES = {  # what other libraries call a loss
    **dict.fromkeys(("mae", "l1", "l1_loss", "mean_absolute_error"), "nn.L1Loss()"),
    **dict.fromkeys(
        ("ce", "nll", "nll_loss", "xent", "categorical_crossentropy"), "'cross_entropy'"
    ),
    **dict.fromkeys(("bce", "binary_cross_entropy", "binary_crossentropy"), "'bce_with_logits'"),
    **dict.fromkeys(("l2", "mean_squared_error"), "'mse'"),
    "smooth_l1": "nn.SmoothL1Loss()",
}


def _refuse_name(op: str, loss: str, argument: str) -> NoReturn:
    """Raises for a name that no loss has."""
    key = loss.lower().replace("-", "_").replace(" ", "_")
    near = [name for name in NAMES if key and (name.startswith(key) or key.startswith(name))]
    near = near or difflib.get_close_matches(key, NAMES, 1, 0.5)
    meant = _OTHER_NAMES.get(key) or (repr(near[0]) if near else "")
    guess = f"did you mean {meant}? " if meant else ""
    remedy = f"{guess}torch's losses and callables loss(outputs, targets) are taken as well"
    value_error(op, argument, f"be one of {', '.join(NAMES)}", repr(loss), remedy)


def _refuse_kind(op: str, loss: object, argument: str) -> NoReturn:
    """Raises for what is neither a name nor a callable that gives losses."""
    wanted = f"be one of {', '.join(NAMES)}, a torch loss or a callable loss(outputs, targets)"
    if isinstance(loss, type):
        name = loss.__name__
        type_error(op, argument, wanted, f"the class {name}", f"pass an instance, {name}(...)")
    type_error(op, argument, wanted, repr(loss))


def _check_parameters(op: str, loss: Any, name: str, argument: str) -> None:
    """Checks that a callable takes outputs and targets, if it says what it takes."""
    is_module = isinstance(loss, nn.Module) and type(loss).__call__ is nn.Module.__call__
    try:
        signature = inspect.signature(loss.forward if is_module else loss)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(None, None)
    except TypeError:
        got = f"{name}({', '.join(signature.parameters)})"
        remedy = "wrap it in a function of these two"
        type_error(op, argument, "take the outputs and targets of one task", got, remedy)
