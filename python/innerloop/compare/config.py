"""What a comparison was asked to do: every setting that can change a number, checked once."""

from __future__ import annotations

import dataclasses
from typing import Any

from innerloop.models import MOST_WIDTH
from innerloop.runs.errors import InputError
from innerloop.runs.sizes import MOST, MOST_STEPS, check_count, check_rate

ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "softplus", "silu", "gelu", "identity")
LOSSES = ("auto", "mse", "cross_entropy")
DTYPES = ("auto", "float32", "float64")
# As a number of splits or draws: as many as suit the data.
AUTO = 0
BACKENDS = ("auto", "fused", "torch")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of one comparison; equal settings and equal data give equal numbers.

    `inner_lrs`, `outer_lrs` and `steps` form the grid from which validation tasks pick. `draws` is
    the number of random support/query draws of a task. Empty rates and `AUTO` numbers stand for
    defaults that depend on the data. The last two fields only change how the
    numbers are judged.
    """

    task: str
    target: str
    features: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    shots: int = 5
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    loss: str = "auto"
    inner_lrs: tuple[float, ...] = ()
    steps: tuple[int, ...] = (1, 5)
    adapt_steps: int = 5
    splits: int = AUTO
    test_fraction: float = 0.25
    validation_fraction: float = 0.25
    draws: int = AUTO
    max_query: int = 128
    drop_small: bool = False
    drop_missing: bool = False
    meta_batch: int = 16
    iterations: int = 1000
    outer_lrs: tuple[float, ...] = ()
    seed: int = 0
    dtype: str = "auto"
    backend: str = "auto"
    level: float = 0.95
    margin: float = 0.05

    def __post_init__(self) -> None:
        """Refuse a setting outside its range, naming the option."""
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (name in ("splits", "draws") and value == AUTO):
                check_count(_option(name), value, least, _MOST.get(name, MOST))
        for name in ("test_fraction", "validation_fraction", "level"):
            value = getattr(self, name)
            if not 0.0 < value < 1.0:
                raise InputError(f"{_option(name)} must lie between 0 and 1 (got {value})")
        if not (0.0 <= self.margin < 1.0):
            raise InputError(f"--margin must be at least 0 and below 1 (got {self.margin})")
        self._check_grids()
        for name, allowed in (
            ("activation", ACTIVATIONS),
            ("loss", LOSSES),
            ("dtype", DTYPES),
            ("backend", BACKENDS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(
                    f"{_option(name)} must be one of {', '.join(allowed)} (got {value!r})"
                )

    def _check_grids(self) -> None:
        if not self.steps:
            raise InputError("--steps must hold at least one number")
        for name in ("inner_lrs", "outer_lrs"):
            for rate in getattr(self, name):
                check_rate(_option(name), rate)
        for count in self.steps:
            check_count("--steps (0 is joint training)", count, 1, MOST_STEPS)
        for width in self.hidden:
            check_count("--hidden", width, 1, MOST_WIDTH)
        for name in ("inner_lrs", "outer_lrs", "steps"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise InputError(f"{_option(name)} must not repeat a value (got {values})")

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def fingerprint(self) -> dict[str, Any]:
        """The fields that change what is computed, without those that only judge it."""
        fields = self.as_dict()
        for name in ("level", "margin"):
            del fields[name]
        return fields


_MOST = {"adapt_steps": MOST_STEPS, "seed": 2**64 - 1}
_LEAST = {
    "shots": 1,
    "adapt_steps": 1,
    "splits": 1,
    "draws": 1,
    "max_query": 1,
    "meta_batch": 1,
    "iterations": 1,
    "seed": 0,
}


def _option(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")
