"""How much memory this process can have at most, so that a size that can never fit is refused
before anything is done."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_CONTROL_GROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def capacity_bytes() -> int:
    """Bytes that this process could ever allocate: memory with swap, or a smaller limit set for it.

    Where the system does not say, the size of the address space.
    """
    limits = [sys.maxsize, *_machine(), *_control_group(), *_resource_limits()]
    return min(limits)


def check_fits(what: str, size_bytes: int, remedy: str) -> None:
    """Refuses what can never fit.

    Args:
        what: what takes the memory, as the beginning of the message.
        size_bytes: what it takes at least.
        remedy: what to do, as its end.

    Raises:
        MemoryError: there is not so much memory.
    """
    if size_bytes > 2**28 and size_bytes > capacity_bytes():
        raise MemoryError(
            f"{what} takes at least {in_words(size_bytes)} of memory, more than the "
            f"{in_words(capacity_bytes())} of this machine; {remedy}"
        )


def in_words(size_bytes: int) -> str:
    """A number of bytes with a unit that suits it.

    >>> in_words(3 * 2**30), in_words(2**80), in_words(700)
    ('3.0 GiB', '1.2e+24 bytes', '700 bytes')
    """
    if size_bytes >= 2**60:
        return f"{size_bytes:.2g} bytes"
    for unit, exponent in (("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if size_bytes >= 2**exponent:
            return f"{size_bytes / 2**exponent:.1f} {unit}"
    return f"{size_bytes} bytes"


def _machine() -> list[int]:
    """Memory and swap of the machine."""
    facts = _read("/proc/meminfo").split()
    if "MemTotal:" in facts and "SwapTotal:" in facts:  # in units of 1024 bytes
        names = ("MemTotal:", "SwapTotal:")
        return [1024 * sum(int(facts[facts.index(name) + 1]) for name in names)]
    try:
        return [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, OSError, ValueError):
        return []


def _control_group() -> list[int]:
    """The limit of the container, if there is one."""
    found = [_read(path).strip() for path in _CONTROL_GROUP_LIMITS]
    return [int(text) for text in found if text.isdigit()]


def _resource_limits() -> list[int]:
    """Limits that the shell or a batch system has set (ulimit)."""
    try:
        import resource
    except ImportError:  # not on Windows
        return []
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
