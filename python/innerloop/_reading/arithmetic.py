"""Calls that add and multiply: results with one another, with numbers, and with parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._program import Shape, size_of
from innerloop._reading.recorder import Handler, Recorder, known
from innerloop._reading.shapes import permuted


def _is_number(value: object) -> bool:
    """Says whether something is a plain number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _joint(recorder: Recorder, input: Any, other: Any) -> Shape:
    """Returns the shape of rows of two results after broadcasting."""
    shapes = recorder.shape(input), recorder.shape(other)
    fits = len(shapes[0]) == len(shapes[1])
    if not fits or any(n != m and 1 not in (n, m) for n, m in zip(*shapes, strict=True)):
        recorder.stop(f"rows of {list(shapes[0])} and {list(shapes[1])}")
    return tuple(max(sizes) if min(sizes) else 0 for sizes in zip(*shapes, strict=True))


def _along(recorder: Recorder, input: Any, leaf: Tensor) -> Shape:
    """Returns the shape of rows that a parameter is spread over."""
    shape = recorder.shape(input)
    own = list(leaf.shape)
    if len(own) == len(shape) + 1 and own[0] == 1:
        own = own[1:]
    if len(own) > len(shape) or any(
        n not in (1, m) for n, m in zip(reversed(own), reversed(shape), strict=False)
    ):
        recorder.stop(f"a parameter of {list(leaf.shape)} does not fit rows of {list(shape)}")
    return shape


def _plus(recorder: Recorder, input: Any, other: Any, factor: float, inplace: bool) -> Any:
    """Notes input + factor * other."""
    if _is_number(input):
        options = (float(factor), float(input))
        return recorder.add("scale", [other], recorder.shape(other), options)
    if _is_number(other):
        options = (1.0, float(factor * other))
        return recorder.add("scale", [input], recorder.shape(input), options, inplace=inplace)
    if recorder.is_value(other) and recorder.is_value(input):
        shape = _joint(recorder, input, other)
        if inplace and shape != recorder.shape(input):
            recorder.stop(f"a sum of {list(shape)} in place of {list(recorder.shape(input))}")
        return recorder.add("add", [input, other], shape, (float(factor),), inplace=inplace)
    if recorder.is_value(other):  # input is a parameter
        if inplace:
            recorder.stop("it changes a parameter")
        if factor != 1:
            other = recorder.add("scale", [other], recorder.shape(other), (float(factor), 0.0))
        input, other, factor = other, input, 1.0
    shape = _along(recorder, input, other)
    return recorder.add("shift", [input], shape, (float(factor),), (other,), inplace=inplace)


def _times(recorder: Recorder, input: Any, other: Any, inplace: bool) -> Any:
    """Notes input * other."""
    if not inplace and (_is_number(input) or not recorder.is_value(input)):
        input, other = other, input
    if _is_number(other):
        options = (float(other), 0.0)
        return recorder.add("scale", [input], recorder.shape(input), options, inplace=inplace)
    if recorder.is_value(other):
        shape = _joint(recorder, input, other)
        if inplace and shape != recorder.shape(input):
            recorder.stop(f"a product of {list(shape)} in place of {list(recorder.shape(input))}")
        return recorder.add("multiply", [input, other], shape, inplace=inplace)
    shape = _along(recorder, input, other)
    return recorder.add("gain", [input], shape, (), (other,), inplace=inplace)


def _sums(*, sign: int, inplace: bool = False) -> Handler:
    """Returns what notes sums or differences."""

    def handler(recorder: Recorder, input: Any, other: Any, *, alpha: float = 1) -> Any:
        return _plus(recorder, input, other, sign * alpha, inplace)

    return handler


known(Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add)(_sums(sign=1))
known(Tensor.add_, Tensor.__iadd__)(_sums(sign=1, inplace=True))
known(Tensor.sub, Tensor.__sub__, torch.sub, torch.subtract)(_sums(sign=-1))
known(Tensor.sub_, Tensor.__isub__)(_sums(sign=-1, inplace=True))


@known(Tensor.__rsub__)
def _subtracted(recorder: Recorder, input: Tensor, other: Any) -> Any:
    return _plus(recorder, other, input, -1, inplace=False)


@known(Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul, torch.multiply)
def _mul(recorder: Recorder, input: Any, other: Any) -> Any:
    return _times(recorder, input, other, inplace=False)


@known(Tensor.mul_, Tensor.__imul__)
def _mul_(recorder: Recorder, input: Any, other: Any) -> Any:
    return _times(recorder, input, other, inplace=True)


def _quotients(*, inplace: bool = False) -> Handler:
    """Returns what notes quotients by numbers."""

    def handler(recorder: Recorder, input: Any, other: Any) -> Any:
        if not _is_number(other) or other == 0:
            recorder.stop("only a quotient by a number can be read", torch.div)
        return _times(recorder, input, 1 / other, inplace)

    return handler


known(Tensor.div, Tensor.__truediv__, torch.div, torch.true_divide)(_quotients())
known(Tensor.div_, Tensor.__itruediv__)(_quotients(inplace=True))


@known(Tensor.neg, Tensor.__neg__, torch.neg)
def _neg(recorder: Recorder, input: Tensor) -> Any:
    return _times(recorder, input, -1, inplace=False)


@known(torch.square, Tensor.square)
def _square(recorder: Recorder, input: Tensor) -> Any:
    return _times(recorder, input, input, inplace=False)


@known(Tensor.pow, Tensor.__pow__, torch.pow)
def _pow(recorder: Recorder, input: Tensor, exponent: Any) -> Any:
    if not _is_number(exponent) or exponent != 2:
        recorder.stop("only a square can be read", torch.pow)
    return _times(recorder, input, input, inplace=False)


# ---------------------------------------------------------------- over axes


def _axes(recorder: Recorder, input: Tensor, dim: Any) -> list[int]:
    """Returns the axes that are summed over, of rows."""
    ndim = len(recorder.shape(input)) + 1
    given = [dim] if isinstance(dim, int) else list(dim or ())
    wanted = sorted({int(axis) % ndim for axis in given})
    if not wanted or wanted[0] < 1:
        recorder.stop("only a mean or sum over axes of the rows can be read")
    return wanted


def _mean_over(recorder: Recorder, input: Tensor, axes: Sequence[int], keepdim: bool) -> Any:
    """Notes a mean: the axes are brought to the end."""
    shape, ndim = recorder.shape(input), input.ndim
    kept = [axis for axis in range(1, ndim) if axis not in axes]
    if [*kept, *axes] != list(range(1, ndim)):
        input = permuted(recorder, input, [0, *kept, *axes])
    sizes = tuple(shape[axis - 1] for axis in kept)
    result = recorder.add("mean", [input], sizes, (len(kept),))
    if not keepdim:
        return result
    wide = tuple(1 if axis in axes else shape[axis - 1] for axis in range(1, ndim))
    return recorder.add("reshape", [result], wide)


@known(Tensor.mean, torch.mean)
def _mean(recorder: Recorder, input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    return _mean_over(recorder, input, _axes(recorder, input, dim), keepdim)


@known(Tensor.sum, torch.sum)
def _sum(recorder: Recorder, input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    axes = _axes(recorder, input, dim)
    number = size_of(tuple(input.shape[axis] for axis in axes))
    return _times(recorder, _mean_over(recorder, input, axes, keepdim), number, inplace=False)
