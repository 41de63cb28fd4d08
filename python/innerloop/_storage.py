"""Finds arguments whose numbers are not in memory, which native code and torch's own kernels would
read all the same: tensors whose storage was freed or shrunk under them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

from innerloop._checks.engine import PLAIN_REMEDY, refuse_functions, refuse_kind, refuse_memory
from innerloop._checks.messages import kind
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
        if is_batchedtensor(value):
            _refuse_foreign(op, {name: value})
        if type(value) not in _PLAIN and has_own_functions(type(value)):
            refuse_functions(op, name, kind(value))
        missing = _missing_bytes(value)
        if missing:
            refuse_memory(op, name, value, missing)


def has_own_functions(cls: type[Tensor]) -> bool:
    """Says whether a class of tensors changes what torch's functions do with them, which torch.func
    would leave out."""
    function = cls.__torch_function__
    default = getattr(Tensor.__torch_function__, "__func__", None)
    disabled = torch._C._disabled_torch_function_impl
    return function is not disabled and getattr(function, "__func__", None) is not default


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
    _refuse_foreign(op, arguments)
    raise ValueError(f"{op}: {error}; {PLAIN_REMEDY}") from None


_USUAL = {"Tensor", "Parameter"}
# what torch says of tensors that an operation of ours, or one of its own, cannot be applied to
_OF_FOREIGN_TENSORS = (
    "Multiple dispatch failed",
    "Batching rule not implemented",
    "Either your tensor may have escaped",
    "Please convert all Tensors to FakeTensors",
    "aten._local_scalar_dense.default",  # of tensors without numbers
)


def check_foreign(
    op: str, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], error: Exception
) -> None:
    """Checks whether an operation failed since an argument is a tensor that torch cannot mix with
    plain ones; to be called with its error.

    Raises:
        TypeError: one is; the text has the caller's name for it.
    """
    if torch.compiler.is_compiling():
        return
    try:
        arguments = signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        return  # a name that the operation does not have, say
    kinds = {kind(value) for _, value in _tensors(arguments)}
    text = str(error)
    if text.startswith(_OF_FOREIGN_TENSORS) or any(f"'{kind}'" in text for kind in kinds - _USUAL):
        _refuse_foreign(op, arguments)


def _refuse_foreign(op: str, arguments: Mapping[str, Any]) -> None:
    """Raises if some arguments hold a tensor that is not plain, naming the first."""
    for name, value in _tensors(arguments):
        if is_batchedtensor(value) and not transforms_active():
            refuse_kind(op, name, "one of a transform that has ended")
        if type(value) not in _PLAIN:
            refuse_kind(op, name, kind(value))


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
