"""Says which derivatives torch may be about to take of a call: by autograd, by the transforms of
torch.func, or in forward mode, whose tangents travel unseen with ordinary tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

NO_COMPILED_FORWARD = (
    "innerloop: forward-mode derivatives are not provided under torch.compile; leave the call "
    'outside of it, or use backend="torch"'
)


def transforms_active() -> bool:
    """Says whether a torch.func transform (vmap, grad, ...) is running."""
    return torch._C._are_functorch_transforms_active()


def forward_mode() -> bool:
    """Says whether a level of forward mode is entered (by anyone), so that tensors may have
    tangents."""
    return forward_ad._current_level >= 0


def wants_grad(tensors: Iterable[Tensor | None]) -> bool:
    """Says whether autograd would record an operation on these tensors."""
    if torch.is_grad_enabled():
        for value in tensors:
            if value is not None and value.requires_grad:
                return True
    return False


def have_tangents(tensors: Iterable[Tensor | None]) -> bool:
    """Says whether forward mode would carry tangents through an operation on these tensors.

    Raises:
        RuntimeError: torch.compile is tracing, whose tensors show no tangents. Unless told
            otherwise it then leaves the frame to eager execution.
    """
    if forward_ad._current_level < 0:
        return False
    if torch.compiler.is_compiling():
        raise RuntimeError(NO_COMPILED_FORWARD)
    if torch._C._is_fwd_grad_enabled():
        for value in tensors:
            if value is not None and forward_ad.unpack_dual(value).tangent is not None:
                return True
    return False


def is_differentiated(value: Tensor) -> bool:
    """Says whether a derivative in this tensor is wanted, under whatever transforms it lies."""
    if torch.is_grad_enabled() and value.requires_grad:
        return True
    if torch.compiler.is_compiling():
        return have_tangents(())  # raises in forward mode
    while True:
        wrapped = _functorch.is_functorch_wrapped_tensor(value)
        if not _functorch.is_batchedtensor(value) and have_tangents((value,)):
            return True
        if not wrapped:
            return False
        value = _functorch.get_unwrapped(value)
        if torch.is_grad_enabled() and value.requires_grad:
            return True


def is_batched(value: Tensor) -> bool:
    """Says whether a tensor stands for a batch of such: of torch.vmap, or of the older vmap inside
    torch.autograd (is_grads_batched, jacobian(vectorize=True))."""
    return _functorch.is_batchedtensor(value) or _functorch.is_legacy_batchedtensor(value)
