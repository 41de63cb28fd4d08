"""Whether a copy of a module computes what the module does: functions that hold parts of it are not
copied, and go on to use those."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def function_that_holds(module: nn.Module) -> str:
    """Returns what a module calls that is a function which holds a part of it: a forward, hook or
    attribute, by name. Empty if there is none."""
    own = {id(part) for part in module.modules()} | {id(p) for p in module.parameters()}
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            values = list(value.values()) if name in _HOOKS else [value]
            if any(_holds(each, own, set()) for each in values):
                called = f"a hook ({name})" if name in _HOOKS else name
                return f"{prefix}.{called}" if prefix else called
    return ""


def _holds(value: Any, own: set[int], seen: set[int]) -> bool:
    """Says whether a function reaches something by ways that a copy of the function keeps."""
    if not isinstance(value, FunctionType) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_reaches(held, own, seen) for held in _held(value))


def _held(function: FunctionType) -> Iterator[Any]:
    """What a function may use besides its arguments."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # nothing yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


def _names(code: CodeType) -> Iterator[str]:
    """The global names of a function and of those within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _reaches(value: Any, own: set[int], seen: set[int]) -> bool:
    """Says whether a value is, or holds, one of some objects."""
    if isinstance(value, (nn.Module, Tensor)):
        return id(value) in own
    if isinstance(value, MethodType):
        return _reaches(value.__self__, own, seen) or _holds(value.__func__, own, seen)
    if isinstance(value, functools.partial):
        parts = (value.func, *value.args, *value.keywords.values())
        return any(_reaches(part, own, seen) for part in parts)
    if isinstance(value, (list, tuple)):
        return any(_reaches(part, own, seen) for part in value)
    if isinstance(value, dict):
        return any(_reaches(part, own, seen) for part in value.values())
    return _holds(value, own, seen)
