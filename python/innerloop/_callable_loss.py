"""Objective: what a callable loss looks at besides outputs and targets. The batched operations have
the derivatives of those that look at nothing else; the torch back end runs the others as a loop by
hand would.

A loss is watched wherever the batched operations call it, since it may look elsewhere only for some
outputs. So is the module: what forward() writes to it would be that of another pass.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.overrides import TorchFunctionMode

from innerloop._derivatives import asks_autograd, draws, is_custom, is_foreign
from innerloop._networks import Places
from innerloop._real_forward import is_torchs
from innerloop._scripts import HERE, scripts_refused
from innerloop.objectives import Objective, stands_for, task_value

_OWN_DERIVATIVE = "has a function with a derivative of its own"
_WRITES = "may read what the forward pass writes to the module"
# reasons that were found, by what stands for a callable and the model it was called with
_FOUND: WeakKeyDictionary[Any, WeakKeyDictionary[Any, str]] = WeakKeyDictionary()


class LooksElsewhere(Exception):
    """A loss is no function of outputs and targets alone; the text says what else it looks at."""


def known_reason(objective: Objective, model: object) -> str:
    """Returns what an earlier call found a loss to look at; empty if nothing."""
    if objective.function is not None:
        with contextlib.suppress(TypeError):  # a callable without hash or weak references
            found = _FOUND.get(stands_for(objective))
            return "" if found is None else found.get(model, "")
    return ""


def remember_reason(objective: Objective, model: object, reason: str) -> None:
    """Keeps what a loss was found to look at, or that it was nothing."""
    with contextlib.suppress(TypeError):
        found = _FOUND.setdefault(stands_for(objective), WeakKeyDictionary())
        if reason or model in found:
            found[model] = reason


def reason_against_batched(
    objective: Objective, z: Tensor, y: Tensor, model: object, written: Places
) -> str:
    """Returns what a callable loss looks at besides outputs z and targets y [N, ...], in words;
    empty if nothing. `written`: where the forward pass writes to the module."""
    if objective.function is None:
        return ""
    reason = ""
    if torch.is_grad_enabled() and any(v.requires_grad for v in _held_by(objective.function)):
        reason = f"the loss {objective.name} has variables of its own"
    elif any(not name for _, name in written) and not _is_torchs_loss(objective.function):
        reason = f"the loss {objective.name} {_WRITES}"
    else:
        try:
            with watching(model, written), _Watch(objective, None):
                objective.function(z, y)
                reason = _HERE.found
        except LooksElsewhere as found:
            reason = str(found)
        except Exception:  # what is wrong with it will be said by the operation
            pass
    remember_reason(objective, model, reason)
    return reason


def _held_by(function: Any) -> list[Tensor]:
    """Returns the tensors that a callable is known to hold. Of some torch has no derivative outside
    of torch.vmap (the class weights of cross entropy), so that asking fails."""
    if isinstance(function, nn.Module):
        return [*function.parameters(), *function.buffers()]
    options = function.keywords.values() if isinstance(function, functools.partial) else ()
    return [value for value in options if isinstance(value, Tensor)]


def _is_torchs_loss(function: Any) -> bool:
    """Says whether a callable is a loss of torch, which knows of no module."""
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, nn.Module):
        return type(function).__module__.partition(".")[0] == "torch"
    return is_torchs(function)


# ---------------------------------------------------------------- the watch


class _Here(threading.local):
    """What a loss must not look at just now: the model's parameters by identity, None where nobody
    watches; whether variables of its own are to be differentiated; attributes of parts, by the
    parts' identities. And what it was found to look at, lest it catches the error."""

    def __init__(self) -> None:
        self.own: dict[int, Tensor] | None = None
        self.differentiates = False
        self.spied: dict[int, set[str]] = {}
        self.found = ""


_HERE = _Here()


@contextlib.contextmanager
def watching(model: object, written: Places) -> Iterator[None]:
    """Within it, `watched_value` raises LooksElsewhere where a loss looks at the model, or reads
    what the forward pass writes to it."""
    before = _HERE.own, _HERE.differentiates, _HERE.spied, _HERE.found, HERE.watch
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    spied: dict[int, set[str]] = {}
    for part, name in written:
        spied.setdefault(id(part), set()).add(name)
    parts = {id(part): part for part, _ in written}
    kinds = {key: type(part) for key, part in parts.items()}
    try:
        _HERE.own = {id(parameter): parameter for parameter in parameters}
        _HERE.differentiates, _HERE.found = torch.is_grad_enabled(), ""
        _HERE.spied, HERE.watch = spied, _refuse_script
        for part in parts.values():
            try:
                part.__class__ = _spy(type(part))
            except TypeError:  # a class that has no subclasses of this kind: any loss may read it
                _refuse("a loss", _WRITES)
        with scripts_refused():
            yield
    finally:
        _HERE.own, _HERE.differentiates, _HERE.spied, _HERE.found, HERE.watch = before
        for key, part in parts.items():
            part.__class__ = kinds[key]


_SPIES: WeakKeyDictionary[type, type] = WeakKeyDictionary()


class _Quiet(nn.Module):
    """Keeps the making of a spy from the classes that it is of, which may register subclasses."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Says nothing."""


def _spy(kind: type) -> type:
    """Returns a subclass of a class of modules, whose attributes say when they are read."""
    if kind not in _SPIES:
        plain: Any = kind.__getattribute__

        def read(self: Any, name: str) -> Any:
            names = _HERE.spied.get(id(self))
            if names is not None and (
                name in names or (name == "__dict__" and is_foreign(sys._getframe(1)))
            ):
                _refuse("a loss", _WRITES)
            return plain(self, name)

        body = {"__getattribute__": read, "__module__": kind.__module__, "__doc__": kind.__doc__}
        _SPIES[kind] = type(kind.__name__, (_Quiet, kind), body)
    return _SPIES[kind]


def _refuse_script() -> None:
    """Raises since a loss is TorchScript, of which nobody sees what it computes with."""
    _refuse("a loss", "calls TorchScript")


def watched_value(
    objective: Objective, z: Tensor, y: Tensor, weight: Tensor | None, leaf: Tensor | None = None
) -> Tensor:
    """Returns `task_value`. `leaf`: what autograd differentiates in, of which z is made; None where
    it records nothing.

    Raises:
        LooksElsewhere: somebody watches, and the loss is no function of z and y.
    """
    if _HERE.own is None:
        return task_value(objective, z, y, weight)
    with _Watch(objective, leaf) as watch:
        try:
            value = task_value(objective, z, y, weight)
        except Exception as error:
            if _HERE.found:
                raise LooksElsewhere(_HERE.found) from None
            if watch.failed and not isinstance(error, (RuntimeError, IndexError)):
                _refuse(f"the loss {objective.name}", "handles errors")  # that may be torch.vmap's
            raise
        if watch.failed:  # of torch.vmap's own, or for all tasks since one of them fails
            _refuse(f"the loss {objective.name}", "handles errors")
        if _HERE.found:
            raise LooksElsewhere(_HERE.found)
    if leaf is not None:
        _check_graph(objective, value, leaf)
    return value


class _Watch(TorchFunctionMode):
    """Raises LooksElsewhere where a loss computes with what it was not given."""

    def __init__(self, objective: Objective, leaf: Tensor | None) -> None:
        super().__init__()
        self._name = f"the loss {objective.name}"
        self._own = _HERE.own or {}
        self._looks_for_variables = leaf is None and _HERE.differentiates
        self.failed = False  # whether a function of torch raised an error

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        """Looks at one call."""
        if asks_autograd(func):
            _refuse(self._name, "is about what autograd records (hooks, requires_grad, data)")
        for value in _tensors((args, kwargs or {})):
            if id(value) in self._own:
                _refuse(self._name, "computes with parameters of the module")
            if self._looks_for_variables and _is_variable(value):
                _refuse(self._name, "has variables of its own")
        if draws(func):
            _refuse(self._name, "draws random numbers")
        if is_custom(func):
            _refuse(self._name, _OWN_DERIVATIVE)
        try:
            return func(*args, **(kwargs or {}))
        except Exception:
            self.failed = True
            raise


def _is_variable(value: Tensor) -> bool:
    """Says whether a tensor is differentiated by the autograd outside of transforms."""
    return value.requires_grad and not _functorch.is_functorch_wrapped_tensor(value)


def _refuse(name: str, what: str) -> NoReturn:
    """Raises LooksElsewhere."""
    _HERE.found = f"{name} {what}"
    raise LooksElsewhere(_HERE.found)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nests of tuples, lists and dicts."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, Tensor):
        yield value


def _check_graph(objective: Objective, value: Tensor, leaf: Tensor) -> None:
    """Raises if a value is made of other variables than `leaf`, where these are differentiated, or
    by functions whose derivatives are somebody's own: they need not be linear in the gradient that
    comes to them."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            _refuse(f"the loss {objective.name}", _OWN_DERIVATIVE)
        variable = getattr(node, "variable", leaf)
        if variable is not leaf and _HERE.differentiates:
            _refuse(f"the loss {objective.name}", "has variables of its own")
        waiting.extend(following for following, _ in node.next_functions)
