"""Arrays in .npz files: other people's, read strictly, and our own, sealed by a digest of all that
they hold. Nothing in a file is ever executed: objects are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innerloop.runs.errors import InputError
from innerloop.runs.files import parse_json, read_whole, write_atomically
from innerloop.runs.zipped import ArchiveError, directory, is_archive, unpack

Arrays = dict[str, NDArray[Any]]

_ABOUT, _SEAL, _FORMAT = "about", "sha256", "format"
_MAGIC = b"\x93NUMPY"
_TYPES = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,9})")
_HEADER = re.compile(
    r"\{(?=.*'descr': ?'(?P<type>[^']*)')"
    r"(?=.*'fortran_order': ?(?P<fortran>True|False))"
    r"(?=.*'shape': ?\((?P<shape>[\dL, ]*)\))"
    r"(?:'(?:descr|fortran_order|shape)': ?(?:'[^']*'|True|False|\([\dL, ]*\)),? ?){3}\} *\n"
)
_LONGEST_HEADER = 2**16
_MOST_AXES = 16


def read_arrays(path: Path, names: Sequence[str], named: str) -> Arrays:
    """The arrays of these names in an .npz file of anyone's.

    Args:
        named: what a message calls the file.

    Raises:
        InputError: one of them is absent, or the file is damaged, encrypted, no archive of arrays,
            holds objects, or is larger than memory.
    """
    data = read_whole(path, named)
    try:
        return _arrays(data, names)
    except ArchiveError as error:
        raise InputError(f"{named} cannot be read as npz: {error}") from None


def write_sealed(path: Path, form: str, about: Mapping[str, Any], arrays: Arrays) -> None:
    """Write arrays with a JSON text `about`, which gets the format and a digest of everything;
    the file appears whole or not at all, and `numpy.load` reads it.
    """
    document = {_FORMAT: form, **about}
    document[_SEAL] = _seal(document, arrays)
    content: dict[str, Any] = {**arrays, _ABOUT: np.array(json.dumps(document, allow_nan=False))}
    write_atomically(path, lambda stream: np.savez_compressed(stream, **content))


def read_sealed(path: Path, form: str, named: str, remedy: str) -> tuple[dict[str, Any], Arrays]:
    """What `write_sealed` wrote: `about` without its seal, and the arrays.

    Args:
        form: the format that is expected.
        remedy: what to do with a file that cannot be used, as the end of a sentence.

    Raises:
        InputError: the file cannot be read, was changed by anything, or is of another format.
    """
    data = read_whole(path, named)
    try:
        arrays = _arrays(data, None)
    except ArchiveError as error:
        raise InputError(f"{named} cannot be used: {error}; {remedy}") from None
    text = arrays.pop(_ABOUT, None)
    about = parse_json(str(text)) if text is not None and text.dtype.kind == "U" else None
    if not isinstance(about, dict) or not isinstance(about.get(_FORMAT), str):
        raise InputError(f"{named} is not a file of this command; {remedy}")
    if about[_FORMAT] != form:
        raise InputError(
            f"{named} is of another format or version ({about[_FORMAT][:80]!r}, needed: {form!r}); "
            f"{remedy}"
        )
    if about.pop(_SEAL, None) != _seal(about, arrays):
        raise InputError(f"{named} was changed after it was written; {remedy}")
    return about, arrays


def _seal(about: Mapping[str, Any], arrays: Arrays) -> str:
    """A digest of everything in a sealed file but the seal."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _arrays(data: bytes, names: Sequence[str] | None) -> Arrays:
    """The arrays of these names, or all."""
    if data.startswith(_MAGIC):
        raise ArchiveError("it holds a single array; numpy.savez writes archives of arrays")
    if not is_archive(data):
        raise ArchiveError("it is no archive of arrays (numpy.savez writes one)")
    members = directory(data)
    held = {name.removesuffix(".npy"): name for name in members}
    wanted = list(held) if names is None else list(names)
    if absent := [name for name in wanted if name not in held]:
        raise ArchiveError(
            f"it lacks {', '.join(absent)}; it holds {', '.join(held) or 'nothing'}"[:300]
        )
    content = unpack(data, {held[name]: members[held[name]] for name in wanted})
    return {name: _array(content.pop(held[name]), name) for name in wanted}


def _array(content: bytes, name: str) -> NDArray[Any]:
    """The array in the content of an .npy file."""
    forms = {b"\1\0": "<H", b"\2\0": "<I", b"\3\0": "<I"}
    form = forms.get(content[6:8]) if content.startswith(_MAGIC) else None
    if form is None or len(content) < 8 + struct.calcsize(form):
        raise ArchiveError(f"{name!r} is no array of NumPy's")
    start = 8 + struct.calcsize(form)
    (length,) = struct.unpack_from(form, content, 8)
    text = content[start : start + length].decode("latin-1")
    found = _HEADER.fullmatch(text) if length <= _LONGEST_HEADER else None
    if found is None or not _TYPES.fullmatch(found["type"]):
        objects = found is not None and found["type"].endswith("O")
        what = "objects, which are never loaded" if objects else "no plain numbers"
        raise ArchiveError(f"{name!r} holds {what}; save plain arrays of numbers")
    shape = tuple(int(part.strip(" L")) for part in found["shape"].split(",") if part.strip())
    kind = np.dtype(found["type"])
    if len(shape) > _MOST_AXES or max(shape, default=0) >= 2**60:
        raise ArchiveError(f"{name!r} has an impossible shape")
    if start + length + kind.itemsize * math.prod(shape) != len(content):
        raise ArchiveError(f"the size of {name!r} does not fit its shape {list(shape)}")
    if kind.kind == "U":
        _check_text(content[start + length :], kind, name)
    axes = shape[::-1] if found["fortran"] == "True" else shape
    array: NDArray[Any] = np.ndarray(axes, kind, content, start + length)
    return array.T if found["fortran"] == "True" else array


def _check_text(content: bytes, kind: np.dtype[Any], name: str) -> None:
    """Refuse code points that no text can hold."""
    points = np.frombuffer(content, np.dtype("u4").newbyteorder(kind.byteorder))
    if points.size and (points.max() > 0x10FFFF or ((points >= 0xD800) & (points < 0xE000)).any()):
        raise ArchiveError(f"{name!r} holds what is no text")
