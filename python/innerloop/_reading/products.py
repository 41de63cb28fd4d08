"""Calls that sum products over axes: of results with one another, and with parameters."""

from __future__ import annotations

import math
import string
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from innerloop._reading.arithmetic import plus
from innerloop._reading.constants import masked
from innerloop._reading.recorder import Recorder, known
from innerloop._reading.shapes import permuted, turned


def contraction(recorder: Recorder, equation: str, input: Tensor, other: Tensor) -> Any:
    """Notes the contraction of a result and another factor; rows are the first axis of results.
    Its letters are named anew, so that equal contractions are equal programs."""
    factors, y = equation.split("->")
    a, b = factors.split(",")
    both = recorder.is_value(other)
    sizes: dict[str, int] = {}
    for axes, tensor in ((a, input), (b, other)):
        if len(axes) != tensor.ndim or any(
            sizes.setdefault(axis, n) != n for axis, n in zip(axes, tensor.shape, strict=True)
        ):
            recorder.stop(f"{equation!r} does not fit its factors", torch.einsum)
    rows = y[:1]
    if not rows or a[:1] != rows or (b[:1] != rows if both else rows in b):
        recorder.stop(f"rows do not stay rows in {equation!r}", torch.einsum)
    if any(len(set(axes)) != len(axes) for axes in (a, b, y)):
        recorder.stop(f"a diagonal cannot be read ({equation!r})", torch.einsum)
    if set(a) - set(b + y) or set(b) - set(a + y) or set(y) - set(a + b):
        recorder.stop(f"a sum over an axis of one factor cannot be read ({equation!r})")
    names = dict(zip(dict.fromkeys(a + b), string.ascii_lowercase, strict=False))
    named = "{},{}->{}".format(*("".join(names[axis] for axis in axes) for axes in (a, b, y)))
    inputs, leaves = ([input, other], []) if both else ([input], [other])
    shape = tuple(sizes[axis] for axis in y[1:])
    return recorder.add("contraction", inputs, shape, (named,), leaves)


@known(torch.einsum)
def _einsum(recorder: Recorder, equation: Any, *operands: Any) -> Any:
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    if type(equation) is not str or len(operands) != 2:
        recorder.stop("only an equation of two factors can be read", torch.einsum)
    terms, arrow, y = equation.replace(" ", "").partition("->")
    factors = terms.split(",")
    if len(factors) != 2:
        recorder.stop(f"{equation!r} does not have two factors", torch.einsum)
    if not arrow:
        once = [axis for axis in sorted(set(terms)) if axis.isalpha() and terms.count(axis) == 1]
        y = ("..." if "..." in terms else "") + "".join(once)
    counts = [
        tensor.ndim - len(axes) + 3 if "..." in axes else 0
        for axes, tensor in zip(factors, operands, strict=True)
    ]
    free = [axis for axis in string.ascii_letters if axis not in terms][: max(0, *counts)]
    for at, count in enumerate(counts):
        factors[at] = factors[at].replace("...", "".join(free[len(free) - max(count, 0) :]))
    y = y.replace("...", "".join(free))
    if not (factors[0] + factors[1] + y).isalpha():
        recorder.stop(f"{equation!r} is no equation that can be read", torch.einsum)
    if not recorder.is_value(operands[0]):
        factors, operands = factors[::-1], operands[::-1]
    return contraction(recorder, f"{factors[0]},{factors[1]}->{y}", *operands)


@known(torch.matmul, Tensor.matmul, Tensor.__matmul__)
def _matmul(recorder: Recorder, input: Tensor, other: Tensor) -> Any:
    if recorder.is_value(other):
        return _matrices_of_parameters(recorder, input, other)
    if other.ndim == 2:
        return _rows_times_matrix(recorder, input, other)
    axes, own = string.ascii_lowercase[: input.ndim], other.ndim
    if own == 1:
        if input.ndim < 2:
            recorder.stop("a product of a vector with one")
        return contraction(recorder, f"{axes},{axes[-1]}->{axes[:-1]}", input, other)
    if own > input.ndim - 1:
        recorder.stop(f"a product of {list(input.shape)} with {list(other.shape)}")
    batch = axes[len(axes) - own : -2]
    return contraction(recorder, f"{axes},{batch}{axes[-1]}z->{axes[:-1]}z", input, other)


def _matrices_of_parameters(recorder: Recorder, input: Tensor, other: Tensor) -> Any:
    """Notes input @ other of two results, or of a parameter and a result."""
    if recorder.is_value(input):
        return product(recorder, input, other)
    axes, own = string.ascii_lowercase[: other.ndim], input.ndim
    if other.ndim < 3 or own > other.ndim - 1:
        recorder.stop(f"a product of {list(input.shape)} with {list(other.shape)}")
    batch, outputs = axes[len(axes) - max(own, 2) : -2], "z" if own > 1 else ""
    equation = f"{axes},{batch}{outputs}{axes[-2]}->{axes[:-2]}{outputs}{axes[-1]}"
    return contraction(recorder, equation, other, input)


@known(torch.mm, Tensor.mm)
def _rows_times_matrix(recorder: Recorder, input: Tensor, mat2: Tensor) -> Any:
    if not recorder.is_value(input) or recorder.is_value(mat2):
        recorder.stop("only a product of rows with a parameter can be read")
    shape = recorder.shape(input)
    if not shape or mat2.ndim != 2 or shape[-1] != mat2.shape[0]:
        recorder.stop(f"a product of rows of {list(shape)} with {list(mat2.shape)}")
    weight = recorder.transposed(mat2, 0, 1)
    return recorder.add("linear", [input], (*shape[:-1], mat2.shape[1]), (), (weight, None))


@known(torch.bmm, Tensor.bmm)
def product(recorder: Recorder, input: Tensor, mat2: Tensor) -> Any:
    """Notes the product of the matrices of two results."""
    one, other = recorder.shape(input), recorder.shape(mat2)
    matrices = min(len(one), len(other)) >= 2
    if not matrices or one[:-2] != other[:-2] or one[-1] != other[-2]:
        recorder.stop(f"a product of rows of {list(one)} with rows of {list(other)}")
    return recorder.add("matmul", [input, mat2], (*one[:-1], other[-1]))


@known(F.bilinear)
def _bilinear(
    recorder: Recorder, input1: Tensor, input2: Tensor, weight: Tensor, bias: Any = None
) -> Any:
    for value in (input1, input2):
        recorder.value(value)
    front = string.ascii_lowercase[: input1.ndim - 1]
    half = contraction(recorder, f"{front}x,zxy->{front}zy", input1, weight)
    whole = contraction(recorder, f"{front}zy,{front}y->{front}z", half, input2)
    return whole if bias is None else plus(recorder, whole, bias, 1.0, inplace=False)


@known(F.scaled_dot_product_attention)
def _attention(
    recorder: Recorder,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Any:
    if enable_gqa or (is_causal and attn_mask is not None):
        recorder.stop("grouped heads and two masks cannot be read", F.scaled_dot_product_attention)
    if dropout_p:
        recorder.stop("its dropout is random", F.scaled_dot_product_attention)
    width = recorder.shape(query)[-1]
    factor = 1 / math.sqrt(width) if scale is None else float(scale)
    scaled = recorder.add("scale", [query], recorder.shape(query), (factor, 0.0))
    scores = product(recorder, scaled, permuted(recorder, key, turned(key.ndim)))
    shape = recorder.shape(scores)
    if is_causal:
        scores = recorder.add("masked", [scores], shape, (-math.inf,))
    elif attn_mask is not None and attn_mask.dtype is torch.bool:
        scores = masked(recorder, scores, attn_mask, -math.inf, keeps=True)
    elif attn_mask is not None:
        scores = plus(recorder, scores, attn_mask, 1.0, inplace=False)
    shares = recorder.add("attention_softmax", [scores], shape, (scores.ndim - 1,))
    return product(recorder, shares, value)
