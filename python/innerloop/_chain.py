"""Reads a module as a chain of linear layers, layer norms and activations, or says why it is
none."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from innerloop._real_forward import (
    Kind,
    Sight,
    changes_of_torch,
    is_torchs,
    own_forward,
    torch_unchanged,
)

KINDS = ("linear", "layer_norm")  # of layers; the place is the code


class Layer(NamedTuple):
    """One layer and the activation after it. `slope` is leaky_relu's negative slope, `eps` a layer
    norm's."""

    weight: str | None  # None: a layer norm without one
    bias: str | None
    inputs: int
    outputs: int
    activation: str
    slope: float
    kind: str = "linear"
    eps: float = 0.0


class NotFusible(Exception):
    """A module has no description; the text names the layer and the reason. `is_foreign`: not that
    something was changed, but that the forward pass is not one of torch's."""

    is_foreign = False


_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Softplus: "softplus",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
}
_KINDS = {
    cls: Kind(cls)
    for cls in (
        nn.Linear,
        nn.LayerNorm,
        nn.Flatten,
        nn.Dropout,
        nn.Identity,
        *_ACTIVATIONS,
        nn.Sequential,
    )
}
_REGISTRIES = (dict, OrderedDict)  # others could hide what they hold
_LEAVES = (Tensor, nn.Parameter)  # others could compute something else
_NUMBERS = (float, int)
SMALLEST_EPS = 1e-30  # of a layer norm: constant rows stay finite in float32


class Chain:
    """What a module consists of, read part by part.

    Members:
        parts: (name, module, kind) of each part, containers before what is in them.
        layers: the fields of each Layer, in the order in which they run.
        flattens: whether the input is flattened before.
        params: the module's parameters by name, layer by layer.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[str, nn.Module, Kind]] = []
        self.layers: list[list[Any]] = []
        self.flattens = False
        self.params: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}  # of the parameters met so far, by identity
        self._activated = False

    def kinds(self) -> frozenset[Kind]:
        """Returns the kinds of the parts."""
        return frozenset([kind for _, _, kind in self.parts])

    def read(self, part: nn.Module, name: str) -> None:
        """Takes in one part and what is inside it."""
        kind = _kind(part, name)
        cls = kind.cls
        changed = own_forward(part, kind)
        if changed is not None:
            raise _refusal(name, part, changed, not is_torchs(type(part).forward))
        self.parts.append((name, part, kind))
        space, inner, params = part.__dict__, part._modules, part._parameters
        if type(inner) not in _REGISTRIES or type(params) not in _REGISTRIES:
            raise _refusal(name, part, "its parts or parameters are not held in a plain dict")
        if cls is nn.Linear:
            self._linear(part, name, params)
        elif cls is nn.LayerNorm:
            self._layer_norm(part, name, params)
        elif params:
            raise _refusal(name, part, f"it does not use its own {next(iter(params))}")
        if cls is nn.Sequential:
            for key, child in inner.items():
                if child is None:
                    raise _refusal(name, part, f"its part {key!r} is None")
                self.read(child, f"{name}.{key}" if name else key)
        elif inner:
            raise _refusal(name, part, f"it does not use its own {next(iter(inner))}")
        elif cls in _ACTIVATIONS:
            self._activation(part, name, _ACTIVATIONS[cls])
        elif cls is nn.Flatten:
            if (space.get("start_dim"), space.get("end_dim")) != (1, -1):
                raise _refusal(name, part, "only Flatten(start_dim=1, end_dim=-1) is supported")
            self.flattens = self.flattens or not self.layers
        elif cls is nn.Dropout:
            _check_inactive(part, name)

    def _linear(self, part: nn.Module, name: str, params: Any) -> None:
        """Adds a linear layer."""
        sizes = part.__dict__.get("in_features"), part.__dict__.get("out_features")
        if params.get("weight") is None:
            raise _refusal(name, part, "its weight is not a plain parameter")
        if 0 in sizes:
            raise _refusal(name, part, "its weight holds no numbers")
        leaves = self._leaves(part, name, params, {"weight": sizes[::-1], "bias": sizes[1:]})
        self._add(part, name, [*leaves, *sizes, "identity", 0.0])

    def _layer_norm(self, part: nn.Module, name: str, params: Any) -> None:
        """Adds a layer norm."""
        shape: Any = part.__dict__.get("normalized_shape")
        eps: Any = part.__dict__.get("eps")
        if type(shape) is not tuple or len(shape) != 1 or type(shape[0]) is not int:
            raise _refusal(name, part, "only norms over the last axis are fused")
        if type(eps) not in _NUMBERS or not SMALLEST_EPS <= eps < math.inf:
            raise _refusal(name, part, f"only an eps from {SMALLEST_EPS} on is fused")
        leaves = self._leaves(part, name, params, {"weight": shape, "bias": shape})
        fields = [*leaves, shape[0], shape[0], "identity", 0.0, "layer_norm", float(eps)]
        self._add(part, name, fields)

    def _leaves(
        self, part: nn.Module, name: str, params: Any, shapes: Mapping[str, Any]
    ) -> list[str | None]:
        """Returns the full names of a part's parameters, None for one that it does without."""
        names: list[str | None] = []
        for leaf, shape in shapes.items():
            parameter = params.get(leaf)
            if leaf in part.__dict__ or leaf not in params:
                raise _refusal(name, part, f"its {leaf} is not a plain parameter")
            if parameter is None:
                names.append(None)
                continue
            full = f"{name}.{leaf}" if name else leaf
            if type(parameter) not in _LEAVES:
                kind = type(parameter).__name__
                raise _refusal(name, part, f"{full} is a {kind}, which may compute otherwise")
            if not parameter.is_floating_point():
                raise _refusal(name, part, f"{full} is not a floating-point parameter")
            if parameter.shape != shape:
                got = list(parameter.shape)
                raise _refusal(name, part, f"{full} has shape {got}, not {list(shape)}")
            if id(parameter) in self._names:
                other = self._names[id(parameter)]
                raise _refusal(name, part, f"{full} is the same parameter as {other}")
            self._names[id(parameter)] = full
            self.params[full] = parameter
            names.append(full)
        if len(params) != 2:
            own = next(key for key in params if key not in ("weight", "bias"))
            raise _refusal(name, part, f"it does not use its own {own}")
        return names

    def _add(self, part: nn.Module, name: str, fields: list[Any]) -> None:
        """Adds a layer, if it fits the one before it."""
        if self.layers and self.layers[-1][3] != fields[2]:
            raise _refusal(name, part, f"the layer before it gives {self.layers[-1][3]} values")
        self.layers.append(fields)
        self._activated = False

    def _activation(self, part: nn.Module, name: str, activation: str) -> None:
        """Gives the last layer its activation."""
        space = part.__dict__
        slope: Any = 0.0
        if activation == "leaky_relu":
            slope = space.get("negative_slope")
            if type(slope) not in _NUMBERS:
                raise _refusal(name, part, "its negative_slope is not a number")
        elif activation == "softplus":
            given = space.get("beta"), space.get("threshold")
            if given != (1, 20) or any(type(value) not in _NUMBERS for value in given):
                raise _refusal(name, part, "only Softplus(beta=1, threshold=20) is fused")
        elif activation == "gelu" and space.get("approximate") != "none":
            raise _refusal(name, part, 'only GELU(approximate="none") is fused')
        if not self.layers:
            raise _refusal(name, part, "an activation before the first layer is not fused")
        if self._activated:
            raise _refusal(name, part, "two activations in a row are not fused")
        self.layers[-1][4:6] = activation, float(slope)
        self._activated = True


def read_chain(module: nn.Module) -> Chain:
    """Returns what a module consists of, or raises NotFusible.

    Each part must be of a class in `_KINDS` itself, or an nn.Sequential (of a subclass too, if a
    call of it looks nothing up in the subclass); it must run the forward pass that torch wrote (see
    `_real_forward`); and every parameter must be used, once.
    """
    chain = Chain()
    chain.read(module, "")
    if torch.compiler.is_compiling() or not torch_unchanged(chain.kinds()):
        for name, part, kind in chain.parts:
            changed = changes_of_torch(kind)
            if changed is not None:
                raise _refusal(name, part, changed)
    if not any(Layer(*fields).kind == "linear" for fields in chain.layers):
        raise _refusal("", module, "it contains no Linear layer")
    return chain


class Memory:
    """Everything that a chain was read from, to tell whether reading it again would give the
    same."""

    __slots__ = ("_kinds", "_sights")

    def __init__(self, chain: Chain) -> None:
        self._kinds = chain.kinds()
        self._sights = [Sight(part, kind) for _, part, kind in chain.parts]

    def holds(self, module: nn.Module) -> bool:
        """Says whether this is the module that was read, and nothing in it has changed."""
        return (
            self._sights[0].part is module
            and all(map(Sight.unchanged, self._sights))
            and torch_unchanged(self._kinds)
        )


def _kind(part: nn.Module, name: str) -> Kind:
    """Returns what is known about the class of a part, or raises."""
    kind = _KINDS.get(type(part))
    if kind is None and isinstance(part, nn.Sequential):
        kind = _KINDS[nn.Sequential]
    if kind is None:
        reason, is_foreign = _unknown(part)
        raise _refusal(name, part, reason, is_foreign)
    return kind


def _unknown(part: nn.Module) -> tuple[str, bool]:
    """Returns why the class of a part is not one of those that are fused, and whether its forward
    pass is none of torch's."""
    if parametrize.is_parametrized(part):
        return "it is parametrised: parameters are computed anew whenever they are read", False
    if isinstance(part, torch.jit.ScriptModule):
        return "what TorchScript made of its forward() cannot be read", False
    if "_orig_mod" in part._modules:
        return "it is compiled; hand in the module that it was made from", False
    own = not is_torchs(type(part).forward)
    for cls in _KINDS:
        if isinstance(part, cls):
            return f"only torch.nn.{cls.__name__} itself is fused, not its subclasses", own
    if own:
        return "its own forward() can only be read with rows at hand", True
    return "there is no kernel for this kind of layer", False


def _check_inactive(part: nn.Module, name: str) -> None:
    """Raises unless a dropout layer passes everything on."""
    share: Any = part.__dict__.get("p")
    if type(share) not in _NUMBERS or not 0 <= share <= 1:
        raise _refusal(name, part, "its p is not a number between 0 and 1")
    if share > 0 and part.training:
        raise _refusal(name, part, "it is random in training mode (call .eval() or use p=0)")


def _refusal(name: str, part: nn.Module, reason: str, is_foreign: bool = False) -> NotFusible:
    """Returns the exception that says which layer cannot be described."""
    where = f"layer {name!r} ({type(part).__name__})" if name else type(part).__name__
    refusal = NotFusible(f"{where} cannot be fused: {reason}")
    refusal.is_foreign = is_foreign
    return refusal
