"""Builds the kernels for the card that is here, without pip, and puts the package beside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from contact.record import WORK, Step, present_sources, read
from measure.environment import ROOT

STAGE = WORK / "stage"  # on PYTHONPATH: the package with its modules
SHARE = 10 / 16  # of the cores; the rivals compile on the others


def architecture(folder: Path) -> str:
    """The card's, such as 90."""
    known = read(folder, "card").get("result", {}).get("capability")
    if known is None:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        known = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return str(known).strip().splitlines()[0].replace(".", "")


def run(step: Step) -> None:
    """The CUDA module first, since all else waits for it; then the CPU's, for the study's bits."""
    import pybind11

    number = architecture(step.folder)
    step.put("architecture", number)
    jobs = max(1, int(len(os.sched_getaffinity(0)) * SHARE))
    folder = WORK / "build"
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CUDA_ARCHITECTURES={number}-real",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    start = time.perf_counter()
    subprocess.run(configure, check=True)
    package = STAGE / "innerloop"
    stamp().unlink(missing_ok=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "python/innerloop", package, ignore=ignored)
    for target in ("_cuda", "_cpu"):
        subprocess.run(["ninja", "-C", str(folder), "-j", str(jobs), target], check=True)
        for module in folder.glob(f"{target}*.so"):
            shutil.copy2(module, package)
        step.put(f"{target}_s", round(time.perf_counter() - start, 1))
        stamp().write_text(present_sources())  # the CUDA module is enough for all but the study


def stamp() -> Path:
    """Says which sources the stage was built from: a machine may have changed between visits."""
    return STAGE / "sources"


def is_here() -> bool:
    """Whether this machine has the kernels of the present sources built."""
    return stamp().exists() and stamp().read_text() == present_sources()
