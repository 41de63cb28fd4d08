"""Engine: what to call in place of functions of torch whose second derivative torch gets wrong.

They pass `torch.autograd.gradcheck` and fail `gradgradcheck` (torch 2.13 on a CPU).

`torch._weight_norm`, which `torch.nn.utils.parametrizations.weight_norm` and the hooks of the older
`weight_norm` call, keeps the norms as constants; `layer_norm` with a bias and no weight loses the
derivative of the bias's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Returns g v / |v|, with a norm for each entry along an axis, or with one for all (-1)."""
    axes = [axis for axis in range(v.ndim) if dim == -1 or axis != dim % v.ndim]
    length = torch.linalg.vector_norm(v, dim=axes, keepdim=dim != -1) if axes else v.abs()
    return v * (g / length)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *rest: Any,
    **options: Any,
) -> Tensor:
    """Returns the layer norm, and adds a bias that has no weight beside it afterwards."""
    if weight is not None or bias is None:
        return torch.layer_norm(input, normalized_shape, weight, bias, eps, *rest, **options)
    normed = torch.layer_norm(input, normalized_shape, None, None, eps, *rest, **options)
    return normed + bias


IN_PLACE_OF: dict[Any, Any] = {
    torch._weight_norm: _weight_norm,
    torch.layer_norm: _layer_norm,
    F.layer_norm: _layer_norm,
}
