"""Where the extension and its build lie."""

import importlib
import os
import platform
from pathlib import Path

import pytest

import binaries

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", params=["_cpu", "_cuda"])
def extension_file(request):
    """An extension's file as this process imports it."""
    if binaries.MISSING:
        pytest.skip(f"{', '.join(binaries.MISSING)} not found; install binutils")
    if platform.system() != "Linux":
        pytest.skip("reads ELF files")
    try:
        return importlib.import_module(f"innerloop.{request.param}").__file__
    except ImportError:
        if request.param == "_cpu":
            raise
        pytest.skip("built without nvcc")


@pytest.fixture(scope="session")
def build():
    """The CMake build folder behind the installed extension, with its objects and symbols."""
    if binaries.MISSING or platform.machine() != "x86_64" or platform.system() != "Linux":
        pytest.skip("reads x86-64 ELF files with binutils")
    folder, remedy = binaries.fresh_build(ROOT)
    if folder is None:
        if os.environ.get("CI"):
            pytest.fail(remedy)
        pytest.skip(remedy)
    return folder
