"""Tables in Parquet files: columns as they are stored, whatever pandas would make an index of."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from innerloop._capacity import capacity_bytes, in_words
from innerloop.runs.errors import InputError

_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")  # how pandas stores an index without a name
_BYTES_PER_VALUE = 32


def read_parquet(data: bytes, named: str) -> pd.DataFrame:
    """The table in a file's content. Named levels of an index are columns like others; unnamed
    ones are left out. What is neither number, text, truth value nor time becomes text.

    Raises:
        InputError: pyarrow is missing, or the file is damaged, encrypted, no Parquet file, too
            large for memory, or has two columns with one name.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f'{named} needs pyarrow; run pip install "innerloop[cli]"') from None
    try:
        file = parquet.ParquetFile(
            arrow.BufferReader(data), memory_map=False, page_checksum_verification=True
        )
        _check_size(file.metadata, named)
        table = file.read(use_threads=False, use_pandas_metadata=False)
        table.validate(full=True)
        names = [name for name in table.column_names if not _UNNAMED_INDEX.fullmatch(name)]
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{named} has more than one column {repeated!r}; rename one")
        columns = {name: _column(table.column(name)) for name in names}
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{named} cannot be read as parquet: {lines[0][:200]}; write it again"
        ) from None
    return pd.DataFrame(columns, index=pd.RangeIndex(table.num_rows))


def _check_size(facts: Any, named: str) -> None:
    needed = facts.num_rows * facts.num_columns * _BYTES_PER_VALUE
    if facts.num_rows < 0 or needed > capacity_bytes():
        raise InputError(
            f"{named} claims {facts.num_rows} rows of {facts.num_columns} columns, which take "
            f"about {in_words(needed)} of at most {in_words(capacity_bytes())} of memory"
        )


def _column(column: Any) -> Any:
    """A column as NumPy or pandas hold it.

    Whole and decimal numbers that float64 cannot tell apart keep their digits: they may be names.
    """
    from pyarrow import compute, types

    kind = column.type
    if types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    if types.is_decimal(kind):
        floats = compute.cast(column, "float64")
        if compute.count_distinct(floats).equals(compute.count_distinct(column)):
            column, kind = floats, floats.type
    plain = (
        types.is_boolean,
        types.is_integer,
        types.is_floating,
        types.is_string,
        types.is_large_string,
        types.is_date,
        types.is_timestamp,
        types.is_null,
    )
    if any(is_plain(kind) for is_plain in plain):
        found = column.to_pandas()
        if not (types.is_integer(kind) and column.null_count):
            return found
        # pandas makes floats of whole numbers of which some are missing
        merged = found.nunique() < compute.count_distinct(column).as_py()
        return column.to_pandas(integer_object_nulls=True) if merged else found
    values = column.to_pylist()
    return np.array([None if value is None else str(value) for value in values], dtype=object)
