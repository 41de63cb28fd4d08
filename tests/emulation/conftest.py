"""Builds the CUDA kernels over emulated blocks (emulated_block.h) and puts them in the place of the
CPU kernels, so that the public operations run them on CPU tensors."""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

from helpers import IN_CI
from innerloop import _kernels

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
UNITS = (
    "tests/emulation/emulated.cpp",
    "tests/emulation/emulated_regression.cpp",
    "csrc/bindings/cuda_module.cpp",
    "csrc/bindings/cuda_regression.cpp",
)
# no contraction: the study's trials have the bits of the CPU kernel
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC")
FLAGS += ("-Wall", "-Wextra", "-Wno-psabi", "-Werror")


def compiler():
    """Returns the C++ compiler."""
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def build(folder):
    """Returns the emulation's module file, built in `folder` unless it lies there."""
    pybind11 = pytest.importorskip("pybind11")
    include = [ROOT / "csrc", ROOT / "tests/emulation", pybind11.get_include()]
    include.append(sysconfig.get_paths()["include"])
    command = [compiler(), *FLAGS, "-fvisibility=hidden", "-DINNERLOOP_MODULE=_emulated"]
    command += [f"-I{path}" for path in include]
    digest = hashlib.sha256(" ".join(map(str, command)).encode())
    for path in sorted([*ROOT.glob("csrc/**/*.*"), *ROOT.glob("tests/emulation/*.[ch]*")]):
        digest.update(path.read_bytes())
    folder = folder / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    module = folder / f"_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of one run share the build
        if not module.exists():
            objects = [folder / f"{Path(unit).stem}.o" for unit in UNITS]
            runs = [
                subprocess.Popen([*command, "-c", str(ROOT / unit), "-o", str(to)])
                for unit, to in zip(UNITS, objects, strict=True)
            ]
            assert {run.wait() for run in runs} == {0}, "the emulation does not compile"
            partial = folder / "partial.so"
            subprocess.run(
                [command[0], "-shared", *map(str, objects), "-o", str(partial)], check=True
            )
            partial.rename(module)
    return module


@pytest.hookimpl(tryfirst=True)  # before pytest looks at marks
def pytest_collection_modifyitems(items):
    """Leaves what needs the emulation out of the quick suite: compiling it takes a minute."""
    for item in items:
        if item.path.parent == HERE and "module" in item.fixturenames:
            for mark in IN_CI:
                item.add_marker(mark)


@pytest.fixture(scope="session")
def module():
    """The emulation: the functions of innerloop._cuda, on the host."""
    path = build(ROOT / "build" / "emulation")
    spec = importlib.util.spec_from_file_location("_emulated", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def place(allow_tf32):
    """Returns where emulated kernels run; their scratch memory holds NaN."""
    kept = []

    def allocate(size):
        kept.append(torch.full((size,), 255, dtype=torch.uint8))
        return kept[-1].data_ptr()

    return 0, 0, allocate, None, allow_tf32


@pytest.fixture
def emulated(module, monkeypatch):
    """The emulation in the place of the CPU kernels, with an H100's facts and free schedules; new
    tensors hold NaN."""

    def target(plan, x):
        there = place(plan.options.execution.allow_tf32)
        return module, _kernels.native_plan(plan, module), there

    monkeypatch.setitem(_kernels.TARGETS, "cpu", target)
    torch.use_deterministic_algorithms(True)  # which fills uninitialised memory
    assert torch.utils.deterministic.fill_uninitialized_memory
    module.set_device(132, 232448, 233472)
    module.fix_schedule(0, 0)
    yield module
    module.fix_schedule(0, 0)
    torch.use_deterministic_algorithms(False)
