"""What torch's losses mean with their options: for the kernels a name and constants
(csrc/core/objectives), in plain PyTorch the values of rows. Depends on torch alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from innerloop._derivatives import is_differentiated

Function = Callable[..., Tensor]


class Numbers(NamedTuple):
    """The numbers of a tensor with at most one axis, and its dtype."""

    values: tuple[float, ...]
    dtype: torch.dtype

    def like(self, z: Tensor) -> Tensor:
        """Returns them as a tensor of the kind of another, 0-d for a single one."""
        return z.new_tensor(self.values if len(self.values) != 1 else self.values[0])


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


def numbers_of(name: str, value: Tensor) -> Numbers | str:
    """Returns the numbers of a tensor that a loss holds, or why it cannot be told to the kernels.
    They are read anew at each call, since they may be changed in place."""
    if torch.compiler.is_compiling():
        return f"torch.compile does not read the numbers of its {name}"
    if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided:
        return f"its {name} is no plain tensor"
    if is_differentiated(value):
        return f"its {name} is differentiated"
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return f"a transform hides the numbers of its {name}"
    if value.device.type != "cpu":
        return f"its {name} is on {value.device}, and kernels get such numbers from the CPU alone"
    if value.ndim > 1 or value.numel() == 0:
        return f"its {name} has shape {list(value.shape)}, not one number for each output"
    return Numbers(tuple(value.detach().reshape(-1).tolist()), value.dtype)


# ---------------------------------------------------------------- the losses


def check_classes(z: Tensor, y: Tensor) -> None:
    """Checks the outputs [N, K] and classes [N] of one task."""
    if z.ndim != 2 or y.ndim != 1:
        raise ValueError(
            "reference: model outputs must have shape [T, N, K] for y [T, N] with cross entropy "
            f"(got rows of shape {list(z.shape[1:])} for targets of shape {list(y.shape[1:])})"
        )


def mean_over_outputs(values: Function) -> Function:
    """Returns the rows whose values are the means of `values` over their outputs."""

    def rows(z: Tensor, y: Tensor) -> Tensor:
        if z.reshape(len(z), -1).shape != y.reshape(len(y), -1).shape:
            raise ValueError(
                "reference: y must have one value per output of the model "
                f"(got {y[0].numel()} targets for {z[0].numel()} outputs)"
            )
        return values(z, y.reshape(z.shape)).reshape(len(z), -1).mean(1)

    return rows


def huber(*, delta: float) -> Variant | None:
    """Returns huber's loss, or None if torch refuses the options."""
    if not 0 < delta < math.inf:
        return None
    values = functools.partial(F.huber_loss, reduction="none", delta=delta)
    return Variant("huber", (delta, delta), mean_over_outputs(values))


def smooth_l1(*, beta: float) -> Variant | None:
    """Returns huber's loss over beta, |z - y| for 0, or None if torch refuses the options."""
    if not 0 <= beta < math.inf:
        return None
    beta = beta if beta >= _TINY else 0.0
    values = functools.partial(F.smooth_l1_loss, reduction="none", beta=beta)
    return Variant("huber", (beta, 1.0), mean_over_outputs(values))


def cross_entropy(*, weight: Numbers | None, label_smoothing: float) -> Variant | None:
    """Returns cross entropy with classes as targets, or None if torch refuses the options."""
    if not 0 <= label_smoothing <= 1:
        return None

    def rows(z: Tensor, y: Tensor) -> Tensor:
        check_classes(z, y)
        return F.cross_entropy(
            z,
            y,
            weight=None if weight is None else z.new_tensor(weight.values),
            label_smoothing=label_smoothing,
            reduction="none",
        )

    values = () if weight is None else weight.values
    dtype = None if weight is None else weight.dtype
    constants = (label_smoothing, *values)
    return Variant("soft_cross_entropy", constants, rows, values, len(values), dtype)


def bce_with_logits(*, weight: Numbers | None, pos_weight: Numbers | None) -> Variant | None:
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
