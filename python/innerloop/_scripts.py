"""Engine: functions of TorchScript. torch.func loses derivatives of theirs without a word, and
function modes do not see what they compute with; plain autograd has all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from innerloop._derivatives import transforms_active

_CLASSES: tuple[Any, ...] = (torch._C.ScriptFunction, torch._C.ScriptMethod)
_CALLS = [vars(cls)["__call__"] for cls in _CLASSES]
_LOCK = threading.Lock()
_entered = 0


class _Here(threading.local):
    """What is to happen in this thread where TorchScript is called, besides."""

    def __init__(self) -> None:
        self.watch: Callable[[], None] | None = None


HERE = _Here()


@contextmanager
def scripts_refused() -> Iterator[None]:
    """Within it, calls of TorchScript raise RuntimeError under transforms of torch.func, and call
    `HERE.watch` before. Other threads see nothing of it."""
    global _entered
    if torch.compiler.is_compiling():
        yield
        return
    with _LOCK:
        _entered += 1
        if _entered == 1:
            for cls, original in zip(_CLASSES, _CALLS, strict=True):
                cls.__call__ = _checked(original)
    try:
        yield
    finally:
        with _LOCK:
            _entered -= 1
            if _entered == 0:
                for cls, original in zip(_CLASSES, _CALLS, strict=True):
                    cls.__call__ = original


def _checked(original: Any) -> Callable[..., Any]:
    """Returns the call of a class of TorchScript that looks first who calls."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if HERE.watch is not None:
            HERE.watch()
        if transforms_active():
            raise RuntimeError("it calls TorchScript, of which torch.func loses derivatives")
        return original(self, *args, **kwargs)

    return call
