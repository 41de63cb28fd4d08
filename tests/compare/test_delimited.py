"""Text tables: every way to write a table right gives the same table, every way in which rows and
header can disagree is refused by row, and no damage makes values move to other columns."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from damage import damaged, one_line
from innerloop.compare.columns import MISSING, Typed, typed
from innerloop.compare.config import Config
from innerloop.compare.delimited import DelimitedText
from innerloop.compare.reading import read_tasks
from innerloop.runs.errors import InputError

HEADER = ["unit", "word", "count", "size", "ok"]
WORDS = ["plain", "a, b; c\td", 'say "no"', "two\nlines", "größe", " padded "]
ROWS = [
    [f"t{index // 3}", WORDS[index % 6], str(index), repr(index / 7 - 1), str(index % 2 == 0)]
    for index in range(12)
]
WANTED = pd.DataFrame(
    {
        "unit": [row[0] for row in ROWS],
        "word": [row[1] for row in ROWS],
        "count": np.arange(12),
        "size": np.arange(12) / 7 - 1,
        "ok": np.arange(12) % 2 == 0,
    }
)


def written(
    rows: list[list[str]], separator: str = ",", end: str = "\n", quoted: bool = False
) -> str:
    """Text of the rows; values that need quotes have them, or all."""

    def value(text: str) -> str:
        needed = any(mark in text for mark in (separator, '"', "\n", "\r"))
        return '"' + text.replace('"', '""') + '"' if quoted or needed else text

    return "".join(separator.join(map(value, row)) + end for row in rows)


def table(data: bytes) -> Typed:
    return typed(DelimitedText(data, "table 't.csv'"), text=["unit"])


def refused(data: bytes, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        table(data)
    one_line(caught.value, "t.csv", *parts)


SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}
ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]


@pytest.mark.parametrize("quoted", [False, True], ids=["where needed", "all quoted"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("separator", SEPARATORS)
def test_every_way_to_write_a_table(separator: str, end: str, encoding: str, quoted: bool) -> None:
    text = written([HEADER, *ROWS], SEPARATORS[separator], ENDS[end], quoted)
    for variant in (text, text.rstrip("\r\n"), ENDS[end] + text + 2 * ENDS[end]):
        found = table(variant.encode(encoding))
        pd.testing.assert_frame_equal(found.frame, WANTED)
        assert not found.unclear
        named = [] if separator == "comma" else [f"values are separated by {separator}s"]
        assert [note.partition(": ")[2] for note in found.notes] == named


def test_mixed_line_ends() -> None:
    source = random.Random(0)
    lines = written([HEADER, *[row for row in ROWS if "\n" not in row[1]]]).split("\n")
    text = "".join(line + source.choice(list(ENDS.values())) for line in lines)
    found = table(text.encode()).frame
    wanted = WANTED[~WANTED["word"].str.contains("\n")].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, wanted)


Change = Callable[[list[str]], list[str]]
CHANGES: dict[str, Change] = {
    "one more in front": lambda row: ["9", *row],
    "one more in the middle": lambda row: [*row[:2], "9", *row[2:]],
    "one more behind": lambda row: [*row, "9"],
    "separator behind": lambda row: [*row, ""],
    "two separators behind": lambda row: [*row, "", ""],
    "separator in front": lambda row: ["", *row],
    "first lost": lambda row: row[1:],
    "last lost": lambda row: row[:-1],
    "all but one lost": lambda row: row[:1],
    "decimal comma": lambda row: [*row[:3], "1", "5", *row[4:]],
}
WHERE = {"first": [0], "middle": [6], "last": [11], "some": [2, 7, 8], "all": list(range(12))}


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("change", CHANGES)
def test_rows_that_do_not_fit_the_header_are_named(change: str, where: str, separator: str) -> None:
    """Whatever a row has too many or too few, in one row or in all, silently moves nothing."""
    rows = [CHANGES[change](r) if i in WHERE[where] else r for i, r in enumerate(ROWS)]
    first = WHERE[where][0]
    line = written([HEADER, *rows[: first + 1]]).count("\n")
    values = f"{len(rows[first])} value{'s' * (len(rows[first]) != 1)}"
    refused(
        written([HEADER, *rows], SEPARATORS[separator]).encode(),
        f"row {first + 1} (line {line}) has {values}, but the header names 5",
    )


def test_the_line_counts_quoted_line_ends() -> None:
    refused(b'a,b\n"x\ny",1\n\n2,3,4\n', "row 2 (line 5) has 3 values, but the header names 2")


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ("one more in front", "so has every row: give the first column a name"),
        ("separator behind", "or remove a separator at the end of the rows"),
    ],
)
def test_one_value_more_in_every_row_has_its_own_remedy(change: str, remedy: str) -> None:
    refused(written([HEADER, *map(CHANGES[change], ROWS)]).encode(), "row 1 (line 2)", remedy)


def test_the_state_panel_with_unnamed_row_names() -> None:
    """Row names without a name in the header move no column (pandas makes an index of them, so
    that the task column would be the year)."""
    text = "state,year,gsp\n" + "".join(f"{k},ALABAMA,{1970 + k},{k / 3}\n" for k in range(9))
    with pytest.raises(InputError, match=r"row 1 \(line 2\) has 4 values, but the header names 3"):
        table(text.encode())


@pytest.mark.parametrize("separator", SEPARATORS)
def test_columns_without_a_name_are_left_out_and_said(separator: str) -> None:
    """As pandas writes an index, and as a separator at the end of all lines makes one."""
    for header, rows in (
        (["", *HEADER], [[str(i), *row] for i, row in enumerate(ROWS)]),
        ([*HEADER, ""], [[*row, ""] for row in ROWS]),
        ([*HEADER[:2], " ", *HEADER[2:]], [[*row[:2], "7", *row[2:]] for row in ROWS]),
    ):
        found = table(written([header, *rows], SEPARATORS[separator]).encode())
        pd.testing.assert_frame_equal(found.frame, WANTED)
        assert found.notes[-1].endswith("left out 1 column without a name")


@pytest.mark.parametrize("pair", list(itertools.combinations(range(5), 2)), ids=str)
def test_repeated_names_are_refused(pair: tuple[int, int]) -> None:
    header = list(HEADER)
    header[pair[1]] = header[pair[0]]
    text = written([header, *ROWS]).encode()
    refused(text, f"more than one column {header[pair[0]]!r}; rename one")


@pytest.mark.parametrize("row", [0, 5, 12])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "mac-roman", "utf-32"])
def test_other_encodings_are_refused(encoding: str, row: int) -> None:
    lines = [["a", "b"], *[["x", "1"] for _ in range(12)]]
    lines[row][0] = "é"
    data = written(lines).encode(encoding)
    refused(data, f"line {1 if encoding == 'utf-32' else row + 1} ")


def test_zero_bytes_are_refused_by_line() -> None:
    refused(b"a,b\n1,2\n3,\x004\n", "line 3 holds a zero byte")
    refused(b"\0", "line 1 holds a zero byte")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('a,b\n"1,2\n3,4\n', "line 3: unexpected end of data"),
        ('a,b\n"1"2,3\n', "line 2: ',' expected after"),
        ("a,b\n" + "x" * 200_000 + ",1\n", "line 2: field larger than field limit"),
    ],
)
def test_quotes_that_do_not_close_are_refused_by_line(text: str, part: str) -> None:
    refused(text.encode(), part, "is a quote not closed")


NUMBERS = {
    "1": 1.0,
    " -2.5 ": -2.5,
    "+.5": 0.5,
    "3.": 3.0,
    "1e-3": 1e-3,
    "1E5": 1e5,
    "0.1234567890123456789": 0.12345678901234568,
    "9007199254740993.0": 9007199254740992.0,
    "123456789012345678901234567890": 1.2345678901234568e29,
    "5e-324": 5e-324,
    "inf": np.inf,
    "-Infinity": -np.inf,
    "1e999": np.inf,
}
NO_NUMBERS = ["1_000", "0x10", "١", "1e", "--1", "1 2", "e5", ".", "1d5", "\u22121", "2 000"]


def column(values: list[str]) -> pd.Series:
    """A column of these values between numbers, read back."""
    rows = [["t", value] for value in ["1.5", *values, "2.5"]]
    return table(written([["unit", "x"], *rows]).encode()).frame["x"]


@pytest.mark.parametrize("text", NUMBERS, ids=str)
def test_numbers_are_read_to_the_last_bit(text: str) -> None:
    assert column([text]).tolist() == [1.5, NUMBERS[text], 2.5]


def test_numbers_of_every_size_come_back_exactly() -> None:
    bits = np.random.default_rng(0).integers(0, 2**63, 3000, dtype=np.int64)
    values = bits.view(np.float64)
    values = values[np.isfinite(values)]
    assert column([repr(float(v)) for v in values]).tolist()[1:-1] == values.tolist()
    assert column([f"{v:.25e}" for v in values]).tolist()[1:-1] == values.tolist()


@pytest.mark.parametrize("text", NO_NUMBERS, ids=ascii)
def test_what_is_no_number_makes_a_column_text(text: str) -> None:
    assert column([text]).tolist() == ["1.5", text, "2.5"]


@pytest.mark.parametrize("text", [*sorted(MISSING), " ", " NA "], ids=repr)
def test_missing_values(text: str) -> None:
    assert np.isnan(column([text]).tolist()[1])
    words = table(written([["unit", "w"], ["t", "a"], ["t", text]]).encode()).frame["w"]
    assert words.isna().tolist() == [False, True]


def test_large_whole_numbers_keep_their_last_digit() -> None:
    text = written([["unit", "x"], ["t", "9007199254740993"], ["t", "2"]])
    assert table(text.encode()).frame["x"].tolist() == [9007199254740993, 2]


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written([HEADER, *ROWS]).encode()
    for size in (1, 2, 5, 12, 13):
        monkeypatch.setattr("innerloop.compare.delimited._ROWS_AT_A_TIME", size)
        pd.testing.assert_frame_equal(table(text).frame, WANTED)


@pytest.mark.parametrize("separator", [";", "\t", ","], ids=["semicolon", "tab", "comma"])
def test_decimal_commas_are_understood_where_they_can_be_nothing_else(separator: str) -> None:
    rows = [["unit", "x", "y", "n"], ["a", "1,5", "1,234", "7"], ["b", "-0,25", "2", ""]]
    found = table(written(rows, separator).encode())
    assert found.frame["x"].tolist() == [1.5, -0.25]
    assert found.frame["y"].tolist() == [1.234, 2.0]
    assert any(note.endswith("commas are decimal points in 'x', 'y'") for note in found.notes)
    assert not found.unclear


@pytest.mark.parametrize(
    ("x", "y", "unclear"),
    [
        (["1,234", "2,500"], ["1", "2"], {"x": "may be decimal points or not ('1,234')"}),
        (["1,234,567", "12"], ["1", "2"], {"x": "separates thousands by commas"}),
        (["1,5", "2"], ["1.234", "2"], {"y": "decimal points where other columns"}),
        (["1,5", "2"], ["1,234,567", "2"], {"y": "separates thousands by commas"}),
    ],
)
def test_commas_that_mean_two_things_are_refused_where_used(
    x: list[str], y: list[str], unclear: dict[str, str], tmp_path: Path
) -> None:
    rows = [
        [f"t{i // 6}", x[i % 2], y[i % 2], str(i), repr(i**0.5 if "1,5" not in x else i)]
        for i in range(36)
    ]
    path = tmp_path / "t.csv"
    path.write_text(written([["unit", "x", "y", "n", "target"], *rows], ";"))
    for name, why in unclear.items():
        with pytest.raises(InputError) as caught:
            read_tasks(path, Config(task="unit", target="target", features=("n", name)))
        one_line(caught.value, "t.csv", repr(name), why, "write numbers with points alone")
        with pytest.raises(InputError, match="write numbers with points alone"):
            read_tasks(path, Config(task="unit", target=name, features=("n",)))
    config = Config(task="unit", target="target", features=("n",), loss="mse")
    assert read_tasks(path, config).features == ("n",)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1", "01"),
        ("1", "1.0"),
        ("1", "1e0"),
        ("ohio", "ohio "),
        ("1e2", "100"),
        ("-0", "0"),
        ("100000000000000003", "0100000000000000003"),
        ("9007199254740993", "9007199254740993.0"),
        ("1e400", "10e399"),
    ],
)
def test_a_task_written_in_two_ways_is_refused(first: str, second: str, tmp_path: Path) -> None:
    rows = [[first if i % 2 else second, str(i), repr(i / 7)] for i in range(20)]
    (tmp_path / "t.csv").write_text(written([["unit", "x", "y"], *rows]))
    with pytest.raises(InputError, match="write each task in one way") as caught:
        read_tasks(tmp_path / "t.csv", Config(task="unit", target="y"))
    one_line(caught.value, "t.csv", "'unit'", repr(first), repr(second))


@pytest.mark.parametrize(
    "first", ["9007199254740992", "100000000000000000", "9223372036854775807", "1e400", "1" * 40]
)
def test_tasks_whose_numbers_no_float_tells_apart_are_tasks(first: str, tmp_path: Path) -> None:
    ids = [first, *(f"{first[:-1]}{digit}" for digit in "0123456789" if digit != first[-1])][:6]
    rows = [[ids[i // 6], str(i), repr(i / 7)] for i in range(36)]
    (tmp_path / "t.csv").write_text(written([["unit", "x", "y"], *rows]))
    assert read_tasks(tmp_path / "t.csv", Config(task="unit", target="y")).names == tuple(ids)


def test_tasks_keep_their_leading_zeros(tmp_path: Path) -> None:
    rows = [[f"0{i // 6}", str(i), repr(i / 7)] for i in range(36)]
    (tmp_path / "t.csv").write_text(written([["unit", "x", "y"], *rows]))
    tasks = read_tasks(tmp_path / "t.csv", Config(task="unit", target="y"))
    assert tasks.names == tuple(f"0{k}" for k in range(6))


def test_names_from_a_file_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('unit,"\x1b[31mred\nline",y\n1,2,3\n')
    with pytest.raises(InputError, match="no column 'nothing'") as caught:
        read_tasks(tmp_path / "t.csv", Config(task="nothing", target="y"))
    one_line(caught.value, r"\x1b[31mred\nline")


def reference(data: bytes) -> list[list[str]] | None:
    """The cells as pandas' own parser finds them, or None where it finds none."""
    frame = pd.read_csv(
        io.BytesIO(data), header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig"
    )
    return frame.to_numpy().tolist()


def check_damage(rounds: int) -> None:
    """A damaged text is another text: it is refused, or its cells are those another parser finds,
    each in its column."""
    rows = [[w.strip() or "w" for w in row] for row in ROWS]
    whole = written([HEADER, *rows]).encode()
    source = random.Random(2)
    read = 0
    for _ in range(rounds):
        data = damaged(whole, source)
        try:
            text = DelimitedText(data, "table 't.csv'")
            cells = [text.header, *itertools.chain.from_iterable(text.chunks())]
            table(data)
        except InputError as error:
            one_line(error, "t.csv")
            continue
        if text.separator == "," and b"\r" not in data:
            assert cells == reference(data), data
            read += 1
    assert read > rounds / 5


def test_damage_moves_no_value() -> None:
    check_damage(400)


@pytest.mark.slow
def test_damage_of_ten_thousand_kinds_moves_no_value() -> None:
    check_damage(10_000)
