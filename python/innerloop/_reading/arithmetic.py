"""Calls that add and multiply: results with one another, with numbers, and with parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from innerloop._program import Shape, size_of
from innerloop._reading.recorder import Handler, Recorder, known
from innerloop._reading.shapes import permuted


def is_number(value: object) -> bool:
    """Says whether something is a plain number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _joint(recorder: Recorder, input: Any, other: Any) -> Shape:
    """Returns the shape of rows of two results after broadcasting."""
    shapes = recorder.shape(input), recorder.shape(other)
    fits = len(shapes[0]) == len(shapes[1])
    if not fits or any(n != m and 1 not in (n, m) for n, m in zip(*shapes, strict=True)):
        recorder.stop(f"rows of {list(shapes[0])} and {list(shapes[1])}")
    return tuple(max(sizes) if min(sizes) else 0 for sizes in zip(*shapes, strict=True))


def along(recorder: Recorder, input: Any, leaf: Tensor) -> Shape:
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


def plus(recorder: Recorder, input: Any, other: Any, factor: float, inplace: bool) -> Any:
    """Notes input + factor * other."""
    if is_number(input):
        options = (float(factor), float(input))
        return recorder.add("scale", [other], recorder.shape(other), options)
    if is_number(other):
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
    shape = along(recorder, input, other)
    return recorder.add("shift", [input], shape, (float(factor),), (other,), inplace=inplace)


def _times(recorder: Recorder, input: Any, other: Any, inplace: bool) -> Any:
    """Notes input * other."""
    if not inplace and (is_number(input) or not recorder.is_value(input)):
        input, other = other, input
    if is_number(other):
        options = (float(other), 0.0)
        return recorder.add("scale", [input], recorder.shape(input), options, inplace=inplace)
    if recorder.is_value(other):
        shape = _joint(recorder, input, other)
        if inplace and shape != recorder.shape(input):
            recorder.stop(f"a product of {list(shape)} in place of {list(recorder.shape(input))}")
        return recorder.add("multiply", [input, other], shape, inplace=inplace)
    shape = along(recorder, input, other)
    return recorder.add("gain", [input], shape, (), (other,), inplace=inplace)


def _sums(*, sign: int, inplace: bool = False) -> Handler:
    """Returns what notes sums or differences."""

    def handler(recorder: Recorder, input: Any, other: Any, *, alpha: float = 1) -> Any:
        return plus(recorder, input, other, sign * alpha, inplace)

    return handler


known(Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add)(_sums(sign=1))
known(Tensor.add_, Tensor.__iadd__)(_sums(sign=1, inplace=True))
known(Tensor.sub, Tensor.__sub__, torch.sub, torch.subtract)(_sums(sign=-1))
known(Tensor.sub_, Tensor.__isub__)(_sums(sign=-1, inplace=True))


@known(Tensor.__rsub__)
def _subtracted(recorder: Recorder, input: Tensor, other: Any) -> Any:
    return plus(recorder, other, input, -1, inplace=False)


@known(Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul, torch.multiply)
def _mul(recorder: Recorder, input: Any, other: Any) -> Any:
    return _times(recorder, input, other, inplace=False)


@known(Tensor.mul_, Tensor.__imul__)
def _mul_(recorder: Recorder, input: Any, other: Any) -> Any:
    return _times(recorder, input, other, inplace=True)


def _power(recorder: Recorder, input: Tensor, exponent: float) -> Any:
    """Notes a power of a result."""
    return recorder.add("power", [input], recorder.shape(input), (float(exponent),))


def _as_value(recorder: Recorder, leaf: Tensor, like: Tensor) -> Any:
    """Notes a parameter as a result that is the same in all rows, to be spread over another."""
    shape = along(recorder, like, leaf)
    own = tuple(leaf.shape)[-len(shape) :] if shape else ()
    sizes = (*(1,) * (len(shape) - len(own)), *own)
    return recorder.add("spread", [recorder.input], sizes, (), (leaf,))


def _over(recorder: Recorder, input: Any, other: Any, inplace: bool = False) -> Any:
    """Notes input / other, of which one is a result."""
    if is_number(input):
        return recorder.add("divide", [other], recorder.shape(other), (float(input),))
    if not recorder.is_value(other):
        other = _as_value(recorder, other, input)
    elif not recorder.is_value(input) and not inplace:
        input = _as_value(recorder, input, other)
    shape = _joint(recorder, input, other)
    if inplace and shape != recorder.shape(input):
        recorder.stop(f"a quotient of {list(shape)} in place of {list(recorder.shape(input))}")
    return recorder.add("divide", [input, other], shape, (1.0,), inplace=inplace)


def _quotients(*, inplace: bool = False) -> Handler:
    """Returns what notes quotients."""

    def handler(recorder: Recorder, input: Any, other: Any, *, rounding_mode: Any = None) -> Any:
        if rounding_mode is not None or (is_number(other) and other == 0):
            recorder.stop("a quotient by zero, or one that is rounded", torch.div)
        if is_number(other):
            if not abs(1 / other) <= torch.finfo(recorder.dtype).max:
                recorder.stop(f"a quotient by {other}", torch.div)
            return _times(recorder, input, 1 / other, inplace)
        return _over(recorder, input, other, inplace)

    return handler


known(Tensor.div, Tensor.__truediv__, torch.div, torch.true_divide, torch.divide)(_quotients())
known(Tensor.div_, Tensor.__itruediv__)(_quotients(inplace=True))


@known(Tensor.__rdiv__)
def _rdiv(recorder: Recorder, input: Tensor, other: Any) -> Any:
    return _over(recorder, other, input)


@known(Tensor.reciprocal, torch.reciprocal)
def _reciprocal(recorder: Recorder, input: Tensor) -> Any:
    return _over(recorder, 1.0, input)


@known(Tensor.rsqrt, torch.rsqrt)
def _rsqrt(recorder: Recorder, input: Tensor) -> Any:
    return _power(recorder, input, -0.5)


@known(Tensor.neg, Tensor.__neg__, torch.neg)
def _neg(recorder: Recorder, input: Tensor) -> Any:
    return _times(recorder, input, -1, inplace=False)


@known(torch.square, Tensor.square)
def _square(recorder: Recorder, input: Tensor) -> Any:
    return _times(recorder, input, input, inplace=False)


@known(Tensor.pow, Tensor.__pow__, torch.pow)
def _pow(recorder: Recorder, input: Tensor, exponent: Any) -> Any:
    if not is_number(exponent) or not exponent or not recorder.is_value(input):
        recorder.stop("only a power of a result by a number other than 0 can be read", torch.pow)
    if exponent == 2:
        return _times(recorder, input, input, inplace=False)
    return _power(recorder, input, exponent)


# ---------------------------------------------------------------- over axes


def _axes(recorder: Recorder, input: Tensor, dim: Any) -> list[int]:
    """Returns the axes that are summed over, of rows."""
    ndim = len(recorder.shape(input)) + 1
    given = [dim] if isinstance(dim, int) else list(dim or ())
    wanted = sorted({int(axis) % ndim for axis in given})
    if not wanted or wanted[0] < 1:
        recorder.stop("only a mean or sum over axes of the rows can be read")
    return wanted


def _over_axes(
    recorder: Recorder, kind: str, input: Tensor, axes: Sequence[int], keepdim: bool
) -> Any:
    """Notes a mean or a norm: the axes are brought to the end."""
    shape, ndim = recorder.shape(input), input.ndim
    kept = [axis for axis in range(1, ndim) if axis not in axes]
    if [*kept, *axes] != list(range(1, ndim)):
        input = permuted(recorder, input, [0, *kept, *axes])
    sizes = tuple(shape[axis - 1] for axis in kept)
    result = recorder.add(kind, [input], sizes, (len(kept),))
    if not keepdim:
        return result
    wide = tuple(1 if axis in axes else shape[axis - 1] for axis in range(1, ndim))
    return recorder.add("reshape", [result], wide)


@known(Tensor.mean, torch.mean)
def _mean(recorder: Recorder, input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    return _over_axes(recorder, "mean", input, _axes(recorder, input, dim), keepdim)


@known(Tensor.sum, torch.sum)
def _sum(recorder: Recorder, input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    axes = _axes(recorder, input, dim)
    number = size_of(tuple(input.shape[axis] for axis in axes))
    if not number:
        recorder.stop("a sum of nothing", torch.sum)
    mean = _over_axes(recorder, "mean", input, axes, keepdim)
    return _times(recorder, mean, number, inplace=False)


# ---------------------------------------------------------------- norms of vectors


def _length(
    recorder: Recorder, input: Tensor, order: Any, dim: Any, keepdim: bool, dtype: Any = None
) -> Any:
    """Notes the 1- or 2-norm over axes of the rows."""
    if dtype not in (None, recorder.dtype):
        recorder.stop("a norm in another dtype", torch.norm)
    if order not in (None, "fro", 1, 2):
        recorder.stop(f"only norms of the orders 1 and 2 can be read, not {order}", torch.norm)
    shape = recorder.shape(input)
    if order == 1:
        return _sum(recorder, recorder.add("abs", [input], shape), dim, keepdim)
    return _over_axes(recorder, "length", input, _axes(recorder, input, dim), keepdim)


@known(torch.norm, Tensor.norm)
def _norm(
    recorder: Recorder,
    input: Tensor,
    p: Any = "fro",
    dim: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> Any:
    return _length(recorder, input, p, dim, keepdim, dtype)


@known(torch.linalg.vector_norm)
def _vector_norm(
    recorder: Recorder,
    input: Tensor,
    ord: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Any:
    return _length(recorder, input, ord, dim, keepdim, dtype)


@known(torch.linalg.norm)
def _linalg_norm(
    recorder: Recorder,
    input: Tensor,
    ord: Any = None,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Any:
    if not isinstance(dim, int) and ord is not None:
        recorder.stop("only norms of vectors can be read", torch.linalg.norm)
    return _length(recorder, input, ord, dim, keepdim, dtype)


@known(F.normalize)
def _normalize(
    recorder: Recorder,
    input: Tensor,
    p: Any = 2.0,
    dim: Any = 1,
    eps: float = 1e-12,
    out: None = None,
) -> Any:
    length = _length(recorder, input, p, dim, keepdim=True)
    shape = recorder.shape(length)
    bounded = recorder.add("clamp", [length], shape, (float(eps), math.inf))
    return _over(recorder, input, bounded)
