"""Engine: what a tensor must be for a back end to read it, and back ends that cannot be had."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from innerloop._checks.messages import kind, sizes, type_error, value_error

BACKENDS = ("auto", "fused", "batched", "torch")
DTYPES = (torch.bfloat16, torch.float32, torch.float64)
PLAIN = (Tensor, nn.Parameter)
PLAIN_REMEDY = 'unwrap it, or use backend="torch"'


def check_tensor(op: str, argument: str, value: object) -> None:
    """Checks that a value is a dense tensor that lives in one piece."""
    if type(value) not in PLAIN:
        if not (isinstance(value, Tensor) and issubclass(type(value), Tensor)):  # no proxy of one
            type_error(op, argument, "be a tensor", kind(value))
        if hasattr(value, "device_mesh"):
            type_error(op, argument, "be a local tensor", kind(value), "call .to_local() first")
        if is_lazy(value):
            remedy = "call its module once: that gives lazy parameters their shapes"
            type_error(op, argument, "be initialised", kind(value), remedy)
    assert isinstance(value, Tensor)
    if is_dense(value):
        return
    if value.is_quantized:
        type_error(op, argument, "be a dense tensor", value.dtype, "call .dequantize() first")
    got = "nested" if value.is_nested else str(value.layout)
    type_error(op, argument, "be a dense tensor", got, "pad the tasks and pass count")


def is_dense(value: Any) -> bool:
    """Says whether a tensor's numbers lie in memory one by one."""
    strided = value.layout is torch.strided
    return strided and not value.is_nested and not value.is_quantized


def check_float(op: str, argument: str, value: Tensor, dtype: torch.dtype, like: str) -> None:
    """Checks that a tensor has the one floating dtype of the call, and that the kernels know it."""
    if value.dtype is not dtype:
        type_error(
            op, argument, f"have the dtype of {like}, {dtype}", value.dtype, "convert one of them"
        )
    if dtype not in DTYPES:
        remedy = "convert it, or use torch.autocast; bfloat16 runs on the batched back end"
        type_error(op, argument, "be float32 or float64", dtype, remedy)


def check_device(op: str, argument: str, value: Tensor, device: torch.device, like: str) -> None:
    """Checks that a tensor lives where the parameters live."""
    if value.device != device:
        value_error(op, argument, f"be on the device of {like}, {device}", value.device)


def check_kernel_dtype(op: str, argument: str, like: Tensor) -> None:
    """Checks that there are kernels for a dtype that was checked to be one of torch's."""
    if like.dtype is torch.bfloat16:
        type_error(op, argument, "be float32 or float64", like.dtype, "convert it")


def refuse_narrow(op: str, dtype: torch.dtype, reason: str) -> NoReturn:
    """Raises because a call in bfloat16 would not run on the batched back end."""
    remedy = "convert it, or use torch.autocast, which keeps the inner loop in float32"
    got = f"{dtype}, which the batched back end alone takes: {reason}"
    type_error(op, "params", "be float32 or float64", got, remedy)


def refuse_memory(op: str, argument: str, value: Tensor, missing: int) -> NoReturn:
    """Raises because a tensor's storage does not hold its numbers."""
    got = f"shape {sizes(value)} with storage that lacks {missing} bytes"
    value_error(op, argument, "have its numbers in memory", got, "gather it before the call")


def refuse_kind(op: str, argument: str, kind: str) -> NoReturn:
    """Raises because a tensor holds its numbers in a way of its own."""
    type_error(op, argument, "be a plain tensor", kind, PLAIN_REMEDY)


def refuse_functions(op: str, argument: str, kind: str) -> NoReturn:
    """Raises because a subclass of tensors changes what torch's functions do."""
    raise NotImplementedError(
        f"{op}: {argument} must be a plain tensor (got {kind}, which has functions of its own); "
        "torch.func does not call these; convert it: .as_subclass(torch.Tensor)"
    )


def refuse_data_grad(op: str, argument: str) -> NoReturn:
    """Raises because a derivative is wanted in something that has none in the fused operations."""
    raise NotImplementedError(
        f"{op}: {argument} must not require grad or have a tangent (got one that does), since the "
        "fused operation has derivatives in params and inner_lr only; detach it or use "
        'backend="torch"'
    )


def refuse_backend(op: str, reason: str, backend: str = "fused") -> NoReturn:
    """Raises because a back end was demanded and cannot be had."""
    raise NotImplementedError(
        f'{op}: backend "{backend}" must be available (got: {reason}); '
        'use backend="torch" or "auto"'
    ) from None
