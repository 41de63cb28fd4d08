"""Logs of a training, as callbacks of `train`: a row an iteration."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

from innerloop.rl import _checks
from innerloop.rl.training import Training


class JsonLines:
    """Writes the rows of `Training.history` to a file, one JSON object a line.

    The first call writes the whole history, later ones append: after `Training.load_state` the file
    is that of an uninterrupted training.

    Args:
        path: of the file, which is replaced.

    Raises:
        OSError: the file cannot be written (a full disk); it keeps whole rows, and the next call
            writes those that are missing.

    Example:
        >>> from innerloop import rl
        >>> env = rl.make("HalfCheetahRandVel", tasks=2, rollouts=2, horizon=5, threads=1)
        >>> log = JsonLines("run.jsonl")
        >>> _ = rl.train(env, "drs-ppo", iterations=1, seed=0, callback=log)  # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._written = 0
        self._bytes = 0

    def __call__(self, training: Training) -> None:
        """Writes the rows that are new."""
        rows = [json.dumps(row) + "\n" for row in training.history[self._written :]]
        content = "".join(rows).encode()
        try:
            with open(self._path, "r+b" if self._bytes else "wb", buffering=0) as stream:
                stream.seek(self._bytes)
                _write_whole(stream, content)
        except OSError as error:
            raise _checks.unwritable("rl.JsonLines", self._path, error) from None
        self._written = len(training.history)
        self._bytes += len(content)


def _write_whole(stream: io.FileIO, content: bytes) -> None:
    """Writes at the end of a file, all or nothing."""
    end = stream.tell()
    try:
        while content:
            content = content[stream.write(content) :]
    except OSError:
        stream.truncate(end)  # half a row would be read as none
        raise


class TensorBoard:
    """Writes the rows of `Training.history` for TensorBoard, against control steps.

    The first call writes the whole history, which takes the place of an earlier one in the folder.

    Args:
        folder: of the event files.

    Raises:
        ModuleNotFoundError: tensorboard is missing; the text says what to install.

    Example:
        >>> log = TensorBoard("runs/0")  # doctest: +SKIP
        >>> training = rl.train(env, "promp", seed=0, callback=log)  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        _checks.package("rl.TensorBoard", "tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(os.fspath(folder), purge_step=0)
        self._written = 0

    def __call__(self, training: Training) -> None:
        """Writes the rows that are new."""
        for row in training.history[self._written :]:
            for name, value in row.items():
                if value is not None and name not in ("iteration", "steps"):
                    self._writer.add_scalar(name, float(value), row["steps"])
        self._written = len(training.history)
        self._writer.flush()
