"""What a sinusoid study is asked to do: every setting that can change a number, checked once."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from innerloop.models import MOST_WIDTH
from innerloop.runs.errors import InputError
from innerloop.runs.sizes import MOST, MOST_STEPS, check_count, check_memory, check_rate

SHOWN_STEPS = (0, 1, 5, 10)
ADAPT_STEPS = max(SHOWN_STEPS)
LOSS = "mse"
# What training and measuring take at most: see training.py, waves.py, checkpoints.py.
_BYTES_PER_PARAMETER, _BYTES_PER_STEP = 300, 32
_BYTES_PER_ROW = 40
_BYTES_PER_ERROR = 2 * 8 * (2 * 3 * (ADAPT_STEPS + 1) + 1)  # of a test task, kept and written
CHUNK_ITERATIONS = 200  # of training tasks that are drawn at a time


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
        runs: how often every method is trained, with the seeds `seed`, `seed` + 1, ...; all runs
            are measured on the same tasks.
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
    runs: int = 5
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        """Refuse a setting outside its range, naming the option."""
        for name, least in _LEAST.items():
            check_count(_option(name), getattr(self, name), least, _MOST.get(name, MOST))
        check_count("--seed", self.seed, 0, 2**64 - self.runs)
        for name in ("inner_lr", "outer_lr"):
            check_rate(_option(name), getattr(self, name))
        if not self.rates or len(set(self.rates)) != len(self.rates):
            raise InputError(f"--rates must be distinct numbers, at least one (got {self.rates})")
        for rate in self.rates:
            check_rate("--rates", rate)
        if not self.hidden:
            raise InputError("--hidden must hold at least one width")
        for width in self.hidden:
            check_count("--hidden", width, 1, MOST_WIDTH)
        if not 0.0 < self.level < 1.0:
            raise InputError(f"--level must lie between 0 and 1 (got {self.level})")
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Refuse what takes more memory than there can be."""
        widths = self.widths
        parameters = sum((n + 1) * m for n, m in itertools.pairwise(widths))
        drawn = CHUNK_ITERATIONS * self.meta_batch * 2 * self.shots
        measured = (self.test_tasks + self.validation_tasks) * (self.shots + self.query_rows)
        hidden = ",".join(map(str, self.hidden))
        check_memory(
            {
                f"--hidden {hidden} with --steps {self.steps}": parameters
                * (_BYTES_PER_PARAMETER + _BYTES_PER_STEP * self.steps),
                f"--meta-batch {self.meta_batch} with --shots {self.shots}": _BYTES_PER_ROW * drawn,
                f"--test-tasks {self.test_tasks} and --validation-tasks {self.validation_tasks} "
                f"with --shots {self.shots} and --query-rows {self.query_rows}": _BYTES_PER_ROW
                * measured,
                f"--runs {self.runs} with --test-tasks {self.test_tasks}": _BYTES_PER_ERROR
                * self.runs
                * self.test_tasks,
            }
        )

    @property
    def widths(self) -> list[int]:
        """Widths of all layers."""
        return [1, *self.hidden, 1]

    def of_run(self, run: int) -> Settings:
        """What determines the training of one run: the settings with its own seed."""
        return dataclasses.replace(self, seed=self.seed + run, runs=1)

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def fingerprint(self) -> dict[str, Any]:
        """The fields that change what is trained, beside the number of runs, which may grow."""
        fields = self.as_dict()
        for name in ("test_tasks", "validation_tasks", "query_rows", "rates", "runs", "level"):
            del fields[name]
        return fields


_MOST = {"steps": MOST_STEPS, "runs": 1000}
_LEAST = {
    "iterations": 1,
    "shots": 1,
    "meta_batch": 1,
    "steps": 1,
    "test_tasks": 2,
    "validation_tasks": 1,
    "query_rows": 1,
    "runs": 1,
}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
