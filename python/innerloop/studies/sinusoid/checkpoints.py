"""Unfinished training on disk: parameters, Adam's moments and the position in the stream."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch

from innerloop.runs.files import write_bytes
from innerloop.studies.sinusoid.training import State


def checkpoint_path(folder: Path, method: str) -> Path:
    """Where the unfinished training of a method is kept."""
    return folder / f"{method}.checkpoint.npz"


def save(path: Path, key: str, state: State) -> None:
    """Write the state atomically; `key` says which study it belongs to."""
    header = {"key": key, "done": state.done, "partial": state.partial, "trace": state.trace}
    content = io.BytesIO()
    np.savez(
        content,
        header=np.array(json.dumps(header)),
        theta=state.theta.numpy(),
        first=state.first.numpy(),
        second=state.second.numpy(),
    )
    write_bytes(path, content.getvalue())


def load(path: Path, key: str) -> State | None:
    """The state of the study `key`, or None if there is none or it cannot be read."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as content:
            header = json.loads(str(content["header"]))
            if header["key"] != key:
                return None
            theta, first, second = (
                torch.from_numpy(content[name]) for name in ("theta", "first", "second")
            )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return State(header["done"], theta, first, second, header["partial"], header["trace"])
