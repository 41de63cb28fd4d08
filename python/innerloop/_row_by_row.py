"""Network: whether the outputs of some rows are the same when others are left out, as `count` and
`weight` promise. Layers that take statistics are known; for what else a module may do with its rows
(x - x.mean(0), a factor 1 / len(x)), it is asked, once for each kind of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from innerloop._derivatives import forward_mode, transforms_active
from innerloop._networks import shaken
from innerloop._one_task import forward
from innerloop._reading import Rows, rows_of

_ALONE: WeakKeyDictionary[nn.Module, set[Rows]] = WeakKeyDictionary()
_TOLERANCE = {torch.float16: 0.1, torch.bfloat16: 0.1, torch.float32: 1e-3}
_DOUBLE = 1e-8


def check_rows_alone(
    op: str,
    module: nn.Module,
    params: Mapping[str, Tensor],
    x: Tensor,
    count: Tensor | None,
    weight: Tensor | None,
) -> None:
    """Checks a module on the first task [N, ...] of x [T, N, ...] of which some rows are left out:
    with zeros and with ones in these, and without them, which a module that is random is spared; at
    its parameters and near them.

    Raises:
        NotImplementedError: the outputs of the rows in use are not the same.

    Cost: eight forward passes of one task, once for each module and kind of rows.
    """
    known = _ALONE.setdefault(module, set())
    kind = rows_of(x)
    if kind in known or transforms_active() or forward_mode():
        return
    used = _used(x, count, weight)
    some = (used.any(1) & ~used.all(1)).nonzero()
    if not len(some):
        return
    task = int(some[0])
    own = dict(module.named_parameters())
    single = {k: (v[task] if v.ndim > own[k].ndim else v).detach() for k, v in params.items()}
    keep = used[task]
    left_out = ~keep.reshape(-1, *[1] * (x.ndim - 2))
    devices = [x.device] if x.device.type == "cuda" else []
    for values in (single, shaken(single)):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices):
                state = torch.get_rng_state()
                zeros = forward(module, values, x[task].masked_fill(left_out, 0))[keep]
                again = forward(module, values, x[task].masked_fill(left_out, 0))[keep]
                torch.set_rng_state(state)
                ones = forward(module, values, x[task].masked_fill(left_out, 1))[keep]
                exact = torch.equal(zeros, again)
                fewer = forward(module, values, x[task][keep]) if exact else zeros
        except Exception:  # what it raises, it raises again where it matters
            return
        if not _close(zeros, ones):
            _refuse(op, module, "what they hold")
        if not _close(zeros, fewer):
            _refuse(op, module, "how many there are")
    known.add(kind)


def _used(x: Tensor, count: Tensor | None, weight: Tensor | None) -> Tensor:
    """Returns which rows are in use [T, N]."""
    used = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if count is not None:
        used &= torch.arange(x.shape[1], device=x.device) < count.detach()[:, None]
    if weight is not None:
        used &= weight.detach() != 0
    return used


def _close(one: Tensor, other: Tensor) -> bool:
    """Says whether outputs are the same but for rounding, as far as they are finite."""
    if one.shape != other.shape:
        return False
    finite = one.isfinite() & other.isfinite()
    error, scale = (one - other)[finite].norm(), one[finite].norm()
    return bool(error <= _TOLERANCE.get(one.dtype, _DOUBLE) * scale)


def _refuse(op: str, module: nn.Module, what: str) -> NoReturn:
    """Raises because rows that are left out reach the others."""
    raise NotImplementedError(
        f"{op}: model must compute each row alone where count or weight leave rows out (got "
        f"{type(module).__name__}, whose outputs depend on {what}); give tasks of equal size"
    )
