"""The journal and atomic files: torn tails, altered lines, foreign runs, locks, failed writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from innerloop.runs.errors import InputError
from innerloop.runs.files import write_atomically, write_json
from innerloop.runs.store import JOURNAL, RESULTS, Store


def open_store(folder: Path, key: str = "k", fresh: bool = False, shots: int = 5) -> Store:
    return Store(folder, key, {"config": {"shots": shots}, "data": "abc"}, fresh, "test/1")


def fill(folder: Path) -> bytes:
    with open_store(folder) as store:
        for index in range(4):
            store.add(f"u{index}", {"value": index / 3.0})
    return (folder / JOURNAL).read_bytes()


def test_units_come_back_exactly(tmp_path: Path) -> None:
    fill(tmp_path)
    with open_store(tmp_path) as store:
        assert store.resumed == 4
        assert store.units["u1"] == {"value": 1 / 3.0}


def test_every_truncation_is_survived(tmp_path: Path) -> None:
    whole = fill(tmp_path)
    header = whole.index(b"\n") + 1
    for length in range(header, len(whole)):
        (tmp_path / JOURNAL).write_bytes(whole[:length])
        with open_store(tmp_path) as store:
            assert len(store.units) == whole[:length].count(b"\n") - 1
            store.add("new", {"value": 1.0})
        with open_store(tmp_path) as store:
            assert "new" in store.units


def test_an_altered_line_ends_what_is_trusted(tmp_path: Path) -> None:
    whole = bytearray(fill(tmp_path))
    second = whole.index(b"u1")
    whole[second] ^= 1
    (tmp_path / JOURNAL).write_bytes(bytes(whole))
    with open_store(tmp_path) as store:
        assert list(store.units) == ["u0"]


def test_a_different_run_is_never_overwritten(tmp_path: Path) -> None:
    before = fill(tmp_path)
    with pytest.raises(InputError, match=r"different run \(shots: 5 there, 3 now\)"):
        open_store(tmp_path, key="other", shots=3)
    assert (tmp_path / JOURNAL).read_bytes() == before
    with open_store(tmp_path, key="other", shots=3, fresh=True) as store:
        assert not store.units


def test_a_difference_is_short_enough_to_read(tmp_path: Path) -> None:
    Store(tmp_path, "a", {"task": "", "data": "0123456789ab" + "c" * 52}, False, "test/1").close()
    with pytest.raises(
        InputError, match=r"task: nothing there, unit now; data: 0123456789ab\.\.\."
    ):
        Store(tmp_path, "b", {"task": "unit", "data": "d" * 64}, False, "test/1")


def test_results_without_a_journal_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(InputError, match="without a usable journal"):
        open_store(tmp_path)
    assert (tmp_path / RESULTS).read_text() == "{}"


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with open_store(tmp_path), pytest.raises(InputError, match="in use by another run"):
        open_store(tmp_path)
    open_store(tmp_path).close()


def test_unusable_folder(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        open_store(blocked / "inside")


def test_failed_writes_leave_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def fail(stream: object) -> None:
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        write_atomically(path, fail)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert path.read_text() == '{\n "x": 1\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
