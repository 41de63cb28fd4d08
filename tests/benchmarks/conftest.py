"""The benchmark folder on the import path, as when run.py is started."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contact_visits import SOURCES, git

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="package", autouse=True)
def benchmark_modules() -> Iterator[None]:
    """Imports by the names that run.py uses."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """A small repository in the place of this one; returns the digest of its files."""
    from contact import record

    files = ["CMakeLists.txt", "csrc/core/a.h", "csrc/b.cpp", "python/innerloop/c.py"]
    files += ["benchmarks/d.sh", "tests/cuda/e.py", "tests/helpers.py", "tests/problems.py"]
    files += ["tests/tf32_products.py", "cmake/f.cmake", "docs/g.md", "tests/ops/h.py"]
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(record, "ROOT", tmp_path)

    def digest() -> str:
        record.present_sources.cache_clear()
        return record.present_sources()

    yield digest
    record.present_sources.cache_clear()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the files, with known sources."""
    from contact import record

    monkeypatch.setattr(record, "WORK", tmp_path / "work")
    monkeypatch.setattr(record, "present_sources", lambda: SOURCES)
    return tmp_path / "out"
