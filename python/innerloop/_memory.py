"""Remembers calls that passed every check, by the facts that the checks read (shapes, dtypes,
devices, options), so that a training loop pays for them once. Data and addresses are no part of
it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop import _native
from innerloop._derivatives import forward_mode, transforms_active
from innerloop._params import Batch, Side
from innerloop._plan import Plan
from innerloop._storage import check_memory
from innerloop.models import MLP

_BATCHES = (tuple, Batch)
_LIMIT = 1024


class Known(NamedTuple):
    """A call that was checked: its plan, and its rates if they are a number."""

    plan: Plan
    rates: Tensor | None


_KNOWN: dict[tuple[Any, ...], Known] = {}


def signature(
    params: Any,
    support: Any,
    query: Any,
    model: Any,
    inner_lr: Any,
    task_weight: Any,
    options: tuple[Any, ...],
) -> tuple[Any, ...] | None:
    """Returns everything about a call that its checks depend on, or None if it must be checked
    anew: where torch does more than execute plain tensors eagerly (tracing, modes, derivatives that
    hide from what the key reads)."""
    if (
        type(model) is not MLP
        or type(params) is not dict
        or torch.compiler.is_compiling()
        or forward_mode()
        or transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or not _native.is_available()
    ):
        return None
    if type(support) not in _BATCHES or type(query) not in _BATCHES:
        return None
    number = inner_lr if type(inner_lr) is float else None
    rates = inner_lr if number is None else None
    leaves = [params.get(name) for name in model.names]
    facts = _native.native().tensor_key([*leaves, rates, task_weight, *support, *query])
    if facts is None:
        return None
    return (
        model.key,
        model.names,
        model.flattens,
        len(params),
        len(support),
        number,
        facts,
        torch.is_grad_enabled(),
        options,
    )


def whole_side(op: str, name: str, model: MLP, batch: Any) -> Side:
    """Returns a batch that was checked as (x [T, N, D], y, count, weight)."""
    x, y = batch[0], batch[1]
    if x.ndim != 3:
        check_memory(op, **{f"{name} x": x})
        x = x.reshape(x.shape[0], x.shape[1], model.inputs)
    size = len(batch)
    if size == 2:
        return Side(x, y)
    return Side(x, y, batch[2], batch[3] if size > 3 else None)


def recall(key: tuple[Any, ...] | None) -> Known | None:
    """Returns what is known about a call, if it was checked before."""
    try:
        return None if key is None else _KNOWN.get(key)
    except TypeError:  # an option that has no hash: the checks will say what is wrong with it
        return None


def remember(key: tuple[Any, ...] | None, known: Known) -> None:
    """Keeps a call that passed every check; forgets all when there are absurdly many."""
    if key is not None:
        if len(_KNOWN) >= _LIMIT:
            _KNOWN.clear()
        _KNOWN[key] = known
