"""Files that are read and written whole: readers and crashes see the old file or the new one, and
nothing that is no plain file is ever read.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from innerloop._capacity import capacity_bytes, in_words
from innerloop.runs.errors import InputError

_PREFIX, _SUFFIX = ".innerloop-", ".part"
# Reading takes about this many times a file's size, with what is made of its content.
_MEMORY_PER_BYTE = 4


def read_whole(path: Path, named: str) -> bytes:
    """The content of a plain file, or of one that a link leads to.

    Args:
        named: what a message calls the file, such as "table 'a.csv'".

    Raises:
        InputError: there is no such file, it is no plain file (a folder, a device, a pipe), it
            cannot be read, or it is larger than memory. Nothing is read before that is known.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):
            raise InputError(f"{named} is {_kind(kind)}; give a plain file")
        with open(path, "rb", opener=_without_waiting) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size * _MEMORY_PER_BYTE > capacity_bytes():
                raise InputError(
                    f"{named} is too large: {in_words(size)}, and reading takes about "
                    f"{_MEMORY_PER_BYTE} times that of at most {in_words(capacity_bytes())} of "
                    "memory; give a smaller file"
                )
            content = stream.read(size + 1)
    except InputError:
        raise
    except FileNotFoundError:
        missing = "is a link to nothing" if os.path.islink(path) else "does not exist"
        raise InputError(f"{named} {missing}; give a file that exists") from None
    except OSError as error:
        raise InputError(
            f"{named} cannot be read ({reason(error)}); give a file that can be"
        ) from None
    except ValueError as error:  # a name that no file can have
        raise InputError(f"{named} cannot be a file ({error})") from None
    if len(content) != size:
        raise InputError(f"{named} changes while it is read; wait until it is complete")
    return content


def _without_waiting(path: str, flags: int) -> int:
    """Opens without waiting for the other end of a pipe that took the file's place."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _kind(mode: int) -> str:
    """What an entry is, if it is no plain file."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISLNK(mode):
        return "a link"
    return "a pipe or a socket" if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else "a device"


def special_kind(path: Path) -> str | None:
    """What the entry at `path` is ("a folder", "a link", ...), or None for a plain file or none."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    return None if stat.S_ISREG(mode) else _kind(mode)


def reason(error: OSError) -> str:
    """What the system says, in a few words."""
    return error.strerror or str(error) or type(error).__name__


def parse_json(text: str | bytes) -> Any:
    """The value of a strict JSON text (no NaN, no infinity), or None if it is none."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write strict JSON (no NaN, no infinity) atomically; equal documents give equal bytes."""
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically."""

    def write(stream: IO[bytes]) -> None:
        stream.write(content)

    write_atomically(path, write)


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Replace `path` by what `write` produces; readers and crashes see the old file or the new
    one. What writers that were killed have left in the folder is removed on the way.
    """
    remove_stale_parts(path.parent)
    handle, part = _new_part(path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
            if os.name == "posix":
                os.replace(part, path)  # while locked: nobody takes it for a stale one
        if os.name != "posix":
            os.replace(part, path)  # an open file cannot be renamed there
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _new_part(folder: Path) -> tuple[int, Path]:
    """A new file beside the one to be written, locked as long as it is open."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        part = folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        handle = os.open(part, flags, 0o666)
        _lock(handle, wait=True)
        if os.name != "posix" or os.fstat(handle).st_nlink:
            return handle, part
        os.close(handle)  # another process took it for a stale one before it was locked


def remove_stale_parts(folder: Path) -> None:
    """Remove what writers that were killed have left; one that is alive holds a lock on its
    own.
    """
    try:
        names = [name for name in os.listdir(folder) if name.startswith(_PREFIX)]
    except OSError:
        return  # whoever writes there will say what is wrong
    for part in (folder / name for name in names if name.endswith(_SUFFIX)):
        try:
            if special_kind(part):
                continue
            handle = os.open(part, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            continue  # gone meanwhile, or another user's
        try:
            if _lock(handle):
                part.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _lock(handle: int, *, wait: bool = False) -> bool:
    """Lock an open file against other processes; False if one of them holds it (unless told to
    wait), or if the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _sync_directory(path: Path) -> None:
    """Make a rename durable where directories can be opened (not on Windows)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
