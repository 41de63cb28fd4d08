"""From a file name to checked tasks: the file's ending chooses the reader."""

from __future__ import annotations

from pathlib import Path

from innerloop.compare.archives import read_archive
from innerloop.compare.config import Config
from innerloop.compare.frames import read_frame, tasks_of_frame
from innerloop.compare.tables import Tasks, check_tasks
from innerloop.runs.errors import InputError


def read_tasks(path: Path, config: Config) -> Tasks:
    """Tasks of the file at `path`, with the columns and options of `config`."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet", ".npz"):
        raise InputError(f"table must be a .csv, .parquet or .npz file (got {str(path)!r})")
    if not path.exists():
        raise InputError(f"table {str(path)!r} does not exist")
    if suffix == ".npz":
        return check_tasks(read_archive(path, config), config)
    return check_tasks(tasks_of_frame(read_frame(path), config, path.name), config)
