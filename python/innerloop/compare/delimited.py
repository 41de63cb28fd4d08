"""Rows of text files with separated values, read strictly: every row has as many values as the
header has names, or it is refused by its number. This parser alone decides where values end.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator

from innerloop.runs.errors import InputError

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_ROWS_TO_CHOOSE_BY = 100
_ROWS_AT_A_TIME = 16384
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; export the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; export the sheet as CSV",
    b"PAR1": "a Parquet file; name it .parquet",
    b"\x93NUMPY": "an array of NumPy's; numpy.savez writes .npz files of several",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first",
    b"%PDF": "a PDF document; export the table as CSV",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
}
_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}

Row = list[str]


class DelimitedText:
    """The header and the rows of a file's content.

    Values are separated by commas, semicolons or tabs, whichever fits the header and the first
    rows; quoted ones may hold separators and line ends; empty lines are skipped. UTF-8, or UTF-16
    with its mark.

    Args:
        data: the content.
        named: what a message calls the file.

    Members:
        header: the names, in the order of the values.
        separator: what stands between values, and `separators`, what it is called.

    Raises:
        InputError: another format or encoding, no header; names the line.
    """

    def __init__(self, data: bytes, named: str) -> None:
        self.named = named
        self._text = _decoded(data, named)
        self.separator = max(_SEPARATORS, key=self._fit)  # the first of equals
        self.separators = _SEPARATORS[self.separator]
        self.header, _ = next(self._records(self.separator))

    def chunks(self) -> Iterator[list[Row]]:
        """All rows, many at a time.

        Raises:
            InputError: a row that has more or fewer values than the header has names, or a quote
                that is not closed.
        """
        records = itertools.islice(self._records(self.separator), 1, None)
        chunk: list[Row] = []
        width = len(self.header)
        for count, (row, line) in enumerate(records, start=1):
            if len(row) != width:
                self._refuse(count, row, line)
            chunk.append(row)
            if len(chunk) == _ROWS_AT_A_TIME:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _records(self, separator: str) -> Iterator[tuple[Row, int]]:
        """Header and rows without empty lines, each with the number of its (last) line."""
        lines = io.StringIO(self._text, newline="")
        reader = csv.reader(lines, delimiter=separator, strict=True)
        while True:
            try:
                for row in reader:
                    if row:
                        yield row, reader.line_num
                return
            except csv.Error as error:
                raise InputError(
                    f"{self.named}, line {reader.line_num}: {error}; is a quote not closed, or one "
                    "inside a quoted value not doubled?"
                ) from None

    def _fit(self, separator: str) -> tuple[bool, int]:
        """Whether header and first rows agree, and in how many values."""
        try:
            first = itertools.islice(self._records(separator), _ROWS_TO_CHOOSE_BY + 1)
            counts = [len(row) for row, _ in first]
        except InputError:
            return False, 0
        return len(counts) > 1 and set(counts) == {counts[0]} != {1}, counts[0]

    def _refuse(self, count: int, row: Row, line: int) -> None:
        """Say which row does not fit, whether others do not either, and what to do."""
        width = len(self.header)
        others = [len(r) for r, _ in itertools.islice(self._records(self.separator), 1, None)]
        wrong = sum(other != width for other in others)
        if set(others) == {width + 1}:
            more = (
                "; so has every row: give the first column a name if it holds names of rows, or "
                "remove a separator at the end of the rows"
            )
        else:
            more = (
                f"; {wrong} of {len(others)} rows differ from the header: complete them, and quote "
                f"values that hold {self.separators}"
            )
        raise InputError(
            f"{self.named}: row {count} (line {line}) has {len(row)} "
            f"value{'s' * (len(row) != 1)}, but the header names {width} "
            f"column{'s' * (width != 1)}{more}"
        )


def _decoded(data: bytes, named: str) -> str:
    """The text of a file."""
    for start, what in _OTHER_FORMATS.items():
        if data.startswith(start):
            raise InputError(f"{named} is {what}")
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        at = error.start + len(mark)
        line = 1 + data.count(b"\n", 0, at)
        raise InputError(
            f"{named} cannot be read: byte 0x{data[at]:02X} in line {line} is not "
            f"{encoding.upper()}; save it as UTF-8 text"
        ) from None
    if (at := text.find("\0")) >= 0:
        raise InputError(
            f"{named} cannot be read: line {1 + text.count(chr(10), 0, at)} holds a zero byte, so "
            "it is damaged or no text; export it again"
        )
    if not text.strip():
        raise InputError(f"{named} is empty; give a table with a header and rows")
    return text
