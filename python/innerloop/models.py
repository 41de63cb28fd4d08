"""Descriptions of the networks that the fused operations know: multilayer perceptrons, as plain
data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from innerloop._params import LeafShape, leaf_shapes

ACTIVATIONS = (
    "identity",
    "relu",
    "leaky_relu",
    "tanh",
    "sigmoid",
    "softplus",
    "silu",
    "gelu",
)


class Layer(NamedTuple):
    """One affine map and the activation after it. `slope` is leaky_relu's negative slope."""

    weight: str
    bias: str | None
    inputs: int
    outputs: int
    activation: str
    slope: float


class MLP:
    """Describes a multilayer perceptron; holds no parameters and never changes.

    Args:
        widths: input size, hidden sizes, output size; at least two positive integers.
        activation: applied after every layer but the last: "relu", "leaky_relu", "tanh", "sigmoid",
            "softplus", "silu", "gelu" or "identity".
        bias: whether every layer has a bias.
        negative_slope: leaky_relu's slope on the negative side.

    Raises:
        ValueError: if a width is not a positive integer or the activation is unknown.

    Example:
        >>> model = MLP([1, 40, 1], activation="tanh")
        >>> {name: tuple(shape) for name, shape in model.shapes.items()}["0.weight"]
        (40, 1)
    """

    __slots__ = (
        "__weakref__",
        "flattens",
        "inputs",
        "key",
        "layers",
        "leaves",
        "names",
        "outputs",
        "parameters",
        "shapes",
    )

    layers: tuple[Layer, ...]
    flattens: bool  # inputs may have any trailing shape [T, N, *any]; it is flattened to D
    shapes: Mapping[str, tuple[int, ...]]  # ordered: weight, bias, layer by layer
    leaves: tuple[LeafShape, ...]
    names: tuple[str, ...]
    key: str  # canonical text of the architecture, without names
    inputs: int  # D
    outputs: int  # K
    parameters: int  # P

    def __init__(
        self,
        widths: Sequence[int],
        activation: str = "relu",
        bias: bool = True,
        *,
        negative_slope: float = 0.01,
    ) -> None:
        sizes = [_width(w) for w in widths]
        if len(sizes) < 2:
            raise ValueError(
                f"MLP: widths must name at least an input and an output size (got {list(widths)})"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"MLP: activation must be one of {', '.join(ACTIVATIONS)} (got {activation!r}); "
                'other activations run through an nn.Module with backend="torch"'
            )
        slope = float(negative_slope) if activation == "leaky_relu" else 0.0
        last = len(sizes) - 2
        self._set(
            (
                Layer(
                    f"{i}.weight",
                    f"{i}.bias" if bias else None,
                    sizes[i],
                    sizes[i + 1],
                    activation if i < last else "identity",
                    slope if i < last else 0.0,
                )
                for i in range(last + 1)
            ),
            flattens=False,
        )

    def _set(self, layers: Iterator[Layer] | Sequence[Layer], *, flattens: bool) -> None:
        """Fills every attribute from the layers."""
        fixed = tuple(layers)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in fixed:
            shapes[layer.weight] = (layer.outputs, layer.inputs)
            if layer.bias is not None:
                shapes[layer.bias] = (layer.outputs,)
        values = {
            "layers": fixed,
            "flattens": flattens,
            "shapes": MappingProxyType(shapes),
            "leaves": leaf_shapes(shapes),
            "names": tuple(shapes),
            "key": architecture_key(fixed),
            "inputs": fixed[0].inputs,
            "outputs": fixed[-1].outputs,
            "parameters": sum(math.prod(shape) for shape in shapes.values()),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_layers(cls, layers: Sequence[Layer], *, flattens: bool = False) -> MLP:
        """Returns the description made of these layers (their sizes must chain)."""
        model = cls.__new__(cls)
        model._set(layers, flattens=flattens)
        return model

    @classmethod
    def from_module(cls, module: nn.Module) -> MLP:
        """Returns the description of a chain of linear layers and activations.

        Takes nn.Linear and (nested) nn.Sequential of Linear, ReLU, LeakyReLU, Tanh, Sigmoid,
        Softplus(1, 20), SiLU, GELU("none"), Identity, Flatten() and Dropout (p = 0 or in eval
        mode). Parameter names are the module's own, so `dict(module.named_parameters())` fits.

        Args:
            module: the module to describe. It is read, never changed or kept.

        Raises:
            NotImplementedError: if any part is something else; the text names the layer, the reason
                and `backend="torch"`, which takes any module.

        Example:
            >>> list(MLP.from_module(nn.Sequential(nn.Linear(3, 4), nn.Tanh())).shapes)
            ['0.weight', '0.bias']
        """
        try:
            return describe(module)
        except NotFusible as refusal:
            raise NotImplementedError(
                f'MLP.from_module: {refusal}; use backend="torch" for this module'
            ) from None

    def init(
        self,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """Returns fresh parameters, drawn as nn.Linear draws them.

        Args:
            generator: source of randomness; torch's default when None.
            dtype: torch.float32 or torch.float64.
            device: where the parameters live; the generator must live there too.

        Returns:
            {name: tensor} in the order of `shapes`; each uniform in +-1/sqrt(inputs of its layer).

        Example:
            >>> params = MLP([2, 3]).init(torch.Generator().manual_seed(0))
            >>> params["0.weight"].shape
            torch.Size([3, 2])
        """
        params: dict[str, Tensor] = {}
        for layer in self.layers:
            bound = 1.0 / math.sqrt(layer.inputs)
            for name in (layer.weight, layer.bias):
                if name is not None:
                    leaf = torch.empty(self.shapes[name], dtype=dtype, device=device)
                    params[name] = leaf.uniform_(-bound, bound, generator=generator)
        return params

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"MLP is immutable (tried to set {name!r})")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.layers, self.flattens))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MLP):
            return NotImplemented
        return self.layers == other.layers and self.flattens == other.flattens

    def __hash__(self) -> int:
        return hash((self.layers, self.flattens))

    def __repr__(self) -> str:
        return f"MLP({self.key!r})"


def _rebuild(layers: tuple[Layer, ...], flattens: bool) -> MLP:
    """Unpickles a description."""
    return MLP.from_layers(layers, flattens=flattens)


def _width(value: object) -> int:
    """Returns a layer size as an int, or raises."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise ValueError(f"MLP: widths must be positive integers (got {value!r})")
    return int(value.__index__())


def architecture_key(layers: Sequence[Layer]) -> str:
    """Returns the canonical text of an architecture: one `inputs>outputs:bias:activation:slope` a
    layer."""
    return " ".join(
        f"{layer.inputs}>{layer.outputs}:{int(layer.bias is not None)}:{layer.activation}:"
        f"{layer.slope!r}"
        for layer in layers
    )


def from_key(key: str) -> MLP:
    """Returns the description that a canonical text stands for, with names "0.weight", "0.bias",
    ..."""
    layers = []
    for i, text in enumerate(key.split(" ")):
        sizes, bias, activation, slope = text.split(":")
        inputs, outputs = sizes.split(">")
        layers.append(
            Layer(
                f"{i}.weight",
                f"{i}.bias" if bias == "1" else None,
                int(inputs),
                int(outputs),
                activation,
                float(slope),
            )
        )
    return MLP.from_layers(layers)


class NotFusible(Exception):
    """A module has no description; the text names the layer and the reason."""


def describe(module: nn.Module) -> MLP:
    """Returns the description of a module, or raises NotFusible."""
    layers: list[Layer] = []
    flattens = False
    follows_activation = False
    seen: dict[int, str] = {}
    for name, part in _chain(module, ""):
        if isinstance(part, nn.Flatten):
            if (part.start_dim, part.end_dim) != (1, -1):
                raise _refusal(name, part, "only Flatten(start_dim=1, end_dim=-1) is supported")
            flattens = flattens or not layers
        elif isinstance(part, nn.Dropout):
            if part.p > 0 and part.training:
                raise _refusal(
                    name, part, "it is random in training mode (call .eval() or use p=0)"
                )
        elif isinstance(part, nn.Linear):
            layers.append(_linear(name, part, seen))
            follows_activation = False
            if len(layers) > 1 and layers[-2].outputs != part.in_features:
                raise _refusal(name, part, f"the layer before it gives {layers[-2].outputs} values")
        elif not isinstance(part, nn.Identity):
            kind, slope = _activation(name, part)
            if not layers:
                raise _refusal(name, part, "an activation before the first Linear is not fused")
            if follows_activation:
                raise _refusal(name, part, "two activations in a row are not fused")
            layers[-1] = layers[-1]._replace(activation=kind, slope=slope)
            follows_activation = True
    if not layers:
        raise _refusal("", module, "it contains no Linear layer")
    return MLP.from_layers(layers, flattens=flattens)


def _chain(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Yields (name, part) for the parts of nested Sequentials in the order in which they run."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise _refusal(prefix, module, "its forward hooks would not run")
    if module._backward_hooks or module._backward_pre_hooks:
        raise _refusal(prefix, module, "its backward hooks would not run")
    if isinstance(module, nn.Sequential):
        if type(module).forward is not nn.Sequential.forward:
            raise _refusal(prefix, module, "its own forward() cannot be read")
        if module._parameters:
            raise _refusal(
                prefix, module, f"it does not use its own {next(iter(module._parameters))}"
            )
        for name, child in module._modules.items():
            if child is not None:
                yield from _chain(child, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, module


def _linear(name: str, part: nn.Linear, seen: dict[int, str]) -> Layer:
    """Returns the layer of one nn.Linear; `seen` maps the parameters met so far to their names."""
    if type(part) is not nn.Linear:
        raise _refusal(name, part, "only torch.nn.Linear itself is fused, not its subclasses")
    names: list[str | None] = []
    for leaf in ("weight", "bias"):
        parameter = part._parameters.get(leaf)
        if parameter is None:
            if getattr(part, leaf) is not None:
                raise _refusal(name, part, f"its {leaf} is not a plain parameter")
            names.append(None)
            continue
        full = f"{name}.{leaf}" if name else leaf
        if not parameter.is_floating_point():
            raise _refusal(name, part, f"{full} is not a floating-point parameter")
        if id(parameter) in seen:
            raise _refusal(name, part, f"{full} is the same parameter as {seen[id(parameter)]}")
        seen[id(parameter)] = full
        names.append(full)
    weight, bias = names
    assert weight is not None
    return Layer(weight, bias, part.in_features, part.out_features, "identity", 0.0)


_PLAIN_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
}


def _activation(name: str, part: nn.Module) -> tuple[str, float]:
    """Returns (activation, slope) of an activation module."""
    kind = type(part)
    if kind in _PLAIN_ACTIVATIONS:
        return _PLAIN_ACTIVATIONS[kind], 0.0
    if kind is nn.LeakyReLU and isinstance(part, nn.LeakyReLU):
        return "leaky_relu", float(part.negative_slope)
    if kind is nn.Softplus and isinstance(part, nn.Softplus):
        if (part.beta, part.threshold) != (1, 20):
            raise _refusal(name, part, "only Softplus(beta=1, threshold=20) is fused")
        return "softplus", 0.0
    if kind is nn.GELU and isinstance(part, nn.GELU):
        if part.approximate != "none":
            raise _refusal(name, part, 'only GELU(approximate="none") is fused')
        return "gelu", 0.0
    if next(part.children(), None) is not None:
        raise _refusal(
            name,
            part,
            "its own forward() cannot be read (if it is a chain of Linear and activations, hand in "
            "an nn.Sequential of the same layers, which shares their parameters)",
        )
    raise _refusal(name, part, "there is no kernel for this kind of layer")


def _refusal(name: str, part: nn.Module, reason: str) -> NotFusible:
    """Returns the exception that says which layer cannot be described."""
    where = f"layer {name!r} ({type(part).__name__})" if name else type(part).__name__
    return NotFusible(f"{where} cannot be fused: {reason}")
