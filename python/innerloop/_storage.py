"""Finds arguments whose numbers are not in memory, which native code and torch's own kernels would
read all the same: tensors whose storage was freed or shrunk under them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from innerloop import _checks
from innerloop._derivatives import transforms_active

_PLAIN = (Tensor, nn.Parameter)


def check_memory(op: str, **arguments: Any) -> None:
    """Checks that every tensor in some arguments has its numbers in memory, before torch reads
    them. Tensors that live in a transform or a mode of torch are its own affair.

    Raises:
        ValueError: one has not; the text names it.
    """
    if torch.compiler.is_compiling() or transforms_active() or torch._C._len_torch_dispatch_stack():
        return
    for name, value in _tensors(arguments):
        missing = _missing_bytes(value)
        if missing:
            _checks.refuse_memory(op, name, value, missing)


def refuse_unreadable(
    function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], error: BufferError
) -> NoReturn:
    """Raises because an argument of an operation could not be read, neither by the kernels nor by
    way of torch's dispatcher.

    Raises:
        ValueError: its storage was freed or shrunk; the text has the caller's name for it.
        TypeError: it is a tensor of a kind that does not unwrap for this operation.
    """
    op = function.__name__
    arguments = signature(function).bind(*args, **kwargs).arguments
    check_memory(op, **arguments)
    kinds = {name: type(value) for name, value in _tensors(arguments)}
    odd = [name for name, kind in kinds.items() if kind not in _PLAIN]
    if not odd:
        raise ValueError(f"{op}: {error}; {_checks.PLAIN_REMEDY}") from None
    _checks.refuse_kind(op, odd[0], kinds[odd[0]])


_MEMBERS = ("x", "y", "count", "weight")


def _tensors(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors in some arguments with the names that messages use."""
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _tensors({f"{name}[{key!r}]": each for key, each in value.items()})
        elif isinstance(value, (tuple, list)):
            yield from _tensors(dict(zip((f"{name} {m}" for m in _MEMBERS), value, strict=False)))


def _missing_bytes(value: Tensor) -> int:
    """Returns how many bytes a tensor's storage lacks; 0 as well for kinds that have none to
    lack."""
    if value.device.type == "meta" or value.numel() == 0 or value._is_zerotensor():
        return 0
    try:
        held = value.untyped_storage().nbytes()
        last = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
        needed = (value.storage_offset() + last + 1) * value.element_size()
    except (RuntimeError, NotImplementedError):  # a wrapper, which torch or its class unwraps
        return 0
    return max(int(needed) - int(held), 0)
