"""Inner rates as a module: fixed or learned, and fitted to any number of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from innerloop._checks.solver import settle_rates
from innerloop._params import InnerLr, LeafShape, is_per_step, is_tied, ties_have_steps
from innerloop.learners import _checks

Rate = float | Tensor


class _Entry(NamedTuple):
    """One rate to hold, for the leaf of this shape (None: for all leaves)."""

    value: Rate
    has_step_axis: bool
    shape: tuple[int, ...] | None


class InnerRates(nn.Module):
    """Holds inner rates: numbers as they are, tensors as buffers (fixed) or parameters (learned).

    Args:
        inner_lr: any form that `meta_grad` takes, checked; tensors are copied.
        learn: False; True (one rate); "per_step" ([S]); "per_tensor" (one per adapted parameter);
            "per_parameter" (one per element of them). A coarser `inner_lr` is spread over the form;
            a step axis that it has stays.
        steps: S.
        leaves: the adapted leaves.
        like: a tensor with the dtype and device of learned rates.
        op: who asks, for messages.

    Raises:
        ValueError: `learn` is unknown, `inner_lr` is finer than it, or a fixed tensor requires
            grad.
    """

    def __init__(
        self,
        inner_lr: InnerLr,
        *,
        learn: bool | str,
        steps: int,
        leaves: Sequence[LeafShape],
        like: Tensor,
        op: str = "MAML",
    ) -> None:
        super().__init__()
        _checks.check_learned_form(op, learn, steps)
        self.learn = learn
        self._numbers: dict[str, float] = {}
        # "" stands for all leaves
        self._entries: dict[str, tuple[bool, tuple[int, ...] | None]] = {}
        for key, entry in _entries(op, inner_lr, learn, steps, leaves, like).items():
            value = entry.value
            self._entries[key] = (entry.has_step_axis, entry.shape)
            if not isinstance(value, Tensor):
                self._numbers[key] = float(value)
            elif learn is False:
                _checks.check_plain_rate(op, value)
                self.register_buffer(_attribute(key), value.detach().clone())
            else:
                self.register_parameter(_attribute(key), nn.Parameter(value))

    def current(self) -> InnerLr:
        """Returns the rates as they are held: a number, a tensor, or {name: number or tensor}."""
        return self._form({key: self._held(key) for key in self._entries})

    def for_steps(self, steps: int) -> InnerLr:
        """Returns the rates of an inner loop of `steps` steps. Rates per step are cut, or the last
        one is repeated."""
        fitted = {key: self._fitted(key, steps) for key in self._entries}
        return self._form(self._unmistakable(fitted, steps))

    def _held(self, key: str) -> Rate:
        if key in self._numbers:
            return self._numbers[key]
        value = getattr(self, _attribute(key))
        assert isinstance(value, Tensor)
        return value

    def _form(self, values: dict[str, Rate]) -> InnerLr:
        return values.get("", values)

    def _fitted(self, key: str, steps: int) -> Rate:
        value = self._held(key)
        has_step_axis = self._entries[key][0]
        if not has_step_axis or not isinstance(value, Tensor):
            return value
        held = value.shape[0]
        if steps < held:
            value = value[:steps]
        elif steps > held > 0:
            value = torch.cat([value, value[-1:].expand(steps - held, *value.shape[1:])])
        return value

    def _unmistakable(self, values: dict[str, Rate], steps: int) -> dict[str, Rate]:
        """Returns rates that mean what they mean here: with both axes of those [S] of leaves [S],
        where the others would not say which one theirs is."""
        shapes = {key: shape for key, (_, shape) in self._entries.items() if shape is not None}
        ties = [key for key in shapes if is_tied(values[key], shapes[key], steps)]
        if not ties:
            return values
        stepped = bool(ties_have_steps(values, shapes, steps))
        if all(self._entries[key][0] is stepped for key in ties):
            return values
        written = dict(values)
        for key in ties:
            value = written[key]
            assert isinstance(value, Tensor)
            along = value.unsqueeze(1) if self._entries[key][0] else value
            written[key] = along.expand(steps, steps)
        return written

    def extra_repr(self) -> str:
        """Shows what is held."""
        shown = {}
        for key in self._entries:
            value = self._held(key)
            shown[key or "all"] = list(value.shape) if isinstance(value, Tensor) else value
        return f"{shown}, learn={self.learn!r}"


def _attribute(key: str) -> str:
    """Returns the attribute that holds an entry: attribute names cannot hold dots, nor be those of
    other attributes."""
    name = key.replace("/", "//").replace(".", "/") if key else "value"
    taken = name in dir(InnerRates) or name in ("learn", "training") or name.startswith("_")
    return f"{name}///" if taken and "/" not in name else name


def _entries(
    op: str,
    inner_lr: InnerLr,
    learn: bool | str,
    steps: int,
    leaves: Sequence[LeafShape],
    like: Tensor,
) -> dict[str, _Entry]:
    """Returns what to hold, spread over the form that is to be learned."""

    def tensor(value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=like.dtype, device=like.device).detach().clone()

    shared = not isinstance(inner_lr, Mapping)
    if learn is False and not isinstance(inner_lr, Mapping):
        return {"": _Entry(inner_lr, isinstance(inner_lr, Tensor) and inner_lr.ndim == 1, None)}
    if learn is True or learn == "per_step":
        if not shared:
            _checks.refuse_rate_form(op, learn, "a dict", "use 'per_tensor' or 'per_parameter'")
        value = tensor(inner_lr)
        if learn is True and value.ndim:
            _checks.refuse_rate_form(op, learn, f"shape {list(value.shape)}", "use 'per_step'")
        wide = value.expand(steps).clone() if learn == "per_step" else value
        return {"": _Entry(wide, learn == "per_step", None)}
    # rates per element are finer than "per_tensor"
    stepped = True if learn == "per_tensor" else None
    settled = settle_rates(inner_lr, leaves, steps, stepped)
    entries = {}
    for leaf in leaves:
        given = inner_lr[leaf.name] if isinstance(inner_lr, Mapping) else inner_lr
        meant = settled[leaf.name] if isinstance(settled, Mapping) else given
        has_step_axis = is_per_step(meant, () if shared else leaf.shape)
        if learn is False:
            entries[leaf.name] = _Entry(given, has_step_axis, leaf.shape)
            continue
        value = tensor(given)
        if value.ndim > int(has_step_axis):  # one rate per element already
            if learn == "per_tensor":
                form = f"shape {list(value.shape)} for {leaf.name!r}"
                _checks.refuse_rate_form(op, learn, form, "use 'per_parameter'")
        elif learn == "per_parameter":
            front = (steps,) if has_step_axis else ()
            ones = [1] * len(leaf.shape)
            value = value.reshape([*front, *ones]).expand([*front, *leaf.shape])
        entries[leaf.name] = _Entry(value.clone(), has_step_axis, leaf.shape)
    return entries
