"""Files written whole or not at all, what killed writers leave, and what is no plain file."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from damage import one_line
from innerloop import _capacity
from innerloop.runs import files
from innerloop.runs.errors import InputError
from innerloop.runs.files import parse_json, read_whole, write_atomically, write_json

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files and signals")

WRITER = """
import sys, time
from pathlib import Path
from innerloop.runs.files import write_atomically

def write(stream):
    for _ in range(200):
        stream.write(bytes(4096))
        stream.flush()
        time.sleep({pause})

print("ready", flush=True)
while True:
    write_atomically(Path(sys.argv[1]) / "out.bin", write)
"""


@contextmanager
def writer(folder: Path, pause: float) -> Iterator[None]:
    """A process that writes files into the folder, and is killed when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER.replace("{pause}", str(pause)), str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.communicate()


def parts(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".part")]


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


@posix
def test_the_mask_of_the_user_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


@posix
def test_a_link_is_replaced_and_its_file_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.json").symlink_to("mine")
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "a.json").is_symlink()


def kill_and_write(folder: Path, seed: int, rounds: int) -> int:
    """Kill writers at random moments, each time followed by a write; returns how many of them left
    a part behind."""
    source = random.Random(seed)
    left = 0
    for _ in range(rounds):
        with writer(folder, pause=source.choice((0.0, 0.0005))):
            time.sleep(source.uniform(0.0, 0.1))
        left += len(parts(folder))
        write_json(folder / "next.json", {})
        assert not parts(folder)
        whole = folder / "out.bin"
        assert not whole.exists() or whole.stat().st_size == 200 * 4096
    return left


@posix
@pytest.mark.slow
def test_what_killed_writers_leave_is_removed(tmp_path: Path) -> None:
    assert kill_and_write(tmp_path, seed=0, rounds=12) > 2


@posix
def test_parts_of_the_dead_are_removed_and_of_the_living_kept(tmp_path: Path) -> None:
    with writer(tmp_path, pause=600):
        while not parts(tmp_path):
            time.sleep(0.01)
    (stale,) = parts(tmp_path)
    with writer(tmp_path, pause=600):
        while parts(tmp_path) in ([], [stale]):
            time.sleep(0.01)
        (live,) = parts(tmp_path)  # the second writer removed what the first had left
        while not (tmp_path / live).stat().st_size:  # it is locked before it is written
            time.sleep(0.01)
        files.remove_stale_parts(tmp_path)
        assert parts(tmp_path) == [live]
    files.remove_stale_parts(tmp_path)
    assert not parts(tmp_path)


@posix
def test_only_our_own_parts_are_removed(tmp_path: Path) -> None:
    names = ["download.part", ".innerloop-notes.txt", ".results.json.abc.part"]
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".innerloop-folder.part").mkdir()
    (tmp_path / ".innerloop-link.part").symlink_to("download.part")
    write_json(tmp_path / "a.json", {})
    kept = {*names, ".innerloop-folder.part", ".innerloop-link.part", "a.json"}
    assert set(os.listdir(tmp_path)) == kept


@posix
def test_a_part_that_is_taken_away_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files._lock
    taken = []

    def lock(handle: int, *, wait: bool = False) -> bool:
        if wait and not taken:  # a cleaner comes between creation and lock
            taken.extend(parts(tmp_path))
            files.remove_stale_parts(tmp_path)
        return real(handle, wait=wait)

    monkeypatch.setattr(files, "_lock", lock)
    write_json(tmp_path / "a.json", {"x": 1})
    assert len(taken) == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)))
    assert read_whole(tmp_path / "a", "file 'a'") == bytes(range(256))


@posix
def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    for name, message in {
        "": "is a folder; give a plain file",
        "pipe": "is a pipe or a socket; give a plain file",
        "zeros": "is a device; give a plain file",
        "loop": r"cannot be read \(Too many levels of symbolic links\)",
        "dangling": "is a link to nothing; give a file that exists",
        "absent": "does not exist; give a file that exists",
        "file/inside": "cannot be read",
        "a\0b": "cannot be a file",
        "n" * 300: "cannot be read",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            read_whole(tmp_path / name, f"table {name!r}")
        one_line(caught.value, repr(name)[1:-1])
    assert read_whole(tmp_path / "link", "file") == b""


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "a").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_whole(tmp_path / "a", "file 'a'")


@posix
def test_a_file_larger_than_memory_is_refused_at_once(tmp_path: Path) -> None:
    with open(tmp_path / "huge", "wb") as stream:
        stream.truncate(2**42)  # sparse
    started = time.monotonic()
    with pytest.raises(InputError, match=r"is too large: 4\.0 TiB"):
        read_whole(tmp_path / "huge", "table 'huge'")
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "NaN", '{"a": Infinity}', "1" * 10_000, b"\xff", "{}{}"],
    ids=range(8),
)
def test_what_is_no_json_is_nothing(text: str | bytes) -> None:
    assert parse_json(text) is None


def test_a_refusal_is_one_short_printable_line() -> None:
    error = InputError("column 'a\nb\x1b[31m\udcff' " + "x" * 5000 + "; remove it")
    one_line(error, r"a\nb\x1b[31m\udcff", "; remove it")
    assert str(InputError("Größe 'α'")) == "Größe 'α'"


def test_capacity_is_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**28 < _capacity.capacity_bytes() < 2**50
    texts = {
        "/proc/meminfo": "MemTotal:  1000 kB\nMemFree: 1 kB\nSwapTotal: 24 kB\n",
        "/sys/fs/cgroup/memory.max": "512000\n",
    }
    monkeypatch.setattr(_capacity, "_read", lambda path: texts.get(path, ""))
    assert _capacity.capacity_bytes() == 512_000
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert _capacity.capacity_bytes() == 1024 * 1024
