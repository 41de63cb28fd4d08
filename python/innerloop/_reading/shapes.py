"""Calls that ask for shapes, or put values in other ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from innerloop._program import size_of
from innerloop._reading.recorder import Recorder, known


def _always(recorder: Recorder, *args: Any, **kwargs: Any) -> bool:
    """Says that calls on parameters are read, too."""
    return True


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
            recorder.counts_rows |= counts and recorder.is_value(args[0])
            return ask(*args, **kwargs)

        known(ask, parameters=_always)(handler)


_pass_through()


@known(Tensor.device.__get__, parameters=_always)
def _device(recorder: Recorder, tensor: Tensor) -> torch.device:
    stands_in = recorder.is_value(tensor) or recorder.is_leaf(tensor)
    return recorder.device if stands_in else tensor.device


@known(Tensor.is_cuda.__get__, parameters=_always)  # type: ignore[attr-defined]
def _is_cuda(recorder: Recorder, tensor: Tensor) -> bool:
    return bool(_device(recorder, tensor).type == "cuda")


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
    if dim == (0,) and sizes[0] == 1:
        found = recorder.in_stack(input, 0)
        if found is not None:
            return found
    given = dim[0] if len(dim) == 1 and isinstance(dim[0], (tuple, list)) else dim
    axes = [int(axis) % len(sizes) for axis in given] if dim else range(len(sizes))
    recorder.counts_rows |= 0 in axes
    gone = [axis for axis in axes if sizes[axis] == 1]
    return _reshaped(recorder, input, [n for axis, n in enumerate(sizes) if axis not in gone])


@known(Tensor.unsqueeze, torch.unsqueeze)
def _unsqueeze(recorder: Recorder, input: Tensor, dim: int) -> Any:
    sizes = list(input.shape)
    axis = int(dim) % (len(sizes) + 1)
    recorder.counts_rows |= axis == 0
    sizes.insert(axis, 1)
    return _reshaped(recorder, input, sizes)


@known(Tensor.permute, torch.permute)
def _permute(recorder: Recorder, input: Tensor, *dims: Any) -> Any:
    given = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    return permuted(recorder, input, given)


def is_matrix(recorder: Recorder, input: Tensor, *args: Any, **kwargs: Any) -> bool:
    """Says whether a parameter, or a part of one, is a matrix."""
    return input.ndim == 2 and recorder.is_own(input)


@known(Tensor.transpose, torch.transpose, torch.swapaxes, Tensor.swapaxes, parameters=is_matrix)
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


def turned(ndim: int) -> list[int]:
    """Returns axes of which the last two have changed places."""
    return [*range(ndim - 2), ndim - 1, ndim - 2]


def _is_spread(recorder: Recorder, input: Tensor, *sizes: Any) -> bool:
    """Says whether a parameter is expanded over the rows."""
    wanted = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    own = [1] * (len(wanted) - input.ndim) + list(input.shape)
    shape = [n if int(size) == -1 else int(size) for size, n in zip(wanted, own, strict=False)]
    return bool(shape) and shape[0] == recorder.rows and own[0] == 1 and shape[1:] == own[1:]


@known(Tensor.expand, parameters=_is_spread)
def _expand(recorder: Recorder, input: Tensor, *sizes: Any) -> Any:
    wanted = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    if recorder.is_value(input):
        recorder.stop("only a parameter can be expanded over the rows")
    recorder.counts_rows = True
    own = [1] * (len(wanted) - input.ndim) + list(input.shape)
    return recorder.add("spread", [recorder.input], tuple(own[1:]), (), (input,))


def _is_entry(recorder: Recorder, input: Tensor, index: Any) -> bool:
    """Says whether one entry along the first axis of a parameter is asked for."""
    is_plain = type(index) is int and input.dtype is recorder.dtype
    return is_plain and recorder.is_own(input, whole=True)


@known(Tensor.__getitem__, parameters=_is_entry)
def _item(recorder: Recorder, input: Tensor, index: Any) -> Any:
    found = recorder.in_stack(input, index)
    if found is not None:
        return found
    if not recorder.is_value(input):
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


def pieces(recorder: Recorder, input: Tensor, sizes: Sequence[int], dim: int) -> tuple[Any, ...]:
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
    return pieces(recorder, input, [min(each, size - start) for start in range(0, size, each)], dim)


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
    return pieces(recorder, input, sizes, dim)


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


@known(torch.stack)
def _stack(recorder: Recorder, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    axis = int(dim) % (tensors[0].ndim + 1)
    return _cat(recorder, [_unsqueeze(recorder, tensor, axis) for tensor in tensors], axis)


def _at(recorder: Recorder, input: Tensor, dim: int, part: Any) -> Any:
    """Notes an index along one axis."""
    parts: list[Any] = [slice(None)] * input.ndim
    parts[dim] = part
    return _sliced(recorder, input, parts)


@known(torch.unbind, Tensor.unbind)
def _unbind(recorder: Recorder, input: Tensor, dim: int = 0) -> Any:
    return tuple(_at(recorder, input, dim, at) for at in range(input.shape[dim]))


@known(torch.select, Tensor.select)
def _select(recorder: Recorder, input: Tensor, dim: int, index: int) -> Any:
    return _at(recorder, input, dim, int(index))


@known(torch.narrow, Tensor.narrow)
def _narrow(recorder: Recorder, input: Tensor, dim: int, start: int, length: int) -> Any:
    first = int(start) % input.shape[dim] if start < 0 else int(start)
    return _at(recorder, input, dim, slice(first, first + int(length)))


# ---------------------------------------------------------------- entries in other places

_OUTSIDE = -1  # an entry that is a constant


def _taken(
    recorder: Recorder, input: Tensor, dim: int, entries: Sequence[int], constant: float = 0.0
) -> Any:
    """Notes that a result has these entries along an axis."""
    shape, axis = recorder.shape(input), int(dim) % input.ndim
    if not axis:
        recorder.stop("rows that change places cannot be read")
    if list(entries) == list(range(shape[axis - 1])):
        return input
    sizes = (*shape[: axis - 1], len(entries), *shape[axis:])
    return recorder.add("take", [input], sizes, (axis, tuple(entries), constant))


def _beyond(at: int, size: int, mode: str) -> int:
    """Returns the entry that stands at a place of a padded axis."""
    if mode == "reflect":
        return size - 1 - abs(size - 1 - abs(at))
    if mode == "replicate":
        return min(max(at, 0), size - 1)
    return at % size if mode == "circular" or 0 <= at < size else _OUTSIDE


@known(F.pad, torch._C._nn.pad)
def _pad(
    recorder: Recorder, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Any:
    shape, amounts = recorder.shape(input), [int(n) for n in pad]
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    most = {"constant": math.inf, "replicate": math.inf, "circular": 0, "reflect": -1}
    if mode not in most or any(pair != (0, 0) for pair in pairs[len(shape) :]):
        recorder.stop(f"padding {amounts} of rows of {list(shape)}, mode {mode!r}", F.pad)
    for size, pair in zip(reversed(shape), pairs, strict=False):
        short = size + sum(pair) < 1 or (mode != "constant" and (min(pair) < 0 or size < 1))
        if short or max(pair) > most[mode] + size:
            recorder.stop(f"padding {amounts} does not fit rows of {list(shape)}", F.pad)
    constant = 0.0 if value is None else float(value)
    result = input
    for back, (before, after) in enumerate(pairs[: len(shape)]):
        size = shape[len(shape) - 1 - back]
        places = range(-before, size + after)
        entries = [_beyond(at, size, mode) for at in places]
        result = _taken(recorder, result, len(shape) - back, entries, constant)
    return _clone(recorder, input) if result is input else result


@known(F.interpolate)
def _interpolate(
    recorder: Recorder,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Any:
    places = recorder.shape(input)[1:]
    if mode not in ("nearest", "nearest-exact") or antialias or not places:
        recorder.stop(f"only the nearest of entries can be read, not {mode!r}", F.interpolate)
    sizes, factors = _for_each(size, len(places)), _for_each(scale_factor, len(places))
    result = _clone(recorder, input)
    for axis, (n, wanted, factor) in enumerate(zip(places, sizes, factors, strict=True), 2):
        entries = torch.arange(n, dtype=max(recorder.dtype, torch.float32, key=_digits))
        chosen = F.interpolate(
            entries.to(recorder.device).view(1, 1, n), wanted, factor, mode,
            recompute_scale_factor=recompute_scale_factor,
        )  # fmt: skip
        result = _taken(recorder, result, axis, [int(entry) for entry in chosen.flatten()])
    return result


def _digits(dtype: torch.dtype) -> int:
    """Returns how large numbers of a dtype are, in bytes."""
    return dtype.itemsize


def _for_each(given: Any, axes: int) -> Sequence[Any]:
    """Returns an option for each axis."""
    return given if isinstance(given, (tuple, list)) else [given] * axes


@known(torch.flip, Tensor.flip)
def _flip(recorder: Recorder, input: Tensor, *dims: Any) -> Any:
    axes = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    result = _clone(recorder, input)
    for axis in axes:
        result = _taken(recorder, result, axis, list(reversed(range(input.shape[axis]))))
    return result


@known(torch.roll, Tensor.roll)
def _roll(recorder: Recorder, input: Tensor, shifts: Any, dims: Any = None) -> Any:
    axes = dims if isinstance(dims, (tuple, list)) else () if dims is None else (dims,)
    steps = shifts if isinstance(shifts, (tuple, list)) else (shifts,)
    if not axes or len(axes) != len(steps):
        recorder.stop("only shifts along axes of the rows can be read", torch.roll)
    result = _clone(recorder, input)
    for step, axis in zip(steps, axes, strict=True):
        size = input.shape[axis]
        result = _taken(recorder, result, axis, [(at - step) % size for at in range(size)])
    return result


@known(Tensor.repeat)
def _repeat(recorder: Recorder, input: Tensor, *repeats: Any) -> Any:
    given = repeats[0] if len(repeats) == 1 and isinstance(repeats[0], (tuple, list)) else repeats
    if len(given) != input.ndim or given[0] != 1:
        recorder.stop("only entries along axes of the rows can be repeated", Tensor.repeat)
    result = _clone(recorder, input)
    for axis, times in enumerate(given[1:], 1):
        result = _taken(recorder, result, axis, list(range(input.shape[axis])) * int(times))
    return result


@known(torch.repeat_interleave, Tensor.repeat_interleave)
def _repeat_interleave(recorder: Recorder, input: Tensor, repeats: Any, dim: Any = None) -> Any:
    if type(repeats) is not int or dim is None or repeats < 1:
        recorder.stop(
            "only repeats by a number along an axis of the rows can be read",
            torch.repeat_interleave,
        )
    size = input.shape[dim]
    result = _taken(recorder, input, dim, [at // repeats for at in range(size * repeats)])
    return _clone(recorder, input) if result is input else result


@known(torch.clone, Tensor.clone)
def _clone(recorder: Recorder, input: Tensor, memory_format: Any = None) -> Any:
    return recorder.tensor(recorder.value(input), recorder.shape(input))


@known(Tensor.contiguous)
def _contiguous(recorder: Recorder, input: Tensor, memory_format: Any = None) -> Any:
    return recorder.same_memory(_clone(recorder, input), input)  # or not, which strides decide


@known(Tensor.float, Tensor.double, Tensor.to)
def _converted(recorder: Recorder, input: Tensor, *wanted: Any, **named: Any) -> Any:
    given = [*wanted, *named.values()]
    recorder.value(input)
    if any(value not in (recorder.dtype, recorder.device) for value in given) or not given:
        recorder.stop("a conversion cannot be read")
    return input
