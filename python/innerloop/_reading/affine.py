"""Calls that have weights which mix values: linear layers and convolutions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from innerloop._reading.recorder import HANDLERS, Handler, Recorder, known
from innerloop._reading.shapes import is_matrix, permuted


@known(F.linear)
def _linear(recorder: Recorder, input: Tensor, weight: Tensor, bias: Any = None) -> Any:
    shape = recorder.shape(input)
    if not shape or weight.ndim != 2 or shape[-1] != weight.shape[1]:
        recorder.stop(f"a linear layer of {list(weight.shape)} does not fit rows of {list(shape)}")
    _check_bias(recorder, bias, weight.shape[0])
    if not shape[-1]:
        recorder.stop("a linear layer without inputs", F.linear)
    return recorder.add("linear", [input], (*shape[:-1], weight.shape[0]), (), (weight, bias))


@known(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def _matmul(recorder: Recorder, input: Tensor, mat2: Tensor) -> Any:
    shape = recorder.shape(input)
    if recorder.is_value(mat2):
        return product(recorder, input, mat2)
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
    if attn_mask is not None or is_causal or enable_gqa:
        recorder.stop("only attention to everything can be read", F.scaled_dot_product_attention)
    if dropout_p:
        recorder.stop("its dropout is random", F.scaled_dot_product_attention)
    width = recorder.shape(query)[-1]
    factor = 1 / math.sqrt(width) if scale is None else float(scale)
    scaled = recorder.add("scale", [query], recorder.shape(query), (factor, 0.0))
    scores = product(recorder, scaled, permuted(recorder, key, _turned(key.ndim)))
    axis = scores.ndim - 1
    shares = recorder.add("softmax", [scores], recorder.shape(scores), (axis,))
    return product(recorder, shares, value)


@known(torch.addmm)
def _addmm(recorder: Recorder, input: Tensor, mat1: Tensor, mat2: Tensor) -> Any:
    if input.ndim != 1 or len(recorder.shape(mat1)) != 1 or mat2.ndim != 2:
        recorder.stop("only a bias plus a product of rows can be read")
    _check_bias(recorder, input, mat2.shape[1])
    weight = recorder.transposed(mat2, 0, 1)
    return recorder.add("linear", [mat1], (mat2.shape[1],), (), (weight, input))


def _check_bias(recorder: Recorder, bias: Any, outputs: int) -> None:
    """Stops at a bias that would be spread over the outputs."""
    if bias is not None and tuple(bias.shape) != (outputs,):
        recorder.stop(f"a bias of {list(bias.shape)} for {outputs} outputs", F.linear)


@known(Tensor.t, torch.t, Tensor.T.__get__, parameters=is_matrix)  # type: ignore[attr-defined]
def _transposed(recorder: Recorder, input: Tensor) -> Any:
    if recorder.is_value(input):
        recorder.stop("rows would change places with their entries")
    return recorder.transposed(input, 0, 1)


@known(Tensor.mT.__get__, parameters=is_matrix)  # type: ignore[attr-defined]
def _matrices_transposed(recorder: Recorder, input: Tensor) -> Any:
    if not recorder.is_value(input):
        return _transposed(recorder, input)
    return permuted(recorder, input, _turned(input.ndim))


def _turned(ndim: int) -> list[int]:
    """Returns axes of which the last two have changed places."""
    return [*range(ndim - 2), ndim - 1, ndim - 2]


def numbers(recorder: Recorder, value: Any, axes: int) -> tuple[int, ...]:
    """Returns one int for each axis."""
    if isinstance(value, (tuple, list)):
        found = tuple(int(n) for n in value)
        if len(found) == 1:
            found *= axes
        if len(found) != axes:
            recorder.stop(f"{value} is not one number for each of {axes} axes")
        return found
    return (int(value),) * axes


def _convolution(axes: int) -> Handler:
    """Returns what notes convolutions over so many axes."""

    def handler(
        recorder: Recorder,
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        shape = recorder.shape(input)
        if len(shape) != axes + 1 or shape[0] != weight.shape[1] * groups:
            recorder.stop(
                f"a convolution of {list(weight.shape)} does not fit rows of {list(shape)}"
            )
        kernel = tuple(weight.shape[2:])
        strides, dilations = (numbers(recorder, v, axes) for v in (stride, dilation))
        if isinstance(padding, str):
            whole = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
            if padding == "same" and any(n % 2 for n in whole):
                recorder.stop("padding='same' that is not the same on both sides")
            padding = [n // 2 for n in whole] if padding == "same" else 0
        paddings = numbers(recorder, padding, axes)
        sizes = tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(shape[1:], paddings, dilations, kernel, strides, strict=True)
        )
        if min(sizes, default=1) < 1:
            recorder.stop(f"a kernel of {list(kernel)} does not fit rows of {list(shape)}")
        options = (strides, paddings, dilations, int(groups))
        leaves = (weight, bias)
        return recorder.add("convolution", [input], (weight.shape[0], *sizes), options, leaves)

    return handler


for _axes, _function in enumerate((torch.conv1d, torch.conv2d, torch.conv3d), 1):
    HANDLERS[_function] = _convolution(_axes)
