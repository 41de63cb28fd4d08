"""The folder of a run: units that come back exactly, torn and altered journals, foreign and special
files in the way, locks, and a full disk."""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from damage import damaged, one_line
from innerloop.runs.errors import InputError
from innerloop.runs.store import JOURNAL, RESULTS, Store

OUTPUTS = (RESULTS, "run.json", "*.part.npz", "pages/")
UNITS = {f"u{index}": {"value": index / 3.0} for index in range(4)}


def open_store(
    folder: Path, key: str = "k", fresh: bool = False, shots: int = 5, form: str = "test/1"
) -> Store:
    return Store(folder, key, {"config": {"shots": shots}, "data": "abc"}, fresh, form, OUTPUTS)


def fill(folder: Path, key: str = "k") -> bytes:
    with open_store(folder, key) as store:
        for unit, result in UNITS.items():
            store.add(unit, result)
    return (folder / JOURNAL).read_bytes()


def everything(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without its lock."""
    return {
        entry.name: entry.read_bytes()
        for entry in folder.iterdir()
        if entry.is_file() and entry.name != ".lock"
    }


def test_units_come_back_exactly(tmp_path: Path) -> None:
    fill(tmp_path)
    with open_store(tmp_path) as store:
        assert store.resumed == 4
        assert store.units == UNITS
        assert not store.notices


def test_every_truncation_is_survived(tmp_path: Path) -> None:
    whole = fill(tmp_path)
    header = whole.index(b"\n") + 1
    for length in range(header, len(whole)):
        (tmp_path / JOURNAL).write_bytes(whole[:length])
        with open_store(tmp_path) as store:
            assert len(store.units) == whole[:length].count(b"\n") - 1
            assert not store.notices
            store.add("new", {"value": 1.0})
        with open_store(tmp_path) as store:
            assert "new" in store.units


@pytest.mark.parametrize("line", range(5))
def test_an_altered_line_loses_no_other(line: int, tmp_path: Path) -> None:
    lines = fill(tmp_path).split(b"\n")
    lines[line] = lines[line].replace(b":", b";", 1)
    (tmp_path / JOURNAL).write_bytes(b"\n".join(lines))
    wanted = {unit: result for unit, result in UNITS.items() if unit != f"u{line - 1}"}
    with open_store(tmp_path) as store:
        assert store.units == wanted
        (notice,) = store.notices
        assert f"{tmp_path / JOURNAL}: 1 of 5 lines are damaged" in notice
    with open_store(tmp_path) as store:
        assert store.units == wanted
        assert not store.notices


def check_flips(folder: Path, rounds: int) -> None:
    whole = fill(folder)
    source = random.Random(3)
    refused = mended = 0
    for _ in range(rounds):
        content = damaged(whole, source)
        (folder / JOURNAL).write_bytes(content)
        try:
            with open_store(folder) as store:
                assert store.units.items() <= UNITS.items()
                mended += bool(store.notices)
        except InputError as error:
            one_line(error, JOURNAL)
            refused += 1
            assert (folder / JOURNAL).read_bytes() == content
    assert refused > rounds / 50
    assert mended > rounds / 5


def test_flips_give_no_other_unit(tmp_path: Path) -> None:
    check_flips(tmp_path, 150)


@pytest.mark.slow
def test_ten_thousand_flips_give_no_other_unit(tmp_path: Path) -> None:
    check_flips(tmp_path, 10_000)


def test_units_of_another_run_are_no_units_here(tmp_path: Path) -> None:
    """Lines are sealed with the key: journals put together by hand keep what belongs to the run."""
    other, ours = fill(tmp_path / "other", "other"), fill(tmp_path / "ours")
    lines = ours.split(b"\n")
    lines[2] = other.split(b"\n")[2]
    (tmp_path / "ours" / JOURNAL).write_bytes(b"\n".join(lines))
    with open_store(tmp_path / "ours") as store:
        assert "u1" not in store.units
        assert "1 of 5 lines" in store.notices[0]
    (tmp_path / "ours" / JOURNAL).write_bytes(other)
    with pytest.raises(InputError, match="different run"):
        open_store(tmp_path / "ours")
    assert (tmp_path / "ours" / JOURNAL).read_bytes() == other


def test_a_different_run_is_never_overwritten(tmp_path: Path) -> None:
    before = fill(tmp_path)
    with pytest.raises(InputError, match=r"different run \(shots: 5 there, 3 now\)"):
        open_store(tmp_path, key="other", shots=3)
    assert (tmp_path / JOURNAL).read_bytes() == before
    with open_store(tmp_path, key="other", shots=3, fresh=True) as store:
        assert not store.units


def test_another_command_is_never_overwritten(tmp_path: Path) -> None:
    before = fill(tmp_path)
    for fresh in (False, True):
        with pytest.raises(InputError, match=r"run of another command \(test/1\)"):
            open_store(tmp_path, form="test/2", fresh=fresh)
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_a_journal_of_the_first_version_is_recognised(tmp_path: Path) -> None:
    body = '{"format":"innerloop.compare/1","key":"k","describe":{}}'
    (tmp_path / JOURNAL).write_text(f"00000000 {body}\n")
    with pytest.raises(InputError, match="of another version of innerloop"):
        open_store(tmp_path)
    assert body in (tmp_path / JOURNAL).read_text()
    open_store(tmp_path, fresh=True).close()


def test_a_difference_is_short_enough_to_read(tmp_path: Path) -> None:
    Store(tmp_path, "a", {"task": "", "data": "0123456789ab" + "c" * 52}, False, "t", ()).close()
    with pytest.raises(
        InputError, match=r"task: nothing there, unit now; data: 0123456789ab\.\.\."
    ):
        Store(tmp_path, "b", {"task": "unit", "data": "d" * 64}, False, "t", ())


FOREIGN: dict[str, bytes] = {
    "text": b"units,x\n1,2\n",
    "json": b'{"format":"innerloop.compare/1"}\n',
    "binary": bytes(range(256)) * 20,
    "nested": b"0123456789abcdef " + b"[" * 100_000 + b"\n",
    "no line end": b"x" * 100_000,
}


@pytest.mark.parametrize("fresh", [False, True], ids=["resume", "fresh"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_journal_is_never_overwritten(kind: str, fresh: bool, tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(FOREIGN[kind])
    with pytest.raises(InputError, match="move that file away") as caught:
        open_store(tmp_path, fresh=fresh)
    one_line(caught.value, JOURNAL)
    assert everything(tmp_path) == {JOURNAL: FOREIGN[kind]}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_torn_header_is_no_journal_yet(share: float, tmp_path: Path) -> None:
    open_store(tmp_path).close()
    whole = (tmp_path / JOURNAL).read_bytes()
    torn = whole[: int(share * len(whole))]
    (tmp_path / JOURNAL).write_bytes(torn)
    open_store(tmp_path).close()
    assert (tmp_path / JOURNAL).read_bytes() == whole
    (tmp_path / JOURNAL).write_bytes(torn)
    (tmp_path / RESULTS).write_text("mine")
    with pytest.raises(InputError, match=r"holds results\.json but no units\.jsonl of a run"):
        open_store(tmp_path)
    assert everything(tmp_path) == {JOURNAL: torn, RESULTS: b"mine"}


@pytest.mark.parametrize("fresh", [False, True], ids=["resume", "fresh"])
@pytest.mark.parametrize("name", [RESULTS, "run.json", "a.part.npz", "pages"])
def test_outputs_without_a_journal_are_never_overwritten(
    name: str, fresh: bool, tmp_path: Path
) -> None:
    if name == "pages":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="may be someone else's work") as caught:
        open_store(tmp_path, fresh=fresh)
    one_line(caught.value, name)
    assert everything(tmp_path) == ({} if name == "pages" else {name: b"mine"})


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("mine")
    fill(tmp_path)
    assert everything(tmp_path)["table.csv"] == b"mine"


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("mine")
    path.symlink_to("elsewhere")


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


SPECIAL = [make_folder, make_pipe, make_loop, make_dangling, make_link, make_device]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file types")
@pytest.mark.parametrize("made", [False, True], ids=["new", "finished"])
@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__[5:])
@pytest.mark.parametrize("name", [JOURNAL, ".lock"])
def test_special_files_are_not_followed(
    name: str, make: Callable[[Path], None], made: bool, tmp_path: Path
) -> None:
    if made:
        fill(tmp_path)
        (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(InputError, match="choose another folder") as caught:
        open_store(tmp_path)
    one_line(caught.value, str(tmp_path), name)
    if (tmp_path / "elsewhere").exists():
        assert (tmp_path / "elsewhere").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file types")
@pytest.mark.parametrize("make", [make_folder, make_pipe], ids=lambda make: make.__name__[5:])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    fill(tmp_path)
    make(tmp_path / RESULTS)
    with pytest.raises(InputError, match=re.escape(f"{RESULTS} in it is a ")):
        open_store(tmp_path)
    (tmp_path / RESULTS).rename(tmp_path / "elsewhere")
    (tmp_path / "pages").write_text("")
    with pytest.raises(InputError, match="pages in it is a file, but the run writes a folder"):
        open_store(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file types")
@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__[5:])
def test_a_special_file_as_the_folder(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "out"
    make(path)
    if path.is_dir():
        open_store(path).close()
        return
    with pytest.raises(InputError, match="cannot be written") as caught:
        open_store(path)
    one_line(caught.value, str(path))


def test_a_link_to_a_folder_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to("there")
    fill(tmp_path / "out")
    assert JOURNAL in everything(tmp_path / "there")


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "file/inside"], ids=["zero", "long", "file"])
def test_impossible_folders(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written") as caught:
        open_store(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with open_store(tmp_path), pytest.raises(InputError, match="in use by another run"):
        open_store(tmp_path)
    open_store(tmp_path).close()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_keeps_what_is_finished(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_store(tmp_path) as store:
        store.add("first", {"value": 1.0})
        size = (tmp_path / JOURNAL).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
        try:
            with pytest.raises(InputError, match=r"cannot be written \(.*\); 1 units are kept"):
                store.add("second", {"value": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(store.units) == ["first"]
    assert (tmp_path / JOURNAL).stat().st_size == size
    with open_store(tmp_path) as store:
        assert list(store.units) == ["first"]
        assert not store.notices


def test_records_are_strict_json(tmp_path: Path) -> None:
    with open_store(tmp_path) as store, pytest.raises(ValueError, match="JSON"):
        store.add("bad", {"value": float("nan")})
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert [json.loads(line.partition(" ")[2])["key"] for line in lines] == ["k"]
