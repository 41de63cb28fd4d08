"""What a study trains: every method in every run, and beside them an oracle."""

from __future__ import annotations

from typing import NamedTuple

from innerloop.runs.methods import LABELS, METHODS
from innerloop.studies.sinusoid.settings import Settings

# The same network, told amplitude and phase as two more inputs (Finn, Abbeel and Levine 2017).
ORACLE = "oracle"
NAMES = {**LABELS, ORACLE: "oracle"}


class Unit(NamedTuple):
    """One training: a method, and the number of the run."""

    method: str
    run: int

    @property
    def name(self) -> str:
        """In the journal, and of its checkpoint."""
        return f"{self.method}-{self.run}"


def all_units(settings: Settings) -> list[Unit]:
    """Run by run, so that an interrupted study holds whole runs."""
    return [Unit(method, run) for run in range(settings.runs) for method in (*METHODS, ORACLE)]
