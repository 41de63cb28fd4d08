"""What the scripts that measure no time share: their result file, and the table made of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from innerloop import __version__

from measure import environment
from tables import pages


class Measurement:
    """One script's run, from the moment this object is made.

    Args:
        kind: the run's name in its result file; command: what was typed.
        packages: whose versions the result depends on, beside innerloop's.
    """

    def __init__(self, kind: str, command: str, packages: tuple[str, ...]) -> None:
        self._kind, self._command, self._packages = kind, command, packages
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._begin = time.perf_counter()

    def document(self, **fields: Any) -> dict[str, Any]:
        """The result file with the run's `fields`."""
        versions = {name: importlib.metadata.version(name) for name in self._packages}
        run = {
            "kind": self._kind,
            "environment": {
                "threads": 1,
                "dtype": "float64",
                "versions": {
                    "python": platform.python_version(),
                    "innerloop": __version__,
                    **versions,
                },
                "commit": environment.commit(),
            },
            **fields,
            "measured_in_s": round(time.perf_counter() - self._begin, 1),
        }
        return {
            "format": 1,
            "command": self._command,
            "started": self._started,
            "quick": False,
            "runs": [run],
        }


def write(path: Path, text: str) -> None:
    """Replaces a file in one move."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_result(path: Path, document: dict[str, Any]) -> None:
    """Writes a result file."""
    write(path, json.dumps(document, indent=1) + "\n")


def renew_table(page: Path) -> None:
    """Writes the tables of one page anew, from all result files."""
    path = environment.ROOT / page
    runs = pages.newest_runs(environment.ROOT / "benchmarks" / "results")
    write(path, pages.fill(path.read_text(encoding="utf-8"), runs))
