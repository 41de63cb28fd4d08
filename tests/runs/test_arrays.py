"""Archives of arrays: NumPy's own are read exactly; damaged, encrypted, forged, foreign and
exploding ones are refused in one line and at once, and nothing in them is executed."""

from __future__ import annotations

import io
import json
import random
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damage import check_damage, one_line
from innerloop.runs import zipped
from innerloop.runs.arrays import read_arrays, read_sealed, write_sealed
from innerloop.runs.errors import InputError

ARRAYS: dict[str, np.ndarray] = {
    "floats": np.random.default_rng(0).standard_normal((4, 3, 2)),
    "single": np.arange(5, dtype=np.float32),
    "half": np.array([1.5, -2], dtype=np.float16),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "swapped": np.arange(6, dtype=">i4").reshape(3, 2),
    "bytes": np.arange(7, dtype=np.uint8),
    "truth": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "scalar": np.array(2.5),
    "none": np.zeros((0, 3)),
    "words": np.array(["a", "größe", ""]),
}


def same(found: dict[str, np.ndarray]) -> bool:
    return found.keys() == ARRAYS.keys() and all(
        a.dtype == ARRAYS[n].dtype and a.shape == ARRAYS[n].shape and np.array_equal(a, ARRAYS[n])
        for n, a in found.items()
    )


def read(path: Path, *names: str) -> dict[str, np.ndarray]:
    return read_arrays(path, names or list(ARRAYS), f"file {path.name!r}")


def refused(path: Path, message: str, *names: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=message) as caught:
        read(path, *names)
    assert time.monotonic() - started < 1.0
    one_line(caught.value, path.name)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_archives_of_numpy_come_back_exactly(save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    assert same(read(tmp_path / "a.npz"))
    assert read(tmp_path / "a.npz", "scalar")["scalar"] == 2.5


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_array_format(version: tuple[int, int], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        stream = io.BytesIO()
        np.lib.format.write_array(stream, ARRAYS["floats"], version=version)
        archive.writestr("floats.npy", stream.getvalue())
    assert np.array_equal(read(tmp_path / "a.npz", "floats")["floats"], ARRAYS["floats"])


def test_archives_of_other_writers(tmp_path: Path) -> None:
    """Written to a pipe (sizes after the data), with sizes of 64 bits, with a comment, with keys of
    a header in another order, with a header of Python 2."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.content = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        archive.comment = b"PK\x05\x06 made by hand"
        with archive.open("floats.npy", "w", force_zip64=True) as member:
            member.write(npy(ARRAYS["floats"]))
        header = b"{'shape': (2L, 1L), 'fortran_order': False, 'descr': '<f8'}\n"
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        archive.writestr("old", head + np.array([1.0, 2.0]).tobytes())
    (tmp_path / "a.npz").write_bytes(pipe.content)
    found = read(tmp_path / "a.npz", "floats", "old")
    assert np.array_equal(found["floats"], ARRAYS["floats"])
    assert found["old"].tolist() == [[1.0], [2.0]]


@pytest.mark.slow
def test_a_directory_of_64_bits(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for index in range(66_000):
            archive.writestr(f"{index}", b"")
        archive.writestr("scalar.npy", npy(ARRAYS["scalar"]))
    assert read(tmp_path / "a.npz", "scalar")["scalar"] == 2.5


def check_flips(save: Callable[..., None], path: Path, rounds: int) -> None:
    save(path, **ARRAYS)
    refused, _ = check_damage(path, lambda: read(path), same, rounds)
    assert refused > rounds / 2


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_flips_give_no_other_number(save: Callable[..., None], tmp_path: Path) -> None:
    check_flips(save, tmp_path / "a.npz", 400)


@pytest.mark.slow
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_ten_thousand_flips_give_no_other_number(save: Callable[..., None], tmp_path: Path) -> None:
    check_flips(save, tmp_path / "a.npz", 10_000)


def test_every_single_bit_of_the_directory(tmp_path: Path) -> None:
    """Encrypted, another compression, impossible lengths and positions: whatever headers say."""
    path = tmp_path / "a.npz"
    np.savez(path, scalar=ARRAYS["scalar"])
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            found = read(path, "scalar")
        except InputError as error:
            one_line(error, "a.npz")
        else:
            assert found["scalar"] == 2.5


def test_an_encrypted_archive_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", scalar=ARRAYS["scalar"])
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    refused(tmp_path / "a.npz", "is encrypted; save it without a password", "scalar")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("scalar.npy", npy(ARRAYS["scalar"]))
    refused(tmp_path / "a.npz", "in a way that is not supported", "scalar")


class Exploding:
    """Unpickling this leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    bait = tmp_path / "executed"
    np.savez(tmp_path / "a.npz", x=np.array([Exploding(bait)], dtype=object))
    refused(tmp_path / "a.npz", "'x' holds objects, which are never loaded", "x")
    assert not bait.exists()


def forged(
    path: Path, descr: str, shape: str, data: bytes = bytes(16), method: int = zipfile.ZIP_STORED
) -> None:
    """An archive whose array has this header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w", method) as archive:
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data
        archive.writestr("x.npy", content)


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("'<f8'", f"({2**60},)"),
        ("'<f8'", f"({2**61}, 4)"),
        ("'<f8'", f"(0, {2**62})"),
        ("'<f8'", f"({2**64}, {2**64})"),
        ("'<f8'", "(-2,)"),
        ("'<f8'", "(1,)"),
        ("'<f8'", "(2.0,)"),
        ("'<f8'", "(" + "1, " * 40 + "2)"),
        ("'<f8'", "__import__('os').abort()"),
        ("'<f8'", "(" * 5000 + ")" * 5000),
        ("'<f9'", "(2,)"),
        ("'<U999999999999'", "(2,)"),
        ("'<U4'", "(1,)"),
        ("'<M8[s]'", "(2,)"),
        ("[('a', '<f8')]", "(2,)"),
        ("'|V8'", "(2,)"),
        ("'|O'", "(2,)"),
        ("'f8' * 10**9", "(2,)"),
        ("None", "(2,)"),
    ],
    ids=range(19),
)
def test_forged_headers_are_refused_at_once(descr: str, shape: str, tmp_path: Path) -> None:
    forged(tmp_path / "a.npz", descr, shape, data=b"\xff" * 16)
    refused(tmp_path / "a.npz", "'x'", "x")


def test_an_archive_that_would_explode_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipped, "_RATIO_MATTERS_FROM", 2**22)
    forged(tmp_path / "a.npz", "'<f8'", f"({2**20},)", bytes(2**23), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a.npz").stat().st_size < 2**14
    refused(tmp_path / "a.npz", r"'x.npy' claims to grow from 8\d\d\d bytes to 8.0 MiB", "x")


def test_an_archive_larger_than_memory_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(1000))
    monkeypatch.setattr(zipped, "capacity_bytes", lambda: 20_000)
    refused(tmp_path / "a.npz", "its content takes 8128 bytes, more than a 4th of", "x")


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(100), b=np.zeros(100))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[second + 42 : second + 46] = bytes(4)  # both at the first member's place
    content[second + 46 : second + 47] = b"a"
    (tmp_path / "a.npz").write_bytes(content)
    refused(tmp_path / "a.npz", "it holds 'a.npy' twice", "a")
    # An archive as a member of itself: the outer one claims the inner one's bytes.
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", content)
    inner = bytearray((tmp_path / "b.npz").read_bytes())
    inner[inner.rindex(b"PK\x01\x02") + 42] += 1
    (tmp_path / "b.npz").write_bytes(inner)
    refused(tmp_path / "b.npz", "damaged", "x.npy")


FOREIGN = {
    "empty": (b"", "it is no archive of arrays"),
    "text": (b"task,x\n1,2\n", "it is no archive of arrays"),
    "array": (npy(np.zeros(3)), "it holds a single array"),
    "pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00", "it is no archive of arrays"),
    "beginning": (b"PK\x03\x04", "its end is missing"),
    "noise": (b"PK\x03\x04" + random.Random(0).randbytes(5000), "its end is missing"),
    "nothing inside": (b"PK\x05\x06" + bytes(18), "it is no archive of arrays"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_refused(kind: str, tmp_path: Path) -> None:
    content, message = FOREIGN[kind]
    (tmp_path / "a.npz").write_bytes(content)
    refused(tmp_path / "a.npz", message, "x")


def test_absent_arrays_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(1))
    refused(tmp_path / "a.npz", "it lacks b, c; it holds a", "a", "b", "c")


ABOUT = {"key": "k", "values": [1.5, 2], "nested": {"a": None, "b": True}}
FORM = "innerloop.test/3"


def read_own(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return read_sealed(path, FORM, f"file {path.name!r}", "run it again")


def same_own(found: tuple[dict[str, Any], dict[str, np.ndarray]]) -> bool:
    return found[0] == {"format": FORM, **ABOUT} and same(found[1])


def check_own_flips(path: Path, rounds: int) -> None:
    write_sealed(path, FORM, ABOUT, ARRAYS)
    check_damage(path, lambda: read_own(path), same_own, rounds, seed=1)


def test_sealed_files_survive_no_flip(tmp_path: Path) -> None:
    check_own_flips(tmp_path / "a.npz", 400)


@pytest.mark.slow
def test_sealed_files_survive_none_of_ten_thousand_flips(tmp_path: Path) -> None:
    check_own_flips(tmp_path / "a.npz", 10_000)


def test_sealed_files_are_archives_of_numpy(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.npz", FORM, ABOUT, ARRAYS)
    with np.load(tmp_path / "a.npz") as content:
        assert json.loads(str(content["about"]))["key"] == "k"
        assert same({name: content[name] for name in content.files if name != "about"})


def test_sealed_files_put_together_by_hand_are_refused(tmp_path: Path) -> None:
    """Valid archives, but an array, a word or the seal is not what was written."""
    path = tmp_path / "a.npz"
    write_sealed(path, FORM, ABOUT, ARRAYS)
    with np.load(path) as content:
        whole = dict(content)
    about = json.loads(str(whole["about"]))
    changes: list[dict[str, Any]] = [
        {"floats": whole["floats"] + 1e-15},
        {"single": whole["single"].astype(np.float64)},
        {"new": np.zeros(1)},
        {"about": np.array(json.dumps({**about, "key": "other"}))},
        {"about": np.array(json.dumps({**about, "sha256": None}))},
    ]
    for change in changes:
        np.savez(path, **{**whole, **change})
        with pytest.raises(InputError, match="was changed after it was written; run it again"):
            read_own(path)
    for text in ("{", "[1]", "[" * 100_000, '{"format": 3}'):
        np.savez(path, **{**whole, "about": np.array(text)})
        with pytest.raises(InputError, match="is not a file of this command; run it again"):
            read_own(path)
    for value in (np.zeros(3), np.array(b"{}")):
        np.savez(path, **{**whole, "about": value})
        with pytest.raises(InputError, match="is not a file of this command; run it again"):
            read_own(path)
    write_sealed(path, "innerloop.test/2", ABOUT, ARRAYS)
    with pytest.raises(InputError, match="of another format or version"):
        read_own(path)
