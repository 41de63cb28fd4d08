"""Calls that normalise."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from innerloop._program import Shape, size_of
from innerloop._reading.recorder import HANDLERS, Handler, Recorder, known


@known(F.batch_norm)
def _batch_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    shape = recorder.shape(input)
    if not shape:
        recorder.stop("rows have no channels", F.batch_norm)
    if not training:
        leaves = (weight, bias, running_mean, running_var)
        return recorder.add("fixed_norm", [input], shape, (float(eps),), leaves)
    recorder.fill(running_mean, F.batch_norm)
    recorder.fill(running_var, F.batch_norm)
    recorder.counts_rows |= size_of(shape[1:]) < 2
    if recorder.rows * size_of(shape[1:]) < 2:
        recorder.stop("statistics of one value", F.batch_norm)
    return recorder.add("batch_norm", [input], shape, (float(eps),), (weight, bias))


def _axes(recorder: Recorder, shape: Shape, normalized_shape: Any) -> int:
    """Returns how many of the last axes of rows are normalised over."""
    sizes = tuple(int(n) for n in normalized_shape)
    if not sizes or len(sizes) > len(shape) or shape[len(shape) - len(sizes) :] != sizes:
        recorder.stop(f"a norm over {list(sizes)} does not fit rows of {list(shape)}")
    return len(sizes)


@known(F.layer_norm)
def _layer_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    shape = recorder.shape(input)
    options = (float(eps), _axes(recorder, shape, normalized_shape))
    return recorder.add("layer_norm", [input], shape, options, (weight, bias))


@known(F.group_norm)
def _group_norm(
    recorder: Recorder,
    input: Tensor,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    shape = recorder.shape(input)
    recorder.counts_rows |= size_of(shape) < 2 * num_groups
    if not shape or shape[0] % num_groups or recorder.rows * size_of(shape) < 2 * num_groups:
        recorder.stop(f"{num_groups} groups do not fit rows of {list(shape)}", F.group_norm)
    options = (float(eps), int(num_groups))
    return recorder.add("group_norm", [input], shape, options, (weight, bias))


@known(F.instance_norm)
def _instance_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    shape = recorder.shape(input)
    if len(shape) < 2 or (use_input_stats and size_of(shape[1:]) < 2):
        recorder.stop("statistics of one value", F.instance_norm)
    if not use_input_stats:
        leaves = (weight, bias, running_mean, running_var)
        return recorder.add("fixed_norm", [input], shape, (float(eps),), leaves)
    recorder.fill(running_mean, F.instance_norm)
    recorder.fill(running_var, F.instance_norm)
    return recorder.add("group_norm", [input], shape, (float(eps), shape[0]), (weight, bias))


@functools.cache
def _usual_epsilon(dtype: torch.dtype) -> float:
    """Returns the epsilon of an RMS norm without one: that of the type in which torch computes, but
    of the inputs' own type in older ones (2.6 has it)."""
    wide = torch.promote_types(dtype, torch.float32)
    small = torch.full((1,), 2.0**-10, dtype=dtype, device="cpu")  # between the two in bfloat16
    return torch.finfo(wide if torch.rms_norm(small, (1,)) > 0.5 else dtype).eps


@known(F.rms_norm, torch.rms_norm)
def _rms_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    eps: Any = None,
) -> Any:
    shape = recorder.shape(input)
    axes = _axes(recorder, shape, normalized_shape)
    options = (float(_usual_epsilon(recorder.dtype) if eps is None else eps), axes)
    return recorder.add("rms_norm", [input], shape, options, (weight, None))


def _probabilities(kind: str) -> Handler:
    """Returns what notes probabilities, or their logarithms."""

    def handler(
        recorder: Recorder, input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
    ) -> Any:
        shape = recorder.shape(input)
        axis = None if dim is None else int(dim) % (len(shape) + 1)
        if not axis or dtype not in (None, recorder.dtype):
            recorder.stop("only one over an axis of the rows, in their dtype, can be read")
        return recorder.add(kind, [input], shape, (axis,))

    return handler


known(F.log_softmax, torch.log_softmax, Tensor.log_softmax)(_probabilities("log_softmax"))
known(F.softmax, torch.softmax, Tensor.softmax)(_probabilities("softmax"))


@known(F.softmin)
def _softmin(
    recorder: Recorder, input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
) -> Any:
    turned = recorder.add("scale", [input], recorder.shape(input), (-1.0, 0.0))
    return HANDLERS[F.softmax](recorder, turned, dim, _stacklevel, dtype)
