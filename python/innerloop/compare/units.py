"""Which units of work a comparison consists of: method by setting by split."""

from __future__ import annotations

from typing import NamedTuple

from innerloop.compare.config import Config
from innerloop.runs.methods import JOINT, METHODS


class Unit(NamedTuple):
    """A piece of work that depends on nothing but the configuration and the data.

    `rate` and `steps` are of the inner loop (both 0 for joint training), `outer` is Adam's rate (0
    where the solution is exact).
    """

    split: int
    method: str
    rate: float
    steps: int
    outer: float = 0.0

    @property
    def name(self) -> str:
        """A readable key, unique within a run."""
        inner = "" if self.method == JOINT else f"/rate={self.rate!r}/steps={self.steps}"
        outer = f"/outer={self.outer!r}" if self.outer else ""
        return f"split={self.split}/{self.method}{inner}{outer}"


def units_of(config: Config, split: int, method: str) -> list[Unit]:
    """The settings of one method on one split, in the order in which ties are broken."""
    inner = (
        [(0.0, 0)]
        if method == JOINT
        else [(rate, steps) for steps in config.steps for rate in config.inner_lrs]
    )
    return [
        Unit(split, method, rate, steps, outer)
        for outer in config.outer_lrs or (0.0,)
        for rate, steps in inner
    ]


def all_units(config: Config) -> list[Unit]:
    """Every unit of a run, split by split."""
    return [
        unit
        for split in range(config.splits)
        for method in METHODS
        for unit in units_of(config, split, method)
    ]
