"""For all four words: what every operation has around it: autocast, modules, unreadable tensors and
errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from innerloop import _calling
from innerloop._storage import check_memory, refuse_unreadable
from innerloop._tasks import alone

P = ParamSpec("P")
R = TypeVar("R")


def autocast_device() -> str | None:
    """Returns the device type whose autocast is on."""
    if not torch._C._is_any_autocast_enabled():
        return None
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            return kind
    return None


def widen(value: Any) -> Any:
    """Returns the same structure with lower-precision floating tensors as float32,
    differentiably."""
    if isinstance(value, Tensor):
        narrow = value.is_floating_point() and value.element_size() < 4
        return value.to(torch.float32) if narrow else value
    if isinstance(value, Mapping):
        return {k: widen(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
        return tuple(widen(v) for v in value)
    return value


def recordable(value: Any) -> Any:
    """Returns the same structure with copies of tensors that come from inference_mode, which
    autograd does not keep."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, Mapping):
        return {k: recordable(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
        parts = [recordable(v) for v in value]
        if type(value) is list:
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def operation(function: Callable[P, R]) -> Callable[P, R]:
    """Returns the operation with its policy for autocast (inputs as float32, autocast off inside),
    for inference_mode (off inside, without gradients: derivatives are a part of what is computed),
    for modules (one Python thread at a time), for tensors that cannot be read and for errors (they
    begin with its name)."""

    def widened(device: str | None, args: Any, kwargs: Any) -> R:
        if device is None:
            return function(*args, **kwargs)
        check_memory(function.__name__, **signature(function).bind(*args, **kwargs).arguments)
        wide = {k: widen(v) for k, v in kwargs.items()}
        with torch.autocast(device, enabled=False):
            return function(*(widen(v) for v in args), **wide)

    def called(args: Any, kwargs: Any) -> R:
        try:
            device = autocast_device()
            if isinstance(kwargs.get("model"), nn.Module):
                with alone():
                    return widened(device, args, kwargs)
            return function(*args, **kwargs) if device is None else widened(device, args, kwargs)
        except BufferError as error:
            unreadable = error
        except _calling.ERRORS as error:
            _calling.restate(error, function.__name__, function, args, kwargs)
            raise
        refuse_unreadable(function, args, kwargs, unreadable)

    # not of itself: what an operation keeps for later calls would wait for the garbage collector
    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return called(args, kwargs)
        with torch.inference_mode(False), torch.no_grad():
            named = {k: recordable(v) for k, v in kwargs.items()}
            return called(tuple(map(recordable, args)), named)

    return wrapped
