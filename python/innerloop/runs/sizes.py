"""Settings that are numbers: their ranges, and what they would take of memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

from innerloop._capacity import capacity_bytes, in_words
from innerloop.runs.errors import InputError

MOST = 2**31 - 1  # of whatever is counted
MOST_STEPS = 10_000  # results hold a row for every step
LEAST_RATE, MOST_RATE = 1e-30, 1e30  # float32 holds them, and products of a few


def check_count(option: str, value: int, least: int = 1, most: int = MOST) -> None:
    """Refuse a number outside its range."""
    if value < least:
        raise InputError(f"{option} must be at least {least} (got {_short(value)})")
    if value > most:
        raise InputError(f"{option} must be at most {most} (got {_short(value)})")


def check_rate(option: str, value: float) -> None:
    """Refuse a learning rate that is not positive, not finite, or lost in float32."""
    if not (math.isfinite(value) and LEAST_RATE <= value <= MOST_RATE):
        raise InputError(
            f"{option} must be positive, from {LEAST_RATE:g} to {MOST_RATE:g} (got {value:g})"
        )


def check_memory(needed: Mapping[str, int]) -> None:
    """Refuse settings that take more memory than there can be.

    Args:
        needed: bytes by what takes them, such as {"--hidden 100,100": 50_000}.
    """
    for options, size_bytes in needed.items():
        if size_bytes > capacity_bytes():
            raise InputError(
                f"{options} takes about {in_words(size_bytes)} of memory, more than the "
                f"{in_words(capacity_bytes())} of this machine; use smaller numbers"
            )


def _short(value: int) -> str:
    """A whole number that fits a line."""
    return str(value) if abs(value) < 10**30 else f"about 10^{math.log10(abs(value)):.0f}"
