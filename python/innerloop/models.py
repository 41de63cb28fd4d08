"""Descriptions of the networks that the fused operations know: multilayer perceptrons, as plain
data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from innerloop._capacity import check_fits
from innerloop._chain import Chain, Layer, read_chain
from innerloop._chain import NotFusible as NotFusible
from innerloop._params import LeafShape, leaf_shapes

MOST_WIDTH = 2**24
FREE = "free"  # in the key of a network with a free leaf
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
        "free",
        "inputs",
        "key",
        "layers",
        "leaves",
        "names",
        "outputs",
        "parameters",
        "shapes",
        "summary",
    )

    layers: tuple[Layer, ...]
    flattens: bool  # inputs may have any trailing shape [T, N, *any]; it is flattened to D
    shapes: Mapping[str, tuple[int, ...]]  # ordered: weight, bias, layer by layer
    leaves: tuple[LeafShape, ...]
    names: tuple[str, ...]
    key: str  # canonical text of the architecture, without names
    summary: str  # the same for people, such as "1-40-40-1 (relu)"
    inputs: int  # D
    outputs: int  # K
    parameters: int  # P
    free: int  # size of the leaf that belongs to no layer, the last; 0 without one

    def __init__(
        self,
        widths: Sequence[int],
        activation: str = "relu",
        bias: bool = True,
        *,
        negative_slope: float = 0.01,
    ) -> None:
        if not isinstance(widths, Sequence) or isinstance(widths, str):
            raise TypeError(
                "MLP: widths must be a sequence of sizes, inputs first "
                f"(got {type(widths).__name__}); MLP([1, 40, 1]) has one hidden layer"
            )
        sizes = [_width(w) for w in widths]
        if len(sizes) < 2:
            raise ValueError(
                f"MLP: widths must name at least an input and an output size (got {list(widths)})"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"MLP: activation must be one of {', '.join(ACTIVATIONS)} (got {activation!r}); "
                "nn.Sequential takes every activation of torch"
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

    def _set(
        self, layers: Iterator[Layer] | Sequence[Layer], *, flattens: bool, free: str = ""
    ) -> None:
        """Fills every attribute from the layers and the name of a free leaf, which has an entry for
        each output."""
        fixed = tuple(layers)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in fixed:
            if layer.weight is not None:
                full = layer.kind == "linear"
                shapes[layer.weight] = (layer.outputs, layer.inputs) if full else (layer.outputs,)
            if layer.bias is not None:
                shapes[layer.bias] = (layer.outputs,)
        if free:
            shapes[free] = (fixed[-1].outputs,)
        values = {
            "layers": fixed,
            "flattens": flattens,
            "shapes": MappingProxyType(shapes),
            "leaves": leaf_shapes(shapes),
            "names": tuple(shapes),
            "key": architecture_key(fixed) + (f" {FREE}" if free else ""),
            "summary": _summary(fixed),
            "free": fixed[-1].outputs if free else 0,
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
        """Returns the description of a chain of linear layers, layer norms and activations.

        Takes nn.Linear and (nested) nn.Sequential of Linear, LayerNorm over the last axis, ReLU,
        LeakyReLU, Tanh, Sigmoid, Softplus(1, 20), SiLU, GELU("none"), Identity, Flatten() and
        Dropout (p = 0 or in eval mode), if calling them runs what torch wrote for them: no forward
        pass of their own, hooks or parametrisations. Parameter names are the module's own, so
        `dict(module.named_parameters())` fits.

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
        """Returns fresh parameters, as torch's layers draw them.

        Args:
            generator: source of randomness; torch's default when None.
            dtype: torch.float32 or torch.float64.
            device: where the parameters live; the generator must live there too.

        Returns:
            {name: tensor} in the order of `shapes`; each uniform in +-1/sqrt(inputs of its layer),
            but weights of layer norms 1, their biases 0.

        Example:
            >>> params = MLP([2, 3]).init(torch.Generator().manual_seed(0))
            >>> params["0.weight"].shape
            torch.Size([3, 2])

        Raises:
            MemoryError: they take more memory than there is.
        """
        if torch.device(device).type == "cpu":
            what = f"MLP.init: a network of {self.parameters} parameters"
            check_fits(what, dtype.itemsize * self.parameters, "take smaller widths")
        params: dict[str, Tensor] = {}
        for layer in self.layers:
            bound = 1.0 / math.sqrt(layer.inputs)
            for name in (layer.weight, layer.bias):
                if name is None:
                    continue
                leaf = torch.empty(self.shapes[name], dtype=dtype, device=device)
                if layer.kind == "linear":
                    params[name] = leaf.uniform_(-bound, bound, generator=generator)
                else:
                    params[name] = leaf.fill_(float(name == layer.weight))
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
    width = int(value.__index__())
    if width > MOST_WIDTH:
        raise ValueError(f"MLP: widths must be at most {MOST_WIDTH} (got {value!r})")
    return width


def _summary(layers: Sequence[Layer]) -> str:
    """Returns widths, norms and activations in words."""
    linear = [layer for layer in layers if layer.kind == "linear"]
    widths = "-".join(str(n) for n in (layers[0].inputs, *(layer.outputs for layer in linear)))
    kinds = dict.fromkeys(word for layer in layers for word in (layer.kind, layer.activation))
    named = [kind for kind in kinds if kind not in ("linear", "identity")]
    return f"{widths} ({', '.join(named) or 'linear'})"


def architecture_key(layers: Sequence[Layer]) -> str:
    """Returns the canonical text of an architecture: one `inputs>outputs:bias:activation:slope` a
    layer, and `:kind:weight:eps` after it unless it is linear."""
    return " ".join(
        f"{layer.inputs}>{layer.outputs}:{int(layer.bias is not None)}:{layer.activation}:"
        f"{layer.slope!r}" + _kind_key(layer)
        for layer in layers
    )


def _kind_key(layer: Layer) -> str:
    """Returns what the canonical text says of a layer that is not linear."""
    if layer.kind == "linear":
        return ""
    return f":{layer.kind}:{int(layer.weight is not None)}:{layer.eps!r}"


def from_key(key: str) -> MLP:
    """Returns the description that a canonical text stands for, with names "0.weight", "0.bias",
    ..."""
    layers = []
    *texts, last = key.split(" ")
    texts += [] if last == FREE else [last]
    for i, text in enumerate(texts):
        sizes, bias, activation, slope, *rest = text.split(":")
        kind, weight, eps = rest or ("linear", "1", "0.0")
        inputs, outputs = sizes.split(">")
        layers.append(
            Layer(
                f"{i}.weight" if weight == "1" else None,
                f"{i}.bias" if bias == "1" else None,
                int(inputs),
                int(outputs),
                activation,
                float(slope),
                kind,
                float(eps),
            )
        )
    model = MLP.__new__(MLP)
    model._set(layers, flattens=False, free=FREE if last == FREE else "")
    return model


def describe(module: nn.Module) -> MLP:
    """Returns the description of a module, or raises NotFusible."""
    return model_of(read_chain(module))


_MODELS: dict[tuple[tuple[Layer, ...], bool], MLP] = {}


def model_of(chain: Chain) -> MLP:
    """Returns the description that a chain stands for; equal chains have the same one."""
    return model_of_layers([Layer(*fields) for fields in chain.layers], flattens=chain.flattens)


def model_of_layers(layers: Sequence[Layer], *, flattens: bool) -> MLP:
    """Returns the description made of these layers; equal ones have the same one."""
    key = tuple(layers), flattens
    if torch.compiler.is_compiling():
        return MLP.from_layers(layers, flattens=flattens)
    known = _MODELS.get(key)
    if known is None:
        known = MLP.from_layers(layers, flattens=flattens)
        if len(_MODELS) >= 1024:
            _MODELS.clear()
        _MODELS[key] = known
    return known
