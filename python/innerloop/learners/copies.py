"""Whether a copy of a module computes what the module does: functions that hold parts of it are not
copied, and go on to use those."""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn


def function_that_holds(module: nn.Module) -> str:
    """Returns what a module calls that is a function which holds a part of it: a forward, hook or
    attribute, by name, also in a container. Empty if there is none."""
    own = {id(part) for part in module.modules()} | {id(p) for p in module.parameters()}
    for prefix, part in module.named_modules():
        for name, value in [*vars(part).items(), *_methods(part)]:
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            if any(_holds(function, own, set()) for function in _functions(value, set())):
                return f"{prefix}.{name}" if prefix else name
    return ""


def _methods(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """The methods of a module's own classes that have a closure."""
    for cls in type(part).__mro__:
        if cls.__module__.partition(".")[0] != "torch":
            yield from ((k, v) for k, v in vars(cls).items() if getattr(v, "__closure__", None))


def _functions(value: Any, seen: set[int]) -> Iterator[FunctionType]:
    """The functions that a value is or keeps, by ways that copy.deepcopy follows."""
    if id(value) in seen or isinstance(value, (Tensor, nn.Module, type, ModuleType, str)):
        return
    seen.add(id(value))
    if isinstance(value, FunctionType):
        yield value
        return
    inside: Any = ()
    if isinstance(value, functools.partial):
        inside = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        inside = (value.__func__,)
    elif isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside = value
    elif hasattr(value, "__dict__"):
        inside = vars(value).values()
    for part in list(inside):
        yield from _functions(part, seen)


def _holds(function: FunctionType, own: set[int], seen: set[int]) -> bool:
    """Says whether a function reaches one of some objects by ways that a copy of it keeps."""
    if id(function) in seen:
        return False
    seen.add(id(function))
    return any(_reaches(held, own, seen) for held in _held(function))


def _held(function: FunctionType) -> Iterator[Any]:
    """What a function may use besides its arguments."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name == "__class__":
            continue
        try:
            yield cell.cell_contents
        except ValueError:  # nothing yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in _globals(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


def _globals(code: CodeType) -> Iterator[str]:
    """The global names that a function and those within it read."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)


def _reaches(value: Any, own: set[int], seen: set[int]) -> bool:
    """Says whether a value is, or holds, one of some objects."""
    if isinstance(value, (nn.Module, Tensor)):
        return id(value) in own
    if isinstance(value, FunctionType):
        return _holds(value, own, seen)
    if isinstance(value, MethodType):
        return _reaches(value.__self__, own, seen) or _reaches(value.__func__, own, seen)
    if isinstance(value, functools.partial):
        return _reaches([value.func, *value.args, *value.keywords.values()], own, seen)
    if isinstance(value, dict):
        return any(_reaches(part, own, seen) for part in value.values())
    if isinstance(value, (list, tuple)):
        return any(_reaches(part, own, seen) for part in value)
    return False
