"""Columns of a text table as numbers where every value is one, and as text otherwise."""

from __future__ import annotations

import decimal
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from innerloop.compare.delimited import DelimitedText
from innerloop.runs.errors import InputError

# Texts that stand for a missing value: those of pandas.
MISSING = frozenset(
    [
        "",
        "#N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    ]
) | {"#N/A N/A"}
_TRUTH = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
_INFINITE = frozenset(sign + word for sign in ("", "+", "-") for word in ("inf", "infinity"))
BLANKS = " \u00a0\u202f"  # the space, and those that do not break a line
_IN_NUMBERS = str.maketrans("", "", "0123456789+-.eE ")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")

Array = NDArray[Any]


class Typed(NamedTuple):
    """A table and what its user should know of how it was read.

    Members:
        frame: numbers as int64 or float64, true and false as bool, anything else as text; a
            missing value is NaN or None.
        notes: sentences.
        unclear: by column, why its numbers could be meant in two ways.
    """

    frame: pd.DataFrame
    notes: list[str]
    unclear: dict[str, str]


def typed(source: DelimitedText, text: Sequence[str] = ()) -> Typed:
    """The table with the type of every column.

    Columns without a name are left out, with a note. Commas in numbers are decimal points where
    they cannot separate thousands.

    Args:
        text: columns that stay text, however they look.

    Raises:
        InputError: a row does not fit the header, or two columns have one name.
    """
    names = {index: name for index, name in enumerate(source.header) if name.strip()}
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        raise InputError(f"{source.named} has more than one column {repeated[0]!r}; rename one")
    numbers, fractions = _numbers(source, [i for i in names if names[i] not in text])
    texts = _texts(source, [index for index in names if index not in numbers])
    commas, unclear = _comma_numbers({i: texts[i] for i in texts if names[i] not in text})
    if commas:
        why = "holds decimal points where other columns have decimal commas"
        unclear.update(dict.fromkeys(fractions, why))
    columns = {
        name: numbers[i]
        if i in numbers
        else commas[i]
        if i in commas
        else _text_column(texts[i], may_be_truth=name not in text)
        for i, name in names.items()
    }
    notes = []
    if source.separator != ",":
        notes.append(f"{source.named}: values are separated by {source.separators}")
    if commas:
        listed = ", ".join(repr(names[i]) for i in commas)
        notes.append(f"{source.named}: commas are decimal points in {listed}")
    if count := len(source.header) - len(names):
        notes.append(f"{source.named}: left out {count} column{'s' * (count > 1)} without a name")
    return Typed(pd.DataFrame(columns), notes, {names[i]: why for i, why in unclear.items()})


def _numbers(source: DelimitedText, columns: Sequence[int]) -> tuple[dict[int, Array], list[int]]:
    """The columns that hold nothing but numbers, and which of them hold decimal points."""
    parts: dict[int, list[Array]] = {index: [] for index in columns}
    fractions: set[int] = set()
    for rows in source.chunks():
        values = list(zip(*rows, strict=True))
        for index in list(parts):
            found = _parsed(values[index])
            if found is None:
                del parts[index]
                continue
            parts[index].append(found)
            if found.dtype == np.float64 and any("." in value for value in values[index]):
                fractions.add(index)
    if not any(parts.values()):
        return {index: np.empty(0) for index in parts}, []
    return {index: np.concatenate(part) for index, part in parts.items()}, sorted(
        fractions & set(parts)
    )


def _parsed(values: Sequence[str]) -> Array | None:
    """Texts as int64 or float64 (missing ones as NaN), or None if one of them is no number."""
    joined = "".join(values)
    if not joined.translate(_IN_NUMBERS):
        whole = not any(mark in joined for mark in ".eE")
        try:
            if whole:
                return np.array([int(value) for value in values], dtype=np.int64)
            return np.array([float(value) for value in values])
        except (ValueError, OverflowError):
            pass  # a missing value, a number beyond 64 bits, or none
    numbers = [_number(value.strip(BLANKS)) for value in values]
    return None if None in numbers else np.array(numbers, dtype=np.float64)


def _number(value: str) -> float | None:
    """A number, NaN for a missing one, or None; never what only Python takes for a number."""
    if value in MISSING:
        return float("nan")
    if value.translate(_IN_NUMBERS) and value.lower() not in _INFINITE:
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _texts(source: DelimitedText, columns: Sequence[int]) -> dict[int, Array]:
    """Columns as objects: text, or None where it is missing."""
    values: dict[int, list[str | None]] = {index: [] for index in columns}
    known: dict[str, str] = {}  # equal texts are kept once
    if columns:
        for rows in source.chunks():
            for index, column in values.items():
                for row in rows:
                    value = row[index]
                    missing = value.strip(BLANKS) in MISSING
                    column.append(None if missing else known.setdefault(value, value))
    return {index: np.array(column, dtype=object) for index, column in values.items()}


def _comma_numbers(texts: dict[int, Array]) -> tuple[dict[int, Array], dict[int, str]]:
    """Columns whose commas are decimal points, as numbers; and why others are unclear."""
    candidates: dict[int, set[str]] = {}
    unclear: dict[int, str] = {}
    for index, column in texts.items():
        held = {value.strip(BLANKS) for value in set(column) if value is not None}
        with_comma = {value for value in held if "," in value}
        if with_comma and all(_DECIMAL_COMMA.fullmatch(value) for value in held):
            candidates[index] = with_comma
        elif with_comma and all(
            _THOUSANDS.fullmatch(value) or _number(value) is not None for value in held
        ):
            unclear[index] = f"separates thousands by commas (such as {min(with_comma)!r})"
    decimal = any(
        not _THOUSANDS.fullmatch(value) for values in candidates.values() for value in values
    )
    if not decimal:
        for index, values in candidates.items():
            unclear[index] = f"holds commas that may be decimal points or not ({min(values)!r})"
        return {}, unclear
    return {index: _with_points(texts[index]) for index in candidates}, unclear


def _with_points(column: Iterable[str | None]) -> Array:
    return np.array(
        [float("nan") if value is None else float(value.replace(",", ".")) for value in column]
    )


def one_spelling(column: pd.Series, named: str) -> None:
    """Refuse a column of names that writes one of them in several ways (1 and 01, "a" and "a ")."""
    spellings: dict[str | decimal.Decimal, str] = {}
    for value in map(str, column.dropna().unique()):
        bare = value.strip(BLANKS)
        known = spellings.setdefault(_exact(bare), value)
        if known != value:
            raise InputError(
                f"{named}: column {column.name!r} writes {known!r} also as {value!r}; write each "
                "task in one way"
            )


def _exact(bare: str) -> str | decimal.Decimal:
    """A number with all of its digits, or the text where it is none."""
    number = _number(bare)
    if number is None or number != number:
        return bare
    try:
        return decimal.Decimal(bare)
    except decimal.InvalidOperation:  # an exponent beyond all numbers
        return bare


def _text_column(column: Array, *, may_be_truth: bool) -> Array:
    """Text, or bool if every value says true or false."""
    if may_be_truth and len(column) and all(value in _TRUTH for value in set(column)):
        return np.array([_TRUTH[value] for value in column], dtype=bool)
    return column
