"""Failures of the CUDA runtime are said once, over a stand-in for the runtime."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("tests/emulation/runtime_failures.cpp", "csrc/cuda/launch.cpp", "csrc/cuda/device.cpp")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the headers beside nvcc")
def test_failures_do_not_reach_later_calls(tmp_path):
    """A kept error would be taken for the next launch's, which went well."""
    program = tmp_path / "runtime_failures"
    sources = [str(ROOT / source) for source in SOURCES]
    command = ["nvcc", "-std=c++17", "-cudart", "none", f"-I{ROOT / 'csrc'}", *sources]
    subprocess.run([*command, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
