"""The benchmark folder on the import path, as when run.py is started."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="package", autouse=True)
def benchmark_modules() -> Iterator[None]:
    """Imports by the names that run.py uses."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
