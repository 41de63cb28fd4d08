"""The tasks of a data set, and the checks that every source of tasks must pass."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from numpy.typing import NDArray

from innerloop.compare.config import Config
from innerloop.runs.errors import InputError

MIN_TASKS = 5
MIN_TASKS_PER_CLASS = 3
# Standard deviation of a feature that is 0 and 1 equally often, and the least scale of such
# features: a rare value would otherwise be tens of standard deviations away, and curvature with it.
BINARY_SCALE = 0.5
LARGEST = 1e150
_ORDINARY = 1e75  # squares of squares of such numbers are far from the ends of float64


@dataclasses.dataclass(frozen=True)
class Tasks:
    """All tasks, rows stored one task after another.

    Args:
        source: where the data came from, for the report.
        names: one name per task.
        x: [rows, D] float64 features, not standardised.
        y: [rows, K] float64 targets, or [rows] int64 class numbers.
        start: [T + 1] row at which each task begins; task t owns rows start[t] to start[t + 1].
        features: D names.
        target: name of the target.
        loss: "mse" or "cross_entropy".
        classes: names of the classes, empty for regression.
        fixed_support: number of leading rows of each task that are always its support, or 0 when
            the rows are drawn.
        notes: sentences the user should read.
    """

    source: str
    names: tuple[str, ...]
    x: NDArray[np.float64]
    y: NDArray[np.float64] | NDArray[np.int64]
    start: NDArray[np.int64]
    features: tuple[str, ...]
    target: str
    loss: str
    classes: tuple[str, ...] = ()
    fixed_support: int = 0
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each task, [T]."""
        return np.diff(self.start)

    @property
    def binary(self) -> NDArray[np.bool_]:
        """[D]: which features are 0 or 1 in every row."""
        return np.asarray(((self.x == 0.0) | (self.x == 1.0)).all(axis=0))

    @property
    def outputs(self) -> int:
        """Width of the model's last layer."""
        return len(self.classes) if self.classes else int(self.y.shape[1])

    def sha256(self) -> str:
        """A digest of the numbers and names that the comparison uses, independent of the file
        format.
        """
        digest = hashlib.sha256()
        for array in (self.x, self.y, self.start):
            digest.update(f"{array.shape}{array.dtype.str}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        for names in (self.names, self.features, self.classes, (self.target, self.loss)):
            digest.update("\0".join(names).encode() + b"\1")
        return digest.hexdigest()


def check_tasks(tasks: Tasks, config: Config) -> Tasks:
    """The tasks, if there are enough of them with enough rows and something to predict."""
    support = tasks.fixed_support or config.shots
    short = tasks.counts <= support
    if short.any():
        worst = np.flatnonzero(short)
        listed = ", ".join(f"{tasks.names[t]!r} has {tasks.counts[t]}" for t in worst[:4])
        more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
        raise InputError(
            f"--shots {support} needs at least {support + 1} rows in every task ({listed}{more}); "
            "use fewer shots, or --drop-small to leave these tasks out"
        )
    if len(tasks.names) < MIN_TASKS:
        what = "only one task" if len(tasks.names) == 1 else f"only {len(tasks.names)} tasks"
        raise InputError(
            f"{tasks.source} has {what}; comparing over held-out tasks needs at least {MIN_TASKS} "
            "(and more than 20 for a useful answer)"
        )
    _check_features(tasks)
    if tasks.classes:
        _check_classes(tasks)
    elif (np.ptp(tasks.y, axis=0) == 0).any():
        raise InputError(f"target {tasks.target!r} is constant; there is nothing to predict")
    elif np.abs(tasks.y).max() > LARGEST:
        raise InputError(f"target {tasks.target!r} must lie within {LARGEST:g}; rescale it")
    return tasks


def in_reach(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Columns [rows, D] whose squares neither overflow nor vanish, and exponents e [D] for which
    column times 2^e is what was given, to the bit for all but subnormal numbers.

    Columns of ordinary size are as they were (e = 0); others get a largest magnitude in [1/2, 1).
    """
    size = np.abs(values).max(axis=0)
    ordinary = (size == 0.0) | ((size > 1.0 / _ORDINARY) & (size < _ORDINARY))
    exponents = np.where(ordinary, 0, np.frexp(size)[1]).astype(np.int32)
    return np.ldexp(values, -exponents), exponents


def column_fault(column: NDArray[np.float64]) -> str | None:
    """What keeps a feature [rows] of finite numbers from being standardised."""
    if np.abs(column).max() > LARGEST:
        return f"must lie within {LARGEST:g}"
    if np.ptp(column) == 0.0:
        return f"is constant ({column[0]:g} in every row)"
    return None


def _check_features(tasks: Tasks) -> None:
    """Refuse features of an archive that cannot be standardised, all at once."""
    found = {
        name: column_fault(column) for name, column in zip(tasks.features, tasks.x.T, strict=True)
    }
    faults = [f"feature {name!r} {fault}" for name, fault in found.items() if fault is not None]
    if faults:
        raise InputError(f"{'; '.join(faults)}; remove or rescale such features")


def _check_classes(tasks: Tasks) -> None:
    if len(tasks.classes) < 2:
        raise InputError(
            f"target {tasks.target!r} is constant (class {tasks.classes[0]!r} only); "
            "there is nothing to predict"
        )
    owner = np.repeat(np.arange(len(tasks.names)), tasks.counts)
    for code, name in enumerate(tasks.classes):
        present = len(np.unique(owner[tasks.y == code]))
        if present < MIN_TASKS_PER_CLASS:
            raise InputError(
                f"class {name!r} of target {tasks.target!r} appears in only {present} "
                f"task{'s' if present > 1 else ''} (at least {MIN_TASKS_PER_CLASS} are needed to "
                "train, pick and test); merge or remove it, or use --loss mse if it is a number"
            )
