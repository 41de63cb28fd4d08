"""Calls that pool."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from innerloop._program import Shape
from innerloop._reading.affine import numbers
from innerloop._reading.recorder import HANDLERS, Handler, Recorder


def _pooled(
    recorder: Recorder,
    shape: Shape,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
) -> Shape:
    """Returns the sizes of a row after pooling, by torch's rule: with `ceil_mode` a window may go
    over the end if it begins before it."""
    sizes = []
    for n, k, s, p, d in zip(shape[1:], kernel, stride, padding, dilation, strict=True):
        steps, rest = divmod(n + 2 * p - d * (k - 1) - 1, s)
        more = ceil_mode and rest > 0 and (steps + 1) * s < n + p
        sizes.append(steps + 1 + more)
    if min(sizes) < 1 or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        recorder.stop(f"windows of {list(kernel)} do not fit rows of {list(shape)}")
    return (shape[0], *sizes)


def _max_pool(axes: int) -> Handler:
    """Returns what notes max pooling over so many axes."""

    def handler(
        recorder: Recorder,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        shape = recorder.shape(input)
        if len(shape) != axes + 1 or return_indices:
            recorder.stop(f"max pooling of rows of {list(shape)}, or with indices")
        kernel = numbers(recorder, kernel_size, axes)
        strides = numbers(recorder, stride, axes) if stride else kernel
        paddings, dilations = (numbers(recorder, v, axes) for v in (padding, dilation))
        after = _pooled(recorder, shape, kernel, strides, paddings, dilations, ceil_mode)
        options = (kernel, strides, paddings, dilations, bool(ceil_mode))
        return recorder.add("max_pool", [input], after, options)

    return handler


def _avg_pool(axes: int) -> Handler:
    """Returns what notes average pooling over so many axes."""

    def handler(
        recorder: Recorder,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Any:
        shape = recorder.shape(input)
        if len(shape) != axes + 1 or divisor_override is not None:
            recorder.stop(f"average pooling of rows of {list(shape)}, or with another divisor")
        kernel = numbers(recorder, kernel_size, axes)
        strides = numbers(recorder, stride, axes) if stride else kernel
        paddings = numbers(recorder, padding, axes)
        after = _pooled(recorder, shape, kernel, strides, paddings, (1,) * axes, ceil_mode)
        options = (kernel, strides, paddings, bool(ceil_mode), bool(count_include_pad))
        return recorder.add("avg_pool", [input], after, options)

    return handler


def _adaptive_pool(kind: str, axes: int) -> Handler:
    """Returns what notes adaptive pooling over so many axes."""

    def handler(
        recorder: Recorder, input: Tensor, output_size: Any, return_indices: bool = False
    ) -> Any:
        shape = recorder.shape(input)
        if len(shape) != axes + 1 or return_indices:
            recorder.stop(f"adaptive pooling of rows of {list(shape)}, or with indices")
        given = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * axes
        sizes = tuple(
            n if size is None else int(size) for n, size in zip(shape[1:], given, strict=True)
        )
        return recorder.add(kind, [input], (shape[0], *sizes), (sizes,))

    return handler


for _axes, (_max, _avg, _most, _average) in enumerate(
    (
        (F.max_pool1d, F.avg_pool1d, F.adaptive_max_pool1d, F.adaptive_avg_pool1d),
        (F.max_pool2d, F.avg_pool2d, F.adaptive_max_pool2d, F.adaptive_avg_pool2d),
    ),
    1,
):
    HANDLERS[_max] = _max_pool(_axes)
    HANDLERS[_avg] = _avg_pool(_axes)
    HANDLERS[_most] = _adaptive_pool("adaptive_max_pool", _axes)
    HANDLERS[_average] = _adaptive_pool("adaptive_avg_pool", _axes)
