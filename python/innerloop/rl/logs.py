"""Logs of a training, as callbacks of `train`: a row an iteration."""

from __future__ import annotations

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
        OSError: the file cannot be written.

    Example:
        >>> from innerloop import rl
        >>> env = rl.make("HalfCheetahRandVel", tasks=2, rollouts=2, horizon=5, threads=1)
        >>> log = JsonLines("run.jsonl")
        >>> _ = rl.train(env, "drs-ppo", iterations=1, seed=0, callback=log)  # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._written = 0

    def __call__(self, training: Training) -> None:
        """Writes the rows that are new."""
        with open(self._path, "a" if self._written else "w", encoding="utf-8") as stream:
            for row in training.history[self._written :]:
                stream.write(json.dumps(row) + "\n")
        self._written = len(training.history)


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
