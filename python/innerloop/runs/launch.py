"""Starting a run: how many cores it takes, workers that Ctrl-C does not reach, and its record."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from innerloop.runs.files import write_json
from innerloop.runs.sizes import check_count

RUN = "run.json"
# More threads than this are a slip of the hand: each may become a process.
_MOST_THREADS, _THREADS_PER_CORE = 64, 4


def usable_threads(threads: int | None, option: str = "--threads") -> int:
    """What --threads says; without it, the cores this process may use, at most eight."""
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return min(8, len(os.sched_getaffinity(0)))
        return min(8, os.cpu_count() or 1)
    most = max(_MOST_THREADS, _THREADS_PER_CORE * (os.cpu_count() or 1))
    check_count(option, threads, 1, most)
    return threads


@contextlib.contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C from their first instruction on: the parent alone
    decides how to stop.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)


class Clock:
    """When a run began, and what its record says of it: everything that may differ between two
    runs with equal numbers.
    """

    def __init__(self) -> None:
        self._began = datetime.datetime.now(datetime.timezone.utc)
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def write(self, folder: Path, **facts: Any) -> None:
        """Write the record run.json: the time, `facts`, and the command line."""
        write_json(
            folder / RUN,
            {
                "started": self._began.isoformat(timespec="seconds"),
                "seconds": round(self.seconds(), 3),
                **facts,
                "command": sys.argv[1:],
            },
        )
