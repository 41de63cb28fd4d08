"""Makes modules that torch cannot differentiate twice under vmap, or differentiates wrongly, right.

Facts about torch (seen on 2.13) that a meta-gradient meets:
- The batching rules of layer_norm, batch_norm and instance_norm *with* weight and bias split their
  backward into parts in which the saved mean and variance are constants. An autograd gradient of
  vmap(grad(...)) then lacks a term, without a warning (pytorch/functorch#534). Without weight and
  bias they are right, so these are applied apart.
- `torch._weight_norm`, which `parametrizations.weight_norm` and the hooks of the older one call,
  keeps the norms as constants: it passes `gradcheck` and fails `gradgradcheck`. So does layer_norm
  with a bias alone. The third derivative of layer_norm, and of batch_norm and instance_norm by the
  statistics of the pass, is wrong in any form, as their second derivatives keep them as constants.
- The batching rule of the derivative of embedding forgets `padding_idx`, that of cdist is wrong,
  and cdist has no second derivative; group_norm with a bias alone raises in its own.
- The fused attention kernels have no second derivative; the math kernel has all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from innerloop._real_forward import replaced_in


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Returns weight * x + bias with both seen in a shape that broadcasts."""
    if weight is not None:
        x = x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _channels(x: Tensor) -> list[int]:
    """Returns the shape in which one value per channel broadcasts over x [rows, channels, ...]."""
    return [-1, *[1] * (x.ndim - 2)]


def _normed(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Returns (x - mean) / (variance + eps)^(1/2) over some axes, by its formula."""
    centred = x - x.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    return centred * (variance + eps).rsqrt()


def _by_formula(x: Tensor, axes: Sequence[int]) -> bool:
    """Says whether a norm over some axes may be computed so: torch's own sums narrow numbers in
    float32, and refuses to norm one number."""
    wide = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(
        x.device.type
    )
    return wide and any([x.shape[axis] > 1 for axis in axes])  # noqa: C419  (for torch.compile)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """torch.layer_norm and F.layer_norm."""
    axes = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    if tuple(input.shape[input.ndim - len(normalized_shape) :]) == tuple(
        normalized_shape
    ) and _by_formula(input, axes):
        x = _normed(input, axes, eps)
    else:
        x = F.layer_norm(input, normalized_shape, None, None, eps)
    return _affine(x, weight, bias, list(normalized_shape))


def _functional_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm."""
    axes = (0, *range(2, input.ndim))
    if running_mean is None and training and input.ndim > 1 and _by_formula(input, axes):
        x = _normed(input, axes, eps)
    else:
        x = F.batch_norm(input, running_mean, running_var, None, None, training, momentum, eps)
    return _affine(x, weight, bias, _channels(input))


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """torch.batch_norm."""
    return _functional_batch_norm(
        input, running_mean, running_var, weight, bias, training, momentum, eps
    )


def _functional_instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.instance_norm."""
    axes = tuple(range(2, input.ndim))
    if running_mean is None and use_input_stats and axes and _by_formula(input, axes):
        x = _normed(input, axes, eps)
    else:
        x = F.instance_norm(
            input, running_mean, running_var, None, None, use_input_stats, momentum, eps
        )
    return _affine(x, weight, bias, _channels(input))


def _instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """torch.instance_norm."""
    return _functional_instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """torch._weight_norm: g v / |v|, with a norm for each entry along an axis, or with one for all
    (-1)."""
    axes = [axis for axis in range(v.ndim) if dim == -1 or axis != dim % v.ndim]
    length = torch.linalg.vector_norm(v, dim=axes, keepdim=dim != -1) if axes else v.abs()
    return v * (g / length)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """F.embedding, with a padding row that is a constant, and gradients divided by frequencies."""
    beyond = padding_idx is not None and not -len(weight) <= padding_idx < len(weight)
    if max_norm is not None or beyond:
        rest = max_norm, norm_type, scale_grad_by_freq, sparse
        return F.embedding(input, weight, padding_idx, *rest)
    if padding_idx is not None:
        kept = torch.arange(len(weight), device=weight.device) != padding_idx % len(weight)
        weight = torch.where(kept[:, None], weight, weight.detach())
    found = F.embedding(input, weight, sparse=sparse and not scale_grad_by_freq)
    if not scale_grad_by_freq:
        return found
    flat = input.reshape(-1)
    often = (flat[:, None] == flat).sum(1).reshape(*input.shape, 1)
    scaled = found / often
    return scaled + (found - scaled).detach()


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """F.group_norm and torch.group_norm."""
    return _affine(F.group_norm(input, num_groups, None, None, eps), weight, bias, _channels(input))


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """torch.cdist, written out."""
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p != 2:
        distance: Tensor = torch.linalg.vector_norm(difference, p, dim=-1)
        return distance
    square = (difference * difference).sum(-1)  # a point has no slope to itself, and no curvature
    return torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0)


# by function of torch, what to call in its place
EXACT: dict[Any, Callable[..., Tensor]] = {
    torch._weight_norm: _weight_norm,
    F.embedding: _embedding,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    torch.cdist: _cdist,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.batch_norm: _functional_batch_norm,
    torch.batch_norm: _batch_norm,
    F.instance_norm: _functional_instance_norm,
    torch.instance_norm: _instance_norm,
}


for _function in EXACT:  # as they are on import
    replaced_in(_function)


def traceable(func: Any) -> Any:
    """Returns a function of torch, or one that does the same and that torch.compile can trace where
    a function mode hands it on."""
    return torch.unflatten if func is Tensor.unflatten else func


class _Exact(TorchFunctionMode):
    """Replaces what torch differentiates wrongly: normalisations by versions whose weight and bias
    act apart, weight norm by its formula, embeddings by ones whose padding is a constant."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        """Calls the replacement of a function if it has one."""
        exact = EXACT.get(func)
        if exact is None:
            return traceable(func)(*args, **(kwargs or {}))
        replaced = None if torch.compiler.is_compiling() else replaced_in(func)
        if replaced:
            raise NotImplementedError(
                f"predict: model must call torch's own functions (got {replaced} in place of one, "
                "which would not be called); put it back"
            )
        return exact(*args, **(kwargs or {}))


@contextmanager
def exact_curvature() -> Iterator[None]:
    """Within it, modules have the second derivatives that an inner loop needs."""
    with sdpa_kernel(SDPBackend.MATH), _Exact():
        yield
