"""From a file name to checked tasks: the file's ending chooses the reader."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from innerloop.compare.archives import tasks_of_archive
from innerloop.compare.columns import Typed, one_spelling, typed
from innerloop.compare.config import Config
from innerloop.compare.delimited import DelimitedText
from innerloop.compare.frames import tasks_of_frame
from innerloop.compare.parquet import read_parquet
from innerloop.compare.tables import Tasks, check_tasks
from innerloop.runs.errors import InputError
from innerloop.runs.files import read_whole


def read_tasks(path: Path, config: Config) -> Tasks:
    """Tasks of the file at `path`, with the columns and options of `config`.

    Raises:
        InputError: anything about the file or the columns that keeps them from being used, in one
            line that names the file, or the option that does not suit it.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".txt", ".parquet", ".npz"):
        raise InputError(
            f"table must be a .csv (.tsv, .txt), .parquet or .npz file (got {str(path)!r})"
        )
    try:
        if suffix == ".npz":
            return check_tasks(tasks_of_archive(path, config), config)
        table = _read_table(path, config)
        tasks = tasks_of_frame(table.frame, config, path.name, table.unclear)
        return check_tasks(dataclasses.replace(tasks, notes=(*tasks.notes, *table.notes)), config)
    except InputError as error:
        text = str(error)
        if path.name in text or text.startswith("--"):
            raise
        raise InputError(f"table {str(path)!r}: {text}") from None


def _read_table(path: Path, config: Config) -> Typed:
    """The table in a CSV or Parquet file."""
    named = f"table {str(path)!r}"
    data = read_whole(path, named)
    if path.suffix.lower() == ".parquet":
        table = Typed(read_parquet(data, named), [], {})
    else:
        table = typed(DelimitedText(data, named), text=[config.task])
    if table.frame.empty:
        raise InputError(f"{named} has no rows; give a table with a header and rows")
    if config.task in table.frame.columns:
        one_spelling(table.frame[config.task], named)
    return table
