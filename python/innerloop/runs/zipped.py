"""The members of a zip archive in memory. Every length and position is checked against the file
before it is used, and the two descriptions of a member against each other, so that a damaged or
forged archive is refused and never costs more memory than its size allows.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from innerloop._capacity import capacity_bytes, in_words

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_LARGEST_COMMENT = 0xFFFF
_IN_EXTRA = 0xFFFFFFFF  # stands for a size that an extra field holds
_ENCRYPTED, _DESCRIPTOR, _UTF8, _DEFLATE_OPTIONS = 0x1, 0x8, 0x800, 0x6
_STORED, _DEFLATED = 0, 8
# Deflate cannot shrink more than 1032 times; numbers that people mean do not shrink 500 times.
_LARGEST_RATIO = 500
_RATIO_MATTERS_FROM = 2**28
_SHARE_OF_MEMORY = 4


class ArchiveError(ValueError):
    """Why an archive cannot be used, as the end of a sentence about it."""


class Member(NamedTuple):
    """What the archive's directory says of a member, and where its bytes are."""

    method: int
    checksum: int
    packed: int
    size: int
    start: int  # of the packed bytes


def is_archive(data: bytes) -> bool:
    """Whether this begins as zip archives with members do."""
    return data.startswith(_LOCAL)


def directory(data: bytes) -> dict[str, Member]:
    """The members of an archive by name.

    Raises:
        ArchiveError: damaged, encrypted, split over files, or with a name that occurs twice.
    """
    found: dict[str, Member] = {}
    spans: list[tuple[int, int]] = []
    count, position, end = _end(data)
    for _ in range(count):
        name, member, header, position = _entry(data, position, end)
        if name in found:
            raise ArchiveError(f"it holds {name!r} twice")
        found[name] = member
        spans.append((header, member.start + member.packed))
    if position != end:
        raise ArchiveError("its directory is damaged")
    spans.sort()
    if any(start < before for (_, before), (start, _) in itertools.pairwise(spans)):
        raise ArchiveError("its members overlap")
    return found


def unpack(data: bytes, members: Mapping[str, Member]) -> dict[str, bytes]:
    """The content of members, checked against their checksums.

    Raises:
        ArchiveError: a damaged member, or contents larger than memory or than numbers can be.
    """
    total = sum(member.size for member in members.values())
    if total * _SHARE_OF_MEMORY > capacity_bytes():
        raise ArchiveError(
            f"its content takes {in_words(total)}, more than a {_SHARE_OF_MEMORY}th of at most "
            f"{in_words(capacity_bytes())} of memory"
        )
    return {name: _content(data, name, member) for name, member in members.items()}


def _content(data: bytes, name: str, member: Member) -> bytes:
    packed = memoryview(data)[member.start : member.start + member.packed]
    if member.method == _STORED:
        content = bytes(packed)
    else:
        if member.size > max(_RATIO_MATTERS_FROM, _LARGEST_RATIO * member.packed):
            raise ArchiveError(
                f"{name!r} claims to grow from {in_words(member.packed)} to "
                f"{in_words(member.size)}; if it really does, store it without compression"
            )
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflater.decompress(packed, member.size + 1)
        except zlib.error:
            raise ArchiveError(f"{name!r} is damaged") from None
        if not inflater.eof or inflater.unused_data:
            raise ArchiveError(f"{name!r} is damaged")
    if len(content) != member.size or zlib.crc32(content) != member.checksum:
        raise ArchiveError(f"{name!r} is damaged")
    return content


def _fields(form: str, data: bytes, position: int) -> tuple[int, ...]:
    """Little-endian numbers at a position."""
    size = struct.calcsize(form)
    if not 0 <= position <= len(data) - size:
        raise ArchiveError("it is cut off or damaged")
    return struct.unpack_from(form, data, position)


def _end(data: bytes) -> tuple[int, int, int]:
    """(number of members, first byte of the directory, byte after it)."""
    earliest = max(0, len(data) - 22 - _LARGEST_COMMENT)
    position = max(0, len(data) - 22)
    while (position := data.rfind(_END, earliest, position + 4)) >= 0:
        if _fields("<H", data, position + 20)[0] == len(data) - position - 22:
            break
        position -= 1
    if position < 0:
        raise ArchiveError("its end is missing: it is cut off, damaged or no archive")
    disk, disk0, here, count, size, start = _fields("<4H2I", data, position + 4)
    end = position
    if position >= 20 and data[position - 20 : position - 16] == _LOCATOR64:
        (place,) = _fields("<Q", data, position - 12)
        end = place
        if data[place : place + 4] != _END64:
            raise ArchiveError("its directory is damaged")
        _, _, _, disk, disk0, here, count, size, start = _fields("<QHHIIQQQQ", data, place + 4)
    if disk or disk0 or here != count:
        raise ArchiveError("it is one part of a split archive")
    if start + size != end or 46 * count > size:
        raise ArchiveError("its directory is damaged")
    return count, start, end


def _entry(data: bytes, position: int, end: int) -> tuple[str, Member, int, int]:
    """An entry of the directory: name, member, position of its own header, the next entry."""
    if data[position : position + 4] != _CENTRAL:
        raise ArchiveError("its directory is damaged")
    flags, method, _, _, checksum, packed, size, named, extra, comment, disk = _fields(
        "<4H3I4H", data, position + 8
    )
    (header,) = _fields("<I", data, position + 42)
    start = position + 46
    following = start + named + extra + comment
    if following > end:
        raise ArchiveError("its directory is damaged")
    raw = data[start : start + named]
    name = _name(raw)
    large = _large(data[start + named : start + named + extra])
    sizes = [size, packed, header]
    for index, value in enumerate(sizes):
        if value == _IN_EXTRA:
            if not large:
                raise ArchiveError("its directory is damaged")
            sizes[index] = large.pop(0)
    size, packed, header = sizes
    if disk:
        raise ArchiveError("it is one part of a split archive")
    body = _own_header(data, header, raw, (flags, method, checksum, packed, size))
    if flags & _ENCRYPTED:
        raise ArchiveError(f"{name!r} is encrypted; save it without a password")
    if flags & ~(_DESCRIPTOR | _UTF8 | _DEFLATE_OPTIONS) or method not in (_STORED, _DEFLATED):
        raise ArchiveError(
            f"{name!r} is packed in a way that is not supported (method {method}, flags {flags}); "
            "numpy.savez writes archives that are"
        )
    if body + packed > end:
        raise ArchiveError(f"{name!r} is cut off or damaged")
    if method == _STORED and packed != size:
        raise ArchiveError(f"{name!r} is damaged")
    return name, Member(method, checksum, packed, size, body), header, following


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    if not name or not name.isprintable():
        raise ArchiveError("its directory is damaged")
    return name


def _own_header(data: bytes, position: int, raw: bytes, wanted: tuple[int, ...]) -> int:
    """Where a member's packed bytes begin, after its own header, which must agree with the
    directory's `wanted` (flags, method, checksum, packed, size).
    """
    if data[position : position + 4] != _LOCAL:
        raise ArchiveError(f"{raw.decode()!r} is damaged")
    flags, method, _, _, checksum, packed, size, named, extra = _fields(
        "<4H3I2H", data, position + 6
    )
    start = position + 30 + named
    large = _large(data[start : start + extra])
    if size == _IN_EXTRA and packed == _IN_EXTRA and len(large) >= 2:
        size, packed = large[:2]
    facts = (flags, method, checksum, packed, size)
    later = bool(flags & _DESCRIPTOR) and facts[2:] == (0, 0, 0)
    if (
        data[position + 30 : start] != raw
        or facts[:2] != wanted[:2]
        or not (later or facts[2:] == wanted[2:])
    ):
        raise ArchiveError(f"{raw.decode()!r} is damaged")
    return start + extra


def _large(extra: bytes) -> list[int]:
    """The 64-bit sizes in an extra field, if there are any."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            count = min(size, len(extra) - position - 4) // 8
            return list(struct.unpack_from(f"<{count}Q", extra, position + 4))
        position += 4 + size
    return []
