"""What a sweep is asked to do: every setting that can change a number, checked once."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

from innerloop.runs.errors import InputError
from innerloop.runs.sizes import check_memory

# The published grids (Gao and Sener, 2020).
TASKS = (2, 5, 10, 25, 50, 100, 150, 200, 250, 300, 350, 400)
SAMPLES = (1, 5, 10, 25, 50, 100, 150, 200, 250, 300, 350, 400)
INNER_LRS = tuple(k / 20 for k in range(21))

_MOST = 2**31  # tasks, samples and trials are counted in 32 bits
_MOST_DIMENSIONS = 1024
_BYTES_PER_EXCESS = 24  # the risks of all trials, put together and sorted
_LONGEST_CALL_SECONDS = 120.0
BLOCK = 16  # trials that the CPU's kernel runs side by side
_LARGEST = 1e30  # of beta and of rates: products of a few stay finite


def seconds_per_trial(p: int, tasks: int) -> float:
    """Roughly what a trial with `tasks` tasks takes on one core."""
    return 1e-7 * math.sqrt(p) * p * (1 + p / 16) * tasks


class Cell(NamedTuple):
    """One point of the grid: all trials and all rates of M tasks with N + N samples each."""

    tasks: int
    samples: int

    @property
    def name(self) -> str:
        """A readable key, unique within a sweep."""
        return f"tasks={self.tasks}/samples={self.samples}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one sweep, by default the published ones; equal settings give equal numbers.

    Args:
        p: dimension of inputs and parameters.
        beta: eigenvalues, regression coefficients and noise variances are U(0, beta).
        tasks: numbers M of training tasks.
        samples: numbers N of support samples of a task, and as many query samples.
        inner_lrs: inner rates alpha, of training and of the step on the test task; any sign.
        trials: independent repetitions of every (M, N).
        seed: of all random numbers, non-negative.

    Raises:
        InputError (a ValueError): a value outside its range, an empty grid or a repeated value.
    """

    p: int = 1
    beta: float = 2.0
    tasks: tuple[int, ...] = TASKS
    samples: tuple[int, ...] = SAMPLES
    inner_lrs: tuple[float, ...] = INNER_LRS
    trials: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field and bring it to its type."""
        for name, least, most in (
            ("p", 1, _MOST_DIMENSIONS),
            ("trials", 1, _MOST),
            ("seed", 0, 2**64 - 1),
        ):
            object.__setattr__(self, name, _whole(name, getattr(self, name), least, most))
        beta = _number("beta", self.beta)
        if not 1 / _LARGEST <= beta <= _LARGEST:
            raise InputError(
                f"beta must lie between {1 / _LARGEST:g} and {_LARGEST:g} (got {beta:g})"
            )
        object.__setattr__(self, "beta", beta)
        for name in ("tasks", "samples"):
            values = [_whole(name, value, 1, _MOST) for value in _listed(name, getattr(self, name))]
            object.__setattr__(self, name, _distinct(name, values))
        rates = [_number("inner_lrs", rate) for rate in _listed("inner_lrs", self.inner_lrs)]
        object.__setattr__(self, "inner_lrs", _distinct("inner_lrs", rates))
        if max(map(abs, rates)) > _LARGEST:
            raise InputError(f"inner_lrs must be at most {_LARGEST:g} in size (got {rates})")
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Refuse what takes more memory than there can be, or calls that nothing can interrupt."""
        columns = 1 + 3 * len(self.inner_lrs)
        check_memory(
            {
                f"trials = {self.trials} at {len(self.inner_lrs)} inner_lrs": _BYTES_PER_EXCESS
                * self.trials
                * columns
            }
        )
        seconds = BLOCK * seconds_per_trial(self.p, max(self.tasks))
        if seconds > _LONGEST_CALL_SECONDS:
            raise InputError(
                f"tasks = {max(self.tasks)} at p = {self.p} takes about {seconds:.0f} s for the "
                f"{BLOCK} trials of one call, which nothing can interrupt; use smaller numbers"
            )

    def cells(self) -> list[Cell]:
        """Every cell, in the order of the results' axes."""
        return [Cell(tasks, samples) for tasks in self.tasks for samples in self.samples]

    def key(self, cell: Cell) -> int:
        """The 64-bit key of a cell's random numbers, independent of everything else in the grid."""
        text = f"linear-regression/1 {self.seed} {self.p} {cell.tasks} {cell.samples}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


def _listed(name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InputError(f"{name} must be a list of numbers (got {values!r})")
    return list(values)


def _distinct(name: str, values: list[Any]) -> tuple[Any, ...]:
    if not values:
        raise InputError(f"{name} must hold at least one number")
    if len(set(values)) != len(values):
        raise InputError(f"{name} must not repeat a value (got {values})")
    return tuple(values)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number (got {value!r})") from None
    if isinstance(value, bool) or not least <= number <= most:
        raise InputError(f"{name} must lie between {least} and {most} (got {value!r})")
    return number


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number (got {value!r})") from None
    if not math.isfinite(number):
        raise InputError(f"{name} must be finite (got {number})")
    return number
