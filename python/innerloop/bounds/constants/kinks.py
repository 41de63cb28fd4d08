"""Where a problem is known not to be smooth: jumps of first and second derivatives, which break
assumptions B2 and B3 whatever the constants are."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from innerloop.models import MLP
from innerloop.objectives import Loss, resolve

_RELU = ("relu", "leaky_relu")
# operations by the start of their name in autograd's graph
_KINKED = ("relu", "leakyrelu", "rrelu", "prelu", "threshold", "hardtanh", "hardshrink",
           "softshrink", "hardswish", "hardsigmoid", "abs", "clamp", "clip", "maximum", "minimum",
           "max", "min", "amax", "amin", "aminmax", "topk", "kthvalue", "median", "sort", "sign",
           "sgn", "floor", "ceil", "round", "trunc", "frac", "fmod", "remainder", "heaviside",
           "adaptivemaxpool", "fractionalmaxpool", "nanmedian", "fmax", "fmin")  # fmt: skip
_BENT = ("elu", "celu", "selu", "huber", "smoothl1")
_MODULES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.Hardtanh,
            nn.Hardshrink, nn.Softshrink, nn.Hardswish, nn.Hardsigmoid)  # fmt: skip


class Kink(NamedTuple):
    """An operation that breaks an assumption.

    Members:
        name: of the operation, for messages.
        first: whether the first derivative jumps (B2 and B3 fail), not only the second (B3 fails).
    """

    name: str
    first: bool

    @property
    def broken(self) -> str:
        """The assumptions that fail, in words."""
        return "B2 and B3" if self.first else "B3"

    @property
    def why(self) -> str:
        """What that means for a constant of these assumptions."""
        return f"{self.name} break {self.broken}: no constant makes a bound of it"


def kink_of(model: MLP | nn.Module, x: Tensor, loss: Loss) -> Kink | None:
    """Returns what is known to break the smoothness of a problem, the worst first; None if nothing.

    An MLP is judged by its activations. Any other module is run once, as a copy and on the first
    task of x [T, N, ...], and judged by the operations that autograd records, wherever they come
    from: layers, functions in its forward, wrappers. Kinks made of selections (torch.where, masks)
    cannot be told from constant masks and are not found.
    """
    found = list(_in_model(model, x))
    if resolve("bounds", loss).name == "huber":
        found.append(Kink("huber loss", False))
    return next((kink for kink in found if kink.first), found[0] if found else None)


def _in_model(model: MLP | nn.Module, x: Tensor) -> Iterator[Kink]:
    """Yields the kinks of a model."""
    if isinstance(model, MLP):
        names = [layer.activation for layer in model.layers]
        yield from (Kink(f"{name} activations", True) for name in names if name in _RELU)
        return
    for part in model.modules():
        if isinstance(part, _MODULES):
            yield Kink(f"{type(part).__name__} activations", True)
    for name in _operations(model, x):
        word = name.lower().replace("_", "")
        if word.startswith(_BENT):
            yield Kink(f"operations such as {name}", False)
        elif word.startswith(_KINKED):
            yield Kink(f"operations such as {name}", True)


def _operations(module: nn.Module, x: Tensor) -> list[str]:
    """Returns the names of the operations between a copy's parameters and its output; none if the
    module cannot be copied."""
    try:
        copied = copy.deepcopy(module)
    except (RuntimeError, TypeError):
        return []
    leaves = [leaf for leaf in copied.parameters() if leaf.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_(True)
    rows = x[0].detach()
    if leaves:
        rows = rows.to(leaves[0].device, leaves[0].dtype if rows.is_floating_point() else None)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        output = copied(rows)
    waiting, seen, names = [output.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(node.name().partition("Backward")[0])
            waiting += [following for following, _ in node.next_functions]
    return sorted(names)
