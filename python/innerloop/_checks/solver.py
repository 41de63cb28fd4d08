"""Solver: the inner loop's steps, order, rates and adapted leaves."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._checks.engine import BACKENDS, DTYPES, check_device, check_float, check_tensor
from innerloop._checks.messages import kind, sizes, type_error, value_error
from innerloop._params import InnerLr, LeafShape, is_number, is_tied, ties_have_steps

MAX_STEPS = 2**24  # more would be no inner loop; sizes made of steps stay far from overflow
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in DTYPES}


def check_options(op: str, steps: int, order: int, backend: str) -> int:
    """Checks the options that are not tensors and returns `steps` as a plain int."""
    if type(steps) is not int or steps < 0:
        if not hasattr(steps, "__index__") or isinstance(steps, (bool, Tensor)):
            type_error(op, "steps", "be an int", repr(steps))
        if steps < 0:
            value_error(op, "steps", "be at least 0", steps)
    if steps > MAX_STEPS:
        value_error(op, "steps", f"be at most {MAX_STEPS}", steps)
    if type(order) is not int or order not in (1, 2):
        value_error(op, "order", "be 1 (first-order) or 2 (exact)", repr(order))
    if backend not in BACKENDS:
        value_error(op, "backend", "be 'auto', 'fused', 'batched' or 'torch'", repr(backend))
    return operator.index(steps)


def check_adapt_params(op: str, adapt_params: object, leaves: Sequence[LeafShape]) -> None:
    """Checks the names of the leaves that the inner loop changes."""
    if isinstance(adapt_params, str) or not isinstance(adapt_params, (Sequence, set, frozenset)):
        type_error(op, "adapt_params", "be a sequence of names or None", kind(adapt_params))
    known = {leaf.name: leaf.is_floating for leaf in leaves}
    for name in adapt_params:
        if name not in known:
            got = repr(name) if isinstance(name, str) else kind(name)
            value_error(op, "adapt_params", f"name parameters of the model {list(known)}", got)
        if not known[name]:
            type_error(op, "adapt_params", "name floating-point parameters", repr(name))


def check_inner_lr(
    op: str,
    inner_lr: InnerLr,
    leaves: Sequence[LeafShape],
    adapted: Sequence[str],
    steps: int,
    like: Tensor,
) -> None:
    """Checks the inner rates: their form, the names of a dict, shapes, dtype and device."""
    if is_number(inner_lr):
        _check_rate(op, "inner_lr", inner_lr, like)
        return
    if isinstance(inner_lr, Tensor):
        check_tensor(op, "inner_lr", inner_lr)
        if inner_lr.ndim > 1 or (inner_lr.ndim == 1 and inner_lr.shape[0] != steps):
            value_error(
                op,
                "inner_lr",
                f"have shape [] or [{steps}], one per step",
                sizes(inner_lr),
                "pass a dict for rates per parameter",
            )
        check_float(op, "inner_lr", inner_lr, like.dtype, "params")
        check_device(op, "inner_lr", inner_lr, like.device, "params")
        return
    if not isinstance(inner_lr, Mapping):
        type_error(op, "inner_lr", "be a number, a tensor or a dict of them", kind(inner_lr))
    if set(inner_lr) != set(adapted):
        value_error(
            op,
            "inner_lr",
            f"have a rate for exactly the adapted parameters {list(adapted)}",
            list(inner_lr),
        )
    for leaf in leaves:
        if leaf.name in inner_lr:
            _check_leaf_rate(op, leaf, inner_lr[leaf.name], steps, like)


def settle_rates(
    inner_lr: InnerLr, leaves: Sequence[LeafShape], steps: int, stepped: bool | None = None
) -> InnerLr:
    """Returns checked rates in which each tie is settled, a rate [S] of a leaf [S]: one per element
    stays as it is, one per step becomes [S, 1]. It means what the rest of the dict means, unless
    `stepped` says it, and is one per element where the rest is of both kinds or neither."""
    if not isinstance(inner_lr, Mapping):
        return inner_lr
    shapes = {leaf.name: leaf.shape for leaf in leaves}
    ties = [name for name, value in inner_lr.items() if is_tied(value, shapes[name], steps)]
    if ties and stepped is None:
        stepped = ties_have_steps(inner_lr, shapes, steps)
    if not (ties and stepped):
        return inner_lr
    settled = dict(inner_lr)
    for name in ties:
        value = settled[name]
        assert isinstance(value, Tensor)
        settled[name] = value.unsqueeze(1)
    return settled


def _check_rate(op: str, argument: str, value: Any, like: Tensor) -> None:
    """Checks that a rate given as a number is one, and fits the dtype of the call."""
    if not abs(value) >= 0:  # NaN; torch.compile's symbols have no math.isnan
        value_error(op, argument, "be a number", value)
    if _LARGEST.get(like.dtype, math.inf) < abs(value) < math.inf:
        value_error(op, argument, f"fit {like.dtype}", value)


def _check_leaf_rate(op: str, leaf: LeafShape, value: object, steps: int, like: Tensor) -> None:
    """Checks one entry of a dict of rates."""
    argument = f"inner_lr[{leaf.name!r}]"
    if is_number(value):
        _check_rate(op, argument, value, like)
        return
    if not isinstance(value, Tensor):
        type_error(op, argument, "be a number or a tensor", kind(value))
    check_tensor(op, argument, value)
    if tuple(value.shape) not in ((), (steps,), leaf.shape, (steps, *leaf.shape)):
        shapes = f"[], [{steps}], {list(leaf.shape)} or {[steps, *leaf.shape]}"
        value_error(op, argument, f"have shape {shapes}", sizes(value))
    check_float(op, argument, value, like.dtype, "params")
    check_device(op, argument, value, like.device, "params")
