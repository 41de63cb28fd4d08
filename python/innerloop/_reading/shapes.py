"""Calls that ask for shapes, change them, or add values up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._program import size_of
from innerloop._reading.recorder import HANDLERS, Recorder, known


def _pass_through() -> None:
    """Registers what only asks for a tensor's shape or type."""
    attributes = [Tensor.shape, Tensor.ndim, Tensor.dtype]
    asks = [attribute.__get__ for attribute in attributes]  # type: ignore[attr-defined]
    asks += [Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.__len__]
    asks += [Tensor.is_floating_point, torch.is_floating_point, torch.numel]
    for ask in asks:

        def handler(recorder: Recorder, *args: Any, ask: Any = ask, **kwargs: Any) -> Any:
            return ask(*args, **kwargs)

        HANDLERS[ask] = handler


_pass_through()


@known(Tensor.device.__get__)
def _device(recorder: Recorder, tensor: Tensor) -> torch.device:
    return recorder.device if id(tensor) in recorder._values else tensor.device


def _reshaped(recorder: Recorder, input: Tensor, shape: Sequence[Any]) -> Any:
    """Notes that rows are seen in another shape."""
    size = recorder.rows * size_of(recorder.shape(input))
    sizes = [int(n) for n in shape]
    if sizes.count(-1) == 1:
        rest = -size_of(tuple(sizes))
        sizes[sizes.index(-1)] = size // rest if rest else 0
    if size_of(tuple(sizes)) != size or not sizes or sizes[0] != recorder.rows:
        recorder.stop(f"rows of shape {list(recorder.shape(input))} do not stay rows in {sizes}")
    result = recorder.add("reshape", [input], tuple(sizes[1:]))
    return recorder.same_memory(result, input)


@known(Tensor.view, Tensor.reshape)
def _view(recorder: Recorder, input: Tensor, *shape: Any) -> Any:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return _reshaped(recorder, input, sizes)


@known(torch.reshape)
def _reshape(recorder: Recorder, input: Tensor, shape: Any) -> Any:
    return _reshaped(recorder, input, shape)


@known(Tensor.flatten, torch.flatten)
def _flatten(recorder: Recorder, input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Any:
    sizes = list(input.shape)
    first, last = start_dim % max(len(sizes), 1), end_dim % max(len(sizes), 1)
    return _reshaped(
        recorder,
        input,
        [*sizes[:first], size_of(tuple(sizes[first : last + 1])), *sizes[last + 1 :]],
    )


@known(Tensor.squeeze, torch.squeeze, Tensor.unsqueeze, torch.unsqueeze)
def _squeeze(recorder: Recorder, input: Tensor, *axes: Any, **named: Any) -> Any:
    recorder.stop("axes that come and go cannot be read; use flatten(1) or view")


@known(Tensor.contiguous)
def _contiguous(recorder: Recorder, input: Tensor, memory_format: Any = None) -> Any:
    recorder.value(input)
    return input


@known(Tensor.float, Tensor.double, Tensor.to)
def _converted(recorder: Recorder, input: Tensor, *wanted: Any, **named: Any) -> Any:
    given = [*wanted, *named.values()]
    recorder.value(input)
    if any(value not in (recorder.dtype, recorder.device) for value in given) or not given:
        recorder.stop("a conversion cannot be read")
    return input


@known(Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add)
def _add(recorder: Recorder, input: Any, other: Any, *, alpha: float = 1) -> Any:
    return _sum(recorder, input, other, alpha, inplace=False)


@known(Tensor.add_, Tensor.__iadd__)
def _add_(recorder: Recorder, input: Any, other: Any, *, alpha: float = 1) -> Any:
    return _sum(recorder, input, other, alpha, inplace=True)


def _sum(recorder: Recorder, input: Any, other: Any, alpha: float, inplace: bool) -> Any:
    if alpha != 1 or not isinstance(input, Tensor) or not isinstance(other, Tensor):
        recorder.stop("only the sum of two results can be read", torch.add)
    shape = recorder.shape(input)
    if recorder.shape(other) != shape:
        recorder.stop(f"a sum of {list(shape)} and {list(recorder.shape(other))}", torch.add)
    return recorder.add("add", [input, other], shape, inplace=inplace)


@known(Tensor.mean, torch.mean)
def _mean(recorder: Recorder, input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    shape = recorder.shape(input)
    axes = [dim] if isinstance(dim, int) else list(dim or ())
    ndim = len(shape) + 1
    wanted = sorted({int(axis) % ndim for axis in axes})
    if not wanted or wanted[0] < 2 or wanted != list(range(wanted[0], ndim)):
        recorder.stop("only a mean over the last axes, not over rows or channels, can be read")
    kept = shape[: wanted[0] - 1]
    ones = (1,) * (len(shape) - len(kept)) if keepdim else ()
    return recorder.add("mean", [input], (*kept, *ones), (len(kept),))
