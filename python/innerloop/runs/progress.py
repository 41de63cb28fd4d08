"""What the commands say while they work, on standard error: what an earlier run left, and progress
bars (on terminals only, gone when done).
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from innerloop.runs.store import Store


def report_resumed(errors: Console, store: Store, done: int, total: int, what: str) -> None:
    """Say what was found in the folder: "Resuming: 3 of 15 units are done."."""
    for notice in store.notices:
        errors.print(notice, highlight=False, markup=False, soft_wrap=True)
    if store.resumed:
        errors.print(f"Resuming: {done} of {total} {what}.", highlight=False)


def progress_bars(errors: Console, *, counted: bool = True, shown: bool = True) -> Progress:
    """Bars that show their description, the work done (as a number, or per cent) and the time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn() if counted else TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal or not shown,
    )
