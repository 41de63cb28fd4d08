"""The four passes of a whole program, layer by layer."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop._batched import activations, affine, arithmetic, norms, products, shapes
from innerloop._batched.blocks import NormBlock
from innerloop._batched.computed import Computed
from innerloop._batched.layer import Layer, Maybe, channels_last, is_shared, plus
from innerloop._batched.native import NativeConvolution, NativeNormBlock
from innerloop._batched.precision import NARROW, InPrecision, widened
from innerloop._batched.recurrent import Recurrent
from innerloop._program import Leaf, Made, Node, Part, Program, name_of

Leaves = Mapping[str, Any]  # tensors, or what `factored.py` has in their place

_LAYERS: dict[str, type[Layer]] = {
    "linear": affine.LinearLayer,
    "convolution": affine.Convolution,
    "transposed_convolution": affine.TransposedConvolution,
    "reshape": shapes.Reshape,
    "mean": shapes.Mean,
    "permute": shapes.Permute,
    "slice": shapes.Slice,
    "take": shapes.Take,
    "cat": shapes.Joined,
    "add": arithmetic.Sum,
    "multiply": arithmetic.Product,
    "matmul": products.MatrixProduct,
    "contraction": products.Contraction,
    "divide": arithmetic.Quotient,
    "length": arithmetic.Length,
    "scale": arithmetic.Scale,
    "shift": arithmetic.Shift,
    "gain": arithmetic.Gain,
    "spread": arithmetic.Spread,
    "constant": arithmetic.Constant,
    "masked": arithmetic.Masked,
    "max_pool": shapes.MaxPool,
    "adaptive_max_pool": shapes.MaxPool,
    "avg_pool": shapes.AveragePool,
    "adaptive_avg_pool": shapes.AdaptiveAveragePool,
    "layer_norm": norms.Norm,
    "group_norm": norms.Norm,
    "rms_norm": norms.Norm,
    "fixed_norm": norms.FixedNorm,
    "softmax": norms.Softmax,
    "attention_softmax": norms.AttentionSoftmax,
    "log_softmax": norms.LogSoftmax,
    "relu": activations.Relu,
    "prelu": activations.PRelu,
    "recurrent": Recurrent,
    "computed": Computed,
    **{kind: activations.Activation for kind in activations.KINDS if kind != "relu"},
}


# layers that take statistics or exponents: in float32 where values are bfloat16
_IN_SUMS = (
    NormBlock, norms.Norm, norms.FixedNorm, norms.Softmax, norms.LogSoftmax, Recurrent
)  # fmt: skip


class Tape(NamedTuple):
    """What a forward and a backward pass leave behind: what each layer saved, the gradient in its
    output (None before the backward pass, and where none is used), and the weights that were
    computed, by value."""

    saved: list[Any]
    gradients: list[Maybe]
    made: dict[int, Tensor]


class _Call(NamedTuple):
    """A layer with the values that go in and out, and its leaves."""

    layer: Layer
    inputs: tuple[int, ...]
    output: int
    leaves: tuple[Leaf | None, ...]


class Passes:
    """A program made of layers, on values of a dtype, by kernels where there are some and `native`
    says so; outputs are in the dtype of its sums, and so are leaves and gradients."""

    def __init__(self, program: Program, dtype: torch.dtype, native: bool) -> None:
        self.shape = program.shape_of(program.output)  # of a row of the outputs
        self._values = len(program.nodes) + 1
        self._output = program.output
        self._dtype = dtype
        self._calls = _used(list(_calls(program, native)), program.output)
        if dtype is NARROW:
            self._calls = [call._replace(layer=_narrow(call.layer)) for call in self._calls]
        every = [leaf for call in self._calls for leaf in call.leaves]
        self._made = {leaf.value for leaf in every if isinstance(leaf, Made)}
        moving = [False] * self._values  # whether leaves act on a value
        for call in self._calls:
            moving[call.output] = any(call.leaves) or any(moving[v] for v in call.inputs)
        self._wanted = [[moving[value] for value in call.inputs] for call in self._calls]

    def forward(self, leaves: Leaves, x: Tensor, tape: bool = True) -> tuple[Tensor, Tape]:
        """Returns the outputs [T, N, ...] of x [T, N, ...]."""
        values: list[Maybe] = [None] * self._values
        values[0] = channels_last(x)
        saved: list[Any] = []
        for call in self._calls:
            inputs = [_there(values[v]) for v in call.inputs]
            values[call.output], kept = call.layer.forward(inputs, _of(leaves, call, values))
            saved.append(kept if tape else None)
        made = {value: _there(values[value]) for value in self._made}
        return widened(_there(values[self._output])), Tape(saved, [None] * len(saved), made)

    def backward(self, leaves: Leaves, tape: Tape, g: Tensor) -> dict[str, Any]:
        """Returns the gradients [T, ...] of the leaves, given that in the outputs."""
        gradients: list[Maybe] = [None] * self._values
        gradients[self._output] = g.to(self._dtype)
        found: dict[str, Any] = {}
        for at in reversed(range(len(self._calls))):
            call = self._calls[at]
            here = tape.gradients[at] = gradients[call.output]
            if here is None:
                continue
            inputs, own = call.layer.backward(
                tape.saved[at], here, _of(leaves, call, tape.made), self._wanted[at]
            )
            _collect(gradients, call, inputs)
            _gather(found, gradients, call, own, leaves)
        return found

    def product(self, leaves: Leaves, tape: Tape, dots: Leaves, curvature: Any) -> dict[str, Any]:
        """Returns the derivatives [T, ...] of the gradients of the leaves along a direction in some
        of them. `curvature` maps the derivative of the outputs to that of their gradient."""
        tangents: list[Maybe] = [None] * self._values
        kept: list[Any] = []
        for at, call in enumerate(self._calls):
            tangents[call.output], more = call.layer.tangent(
                tape.saved[at],
                [tangents[value] for value in call.inputs],
                _of(leaves, call, tape.made),
                _of(dots, call, tangents),
            )
            kept.append(more)
        seconds: list[Maybe] = [None] * self._values
        along = tangents[self._output]
        if along is not None:
            seconds[self._output] = curvature(widened(along)).to(self._dtype)
        found: dict[str, Any] = {}
        for at in reversed(range(len(self._calls))):
            call, here = self._calls[at], tape.gradients[at]
            if here is None:
                continue
            inputs, own = call.layer.second(
                tape.saved[at],
                kept[at],
                here,
                seconds[call.output],
                [tangents[value] for value in call.inputs],
                _of(leaves, call, tape.made),
                _of(dots, call, tangents),
                self._wanted[at],
            )
            seconds[call.output] = tangents[call.output] = kept[at] = None
            _collect(seconds, call, inputs)
            _gather(found, seconds, call, own, leaves)
        return found


def _calls(program: Program, native: bool) -> Iterator[_Call]:
    """Yields the layers of a program, batch norms together with the relu and the max pool that
    alone follow them."""
    nodes = program.nodes
    uses = Counter(value for node in nodes for value in node.inputs)
    uses[program.output] += 1
    taken: set[int] = set()

    def next_of(value: int, *kinds: str) -> Node | None:
        """Returns the node after a value, if that is all that is made of it."""
        if uses[value] != 1 or value >= len(nodes):
            return None
        node = nodes[value]
        return node if node.inputs == (value,) and node.kind in kinds else None

    for at, node in enumerate(nodes):
        if at in taken:
            continue
        if node.kind == "batch_norm":
            value = at + 1
            relu = next_of(value, "relu")
            value += relu is not None
            pool = next_of(value, "max_pool")
            value += pool is not None
            taken.update(range(at + 1, value))
            source = node.inputs[0]
            shape = program.shape_of(source)
            block: Layer
            if native and NativeNormBlock.takes(pool):
                block = NativeNormBlock(node, relu, pool, shape)
            else:
                owned = source and nodes[source - 1].kind in ("convolution", "linear")
                owned = bool(owned) and uses[source] == 1
                block = NormBlock(node, relu, pool, shape, owns_input=owned)
            yield _Call(block, node.inputs, value, node.leaves)
            continue
        rows = [program.shape_of(value) for value in node.inputs]
        made = _LAYERS[node.kind]
        if node.kind == "power" and node.options < (0.0,):
            made = activations.NegativePower
        if native and made is affine.Convolution and NativeConvolution.takes(node, rows):
            made = NativeConvolution
        yield _Call(made(node, rows), node.inputs, at + 1, node.leaves)


def _used(calls: list[_Call], output: int) -> list[_Call]:
    """Returns the calls on which the output depends."""
    needed = {output}
    kept = []
    for call in reversed(calls):
        if call.output in needed:
            needed.update(call.inputs)
            needed.update(leaf.value for leaf in call.leaves if isinstance(leaf, Made))
            kept.append(call)
    return kept[::-1]


def _narrow(layer: Layer) -> Layer:
    """Returns a layer on values that are bfloat16; weights are computed in float32, as kept."""
    if isinstance(layer, Computed):
        return layer
    return InPrecision(layer, torch.float32 if isinstance(layer, _IN_SUMS) else NARROW)


def _there(value: Maybe) -> Tensor:
    """Returns a value that has been computed."""
    assert value is not None
    return value


def _of(leaves: Leaves, call: _Call, values: Any) -> list[Any]:
    """Returns the leaves of a call in its order, those that are made by their values; None for
    absent ones."""
    found: list[Any] = []
    for leaf in call.leaves:
        if leaf is None:
            found.append(None)
        elif isinstance(leaf, Made):
            found.append(values[leaf.value])
        else:
            found.append(_part(leaves.get(name_of(leaf)), leaf))
    return found


def _part(whole: Any, leaf: Leaf) -> Any:
    """Returns what a call reads of a leaf [T, ...]."""
    if whole is None or not isinstance(leaf, Part):
        return whole
    if leaf.entry is not None:  # dense, as kernels read it
        entry = whole[:, leaf.entry]
        shared = is_shared(entry)
        whole = entry[:1].contiguous().expand_as(entry) if shared else entry.contiguous()
    return whole.transpose(1, 2) if leaf.is_transposed else whole


def _collect(values: list[Maybe], call: _Call, parts: Sequence[Maybe]) -> None:
    """Adds what flows back to the inputs of a call."""
    for value, part in zip(call.inputs, parts, strict=True):
        values[value] = plus(values[value], part)


def _gather(
    found: dict[str, Any],
    values: list[Maybe],
    call: _Call,
    parts: Sequence[Any],
    leaves: Leaves,
) -> None:
    """Adds what flows back to the leaves of a call, and to the values of those that are made."""
    for leaf, value in zip(call.leaves, parts, strict=False):
        if leaf is None or value is None:
            continue
        if isinstance(leaf, Made):
            values[leaf.value] = plus(values[leaf.value], value)
            continue
        name = name_of(leaf)
        if not isinstance(leaf, Part):
            found[name] = found[name] + value if name in found else value
            continue
        if leaf.is_transposed:
            value = value.transpose(1, 2)
        if leaf.entry is not None:
            whole = leaves[name]
            entry, value = value, torch.zeros(whole.shape, dtype=value.dtype, device=value.device)
            value[:, leaf.entry] = entry
        found[name] = found[name] + value if name in found else value


@functools.lru_cache(maxsize=256)  # a network may have one for each step
def passes_of(program: Program, dtype: torch.dtype, native: bool) -> Passes:
    """Returns the layers of a program for values of a dtype; equal programs have the same ones."""
    return Passes(program, dtype, native)
