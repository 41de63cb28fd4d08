"""The kernels are C++17 for Clang as well as for GCC: older Clangs refuse what GCC lets pass."""

import shutil
import subprocess
from pathlib import Path

import pytest

from helpers import IN_CI

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted(ROOT.glob("csrc/cpu/*.cpp"))

pytestmark = list(IN_CI)


@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_clang_takes_the_kernels(unit):
    command = [
        "clang++",
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",
        "-Werror",
    ]
    command += ["-DINNERLOOP_LEVEL=baseline", f"-I{ROOT / 'csrc'}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
