"""Calls of elementwise functions, and dropout that is off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from innerloop._reading.recorder import HANDLERS, Recorder, known
from innerloop._reading.shapes import pieces


def _activation(kind: str, *functions: Any, inplace: Sequence[Any] = (), **defaults: Any) -> None:
    """Registers an elementwise function with its options in order."""
    names = list(defaults)

    def handler(
        recorder: Recorder, input: Tensor, *args: Any, changes: bool = False, **kwargs: Any
    ) -> Any:
        given = dict(zip(names, args, strict=False))
        changes = bool(kwargs.pop("inplace", changes))
        if len(args) > len(names):
            changes = bool(args[len(names)])
        given.update(kwargs)
        if set(given) - set(names) or len(args) > len(names) + 1:
            recorder.stop(f"{kind} with the arguments {list(given)}")
        options = tuple(
            value if isinstance(value, str) else float(value)
            for value in (given.get(name, defaults[name]) for name in names)
        )
        return recorder.add(kind, [input], recorder.shape(input), options, inplace=changes)

    def changing(recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
        return handler(recorder, *args, changes=True, **kwargs)

    HANDLERS.update(dict.fromkeys(functions, handler))
    HANDLERS.update(dict.fromkeys(inplace, changing))


_activation("relu", F.relu, torch.relu, Tensor.relu, inplace=(torch.relu_, Tensor.relu_))
_activation("leaky_relu", F.leaky_relu, inplace=(F.leaky_relu_,), negative_slope=0.01)
_activation("tanh", torch.tanh, F.tanh, Tensor.tanh, inplace=(torch.tanh_, Tensor.tanh_))
_activation(
    "sigmoid",
    torch.sigmoid,
    F.sigmoid,
    Tensor.sigmoid,
    inplace=(torch.sigmoid_, Tensor.sigmoid_),
)
_activation("softplus", F.softplus, beta=1.0, threshold=20.0)
_activation("silu", F.silu)
_activation("gelu", F.gelu, approximate="none")
_activation("elu", F.elu, inplace=(F.elu_,), alpha=1.0)
_activation("celu", F.celu, torch.celu, inplace=(torch.celu_,), alpha=1.0)
_activation("hardswish", F.hardswish)
_activation("hardtanh", F.hardtanh, inplace=(F.hardtanh_,), min_val=-1.0, max_val=1.0)
_activation("selu", F.selu, torch.selu, inplace=(torch.selu_,))
_activation("mish", F.mish)
_activation("logsigmoid", F.logsigmoid)
_activation("softsign", F.softsign)
_activation("sin", torch.sin, Tensor.sin)
_activation("cos", torch.cos, Tensor.cos)
_activation("exp", torch.exp, Tensor.exp)
_activation("abs", torch.abs, torch.absolute, Tensor.abs, Tensor.absolute, Tensor.__abs__)
_activation("sqrt", torch.sqrt, Tensor.sqrt)
_activation("log", torch.log, Tensor.log)
_activation("log1p", torch.log1p, Tensor.log1p)
_activation("expm1", torch.expm1, Tensor.expm1)
_activation("erf", torch.erf, Tensor.erf)
_activation("atan", torch.atan, torch.arctan, Tensor.atan, Tensor.arctan)
_activation("hardsigmoid", F.hardsigmoid)
_activation("softshrink", F.softshrink, lambd=0.5)
_activation("hardshrink", F.hardshrink, torch.hardshrink, Tensor.hardshrink, lambd=0.5)


@known(F.threshold)
def _threshold(
    recorder: Recorder, input: Tensor, threshold: float, value: float, inplace: bool = False
) -> Any:
    options = (float(threshold), float(value))
    shape = recorder.shape(input)
    return recorder.add("threshold", [input], shape, options, inplace=bool(inplace))


@known(torch.clamp, Tensor.clamp, torch.clip, Tensor.clip)
def _clamp(recorder: Recorder, input: Tensor, min: Any = None, max: Any = None) -> Any:
    limits = (-math.inf if min is None else min, math.inf if max is None else max)
    if not all(isinstance(limit, (int, float)) for limit in limits) or limits[0] > limits[1]:
        recorder.stop("only limits that are numbers, in their order, can be read", torch.clamp)
    shape = recorder.shape(input)
    return recorder.add("clamp", [input], shape, tuple(float(limit) for limit in limits))


@known(torch.clamp_min, Tensor.clamp_min)
def _clamp_min(recorder: Recorder, input: Tensor, min: Any) -> Any:
    return _clamp(recorder, input, min)


@known(torch.clamp_max, Tensor.clamp_max)
def _clamp_max(recorder: Recorder, input: Tensor, max: Any) -> Any:
    return _clamp(recorder, input, max=max)


@known(F.tanhshrink)
def _tanhshrink(recorder: Recorder, input: Tensor) -> Any:
    shape = recorder.shape(input)
    tanh = recorder.add("tanh", [input], shape)
    return recorder.add("add", [input, tanh], shape, (-1.0,))


@known(F.glu)
def _glu(recorder: Recorder, input: Tensor, dim: int = -1) -> Any:
    shape = recorder.shape(input)
    axis = int(dim) % (len(shape) + 1)
    if not axis or shape[axis - 1] % 2:
        recorder.stop(f"rows of {list(shape)} have no halves along axis {dim}", F.glu)
    half = shape[axis - 1] // 2
    value, gate = pieces(recorder, input, [half, half], axis)
    gate = recorder.add("sigmoid", [gate], recorder.shape(gate))
    return recorder.add("multiply", [value, gate], recorder.shape(gate))


@known(F.rrelu)
def _rrelu(
    recorder: Recorder,
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Any:
    if training:
        recorder.stop("it is random in training mode (call .eval())", F.rrelu)
    slope = (float((lower + upper) / 2),)
    shape = recorder.shape(input)
    return recorder.add("leaky_relu", [input], shape, slope, inplace=bool(inplace))


@known(F.relu6)
def _relu6(recorder: Recorder, input: Tensor, inplace: bool = False) -> Any:
    shape = recorder.shape(input)
    return recorder.add("hardtanh", [input], shape, (0.0, 6.0), inplace=bool(inplace))


@known(F.prelu, torch.prelu, Tensor.prelu)
def _prelu(recorder: Recorder, input: Tensor, weight: Tensor) -> Any:
    shape = recorder.shape(input)
    if weight.numel() not in (1, shape[0] if shape else 1):
        recorder.stop(f"a slope of {weight.numel()} values does not fit rows of {list(shape)}")
    return recorder.add("prelu", [input], shape, (weight.numel() > 1,), (weight,))


_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


@known(*_DROPOUTS, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(
    recorder: Recorder,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Any:
    recorder.value(input)
    if training and p > 0:
        recorder.stop("it is random in training mode (call .eval() or use p=0)", F.dropout)
    return input
