"""Objective: what a callable loss looks at besides outputs and targets. Those that look at nothing
else have batched derivatives; the torch back end runs the others as a loop by hand would."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from innerloop._batched.precision import wide_dtype, widened
from innerloop._derivatives import asks_autograd
from innerloop._real_forward import is_torchs, names_in
from innerloop.objectives import Objective, stands_for

_MOST_LOOKED_AT = 2000
# reasons that were found, by what stands for a callable and the model it was called with
_FOUND: WeakKeyDictionary[Any, WeakKeyDictionary[Any, str]] = WeakKeyDictionary()


def known_reason(objective: Objective, model: object) -> str:
    """Returns what an earlier call found a loss to look at; empty if nothing."""
    if objective.function is not None:
        with contextlib.suppress(TypeError):  # a callable without hash or weak references
            found = _FOUND.get(stands_for(objective))
            return "" if found is None else found.get(model, "")
    return ""


def reason_against_batched(
    objective: Objective,
    shape: Sequence[int],
    y: Tensor,
    like: Tensor,
    model: object,
    *,
    writes: bool,
) -> str:
    """Returns what a callable loss looks at besides outputs [N, *shape] and targets, in words;
    empty if nothing. It is asked once, with outputs of zero and the first task's targets.

    `writes`: the forward pass writes attributes of the model, which the loss may read.
    """
    if objective.function is None or 0 in y.shape[:2]:
        return ""
    name = f"the loss {objective.name}"
    reason = ""
    if torch.is_grad_enabled() and any(v.requires_grad for v in _held_by(objective.function)):
        reason = f"{name} has variables of its own"
    elif writes and isinstance(model, nn.Module) and could_reach(objective.function, model):
        reason = f"{name} may read what the forward pass writes to the module"
    else:
        watch = _Watch(model.parameters() if isinstance(model, nn.Module) else ())
        z = like.new_zeros(y.shape[1], *shape, dtype=wide_dtype(like.dtype)).detach()
        value: object = None
        # what is wrong with it will be said by the operation
        with contextlib.suppress(Exception), watch:
            value = objective.function(z, widened(y[0].detach()).clone())
        if watch.asks:
            reason = f"{name} is about what autograd records (hooks, requires_grad, data)"
        elif watch.reads_own:
            reason = f"{name} computes with parameters of the module"
        elif isinstance(value, Tensor) and value.requires_grad:
            reason = f"{name} has variables of its own"
    with contextlib.suppress(TypeError):
        found = _FOUND.setdefault(stands_for(objective), WeakKeyDictionary())
        if reason or model in found:
            found[model] = reason
    return reason


def _held_by(function: Any) -> list[Tensor]:
    """Returns the tensors that a callable is known to hold. Of some torch has no derivative outside
    of torch.vmap (the class weights of cross entropy), so that asking fails."""
    if isinstance(function, nn.Module):
        return [*function.parameters(), *function.buffers()]
    options = function.keywords.values() if isinstance(function, functools.partial) else ()
    return [value for value in options if isinstance(value, Tensor)]


class _Watch(TorchFunctionMode):
    """Notes what a loss computes with and asks for."""

    def __init__(self, own: Iterable[Tensor]) -> None:
        super().__init__()
        self._own = {id(parameter): parameter for parameter in own}
        self.asks = self.reads_own = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        """Looks at one call."""
        self.asks = self.asks or asks_autograd(func)
        if not self.reads_own:
            self.reads_own = any(id(v) in self._own for v in _flat((args, kwargs or {})))
        return func(*args, **(kwargs or {}))


def _flat(value: Any) -> Iterator[Any]:
    """Yields what lies in nests of tuples, lists and dicts."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _flat(each)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


# ---------------------------------------------------------------- what a function can see


def could_reach(function: object, module: nn.Module) -> bool:
    """Says whether a callable holds a module, a part of it or something it is a part of: in a
    closure, a default, an attribute, or a global that its code names. True if there is too much to
    look at."""
    parts = {id(part) for part in module.modules()}
    seen: dict[int, object] = {}
    waiting: list[object] = [function]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        if id(value) in parts or len(seen) >= _MOST_LOOKED_AT:
            return True
        seen[id(value)] = value
        waiting.extend(_held(value))
    return False


def _held(value: object) -> Iterator[object]:
    """Yields what an object refers to, as far as code can get at it by names."""
    if isinstance(value, (str, bytes, int, float, complex, type(None), type, ModuleType)):
        return
    if isinstance(value, FunctionType):
        if is_torchs(value):
            return
        yield from (value.__defaults__ or ())
        yield from (value.__kwdefaults__ or {}).values()
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # not filled yet
                yield cell.cell_contents
        for name in names_in(value.__code__):
            if name in value.__globals__:
                yield value.__globals__[name]
        yield from vars(value).values()
    elif isinstance(value, MethodType):
        yield value.__self__
        yield value.__func__
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    elif not isinstance(value, Tensor):
        yield from getattr(value, "__dict__", {}).values()
        yield from (getattr(type(value), name, None) for name in ("__call__", "forward"))
