"""A pytest plugin that keeps a visit's record of the tests while they run, so that a run that is
cut off has told what it saw. `pytest -p contact.tests_plugin` with INNERLOOP_CONTACT=STEP:FOLDER.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from contact.record import Step

EVERY_S = 2.0
MOST_FAILURES = 40


class Recorder:
    """Counts outcomes by file; the failures with their last lines."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._files: dict[str, dict[str, int]] = {}
        self._failures: list[dict[str, str]] = []
        self._saved = time.monotonic()
        self._step.result.clear()  # a run begins anew
        self._save(complete=False)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Takes the outcome of a call, or of a setup that skips or fails."""
        if report.when != "call" and report.outcome == "passed":
            return
        outcome = report.outcome if report.when == "call" or report.skipped else "error"
        counts = self._files.setdefault(report.nodeid.split("::")[0].split("/")[-1], {})
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome in ("failed", "error") and len(self._failures) < MOST_FAILURES:
            text = str(report.longrepr)[-1500:]
            self._failures.append({"test": report.nodeid, "text": text})
        if time.monotonic() - self._saved > EVERY_S:
            self._save(complete=False)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Says how it ended; 5, no tests, is no end of a run."""
        self._step.result["status"] = int(exitstatus)
        self._save(complete=int(exitstatus) in (0, 1))

    def _save(self, complete: bool) -> None:
        self._saved = time.monotonic()
        self._step.result |= {"files": self._files, "failures": self._failures}
        self._step.put("complete", complete)


def pytest_configure(config: Any) -> None:
    """Records in the process that collects the reports, not in xdist's workers."""
    if not hasattr(config, "workerinput"):
        name, folder = os.environ["INNERLOOP_CONTACT"].split(":", 1)
        config.pluginmanager.register(Recorder(Step(Path(folder), name)))
