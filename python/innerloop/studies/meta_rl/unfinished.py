"""A training that is under way, on disk: its state, and the tests that are done."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from innerloop.runs.arrays import read_sealed, write_sealed
from innerloop.runs.errors import InputError

FORMAT = "innerloop.study.meta-rl.unfinished/1"
FOLDER = "unfinished"


@dataclasses.dataclass
class Progress:
    """How far a unit is, beside the training itself.

    Members:
        stop: how many stops are behind, with all their tests.
        returns: on the test tasks, for each test [stop][tasks][updates + 1]; the last stop may be
            under way.
        steps: control steps of training at every stop.
        diverged: the iteration whose gradient was not finite, after which the policy stays; or
            None.
        finished: whether nothing is left to do.
    """

    stop: int = 0
    returns: dict[str, list[list[list[float]]]] = dataclasses.field(default_factory=dict)
    steps: list[int] = dataclasses.field(default_factory=list)
    diverged: int | None = None
    finished: bool = False


def path_of(folder: Path, unit: str) -> Path:
    """Where an unfinished unit is kept."""
    return folder / FOLDER / f"{unit}.npz"


def save(path: Path, key: str, unit: str, progress: Progress, training: dict[str, Any]) -> None:
    """Write everything atomically, with the study and the unit that it belongs to."""
    stream = io.BytesIO()
    torch.save(training, stream)
    about = {"key": key, "unit": unit, "progress": dataclasses.asdict(progress)}
    path.parent.mkdir(exist_ok=True)
    write_sealed(path, FORMAT, about, {"training": np.frombuffer(stream.getvalue(), np.uint8)})


def load(path: Path, key: str, unit: str) -> tuple[Progress, dict[str, Any]] | None:
    """What was saved of a unit in the study `key`, or None if there is nothing.

    Raises:
        InputError: there is a file that is damaged, or belongs to another study or unit.
    """
    if not os.path.lexists(path):
        return None
    named = f"checkpoint {str(path)!r}"
    remedy = f"remove it, or use --fresh, to train {unit} from the start"
    about, arrays = read_sealed(path, FORMAT, named, remedy)
    if about.get("key") != key or about.get("unit") != unit:
        raise InputError(f"{named} belongs to another study or training; {remedy}")
    training = torch.load(io.BytesIO(arrays["training"].tobytes()), weights_only=True)
    return Progress(**about["progress"]), training
