"""Columns of a table as numbers: text as one column per value, dates as days; and everything that
is wrong with any of them in one message with its remedy.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from innerloop.compare.tables import column_fault
from innerloop.runs.errors import InputError

# Text with more values than this is a name or an identifier; one column each would be no feature.
MOST_LEVELS = 20
# A column with a larger share of missing values is to be left out, not its rows.
_MOST_MISSING = 0.2
# A column in which a larger share of the values is no number is text.
_MOST_SLIPS = 0.1
_MOST_SHOWN = 8
_DATE = re.compile(r"\d{4}-\d{2}(-\d{2}([ T].*)?)?")
_ZONE = re.compile(r"[ T].*(?:[Zz]|[+-]\d{2}:?\d{2})$")
_DAY = np.timedelta64(1, "D")
# Larger whole numbers are not all numbers of float64.
_LARGEST_WHOLE = 2.0**53

Array = NDArray[np.float64]


class Faults:
    """What keeps columns from being used, collected so that one message can say it all."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._dropped_rows = False
        self._excluded: list[str] = []
        self._remedies: list[str] = []

    def add(self, column: str, what: str, remedy: str = "") -> None:
        """Note what is wrong with a column; without a remedy, leaving it out is the one."""
        if column in self._found:
            return
        self._found[column] = what
        if remedy:
            self._remedies.append(remedy)
        else:
            self._excluded.append(column)

    def add_missing(self, column: str, rows: str, share: float, is_needed: bool) -> None:
        """Note missing values; rows are left out where the column is needed or mostly there."""
        if is_needed or share <= _MOST_MISSING:
            self._found[column] = f"has missing values in {rows}"
            self._dropped_rows = True
        else:
            self.add(column, f"has missing values in {rows}, {100 * share:.0f}% of all")

    def check(self) -> None:
        """Raise the one error, if there is anything to say."""
        if not self._found:
            return
        parts = [f"{name!r} {what}" for name, what in self._found.items()]
        if len(parts) == 1:
            text = f"column {parts[0]}"
        else:
            more = len(parts) - _MOST_SHOWN
            shown = parts[:_MOST_SHOWN] + ([f"{more} more like these"] if more > 0 else [])
            text = f"{len(parts)} columns cannot be used as they are: {'; '.join(shown)}"
        if any(" in row" in part for part in parts):
            text += " (data rows counted from 1)"
        options = ["--drop-missing"] if self._dropped_rows else []
        if self._excluded:
            names = ",".join(self._excluded)
            options.append(f"--exclude {names}" if " " not in names else f'--exclude "{names}"')
        remedies = list(dict.fromkeys(self._remedies))
        if options:
            remedies.append(f"add {' '.join(options)}")
        raise InputError(f"{text}; {', and '.join(remedies)}")


class Columns:
    """Columns of numbers with their names, and what was done to make them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: list[Array] = []
        self.notes: list[str] = []

    def add(self, name: str, values: Array) -> None:
        """One more column."""
        self.names.append(name)
        self.values.append(values)


def rows_text(index: pd.Index) -> str:
    """The first few of the rows (from 1, header not counted) with these numbers from 0."""
    shown = ", ".join(str(row + 1) for row in index[:5])
    more = f" and {len(index) - 5} more" if len(index) > 5 else ""
    return f"row{'s' if len(index) > 1 else ''} {shown}{more}"


def encode(column: pd.Series, into: Columns, faults: Faults, *, log: bool) -> None:
    """Append a feature as numbers: itself, days for dates, or one column per value of text but the
    most frequent one.

    Args:
        column: without missing values, under the row numbers of its table.
        into, faults: where to put the outcome.
        log: take the logarithm.
    """
    name = str(column.name)
    if not len(column):
        return
    days = None if log else _days(column, faults)
    if days is not None:
        first = pd.to_datetime(column, utc=True, format="mixed").min()
        into.notes.append(f"{name!r} is counted in days from {first:%Y-%m-%d}")
        into.add(name, days)
    elif log or not _is_text(column):
        values = numeric(column, faults, log=log)
        if values is not None:
            into.add(name, values)
    else:
        _one_hot(column, into, faults)
        return
    if into.names[-1:] == [name] and (fault := column_fault(into.values[-1])):
        faults.add(name, fault)


def numeric(
    column: pd.Series, faults: Faults, *, log: bool = False, remedy: str = ""
) -> Array | None:
    """A column as finite numbers, after its logarithm if asked; None with its fault noted."""
    name = str(column.name)
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    if (bad := np.isnan(values)).any():
        example = column.to_numpy()[int(np.flatnonzero(bad)[0])]
        rows = rows_text(column.index[bad])
        faults.add(name, f"must be numeric (got {str(example)!r} in {rows})", remedy)
        return None
    if (bad := np.isinf(values)).any():
        what = f"must be finite (infinite in {rows_text(column.index[bad])})"
        faults.add(name, what, remedy and "correct these rows or leave them out")
        return None
    if pd.api.types.is_integer_dtype(column) and (np.abs(values) > _LARGEST_WHOLE).any():
        what = "holds whole numbers beyond 2**53, of which neighbours cannot be told apart"
        faults.add(name, what, "subtract a constant from it")
        return None
    if not log:
        return np.asarray(values)
    if (bad := values <= 0).any():
        rows = rows_text(column.index[bad])
        what = f"must be positive for its logarithm (not so in {rows})"
        faults.add(name, what, f"take {name} out of --log")
        return None
    return np.asarray(np.log(values))


def _is_text(column: pd.Series) -> bool:
    """Whether a column holds names rather than numbers with a few slips."""
    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return False
    return bool(pd.to_numeric(column.astype(object), errors="coerce").isna().mean() > _MOST_SLIPS)


def _days(column: pd.Series, faults: Faults) -> Array | None:
    """Days since the first date of a column of dates (year-month-day, as text or as such)."""
    if pd.api.types.is_datetime64_any_dtype(column):
        moments = pd.to_datetime(column, utc=True)
    elif not _is_text(column):
        return None
    else:
        texts = column.astype(str)
        if not all(_DATE.fullmatch(text) for text in texts.unique()):
            return None
        moments = pd.to_datetime(texts, errors="coerce", utc=True, format="ISO8601")
        if moments.isna().any():
            return None
        if texts.str.contains(_ZONE).nunique() > 1:
            what = "mixes times with and without a time zone"
            faults.add(str(column.name), what, "write all of them in one way")
    since: Any = (moments - moments.min()).to_numpy()
    return np.asarray(since / _DAY, dtype=np.float64)


def _one_hot(column: pd.Series, into: Columns, faults: Faults) -> None:
    name = str(column.name)
    texts = column.astype(str)
    counts = texts.value_counts()
    levels = sorted(counts.index)
    if len(levels) == 1:
        faults.add(name, f"is constant ({levels[0]!r} in every row)")
        return
    if len(levels) > MOST_LEVELS:
        faults.add(
            name,
            f"is text with {len(levels)} different values (such as {levels[0]!r}; at most "
            f"{MOST_LEVELS} are made into columns)",
        )
        return
    base = max(levels, key=lambda level: int(counts[level]))
    others = [level for level in levels if level != base]
    for level in others:
        into.add(f"{name}={level}", (texts == level).to_numpy(dtype=np.float64))
    made = "a column" if len(others) == 1 else f"{len(others)} columns"
    into.notes.append(f"{name!r} is text: {made} of 0 and 1 beside its most frequent {base!r}")
