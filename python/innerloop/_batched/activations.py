"""Elementwise functions with their first and second derivatives, as torch takes them at kinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from innerloop._batched.layer import Layer, Maybe, plus, total
from innerloop._program import Node, Shape

_threshold_back = torch.ops.aten.threshold_backward
Derivatives = tuple[Tensor, Tensor | None]
# of Klambauer et al. 2017, as torch has them
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _leaky_relu(z: Tensor, slope: float) -> Derivatives:
    return torch.where(z > 0, torch.ones_like(z), slope), None


def _tanh(z: Tensor) -> Derivatives:
    y = torch.tanh(z)
    first = 1 - y * y
    return first, -2 * y * first


def _sigmoid(z: Tensor) -> Derivatives:
    y = torch.sigmoid(z)
    first = y * (1 - y)
    return first, first * (1 - 2 * y)


def _softplus(z: Tensor, beta: float, threshold: float) -> Derivatives:
    y = torch.sigmoid(beta * z)
    curved = (beta * z < threshold).to(z.dtype)
    return torch.where(beta * z > threshold, 1.0, y), curved * beta * y * (1 - y)


def _silu(z: Tensor) -> Derivatives:
    y = torch.sigmoid(z)
    slope = y * (1 - y)
    return y + z * slope, slope * (2 + z * (1 - 2 * y))


def _gelu(z: Tensor, approximate: str) -> Derivatives:
    if approximate == "none":
        density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density, (2 - z * z) * density
    a, b = math.sqrt(2 / math.pi), 0.044715
    u = a * (z + b * z**3)
    du, ddu = a * (1 + 3 * b * z * z), 6 * a * b * z
    t = torch.tanh(u)
    dt = 1 - t * t
    first = 0.5 * (1 + t) + 0.5 * z * dt * du
    return first, dt * du + 0.5 * z * dt * (ddu - 2 * t * du * du)


def _elu(z: Tensor, alpha: float) -> Derivatives:
    below = alpha * torch.exp(torch.clamp(z, max=0))
    return torch.where(z > 0, 1.0, below), torch.where(z < 0, below, 0.0)


def _celu(z: Tensor, alpha: float) -> Derivatives:
    below = torch.exp(torch.clamp(z, max=0) / alpha)
    return torch.where(z > 0, 1.0, below), torch.where(z < 0, below / alpha, 0.0)


def _hardswish(z: Tensor) -> Derivatives:
    inside = (z > -3) & (z < 3)
    first = torch.where(inside, z / 3 + 0.5, (z >= 3).to(z.dtype))
    return first, inside.to(z.dtype) / 3


def _hardtanh(z: Tensor, low: float, high: float) -> Derivatives:
    return ((z > low) & (z < high)).to(z.dtype), None


def _selu(z: Tensor) -> Derivatives:
    below = _SELU_SCALE * _SELU_ALPHA * torch.exp(torch.clamp(z, max=0))
    return torch.where(z > 0, _SELU_SCALE, below), torch.where(z < 0, below, 0.0)


def _mish(z: Tensor) -> Derivatives:
    t, s = torch.tanh(F.softplus(z)), torch.sigmoid(z)
    dt = (1 - t * t) * s
    ddt = dt * (1 - s - 2 * t * s)
    return t + z * dt, 2 * dt + z * ddt


def _logsigmoid(z: Tensor) -> Derivatives:
    first = torch.sigmoid(-z)
    return first, -first * (1 - first)


def _softsign(z: Tensor) -> Derivatives:
    inverse = 1 / (1 + z.abs())
    first = inverse * inverse
    return first, -2 * torch.sign(z) * first * inverse


def _sin(z: Tensor) -> Derivatives:
    return torch.cos(z), -torch.sin(z)


def _cos(z: Tensor) -> Derivatives:
    return -torch.sin(z), -torch.cos(z)


def _exp(z: Tensor) -> Derivatives:
    y = torch.exp(z)
    return y, y


def _abs(z: Tensor) -> Derivatives:
    return torch.sign(z), None


def _sqrt(z: Tensor) -> Derivatives:
    first = 0.5 / torch.sqrt(z)
    return first, -0.5 * first / z


def _log(z: Tensor) -> Derivatives:
    first = 1 / z
    return first, -first * first


def _log1p(z: Tensor) -> Derivatives:
    return _log(1 + z)


def _expm1(z: Tensor) -> Derivatives:
    return _exp(z)


def _erf(z: Tensor) -> Derivatives:
    first = torch.exp(-z * z) * (2 / math.sqrt(math.pi))
    return first, -2 * z * first


def _atan(z: Tensor) -> Derivatives:
    first = 1 / (1 + z * z)
    return first, -2 * z * first * first


def _power(z: Tensor, exponent: float) -> Derivatives:
    if exponent == 1:
        return torch.ones_like(z), None
    more = exponent * (exponent - 1)
    return exponent * z ** (exponent - 1), more * z ** (exponent - 2)


def _clamp(z: Tensor, low: float, high: float) -> Derivatives:
    return ((z >= low) & (z <= high)).to(z.dtype), None


def _threshold(z: Tensor, threshold: float, value: float) -> Derivatives:
    return (z > threshold).to(z.dtype), None


def _hardsigmoid(z: Tensor) -> Derivatives:
    return ((z > -3) & (z < 3)).to(z.dtype) / 6, None


def _outside(z: Tensor, lambd: float) -> Derivatives:
    return ((z < -lambd) | (z > lambd)).to(z.dtype), None


_VALUES: dict[str, Callable[..., Tensor]] = {
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": lambda z, approximate: F.gelu(z, approximate=approximate),
    "elu": F.elu,
    "celu": F.celu,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "selu": F.selu,
    "mish": F.mish,
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "sin": torch.sin,
    "cos": torch.cos,
    "exp": torch.exp,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "log": torch.log,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "erf": torch.erf,
    "atan": torch.atan,
    "power": torch.pow,
    "clamp": torch.clamp,
    "threshold": F.threshold,
    "hardsigmoid": F.hardsigmoid,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
}
_DERIVATIVES: dict[str, Callable[..., Derivatives]] = {
    "leaky_relu": _leaky_relu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "silu": _silu,
    "gelu": _gelu,
    "elu": _elu,
    "celu": _celu,
    "hardswish": _hardswish,
    "hardtanh": _hardtanh,
    "selu": _selu,
    "mish": _mish,
    "logsigmoid": _logsigmoid,
    "softsign": _softsign,
    "sin": _sin,
    "cos": _cos,
    "exp": _exp,
    "abs": _abs,
    "sqrt": _sqrt,
    "log": _log,
    "log1p": _log1p,
    "expm1": _expm1,
    "erf": _erf,
    "atan": _atan,
    "power": _power,
    "clamp": _clamp,
    "threshold": _threshold,
    "hardsigmoid": _hardsigmoid,
    "softshrink": _outside,
    "hardshrink": _outside,
}
KINDS = ("relu", *_VALUES)


class Activation(Layer):
    """y = f(z): gz = f'(z) g, y. = f'(z) z., gz. = f'(z) g. + f''(z) z. g."""

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns f(z); keeps z."""
        z = inputs[0]
        return _VALUES[self.node.kind](z, *self.node.options), z

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns f'(z) g."""
        if not wanted[0]:
            return [None], []
        return [_DERIVATIVES[self.node.kind](saved, *self.node.options)[0] * g], []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns f'(z) z., and keeps the derivatives."""
        z_dot = dots[0]
        derivatives = _DERIVATIVES[self.node.kind](saved, *self.node.options)
        return None if z_dot is None else derivatives[0] * z_dot, derivatives

    def second(
        self,
        saved: Any,
        tangent_saved: Any,
        g: Tensor,
        g_dot: Maybe,
        dots: list[Maybe],
        leaves: list[Maybe],
        leaf_dots: list[Maybe],
        wanted: Sequence[bool],
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns f'(z) g. + f''(z) z. g."""
        if not wanted[0]:
            return [None], []
        first, curved = tangent_saved
        gz = None if g_dot is None else first * g_dot
        z_dot = dots[0]
        if curved is not None and z_dot is not None:
            gz = plus(gz, curved * z_dot * g)
        return [gz], []


class NegativePower(Layer):
    """y = z^p with p < 0. With q = p y / z: gz = q g, y. = q z., gz. = q (g. + (p - 1) z. g / z):
    no higher power of z, which may leave the dtype where these do not."""

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns z^p; keeps z and q."""
        z, p = inputs[0], self._exponent()
        y = z**p
        return y, (z, p * y / z)

    def _exponent(self) -> float:
        """Returns p."""
        p = self.node.options[0]
        assert isinstance(p, float)
        return p

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns q g."""
        return [saved[1] * g if wanted[0] else None], []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns q z.."""
        return None if dots[0] is None else saved[1] * dots[0], None

    def second(
        self,
        saved: Any,
        tangent_saved: Any,
        g: Tensor,
        g_dot: Maybe,
        dots: list[Maybe],
        leaves: list[Maybe],
        leaf_dots: list[Maybe],
        wanted: Sequence[bool],
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns q (g. + (p - 1) z. g / z)."""
        (z, q), z_dot = saved, dots[0]
        if not wanted[0]:
            return [None], []
        along = None if z_dot is None else (self._exponent() - 1) * (z_dot / z) * g
        along = plus(g_dot, along)
        return [None if along is None else q * along], []


class Relu(Layer):
    """The positive part: every pass is one mask."""

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns max(z, 0) and keeps it: it is positive where z is."""
        y = torch.relu(inputs[0])
        return y, y

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns g where z > 0."""
        return [_threshold_back(g, saved, 0) if wanted[0] else None], []

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """Returns z. where z > 0."""
        z_dot = dots[0]
        return None if z_dot is None else _threshold_back(z_dot, saved, 0), None

    def second(
        self,
        saved: Any,
        tangent_saved: Any,
        g: Tensor,
        g_dot: Maybe,
        dots: list[Maybe],
        leaves: list[Maybe],
        leaf_dots: list[Maybe],
        wanted: Sequence[bool],
    ) -> tuple[list[Maybe], list[Maybe]]:
        """Returns g. where z > 0."""
        wants = wanted[0] and g_dot is not None
        return [_threshold_back(g_dot, saved, 0) if wants else None], []


class PRelu(Layer):
    """y = z where z > 0, else a z, with a [T, 1] or one for each channel [T, C]. At 0 the passes
    along a direction take the slope 1, as torch's derivative of its backward pass does."""

    def __init__(self, node: Node, shapes: Sequence[Shape]) -> None:
        super().__init__(node, shapes)
        self._per_channel = bool(node.options[0])

    def _spread(self, a: Tensor, z: Tensor) -> Tensor:
        """Returns the slopes in a shape that broadcasts to z."""
        size = a.shape[1] if self._per_channel else 1
        return a.reshape(len(a), 1, size, *[1] * (z.ndim - 3)) if z.ndim > 2 else a

    def forward(self, inputs: list[Tensor], leaves: list[Maybe]) -> tuple[Tensor, Any]:
        """Returns y; keeps z."""
        z, a = inputs[0], leaves[0]
        assert a is not None
        return torch.where(z > 0, z, self._spread(a, z) * z), z

    def backward(
        self, saved: Any, g: Tensor, leaves: list[Maybe], wanted: Sequence[bool]
    ) -> tuple[list[Maybe], list[Maybe]]:
        """gz = g or a g; ga = sum of g min(z, 0)."""
        z, a = saved, leaves[0]
        assert a is not None
        spread = self._spread(a, z)
        gz = torch.where(z > 0, g, spread * g) if wanted[0] else None
        return [gz], [total(g * z.clamp(max=0), spread.shape).reshape(a.shape)]

    def tangent(
        self, saved: Any, dots: list[Maybe], leaves: list[Maybe], leaf_dots: list[Maybe]
    ) -> tuple[Maybe, Any]:
        """y. = z. or a z. + a. z."""
        z, z_dot, a, a_dot = saved, dots[0], leaves[0], leaf_dots[0]
        assert a is not None
        y_dot = None if z_dot is None else torch.where(z >= 0, z_dot, self._spread(a, z) * z_dot)
        more = None if a_dot is None else self._spread(a_dot, z) * z.clamp(max=0)
        return plus(y_dot, more), None

    def second(
        self,
        saved: Any,
        tangent_saved: Any,
        g: Tensor,
        g_dot: Maybe,
        dots: list[Maybe],
        leaves: list[Maybe],
        leaf_dots: list[Maybe],
        wanted: Sequence[bool],
    ) -> tuple[list[Maybe], list[Maybe]]:
        """gz. = slope g. + a. g where z < 0; ga. = sum of g. min(z, 0) + g z. where z < 0."""
        z, z_dot, a, a_dot = saved, dots[0], leaves[0], leaf_dots[0]
        assert a is not None
        spread = self._spread(a, z)
        below = z < 0
        gz: Maybe = None
        if wanted[0]:
            gz = None if g_dot is None else torch.where(z > 0, g_dot, spread * g_dot)
            more = None if a_dot is None else torch.where(below, self._spread(a_dot, z) * g, 0)
            gz = plus(gz, more)
        ga = None if g_dot is None else g_dot * z.clamp(max=0)
        ga = plus(ga, None if z_dot is None else torch.where(below, g * z_dot, 0))
        return [gz], [None if ga is None else total(ga, spread.shape).reshape(a.shape)]
