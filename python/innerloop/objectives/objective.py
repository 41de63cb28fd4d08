"""Objective: what one loss is to everything inside the package, and what a callable gives for one
task. Depends on torch alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from innerloop._checks.messages import kind, sizes
from innerloop._derivatives import plain_questions, transforms_active

Function = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class FusedObjective:
    """An objective as the kernels know it: its name and the constants that its struct documents
    (csrc/core/objectives)."""

    name: str
    constants: tuple[float, ...] = ()
    text: str = dataclasses.field(init=False, compare=False)  # canonical

    def __post_init__(self) -> None:
        """Makes the text once: under torch.compile constants may be symbols, which have none."""
        object.__setattr__(self, "text", ":".join((self.name, *map(repr, self.constants))))

    @classmethod
    def of(cls, text: str) -> FusedObjective:
        """Returns what a text stands for."""
        name, *constants = text.split(":")
        return cls(name, tuple(map(float, constants)))


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """One loss, as everything inside the package sees it.

    Members:
        name: of the named loss that it is, or what a callable is called.
        rows: (outputs [N, ...], targets [N, ...]) -> values of the rows [N], of which a task's loss
            is the mean; None if `function` gives the loss.
        function: (outputs, targets) -> the loss of one task, 0-d, or values of its rows [N].
        reason: why the fused operations do not have it; empty if they do.
        strict: targets must have the shape of the outputs, or torch would broadcast them.
        classes: int64 targets [N] are classes, so that accuracies can be counted.
        ignored: a class whose rows are left out.
        kernel: the name of its kernel, if that is not `name`.
        constants: what the kernel is told of it.
        class_weights: what a row of each class counts for in the mean over rows; empty: 1.
        outputs: how many outputs its options are for; 0: any.
        dtype: that the outputs must have for its options; None: any.
        probabilities: the same loss with probabilities as targets, if it takes any.
        fused: what the kernels are given.
        is_policy: it measures a `GaussianMLP` on a `PolicyBatch`; `rows` then takes the policy's
            log_std as well.
    """

    name: str
    rows: Function | None = None
    function: Function | None = None
    reason: str = ""
    strict: bool = False
    classes: bool = False
    ignored: int | None = None
    kernel: str = ""
    constants: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()
    outputs: int = 0
    dtype: torch.dtype | None = None
    probabilities: Function | None = None
    is_policy: bool = False
    fused: FusedObjective = dataclasses.field(init=False)

    @property
    def is_fused(self) -> bool:
        """Whether the fused operations have it."""
        return not self.reason

    def __post_init__(self) -> None:
        """Describes it for the kernels."""
        object.__setattr__(self, "fused", FusedObjective(self.kernel or self.name, self.constants))

    def divisor(self, used: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns what the mean over a task's rows in use [..., N], with targets y, divides by
        [...]: their number, or the sum of their class weights, NaN where that is 0; 1 without
        rows."""
        if not self.class_weights:
            return used.sum(-1).clamp(min=1).to(dtype)
        weights = torch.tensor(self.class_weights, dtype=dtype, device=y.device)
        total = torch.where(used, weights[y], 0).sum(-1)
        return torch.where(used.any(-1), torch.where(total == 0, math.nan, total), 1)


def name_of(loss: Any) -> str:
    """Returns what a callable is called, the same for every copy of it."""
    if isinstance(loss, functools.partial):
        fixed = [
            f"{k}=..." if isinstance(v, Tensor) else f"{k}={v!r}" for k, v in loss.keywords.items()
        ]
        return f"partial({', '.join([name_of(loss.func), *fixed])})"
    name = getattr(loss, "__qualname__", None)
    return name.rpartition("<locals>.")[2] if isinstance(name, str) else kind(loss)


def check_shapes(objective: Objective, z: Tensor, y: Tensor) -> None:
    """Checks one task's targets against its outputs where torch would broadcast them."""
    if objective.strict and z.shape != y.shape:
        wanted, got = (["T", *v.shape] for v in (z, y))
        raise ValueError(
            f"reference: y must have the shape of the outputs, {wanted}, for torch's loss, which "
            f"would broadcast them (got {got})".replace("'T'", "T")
        )


def stands_for(objective: Objective) -> Any:
    """Returns what stands for a callable loss: the function itself behind a method of an object."""
    return getattr(objective.function, "__func__", objective.function)


def _version(tensor: Tensor) -> int:
    """Returns how often a tensor was written to, as far as torch counts it."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return int(tensor._version)


def task_value(objective: Objective, z: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """Returns what a callable makes of one task's outputs [N, ...] and targets [N, ...]: its
    number, or the mean, or the sum with weights [N], of its values of rows."""
    assert objective.function is not None
    before = _version(y)
    try:
        with plain_questions():
            value: object = objective.function(z, y)
    except RuntimeError as error:
        if z.requires_grad or transforms_active() or "does not require grad" not in str(error):
            raise
        # it differentiates in the outputs itself, where nobody else does
        with torch.enable_grad():
            return task_value(objective, z.detach().requires_grad_(), y, weight).detach()
    if _version(y) != before:
        raise ValueError(
            f"reference: the loss {objective.name} must not change its targets in place (the next "
            "step would see them changed); let it change a copy"
        )
    got = f"the loss {objective.name} must return"
    if not isinstance(value, Tensor):
        raise TypeError(f"reference: {got} a tensor (got {kind(value)})")
    if not value.is_floating_point():
        raise TypeError(f"reference: {got} a floating-point tensor (got {value.dtype})")
    if z.requires_grad and not value.requires_grad:
        raise ValueError(
            f"reference: {got} something that depends differentiably on the outputs (got a "
            "constant); keep detach(), numpy() and argmax() out of it"
        )
    if value.ndim and value.shape[0] == y.shape[0] == value.numel():
        rows = value.reshape(-1)
        return rows.mean() if weight is None else (weight * rows).sum()
    if value.ndim:
        raise ValueError(
            f"reference: {got} one number, or one value per row [{y.shape[0]}] (got shape "
            f"{sizes(value)}); take means, or sums, over the other axes"
        )
    if weight is not None:
        raise ValueError(
            f"reference: {got} one value per row [N] where rows have weights (got one number); "
            'torch\'s losses do so with reduction="none"'
        )
    return value
