"""Objective: recognises torch's losses, as instances, functions or partials: each is a named loss,
one with options that the kernels have, or itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from innerloop._checks.messages import kind
from innerloop._checks.options import plain_number
from innerloop._derivatives import is_differentiated
from innerloop._real_forward import changes_of_torch, own_forward, torch_unchanged
from innerloop.objectives.objective import Function, Objective, name_of
from innerloop.objectives.torch_losses import TORCH, Numbers, Option, TorchLoss

_BY_CLASS = {known.kind.cls: known for known in TORCH}
# others whose targets, says torch, have the shape of the outputs
_ELEMENTWISE: tuple[object, ...] = (
    *(nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.KLDivLoss),
    *(F.poisson_nll_loss, F.soft_margin_loss, F.kl_div),
)


def _changed(known: TorchLoss, loss: nn.Module | None) -> str | None:
    """Returns what makes a torch loss, this instance or the function, compute something else than
    torch wrote, in words, or None: the rule that layers are held to as well."""
    changed = None if loss is None else own_forward(loss, known.kind)
    if changed is None and (torch.compiler.is_compiling() or not torch_unchanged(known.alone)):
        changed = changes_of_torch(known.kind)
    return changed


def _of_torch(
    known: TorchLoss, called: str, options: Mapping[str, Any], loss: Function, changed: str | None
) -> Objective:
    """Returns the objective of a torch loss with options: the named one, one with the options for
    the kernels, else itself. `changed` says what makes it something else than torch wrote."""
    name = known.kind.cls.__name__ if isinstance(loss, nn.Module) else known.function.__name__
    if changed is not None:
        return Objective(called, function=loss, reason=f"{name} cannot be fused: {changed}")
    fixed = [k for k in known.usual if k not in known.free and options[k] != known.usual[k]]
    plain, reason = _plain({k: options[k] for k in known.free})
    if fixed:
        usual = ", ".join(f"{k}={known.usual[k]!r}" for k in fixed)
        reason = f"the loss {called} has no kernel, only {name}({usual}) has one"
    elif not reason:
        found = _with_options(known, called, plain)
        if found is not None:
            return found
        reason = f"the loss {called} has no kernel"
    return dataclasses.replace(
        known.objective,
        name=called,
        rows=None,
        function=loss,
        reason=reason,
        ignored=options.get("ignore_index"),
    )


def _numbers_of(name: str, value: Tensor) -> Numbers | str:
    """Returns the numbers of a tensor that a loss holds, or why it cannot be told to the kernels.
    They are read anew at each call, since they may be changed in place."""
    if torch.compiler.is_compiling():
        return f"torch.compile does not read the numbers of its {name}"
    if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided:
        return f"its {name} is no plain tensor"
    if is_differentiated(value):
        return f"its {name} is differentiated"
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return f"a transform hides the numbers of its {name}"
    if value.device.type != "cpu":
        return f"its {name} is on {value.device}, and kernels get such numbers from the CPU alone"
    if value.ndim > 1 or value.numel() == 0:
        return f"its {name} has shape {list(value.shape)}, not one number for each output"
    return Numbers(tuple(value.detach().reshape(-1).tolist()), value.dtype)


def _plain(options: Mapping[str, Any]) -> tuple[dict[str, Option], str]:
    """Returns options as plain numbers, and why that is not possible."""
    plain: dict[str, Option] = {}
    for name, value in options.items():
        if isinstance(value, Tensor):
            found = _numbers_of(name, value)
            if isinstance(found, str):
                return {}, f"the loss cannot be fused: {found}"
            plain[name] = found
        elif value is None or isinstance(value, (int, float)):
            plain[name] = None if value is None else float(value)
        else:
            return {}, f"the loss cannot be fused: its {name} is {kind(value)}"
    return plain, ""


def _with_options(known: TorchLoss, called: str, options: Mapping[str, Option]) -> Objective | None:
    """Returns the objective of a torch loss with options for the kernels, or None if torch refuses
    them: the same object each time, since what is known about a call is known for this object."""
    if all(options[k] == known.usual[k] for k in known.free):
        return known.objective
    if torch.compiler.is_compiling():  # which does not go through caches
        return _made_with_options(known.kind.cls, called, *options.values())
    return _remembered_with_options(known.kind.cls, called, *options.values())


def _made_with_options(cls: type[nn.Module], called: str, *values: Option) -> Objective | None:
    """Returns `_with_options`, from the values in the order of `free`."""
    known = _BY_CLASS[cls]
    options = dict(zip(known.free, values, strict=True))
    found = None if known.variant is None else known.variant(**options)
    if found is None:
        return None
    probabilities = None
    if known.objective.probabilities is not None:
        tensors = {
            k: torch.tensor(v.values, dtype=v.dtype) if isinstance(v, Numbers) else v
            for k, v in options.items()
        }
        probabilities = functools.partial(known.function, **tensors)
    return dataclasses.replace(
        known.objective,
        name=called,
        rows=found.rows,
        kernel=found.kernel,
        constants=found.constants,
        class_weights=found.class_weights,
        outputs=found.outputs,
        dtype=found.dtype,
        probabilities=probabilities,
    )


_remembered_with_options: Callable[..., Objective | None] = functools.lru_cache(maxsize=256)(
    _made_with_options
)


def _of_instance(loss: nn.Module, known: TorchLoss) -> Objective:
    """Returns the objective of an instance of a torch loss."""
    options = {k: getattr(loss, k) for k in known.usual}
    options = {k: plain_number(v) if type(v) is float else v for k, v in options.items()}
    texts = [
        f"{k}={'...' if isinstance(v, Tensor) else repr(v)}"
        for k, v in options.items()
        if isinstance(v, Tensor) or v != known.usual[k]
    ]
    called = f"{known.kind.cls.__name__}({', '.join(texts)})"
    return _of_torch(known, called, options, loss, _changed(known, loss))


def _of_function(loss: Any) -> Objective | None:
    """Returns the objective of a torch loss given as a function, or of a functools.partial of it
    with options that the kernels have; None of anything else."""
    is_partial = type(loss) is functools.partial
    function = loss.func if is_partial else loss
    given: Mapping[str, Any] = loss.keywords if is_partial else {}
    for known in TORCH:
        if function is known.function:
            break
    else:
        return None
    if not is_partial:
        return _of_torch(known, function.__name__, known.usual, loss, _changed(known, None))
    if torch.compiler.is_compiling() or loss.args or not given.keys() <= known.usual.keys():
        return None
    changed, options = _changed(known, None), {**known.usual, **given}
    found = _of_torch(known, name_of(loss), options, loss, changed)
    return found if found.is_fused else None


def torch_objective(loss: Any) -> Objective | None:
    """Returns the objective of one of torch's losses; None of anything else."""
    if isinstance(loss, nn.Module):
        known = _BY_CLASS.get(type(loss))
        return None if known is None else _of_instance(loss, known)
    return _of_function(loss)


def is_elementwise(loss: Any) -> bool:
    """Says whether the targets of a loss without kernel, says torch, have the outputs' shape."""
    return type(loss) in _ELEMENTWISE or any(loss is known for known in _ELEMENTWISE)


def suited(objective: Objective, *batches: Any) -> Objective:
    """Returns the objective for the targets of these batches (x, y, ...): torch's cross entropy
    takes probabilities [N, K] as well as classes."""
    if objective.probabilities is None or objective.rows is None:
        return objective
    for batch in batches:
        y = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        if isinstance(y, Tensor) and y.is_floating_point():
            return Objective(
                objective.name,
                function=objective.probabilities,
                reason="cross entropy with probabilities as targets has no kernel, only that with "
                "classes",
            )
    return objective
