"""What a sinusoid study is asked to do: every setting that can change a number, checked once."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from innerloop.runs.errors import InputError

SHOWN_STEPS = (0, 1, 5, 10)
ADAPT_STEPS = max(SHOWN_STEPS)
LOSS = "mse"


@dataclasses.dataclass(frozen=True)
class Settings:
    """One study; equal settings give equal numbers.

    Args:
        iterations: meta-iterations of every method.
        shots: support rows of a task, and as many query rows in training.
        meta_batch: tasks per meta-iteration.
        inner_lr: inner rate in training.
        steps: inner steps in MAML's training.
        outer_lr: Adam's rate, constant.
        hidden: widths of the hidden relu layers.
        test_tasks: tasks on which the intervals rest.
        validation_tasks: tasks that pick a fine-tuning rate for every method.
        query_rows: rows that measure the error of a validation or test task.
        rates: fine-tuning rates to pick from.
        seed: of everything random.
        level: coverage of the intervals (changes the judgement only).
    """

    iterations: int = 70_000
    shots: int = 10
    meta_batch: int = 25
    inner_lr: float = 0.01
    steps: int = 1
    outer_lr: float = 1e-3
    hidden: tuple[int, ...] = (40, 40)
    test_tasks: int = 4000
    validation_tasks: int = 1000
    query_rows: int = 100
    rates: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        """Refuse a setting outside its range, naming the option."""
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"{_option(name)} must be at least {least} (got {getattr(self, name)})"
                )
        for name in ("inner_lr", "outer_lr"):
            _check_rate(name, getattr(self, name))
        if not self.rates or len(set(self.rates)) != len(self.rates):
            raise InputError(f"--rates must be distinct numbers, at least one (got {self.rates})")
        for rate in self.rates:
            _check_rate("rates", rate)
        if not self.hidden or min(self.hidden) < 1:
            raise InputError(f"--hidden must be positive widths (got {self.hidden})")
        if not 0.0 < self.level < 1.0:
            raise InputError(f"--level must lie between 0 and 1 (got {self.level})")

    @property
    def widths(self) -> list[int]:
        """Widths of all layers."""
        return [1, *self.hidden, 1]

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def fingerprint(self) -> dict[str, Any]:
        """The fields that change what is trained."""
        fields = self.as_dict()
        for name in ("test_tasks", "validation_tasks", "query_rows", "rates", "level"):
            del fields[name]
        return fields


_LEAST = {
    "iterations": 1,
    "shots": 1,
    "meta_batch": 1,
    "steps": 1,
    "test_tasks": 2,
    "validation_tasks": 1,
    "query_rows": 1,
    "seed": 0,
}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_rate(name: str, rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(f"{_option(name)} must be positive (got {rate})")
