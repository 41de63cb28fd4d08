"""Network: whether the outputs of some rows are the same when others are left out, as `count` and
`weight` promise. Layers that take statistics are known; for what else a module may do with its rows
(x - x.mean(0), a factor 1 / len(x)), it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from innerloop._derivatives import forward_mode, transforms_active
from innerloop._inner_step import HERE, at_step
from innerloop._networks import shaken
from innerloop._one_task import forward
from innerloop._reading import rows_of

# how often a module was given ragged rows of a kind, in a mode
_ASKED: WeakKeyDictionary[nn.Module, dict[Any, int]] = WeakKeyDictionary()
_MOST_KINDS = 256
_LATER_STEPS = (1, 2, 1 << 20)
_TOLERANCE = {torch.float16: 0.1, torch.bfloat16: 0.1, torch.float32: 1e-3}
_DOUBLE = 1e-8


def check_rows_alone(
    op: str, module: nn.Module, params: Mapping[str, Tensor], x: Tensor, used: Tensor
) -> None:
    """Checks a module on the first task [N, ...] of x [T, N, ...] of which some rows are not
    `used` [T, N]: with one row that is in these, with another one, and without them, which a module
    that is random is spared; at its parameters and near them, and in other inner steps if it asks.

    Raises:
        NotImplementedError: the outputs of the rows in use are not the same.

    Cost: eight forward passes of one task, in the first, second, fourth, ... call with rows of a
        kind, since parameters move.
    """
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
    if capturing or transforms_active() or forward_mode():
        return
    asked = _ASKED.setdefault(module, {})
    key = rows_of(x), tuple(part.training for part in module.modules())
    times = asked.get(key, 0) + 1
    if times & (times - 1):
        asked[key] = times
        return
    some = (used.any(1) & ~used.all(1)).nonzero()
    if not len(some):
        return
    if len(asked) >= _MOST_KINDS:
        asked.clear()
    asked[key] = times
    task = int(some[0])
    own = dict(module.named_parameters())
    single = {k: (v[task] if v.ndim > own[k].ndim else v).detach() for k, v in params.items()}
    rows = x.detach()[used]
    fillers = rows[0], rows[-1]
    HERE.was_asked = False
    try:
        for values in (single, shaken(single)):
            _compare(op, module, values, x.detach()[task], used[task], fillers)
        for step in _LATER_STEPS if HERE.was_asked else ():
            with at_step(step):
                _compare(op, module, single, x.detach()[task], used[task], fillers)
    except NotImplementedError:
        del asked[key]  # it is asked again
        raise


def _compare(
    op: str,
    module: nn.Module,
    params: Mapping[str, Tensor],
    x: Tensor,
    used: Tensor,
    fillers: tuple[Tensor, Tensor],
) -> None:
    """Compares the outputs of the rows in use, with each filler in the others and without them.
    What a module raises here it raises again where it matters."""
    mask = used.reshape(-1, *[1] * (x.ndim - 1))
    one, other = (torch.where(mask, x, filler) for filler in fillers)
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        state = torch.get_rng_state()
        try:
            found = forward(module, params, one, selects=True)[used]
            again = forward(module, params, one, selects=True)[used]
            torch.set_rng_state(state)
            beside = forward(module, params, other, selects=True)[used]
        except NotImplementedError:  # statistics, which are refused by name
            raise
        except Exception:
            return
        if not _close(found, beside):
            _refuse(op, module, "what they hold")
        if not torch.equal(found, again):
            return
        try:
            fewer = forward(module, params, x[used])
        except Exception:
            return
        if not _close(found, fewer):
            _refuse(op, module, "how many there are")


def _close(one: Tensor, other: Tensor) -> bool:
    """Says whether outputs are the same but for rounding, and not finite in the same places."""
    if one.shape != other.shape:
        return False
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return False
    error, scale = (one - other)[finite].norm(), one[finite].norm()
    return bool(error <= _TOLERANCE.get(one.dtype, _DOUBLE) * scale)


def _refuse(op: str, module: nn.Module, what: str) -> NoReturn:
    """Raises because rows that are left out reach the others."""
    raise NotImplementedError(
        f"{op}: model must compute each row alone where count or weight leave rows out (got "
        f"{type(module).__name__}, whose outputs depend on {what}); give tasks of equal size"
    )
