"""Calls that ask for shapes, or put values in other ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._program import size_of
from innerloop._reading.recorder import HANDLERS, Recorder, known


def _pass_through() -> None:
    """Registers what only asks for a tensor's shape or type."""
    counting = [Tensor.shape.__get__, Tensor.size, Tensor.numel, Tensor.__len__, torch.numel]  # type: ignore[attr-defined]
    asks = [Tensor.ndim.__get__, Tensor.dtype.__get__, Tensor.dim, Tensor.ndimension]  # type: ignore[attr-defined]
    asks += [Tensor.is_floating_point, torch.is_floating_point]
    for ask in (*counting, *asks):
        counts = ask in counting

        def handler(
            recorder: Recorder, *args: Any, ask: Any = ask, counts: bool = counts, **kwargs: Any
        ) -> Any:
            recorder.counts_rows |= counts
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
    return _reshape(recorder, input, sizes)


@known(torch.reshape)
def _reshape(recorder: Recorder, input: Tensor, shape: Any) -> Any:
    sizes = [int(n) for n in shape]
    recorder.counts_rows |= sizes[:1] != [-1]
    return _reshaped(recorder, input, sizes)


@known(Tensor.flatten, torch.flatten)
def _flatten(recorder: Recorder, input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Any:
    sizes = list(input.shape)
    first, last = start_dim % max(len(sizes), 1), end_dim % max(len(sizes), 1)
    return _reshaped(
        recorder,
        input,
        [*sizes[:first], size_of(tuple(sizes[first : last + 1])), *sizes[last + 1 :]],
    )


@known(Tensor.unflatten, torch.unflatten)
def _unflatten(recorder: Recorder, input: Tensor, dim: int, sizes: Sequence[int]) -> Any:
    shape = list(input.shape)
    axis = int(dim) % len(shape)
    recorder.counts_rows |= axis == 0
    inner = [int(n) for n in sizes]
    if inner.count(-1) == 1:
        inner[inner.index(-1)] = shape[axis] // -size_of(tuple(inner))
    return _reshaped(recorder, input, [*shape[:axis], *inner, *shape[axis + 1 :]])


@known(Tensor.squeeze, torch.squeeze)
def _squeeze(recorder: Recorder, input: Tensor, *dim: Any) -> Any:
    sizes = list(input.shape)
    given = dim[0] if len(dim) == 1 and isinstance(dim[0], (tuple, list)) else dim
    axes = [int(axis) % len(sizes) for axis in given] if dim else range(len(sizes))
    recorder.counts_rows |= 0 in axes
    gone = [axis for axis in axes if sizes[axis] == 1]
    return _reshaped(recorder, input, [n for axis, n in enumerate(sizes) if axis not in gone])


@known(Tensor.unsqueeze, torch.unsqueeze)
def _unsqueeze(recorder: Recorder, input: Tensor, dim: int) -> Any:
    sizes = list(input.shape)
    sizes.insert(dim % (len(sizes) + 1), 1)
    return _reshaped(recorder, input, sizes)


@known(Tensor.permute, torch.permute)
def _permute(recorder: Recorder, input: Tensor, *dims: Any) -> Any:
    given = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    return permuted(recorder, input, given)


@known(Tensor.transpose, torch.transpose, torch.swapaxes, Tensor.swapaxes)
def _transpose(recorder: Recorder, input: Tensor, dim0: int, dim1: int) -> Any:
    if not recorder.is_value(input):
        return recorder.transposed(input, dim0, dim1)
    axes = list(range(input.ndim))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return permuted(recorder, input, axes)


def permuted(recorder: Recorder, input: Tensor, axes: Sequence[Any]) -> Any:
    """Notes that the axes of rows change places."""
    shape, ndim = recorder.shape(input), input.ndim
    order = [int(axis) % ndim for axis in axes]
    if sorted(order) != list(range(ndim)) or order[0] != 0:
        recorder.stop(f"axes {list(axes)} do not leave the rows where they are")
    sizes = tuple(shape[axis - 1] for axis in order[1:])
    result = recorder.add("permute", [input], sizes, (tuple(order[1:]),))
    return recorder.same_memory(result, input)


@known(Tensor.expand)
def _expand(recorder: Recorder, input: Tensor, *sizes: Any) -> Any:
    wanted = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    if recorder.is_value(input):
        recorder.stop("only a parameter can be expanded over the rows")
    recorder.counts_rows = True
    own = [1] * (len(wanted) - input.ndim) + list(input.shape)
    shape = [n if int(size) == -1 else int(size) for size, n in zip(wanted, own, strict=True)]
    if shape[0] != recorder.rows or own[0] != 1 or shape[1:] != own[1:]:
        recorder.stop(f"a parameter of {list(input.shape)} becomes no rows in {shape}")
    return recorder.add("spread", [recorder.input], tuple(shape[1:]), (), (input,))


@known(Tensor.__getitem__)
def _item(recorder: Recorder, input: Tensor, index: Any) -> Any:
    if not recorder.is_value(input):
        if type(index) is not int:
            recorder.stop("only one entry along the first axis of a parameter can be read")
        return recorder.entry(input, index)
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(type(part) not in (int, slice, type(None), type(...)) for part in parts):
        recorder.stop("only integers, slices and None can be read as an index")
    given = sum(part is not None and part is not ... for part in parts)
    at = parts.index(...) if ... in parts else len(parts)
    parts[at : at + 1] = [slice(None)] * (input.ndim - given)
    return _sliced(recorder, input, parts)


def _sliced(recorder: Recorder, input: Tensor, parts: Sequence[Any]) -> Any:
    """Notes an index of integers, slices and None for each axis."""
    sizes, ranges = iter(input.shape), []
    shape: list[int] = []
    for part in parts:
        if part is None:
            shape.append(1)
            continue
        size = next(sizes, 0)
        if type(part) is int:
            if not -size <= part < size:
                recorder.stop(f"there is no entry {part} of {size}")
            ranges.append(range(part % size, part % size + 1))
        else:
            ranges.append(range(*part.indices(size)))
            shape.append(len(ranges[-1]))
    recorder.counts_rows |= parts[0] != slice(None)
    if not isinstance(parts[0], slice) or ranges[0] != range(recorder.rows):
        recorder.stop("rows that are left out cannot be read")
    starts, stops, steps = zip(*((r.start, r.stop, r.step) for r in ranges[1:]), strict=True)
    kept = tuple(len(r) for r in ranges[1:])
    result = recorder.add("slice", [input], kept, (starts, stops, steps))
    result = recorder.same_memory(result, input)
    return result if shape[1:] == list(kept) else _reshaped(recorder, result, shape)


def _pieces(recorder: Recorder, input: Tensor, sizes: Sequence[int], dim: int) -> tuple[Any, ...]:
    """Notes that a result is cut along an axis."""
    found, start = [], 0
    for size in sizes:
        parts = [slice(None)] * input.ndim
        parts[dim] = slice(start, start + size)
        found.append(_sliced(recorder, input, parts))
        start += size
    return tuple(found)


@known(torch.chunk, Tensor.chunk)
def _chunk(recorder: Recorder, input: Tensor, chunks: int, dim: int = 0) -> Any:
    size = input.shape[dim]
    each = -(-size // int(chunks))
    return _pieces(
        recorder, input, [min(each, size - start) for start in range(0, size, each)], dim
    )


@known(torch.split, Tensor.split)
def _split(recorder: Recorder, input: Tensor, split_size: Any, dim: int = 0) -> Any:
    size = input.shape[dim]
    sizes = (
        [int(n) for n in split_size]
        if isinstance(split_size, (tuple, list))
        else [min(split_size, size - start) for start in range(0, size, split_size)]
    )
    if sum(sizes) != size:
        recorder.stop(f"pieces of {sizes} are not all of {size}")
    return _pieces(recorder, input, sizes, dim)


@known(torch.cat, torch.concat, torch.concatenate)
def _cat(recorder: Recorder, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    shapes = [recorder.shape(tensor) for tensor in tensors]
    axis = int(dim) % (len(shapes[0]) + 1)
    others = {(*shape[: axis - 1], *shape[axis:]) for shape in shapes}
    if not axis or len(others) != 1 or len({len(shape) for shape in shapes}) != 1:
        recorder.stop(f"rows of {[list(shape) for shape in shapes]} do not join at axis {dim}")
    size = sum(shape[axis - 1] for shape in shapes)
    result = (*shapes[0][: axis - 1], size, *shapes[0][axis:])
    return recorder.add("cat", tensors, result, (axis,))


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
