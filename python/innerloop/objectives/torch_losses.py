"""Objective: torch's losses that mean a named one, and what their options mean: for the kernels a
name and constants (csrc/core/objectives), in plain PyTorch the values of rows."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from innerloop._real_forward import Kind
from innerloop.objectives.named import NAMED, check_classes, mean_over_outputs
from innerloop.objectives.objective import Function, Objective


class Numbers(NamedTuple):
    """The numbers of a tensor with at most one axis, and its dtype."""

    values: tuple[float, ...]
    dtype: torch.dtype

    def like(self, z: Tensor) -> Tensor:
        """Returns them as a tensor of the kind of another, 0-d for a single one."""
        numbers = self.values if len(self.values) != 1 else self.values[0]
        return torch.tensor(numbers, dtype=z.dtype, device=z.device)


Option = float | Numbers | None
_TINY = torch.finfo(torch.float32).tiny  # a smaller range than any difference of outputs


class Variant(NamedTuple):
    """A loss of torch with certain options.

    Members:
        kernel: the name of its kernel.
        constants: what the kernel is told.
        rows: (outputs [N, ...], targets [N, ...]) -> values of the rows [N].
        class_weights: what the mean over a task's rows divides by is the sum of these over the
            classes of its rows; empty: their number.
        outputs: how many outputs its tensors are for; 0: any.
        dtype: that its tensors have, which must be the outputs'; None: any.
    """

    kernel: str
    constants: tuple[float, ...]
    rows: Function
    class_weights: tuple[float, ...] = ()
    outputs: int = 0
    dtype: torch.dtype | None = None


# ---------------------------------------------------------------- options


def _huber(*, delta: float) -> Variant | None:
    """Returns huber's loss, or None if torch refuses the options."""
    if not 0 < delta < math.inf:
        return None
    values = functools.partial(F.huber_loss, reduction="none", delta=delta)
    return Variant("huber", (delta, delta), mean_over_outputs(values))


def _smooth_l1(*, beta: float) -> Variant | None:
    """Returns huber's loss over beta, |z - y| for 0, or None if torch refuses the options."""
    if not 0 <= beta < math.inf:
        return None
    beta = beta if beta >= _TINY else 0.0
    values = functools.partial(F.smooth_l1_loss, reduction="none", beta=beta)
    return Variant("huber", (beta, 1.0), mean_over_outputs(values))


def _cross_entropy(*, weight: Numbers | None, label_smoothing: float) -> Variant | None:
    """Returns cross entropy with classes as targets, or None if torch refuses the options."""
    if not 0 <= label_smoothing <= 1:
        return None

    def rows(z: Tensor, y: Tensor) -> Tensor:
        check_classes(z, y)
        return F.cross_entropy(
            z,
            y,
            weight=None
            if weight is None
            else torch.tensor(weight.values, dtype=z.dtype, device=z.device),
            label_smoothing=label_smoothing,
            reduction="none",
        )

    values = () if weight is None else weight.values
    dtype = None if weight is None else weight.dtype
    constants = (label_smoothing, *values)
    return Variant("soft_cross_entropy", constants, rows, values, len(values), dtype)


def _bce_with_logits(*, weight: Numbers | None, pos_weight: Numbers | None) -> Variant | None:
    """Returns binary cross entropy of logits, or None if the options are for different numbers of
    outputs."""
    whole, positive = (Numbers((1.0,), torch.float64) if v is None else v
                       for v in (weight, pos_weight))  # fmt: skip
    sizes = {len(whole.values), len(positive.values)} - {1}
    if len(sizes) > 1:
        return None
    outputs = max(sizes, default=1)

    def values(z: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            z, y, weight=whole.like(z), pos_weight=positive.like(z), reduction="none"
        )

    b = whole.values * (outputs // len(whole.values))
    scale = positive.values * (outputs // len(positive.values))
    a = tuple(v * s for v, s in zip(b, scale, strict=True))
    rows = mean_over_outputs(values)
    return Variant("weighted_bce", (*a, *b), rows, outputs=max(sizes, default=0))


# ---------------------------------------------------------------- the losses


class TorchLoss(NamedTuple):
    """A loss of torch, as a class and as a function, and the named loss that it is with `usual`
    options. `alone` is a set of the kind. `variant` takes the options that may be others and says
    what it is with them; the rest must be as usual."""

    kind: Kind
    alone: frozenset[Kind]
    function: Function
    usual: Mapping[str, Any]
    objective: Objective
    variant: Callable[..., Variant | None] | None
    free: tuple[str, ...]


def _torch_loss(
    objective: Objective,
    cls: type[nn.Module],
    function: Function,
    variant: Callable[..., Variant | None] | None = None,
    *,
    fixed: Mapping[str, Any] | None = None,
    **free: object,
) -> TorchLoss:
    """Returns one row of the table below."""
    objective = dataclasses.replace(objective, strict=True)
    if objective.classes:
        objective = dataclasses.replace(
            objective, strict=False, ignored=-100, probabilities=function
        )
    kind, usual = Kind(cls), {"reduction": "mean", **(fixed or {}), **free}
    return TorchLoss(kind, frozenset([kind]), function, usual, objective, variant, tuple(free))


_L1 = _smooth_l1(beta=0.0)
assert _L1 is not None
_ABSOLUTE = Objective("L1Loss", _L1.rows, kernel=_L1.kernel, constants=_L1.constants)
TORCH = (
    _torch_loss(NAMED["mse"], nn.MSELoss, F.mse_loss),
    _torch_loss(
        NAMED["cross_entropy"],
        nn.CrossEntropyLoss,
        F.cross_entropy,
        _cross_entropy,
        fixed={"ignore_index": -100},
        weight=None,
        label_smoothing=0.0,
    ),
    _torch_loss(
        NAMED["bce_with_logits"],
        nn.BCEWithLogitsLoss,
        F.binary_cross_entropy_with_logits,
        _bce_with_logits,
        weight=None,
        pos_weight=None,
    ),
    _torch_loss(NAMED["huber"], nn.HuberLoss, F.huber_loss, _huber, delta=1.0),
    _torch_loss(NAMED["huber"], nn.SmoothL1Loss, F.smooth_l1_loss, _smooth_l1, beta=1.0),
    _torch_loss(_ABSOLUTE, nn.L1Loss, F.l1_loss),
)
