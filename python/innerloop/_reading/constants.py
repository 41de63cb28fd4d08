"""Calls that make tensors of numbers, and those that put a number where a mask says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerloop._reading.arithmetic import along, is_number, plus
from innerloop._reading.recorder import Handler, Recorder, known, tensors_in


def _made(recorder: Recorder, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
    """Notes a call that makes a tensor where the results are: the same one for every row."""
    named = {name: value for name, value in options.items() if value not in (None, False)}
    device = torch.device(named.pop("device", None) or torch.get_default_device())
    unread = {"out", "requires_grad", "layout", "pin_memory", "memory_format"} & set(named)
    if unread or device.type != recorder.device.type or any(tensors_in([*args, *named.values()])):
        recorder.stop("it makes a tensor in a way that cannot be read", func)
    return recorder.constant(func, tuple(args), named)


def _numbers(func: Any) -> None:
    """Registers a function that makes a tensor of numbers."""

    def handler(recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
        return _made(recorder, func, args, kwargs)

    known(func)(handler)


for _function in (torch.arange, torch.linspace, torch.eye, torch.tensor):
    _numbers(_function)


def _filled(
    recorder: Recorder, func: Any, sizes: Sequence[int], number: Any, options: dict[str, Any]
) -> Any:
    """Notes a tensor that is filled with a number: a result where it has the rows of one."""
    shape = [int(n) for n in sizes]
    dtype = options.get("dtype") or (
        torch.get_default_dtype() if isinstance(number, float) else torch.tensor(number).dtype
    )
    over_rows = shape[:1] == [recorder.rows] and dtype is recorder.dtype
    made = _made(recorder, torch.full, (tuple(shape), number), {**options, "dtype": dtype})
    if over_rows:
        recorder.counts_rows = True
        made = recorder.filled(tuple(shape[1:]), float(number))
    if not number:
        recorder.zeros.add(id(made))
    return made


def _shape_of(sizes: Sequence[Any]) -> Sequence[int]:
    """Returns a shape that was given as one argument or as several."""
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


def _fills(func: Any, number: float) -> Handler:
    """Returns what notes tensors of zeros or ones."""

    def handler(recorder: Recorder, *size: Any, **options: Any) -> Any:
        sizes = options.pop("size", None) or _shape_of(size)
        return _filled(recorder, func, sizes, number, options)

    return handler


known(torch.zeros)(_fills(torch.zeros, 0.0))
known(torch.ones)(_fills(torch.ones, 1.0))


@known(torch.full)
def _full(recorder: Recorder, size: Any, fill_value: Any, **options: Any) -> Any:
    return _filled(recorder, torch.full, size, fill_value, options)


def _is_over_rows(recorder: Recorder, input: Tensor, *size: Any, **options: Any) -> bool:
    """Says whether a tensor that is made after a parameter has the rows of the results."""
    first = size[0] if size else ()
    sizes = list(first if isinstance(first, (tuple, list)) else size)
    return sizes[:1] == [recorder.rows]


def _fills_after(func: Any, number: float) -> Handler:
    """Returns what notes tensors of zeros or ones in the dtype of another."""

    def handler(recorder: Recorder, input: Tensor, *size: Any, **options: Any) -> Any:
        given = {"dtype": input.dtype, "device": recorder.device, **options}
        return _filled(recorder, func, _shape_of(size), number, given)

    return handler


known(Tensor.new_zeros, parameters=_is_over_rows)(_fills_after(Tensor.new_zeros, 0.0))
known(Tensor.new_ones, parameters=_is_over_rows)(_fills_after(Tensor.new_ones, 1.0))


@known(Tensor.new_full, parameters=_is_over_rows)
def _new_full(recorder: Recorder, input: Tensor, size: Any, fill_value: Any, **options: Any) -> Any:
    given = {"dtype": input.dtype, "device": recorder.device, **options}
    return _filled(recorder, Tensor.new_full, size, fill_value, given)


def _fills_like(func: Any, number: float) -> None:
    """Registers a function that makes a tensor of zeros or ones in the shape of another."""

    def handler(recorder: Recorder, input: Tensor, **options: Any) -> Any:
        shape = recorder.shape(input)
        given = {name: value for name, value in options.items() if value is not None}
        if given.pop("dtype", recorder.dtype) is not recorder.dtype or given:
            recorder.stop("it makes a tensor in a way that cannot be read", func)
        return recorder.add("constant", [input], shape, (number,))

    known(func)(handler)


_fills_like(torch.zeros_like, 0.0)
_fills_like(torch.ones_like, 1.0)


# ---------------------------------------------------------------- masks


def masked(
    recorder: Recorder,
    input: Tensor,
    mask: Any,
    number: Any,
    *,
    keeps: bool,
    inplace: bool = False,
) -> Any:
    """Notes that a result has a number where a mask is true, or where it is not (`keeps`)."""
    if not is_number(number) or recorder.is_value(mask) or not recorder.is_leaf(mask):
        recorder.stop("only a number can be read where a buffer says so", torch.where)
    if mask.dtype is not torch.bool:
        recorder.stop(f"a mask that is {mask.dtype}", torch.where)
    keep = mask if keeps else recorder.computed(torch.logical_not, (mask,), {})
    keep = recorder.computed(Tensor.to, (keep, recorder.dtype), {})
    shape = along(recorder, input, keep)
    return recorder.add("masked", [input], shape, (float(number),), (keep,), inplace=inplace)


@known(torch.masked_fill, Tensor.masked_fill)
def _masked_fill(recorder: Recorder, input: Tensor, mask: Any, value: Any) -> Any:
    return masked(recorder, input, mask, value, keeps=False)


@known(Tensor.masked_fill_)
def _masked_fill_(recorder: Recorder, input: Tensor, mask: Any, value: Any) -> Any:
    return masked(recorder, input, mask, value, keeps=False, inplace=True)


@known(torch.where)
def _where(recorder: Recorder, condition: Any, input: Any, other: Any) -> Any:
    if not recorder.is_value(input) and not recorder.is_value(other):
        recorder.stop("only results can be chosen from", torch.where)
    if not recorder.is_value(input):
        return masked(recorder, other, condition, input, keeps=False)
    if not recorder.is_value(other):
        return masked(recorder, input, condition, other, keeps=True)
    one = masked(recorder, input, condition, 0.0, keeps=True)
    return plus(
        recorder, one, masked(recorder, other, condition, 0.0, keeps=False), 1.0, inplace=False
    )


@known(Tensor.where)
def _chosen(recorder: Recorder, input: Any, condition: Any, other: Any) -> Any:
    return _where(recorder, condition, input, other)
