"""Gaussian policies, as plain data like `MLP`, and the batches of rows that policy objectives are
functions of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from innerloop.models import MLP
from innerloop.objectives.policy import LOG_STD as LOG_STD

MIN_LOG_STD = math.log(1e-6)


class GaussianMLP(MLP):
    """Describes a Gaussian policy; holds no parameters and never changes.

    An action is N(mean, exp(s)^2) with independent entries: the mean is a multilayer perceptron of
    the observation, s = max(log_std, min_log_std) a parameter that does not depend on it. Where
    log_std lies below the floor, its gradient is 0.

    Args:
        widths: observation size, hidden sizes, action size; at least two positive integers.
        activation: applied after every layer but the last; any of `MLP`'s.
        min_log_std: floor of the log-standard deviation, a finite number; log 1e-6 by default.

    Members:
        shapes: {name: shape} as MLP's, "0.weight", "0.bias", ..., and "log_std" [k] last.
        names: the keys of `shapes`.
        parameters: P, with log_std.
        inputs, outputs: d and k.
        network: the `MLP` of the mean.

    Raises:
        ValueError: a width is not a positive integer, the activation is unknown, or the floor is
            not finite.

    Source: Rothfuss et al. 2019; Gao and Sener 2020.

    Example:
        >>> model = GaussianMLP([17, 64, 64, 6])
        >>> model.names[-1], model.shapes["log_std"], model.parameters
        ('log_std', (6,), 5708)
    """

    __slots__ = ("min_log_std", "network")

    network: MLP
    min_log_std: float

    def __init__(
        self,
        widths: Sequence[int],
        activation: str = "tanh",
        *,
        min_log_std: float = MIN_LOG_STD,
    ) -> None:
        network = MLP(widths, activation=activation)
        floor = float(min_log_std)
        if not math.isfinite(floor):
            raise ValueError(f"GaussianMLP: min_log_std must be finite (got {min_log_std!r})")
        self._set(network.layers, flattens=False, free=LOG_STD)
        object.__setattr__(self, "network", network)
        object.__setattr__(self, "min_log_std", floor)

    def init(
        self,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """Returns fresh parameters: Glorot-uniform weights, zero biases, log_std 0.

        Args:
            generator: source of randomness; torch's default when None.
            dtype: torch.float32 or torch.float64.
            device: where the parameters live; the generator must live there too.

        Returns:
            {name: tensor} in the order of `shapes`; a weight [out, in] is uniform in
            +-sqrt(6 / (in + out)).

        Source: Glorot and Bengio 2010, equation 16.

        Example:
            >>> params = GaussianMLP([2, 3]).init(torch.Generator().manual_seed(0))
            >>> params["log_std"]
            tensor([0., 0., 0.])
        """
        params = {
            name: torch.zeros(shape, dtype=dtype, device=device)
            for name, shape in self.shapes.items()
        }
        for leaf in params.values():
            if leaf.ndim == 2:
                bound = math.sqrt(6.0 / sum(leaf.shape))
                leaf.uniform_(-bound, bound, generator=generator)
        return params

    @property
    def activation(self) -> str:
        """The activation between the layers ("identity" where there is only one)."""
        return self.network.layers[0].activation

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"GaussianMLP is immutable (tried to set {name!r})")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self._widths(), self.activation, self.min_log_std))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GaussianMLP):
            return False if isinstance(other, MLP) else NotImplemented
        return self.network == other.network and self.min_log_std == other.min_log_std

    def __hash__(self) -> int:
        return hash((self.network, self.min_log_std))

    def __repr__(self) -> str:
        floor = "" if self.min_log_std == MIN_LOG_STD else f", min_log_std={self.min_log_std!r}"
        return f"GaussianMLP({self._widths()}, activation={self.activation!r}{floor})"

    def _widths(self) -> list[int]:
        """The sizes that it was made of."""
        return [self.inputs, *(layer.outputs for layer in self.network.layers)]


def _rebuild(widths: list[int], activation: str, min_log_std: float) -> GaussianMLP:
    """Unpickles a description."""
    return GaussianMLP(widths, activation, min_log_std=min_log_std)


class PolicyBatch(NamedTuple):
    """Rows of every task for the policy objectives; it keeps the tensors given.

    A row of weight zero, or past `count`, counts for nothing, even if it holds NaN or inf.

    Args:
        x: [T, N, D] observations.
        action: [T, N, K] actions taken, before any clipping.
        advantage: [T, N].
        mean: [T, N, K], the acting policy's means: with `log_std` the recorded distribution.
        log_std: [T, K] or [K], the acting policy's log-standard deviations.
        count: [T] int64, rows in use of each task.
        weight: [T, N], used as given: a task's objective is sum_i weight_i (...)_i. Without it
            every row in use weighs 1/count.

    Example:
        >>> row = torch.zeros(4, 5, 2)
        >>> PolicyBatch(row, row, torch.zeros(4, 5), row, torch.zeros(2)).weight is None
        True
    """

    x: Tensor
    action: Tensor
    advantage: Tensor
    mean: Tensor
    log_std: Tensor
    count: Tensor | None = None  # type: ignore[assignment]
    weight: Tensor | None = None
