"""What a forward pass computes, as plain data: the list of its calls, in order, with the parameters
that each of them reads. Equal networks have equal programs, whatever their modules are called."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from innerloop._chain import SMALLEST_EPS, Layer

Shape = tuple[int, ...]
Option = float | int | bool | str | None | Shape | tuple[float, ...]


class Part(NamedTuple):
    """A part of a parameter or buffer.

    Members:
        name: of the whole.
        entry: which one along its first axis; None for the whole.
        is_transposed: whether its two axes (of the entry) change places.
    """

    name: str
    entry: int | None
    is_transposed: bool


class Made(NamedTuple):
    """What a node of the kind "computed" makes of parameters alone.

    Members:
        value: what the node gives.
    """

    value: int


Leaf = str | Part | Made


class Reference(NamedTuple):
    """A tensor among the arguments of a computation: a leaf of its node, by place, or after those
    the result of an earlier computation."""

    at: int


class Sequenced(NamedTuple):
    """A list or a tuple among the arguments of a computation, which mean different things as an
    index."""

    parts: tuple[Any, ...]
    is_list: bool


class Number(NamedTuple):
    """A number among the arguments of a computation; `text` tells False from 0, and -0.0 from 0.0,
    which are equal."""

    value: Any
    text: str


class Sliced(NamedTuple):
    """A slice among the arguments of a computation (slices have no hash)."""

    start: Any
    stop: Any
    step: Any


class Computation(NamedTuple):
    """One call of torch on parameters alone.

    Members:
        function: what is called.
        arguments: with what; tensors are references.
        keywords: likewise, by name.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]


def run(computation: Computation, tensors: Sequence[Any]) -> Any:
    """Returns what a computation gives, with tensors in the place of references to them."""
    arguments = [_filled(value, tensors) for value in computation.arguments]
    keywords = {name: _filled(value, tensors) for name, value in computation.keywords}
    return computation.function(*arguments, **keywords)


def function_of(computations: Sequence[Computation]) -> Callable[..., Tensor]:
    """Returns what the last of some computations gives as a function of their leaves."""

    def function(*leaves: Tensor) -> Tensor:
        known: list[Any] = list(leaves)
        for computation in computations:
            known.append(run(computation, known))
        result: Tensor = known[-1]
        return result

    return function


def _filled(template: Any, tensors: Sequence[Any]) -> Any:
    """Returns an argument with tensors in the place of references."""
    if isinstance(template, Reference):
        return tensors[template.at]
    if isinstance(template, Sequenced):
        parts = [_filled(part, tensors) for part in template.parts]
        return parts if template.is_list else tuple(parts)
    if isinstance(template, Sliced):
        return slice(*template)
    return template.value if isinstance(template, Number) else template


def name_of(leaf: str | Part) -> str:
    """Returns the name of the parameter or buffer that a call reads, or reads a part of."""
    return leaf if isinstance(leaf, str) else leaf.name


class Node(NamedTuple):
    """One call.

    Members:
        kind: what is computed ("linear", "convolution", "relu", ...).
        inputs: the values that go in: 0 is the network's input, i + 1 what node i gives.
        leaves: the parameters and buffers that go in, by name, or parts of them, or what is made
            of them alone; None for one that is absent.
        options: what else determines the result, in an order of the kind's own; of the kind
            "computed" its computations in order.
        shape: of one row of the result.
    """

    kind: str
    inputs: tuple[int, ...]
    leaves: tuple[Leaf | None, ...]
    options: tuple[Option, ...]
    shape: Shape

    @property
    def names(self) -> list[str]:
        """The parameters and buffers that go in, whole or in part."""
        return [name_of(leaf) for leaf in self.leaves if leaf and not isinstance(leaf, Made)]


class Program(NamedTuple):
    """A forward pass: rows of `shape` go in, the value `output` comes out."""

    shape: Shape
    nodes: tuple[Node, ...]
    output: int

    def shape_of(self, value: int) -> Shape:
        """Returns the shape of one row of a value."""
        return self.nodes[value - 1].shape if value else self.shape


# kinds that the fused operations have, with the options that they must have
FUSED_ACTIVATIONS: dict[str, tuple[Option, ...] | None] = {
    "relu": (),
    "leaky_relu": None,
    "tanh": (),
    "sigmoid": (),
    "softplus": (1.0, 20.0),
    "silu": (),
    "gelu": ("none",),
}


class NoChain(Exception):
    """A program is no chain of linear layers, layer norms and activations; the text says why."""


def as_layers(program: Program, names: tuple[str, ...]) -> tuple[list[Layer], bool]:
    """Returns the layers of a program that is a chain of linear layers and layer norms with at most
    one activation each, and whether it flattens its input.

    Raises:
        NoChain: it is something else, or does not use each of the parameters `names` once.
    """
    layers: list[Layer] = []
    activated, flat = True, len(program.shape) == 1
    for at, node in enumerate(program.nodes):
        if node.kind == "computed":
            raise NoChain("a weight that is computed from parameters has no kernel")
        if node.kind not in ("reshape", "linear", "layer_norm", *FUSED_ACTIVATIONS):
            raise NoChain(f"{node.kind} has no kernel")
        if node.inputs != (at,):
            raise NoChain(f"{node.kind} does not follow on what is computed before it")
        if node.kind == "reshape":
            if len(node.shape) != 1 or (layers and len(program.shape_of(at)) != 1):
                raise NoChain(f"rows of shape {list(node.shape)} have no kernel")
            flat = True
        elif not flat:
            raise NoChain("rows with more than one axis have no kernel")
        elif node.kind in ("linear", "layer_norm"):
            layers.append(_as_layer(node, program.shape_of(at)[0]))
            activated = False
        else:
            wanted = FUSED_ACTIVATIONS[node.kind]
            if wanted is not None and node.options != wanted:
                raise NoChain(f"{node.kind} with the options {node.options} has no kernel")
            if activated:
                where = "in a row" if layers else "before the first layer"
                raise NoChain(f"activations {where} have no kernel")
            slope = node.options[0] if node.kind == "leaky_relu" else 0.0
            assert isinstance(slope, (int, float))
            layers[-1] = layers[-1]._replace(activation=node.kind, slope=float(slope))
            activated = True
    is_network = any(layer.kind == "linear" for layer in layers)
    if not is_network or program.output != len(program.nodes):
        raise NoChain("it does not end with a linear layer or an activation")
    used = [name for layer in layers for name in (layer.weight, layer.bias) if name is not None]
    if sorted(used) != sorted(names):
        twice = next((name for name in used if used.count(name) > 1), None)
        unused = next((name for name in names if name not in used), None)
        if twice:
            raise NoChain(f"{twice} is used twice")
        raise NoChain(f"it does not use {unused}" if unused else "it has a weight that is a buffer")
    return layers, len(program.shape) != 1


def _as_layer(node: Node, inputs: int) -> Layer:
    """Returns a linear layer or a layer norm, without an activation yet, or raises NoChain."""
    weight, bias = node.leaves
    parts = [leaf.name for leaf in node.leaves if isinstance(leaf, Part)]
    if parts:
        raise NoChain(f"a part of {parts[0]}, or its transpose, has no kernel")
    assert not isinstance(weight, (Part, Made))
    assert not isinstance(bias, (Part, Made))
    eps = node.options[0] if node.kind == "layer_norm" else 0.0
    assert isinstance(eps, float)
    if node.kind == "layer_norm" and not SMALLEST_EPS <= eps < math.inf:
        raise NoChain(f"layer_norm with an eps of {eps} has no kernel")
    return Layer(weight, bias, inputs, node.shape[0], "identity", 0.0, node.kind, eps)


def program_of(layers: Sequence[Layer], shape: Shape, *, flattens: bool) -> Program:
    """Returns what a chain of layers computes of rows of a shape."""
    nodes: list[Node] = []

    def add(kind: str, leaves: tuple[str | None, ...], options: tuple[Option, ...], n: int) -> None:
        nodes.append(Node(kind, (len(nodes),), leaves, options, (n,)))

    if flattens and len(shape) != 1:
        add("reshape", (), (), layers[0].inputs)
    for layer in layers:
        options: tuple[Option, ...] = () if layer.kind == "linear" else (layer.eps, 1)
        add(layer.kind, (layer.weight, layer.bias), options, layer.outputs)
        kind = layer.activation
        if kind != "identity":
            fixed = FUSED_ACTIVATIONS[kind]
            add(kind, (), (layer.slope,) if fixed is None else fixed, layer.outputs)
    return Program(shape, tuple(nodes), len(nodes))


def size_of(shape: Shape) -> int:
    """Returns the number of values in a shape."""
    return math.prod(shape)
