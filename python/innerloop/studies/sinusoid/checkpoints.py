"""Unfinished training on disk: parameters, Adam's moments and the position in the stream."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from innerloop.runs.arrays import read_sealed, write_sealed
from innerloop.runs.errors import InputError
from innerloop.studies.sinusoid.training import State

FORMAT = "innerloop.study.sinusoid.checkpoint/3"
PATTERN = "*.checkpoint.npz"
_VECTORS = ("theta", "first", "second")


def checkpoint_path(folder: Path, unit: str) -> Path:
    """Where an unfinished training is kept."""
    return folder / PATTERN.replace("*", unit)


def save(path: Path, key: str, unit: str, state: State) -> None:
    """Write the state atomically, with the study and the training that it belongs to."""
    about = {
        "key": key,
        "unit": unit,
        "done": state.done,
        "partial": state.partial,
        "trace": state.trace,
    }
    write_sealed(path, FORMAT, about, {name: getattr(state, name).numpy() for name in _VECTORS})


def load(path: Path, key: str, unit: str) -> State | None:
    """The state of a training in the study `key`, or None if there is none.

    Raises:
        InputError: there is a file that is damaged, or belongs to another study or training.
    """
    if not os.path.lexists(path):
        return None
    named = f"checkpoint {str(path)!r}"
    remedy = f"remove it, or use --fresh, to train {unit} from the start"
    about, arrays = read_sealed(path, FORMAT, named, remedy)
    if about.get("key") != key:
        raise InputError(f"{named} belongs to a study with other settings or versions; {remedy}")
    if about.get("unit") != unit:
        raise InputError(f"{named} holds the training of {about.get('unit')}; {remedy}")
    if not _is_state(about, arrays):
        raise InputError(f"{named} holds no training; {remedy}")
    theta, first, second = (torch.from_numpy(arrays[name].copy()) for name in _VECTORS)
    return State(about["done"], theta, first, second, about["partial"], about["trace"])


def _is_state(about: dict[str, Any], arrays: dict[str, Any]) -> bool:
    shape = arrays[_VECTORS[0]].shape if set(arrays) == set(_VECTORS) else ()
    trace = about.get("trace")
    return (
        len(shape) == 1
        and all(a.shape == shape and a.dtype == np.float32 for a in arrays.values())
        and type(about.get("done")) is int
        and type(about.get("partial")) is float
        and isinstance(trace, list)
        and all(type(value) is float for value in trace)
    )
