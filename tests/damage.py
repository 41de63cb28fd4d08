"""Damage as disks, transfers and editors do it, and what a reader may make of a damaged file."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from innerloop.runs.errors import InputError


def damaged(data: bytes, source: random.Random) -> bytes:
    """The content with one to eight bits flipped, or cut, or with a part zeroed, repeated, moved,
    lost or replaced by noise."""
    content = bytearray(data)
    kind = source.randrange(10)
    if kind < 5:
        for _ in range(source.choice((1, 1, 1, 2, 8))):
            content[source.randrange(len(content))] ^= 1 << source.randrange(8)
        return bytes(content)
    first = source.randrange(len(content))
    last = min(len(content), first + source.choice((1, 4, 64, len(content))))
    part = bytes(content[first:last])
    if kind == 5:
        return bytes(content[:first])
    if kind == 6:
        content[first:last] = bytes(len(part))
    elif kind == 7:
        content[first:first] = part
    elif kind == 8:
        del content[first:last]
        where = source.randrange(len(content) + 1)
        content[where:where] = part if source.random() < 0.5 else b""
    else:
        content[first:last] = source.randbytes(len(part))
    return bytes(content)


def one_line(error: BaseException, *parts: str) -> None:
    """A refusal is one line that names all of `parts`."""
    text = str(error)
    assert "\n" not in text
    assert text.isprintable(), ascii(text)
    assert len(text) <= 1005
    for part in parts:
        assert part in text, text


def check_damage(
    path: Path,
    read: Callable[[], Any],
    same: Callable[[Any], bool],
    rounds: int,
    seed: int = 0,
) -> tuple[int, int]:
    """Damage the file `rounds` times: it is refused in one line that names it (or the option that
    does not suit it), or read as `same` accepts. Returns how often it was refused and read."""
    whole = path.read_bytes()
    assert same(read())
    source = random.Random(seed)
    refused = 0
    for index in range(rounds):
        path.write_bytes(damaged(whole, source))
        try:
            found = read()
        except InputError as error:
            one_line(error, *([] if str(error).startswith("--") else [path.name]))
            refused += 1
        except BaseException as error:
            pytest.fail(f"damage {index} of seed {seed}: {type(error).__name__}: {error}")
        else:
            assert same(found), f"damage {index} of seed {seed} gives other numbers"
    path.write_bytes(whole)
    return refused, rounds - refused
