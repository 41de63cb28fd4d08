"""Calls that have weights which mix values: linear layers and convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from innerloop._reading.recorder import HANDLERS, Handler, Recorder, known
from innerloop._reading.shapes import is_matrix, permuted, turned


@known(F.linear)
def _linear(recorder: Recorder, input: Tensor, weight: Tensor, bias: Any = None) -> Any:
    shape = recorder.shape(input)
    if not shape or weight.ndim != 2 or shape[-1] != weight.shape[1]:
        recorder.stop(f"a linear layer of {list(weight.shape)} does not fit rows of {list(shape)}")
    _check_bias(recorder, bias, weight.shape[0])
    if not shape[-1]:
        recorder.stop("a linear layer without inputs", F.linear)
    return recorder.add("linear", [input], (*shape[:-1], weight.shape[0]), (), (weight, bias))


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
    return permuted(recorder, input, turned(input.ndim))


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


def _transposed_convolution(axes: int) -> Handler:
    """Returns what notes transposed convolutions over so many axes."""

    def handler(
        recorder: Recorder,
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Any:
        shape, kernel = recorder.shape(input), tuple(weight.shape[2:])
        if len(shape) != axes + 1 or shape[0] != weight.shape[0] or shape[0] % groups:
            recorder.stop(
                f"a transposed convolution of {list(weight.shape)} does not fit rows of "
                f"{list(shape)}"
            )
        given = (stride, padding, dilation, output_padding)
        strides, paddings, dilations, more = (numbers(recorder, v, axes) for v in given)
        sizes = tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + m + 1
            for n, s, p, d, m, k in zip(
                shape[1:], strides, paddings, dilations, more, kernel, strict=True
            )
        )
        too_much = any(m >= max(s, d) for m, s, d in zip(more, strides, dilations, strict=True))
        if min(sizes, default=1) < 1 or too_much:
            recorder.stop(f"a kernel of {list(kernel)} does not fit rows of {list(shape)}")
        options = (strides, paddings, dilations, int(groups), more)
        outputs = (weight.shape[1] * groups, *sizes)
        return recorder.add("transposed_convolution", [input], outputs, options, (weight, bias))

    return handler


for _axes in (1, 2, 3):
    HANDLERS[getattr(torch, f"conv{_axes}d")] = _convolution(_axes)
    HANDLERS[getattr(torch, f"conv_transpose{_axes}d")] = _transposed_convolution(_axes)
