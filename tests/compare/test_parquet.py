"""Parquet tables: no index takes a column away, and damage gives one line."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from families import linear_family

from damage import check_damage, one_line
from innerloop.compare import parquet as reader
from innerloop.compare.config import Config
from innerloop.compare.parquet import read_parquet
from innerloop.compare.reading import read_tasks
from innerloop.runs.errors import InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CONFIG = Config(task="task", target="y", features=("x",))


def family() -> pd.DataFrame:
    return linear_family(8, 9, seed=0, correlated=True)


INDEXES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "range": lambda f: f,
    "numbers": lambda f: f.set_index(np.arange(len(f))[::-1]),
    "task": lambda f: f.set_index("task"),
    "task and feature": lambda f: f.set_index(["task", "x"]),
    "target": lambda f: f.set_index("y", append=True),
    "category": lambda f: f.astype({"task": "category"}),
    "nullable": lambda f: f.convert_dtypes(),
}


@pytest.mark.parametrize("change", INDEXES)
def test_an_index_takes_no_column_away(change: str, tmp_path: Path) -> None:
    family().to_parquet(tmp_path / "a.parquet")
    INDEXES[change](family()).to_parquet(tmp_path / "b.parquet")
    for config in (CONFIG, Config(task="task", target="y")):
        wanted, found = (read_tasks(tmp_path / f"{n}.parquet", config) for n in "ab")
        assert found.sha256() == wanted.sha256()
        assert found.features == ("x",)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1, 2], [1.0, 2.0]),
        ([True, False], [1.0, 0.0]),
        ([decimal.Decimal("1.25"), decimal.Decimal("-3")], [1.25, -3.0]),
        (np.array([1, 2], np.uint64), [1.0, 2.0]),
        (np.array([1, 2], np.float16), [1.0, 2.0]),
        (["1.5", "2"], [1.5, 2.0]),
    ],
    ids=str,
)
def test_kinds_of_numbers(values: Any, wanted: list[float], tmp_path: Path) -> None:
    table = pa.table({"x": pa.array(values)})
    pq.write_table(table, tmp_path / "a.parquet")
    frame = read_parquet((tmp_path / "a.parquet").read_bytes(), "table")
    assert pd.to_numeric(frame["x"]).astype(float).tolist() == wanted


LARGE = 100000000000000000  # float64 holds every sixteenth number of this size
KINDS = [pa.int64(), pa.uint64(), pa.decimal128(20, 0), pa.string()]


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "one missing"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_large_numbers_of_tasks_stay_apart(kind: Any, missing: bool, tmp_path: Path) -> None:
    frame = family()
    numbers = [LARGE + 3 * int(task) for task in frame["task"]]
    values = [None if missing and i == 4 else number for i, number in enumerate(numbers)]
    if kind == pa.string():
        values = [None if value is None else str(value) for value in values]
    columns = {"task": pa.array(values, kind), "x": frame["x"], "y": frame["y"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    config = Config(task="task", target="y", drop_missing=True)
    tasks = read_tasks(tmp_path / "a.parquet", config)
    assert tasks.names == tuple(str(LARGE + 3 * task) for task in range(8))
    assert tasks.counts.sum() == len(frame) - missing


def test_a_number_written_in_two_ways_is_shown_as_text(tmp_path: Path) -> None:
    frame = family()
    names = ["1" if i % 2 else "1.0" for i in range(len(frame))]
    columns = {"task": pa.array(names), "x": frame["x"], "y": frame["y"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"writes '1\.0' also as '1'; write each") as caught:
        read_tasks(tmp_path / "a.parquet", CONFIG)
    one_line(caught.value)


@pytest.mark.parametrize(
    "value", [[1, 2], {"a": 1}, b"\xff", datetime.time(1, 2), datetime.timedelta(1)], ids=str
)
def test_other_kinds_are_text(value: Any, tmp_path: Path) -> None:
    frame = family()
    table = pa.Table.from_pandas(frame).append_column("odd", pa.array([value] * len(frame)))
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_tasks(tmp_path / "a.parquet", CONFIG).features == ("x",)
    with pytest.raises(InputError, match=r"'odd' is constant \(.* in every row\)") as caught:
        read_tasks(tmp_path / "a.parquet", Config(task="task", target="y"))
    one_line(caught.value)


def test_dates_are_days(tmp_path: Path) -> None:
    frame = family()
    days = np.arange(len(frame)) % 5
    stamps = pa.array(np.datetime64("2001-02-27T12:00", "us") + days * np.timedelta64(1, "D"))
    table = pa.Table.from_pandas(frame).append_column("when", stamps)
    pq.write_table(table.append_column("day", stamps.cast("date32")), tmp_path / "a.parquet")
    tasks = read_tasks(tmp_path / "a.parquet", Config(task="task", target="y"))
    assert tasks.features == ("x", "when", "day")
    for column in (1, 2):
        np.testing.assert_array_equal(np.sort(tasks.x[:, column]), np.sort(days))
    assert "'day' is counted in days from 2001-02-27" in tasks.notes


def test_repeated_names_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="more than one column 'x'"):
        read_parquet((tmp_path / "a.parquet").read_bytes(), "table")


def test_more_rows_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes can stand for any number of equal rows."""
    pq.write_table(pa.table({"x": np.zeros(2**20, np.int8)}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    assert len(data) < 10_000
    monkeypatch.setattr(reader, "capacity_bytes", lambda: 2**24)
    with pytest.raises(InputError, match=r"claims 1048576 rows of 1 columns, .* 32\.0 MiB"):
        read_parquet(data, "table")


def check(path: Path, rounds: int, *, checksums: bool) -> None:
    table = pa.Table.from_pandas(family())
    pq.write_table(table, path, write_page_checksum=checksums)
    wanted = read_tasks(path, CONFIG).sha256()

    def read() -> str:
        return read_tasks(path, CONFIG).sha256()

    refused, _ = check_damage(path, read, lambda found: not checksums or found == wanted, rounds)
    assert refused > rounds / 2


@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "with checksums"])
def test_damage_gives_one_line(checksums: bool, tmp_path: Path) -> None:
    check(tmp_path / "a.parquet", 300, checksums=checksums)


@pytest.mark.slow
@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "with checksums"])
def test_damage_of_ten_thousand_kinds_gives_one_line(checksums: bool, tmp_path: Path) -> None:
    check(tmp_path / "a.parquet", 10_000, checksums=checksums)
