"""For which GPUs the CUDA kernels are built, and what is said where none are: CMake over a stand-in
for the NVIDIA driver."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from innerloop import _native, diagnostics

ROOT = Path(__file__).resolve().parents[2]
# FAKE_GPUS: capabilities; FAKE_ERROR: what cuInit returns
DRIVER = """
#include <stdlib.h>
#include <string.h>
static int gpu(int i) {
  const char* at = getenv("FAKE_GPUS");
  while (i-- > 0) at = strchr(at, ' ') + 1;
  return atoi(at);
}
int cuInit(unsigned flags) { return getenv("FAKE_ERROR") ? atoi(getenv("FAKE_ERROR")) : 0; }
int cuDeviceGetCount(int* count) {
  const char* at = getenv("FAKE_GPUS");
  *count = at && *at ? 1 : 0;
  for (; at && *at; ++at) *count += *at == ' ';
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? gpu(device) / 10 : attribute == 76 ? gpu(device) % 10 : -1;
  return 0;
}
"""
KNOWN = "75 80 86 87 88 89 90 100 110 103 120 121"  # nvcc 13's, in its order


def run(*command, **variables):
    """Returns (status, output) of a command."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **variables},
    )
    return done.returncode, done.stdout


def compiler():
    """Returns the C++ compiler."""
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if found is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C++ compiler")
    return found


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A folder with a driver that says what the environment tells it to."""
    folder = tmp_path_factory.mktemp("driver")
    source = folder / "driver.c"
    source.write_text(DRIVER)
    command = [compiler(), "-x", "c", "-shared", "-fPIC", source, "-o", folder / "libcuda.so.1"]
    assert run(*command) == (0, "")
    return folder


@pytest.fixture(scope="module")
def find_gpus(tmp_path_factory):
    """The program that CMake asks."""
    program = tmp_path_factory.mktemp("find") / "find_gpus"
    command = [compiler(), "-Wall", "-Wextra", "-Werror", ROOT / "cmake/find_gpus.cpp"]
    assert run(*command, "-o", program, "-ldl") == (0, "")
    return program


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"FAKE_GPUS": "90"}, (0, "90\n")),
        ({"FAKE_GPUS": "120 86 86"}, (0, "120\n86\n86\n")),
        ({"FAKE_GPUS": ""}, (1, "the NVIDIA driver sees no GPU\n")),
        ({"FAKE_ERROR": "100"}, (1, "the NVIDIA driver sees no GPU\n")),
        ({"FAKE_ERROR": "803"}, (1, "the NVIDIA driver fails with error 803\n")),
    ],
)
def test_program_tells_what_the_driver_does(find_gpus, driver, said, expected):
    assert run(find_gpus, LD_LIBRARY_PATH=str(driver), **said) == expected


def test_program_survives_a_driver_that_is_none(find_gpus, tmp_path):
    (tmp_path / "libcuda.so.1").write_text("not a library")
    expected = (1, "this machine has no NVIDIA driver\n")
    assert run(find_gpus, LD_LIBRARY_PATH=str(tmp_path)) == expected


def architectures(tmp_path, code, known=KNOWN):
    """Returns what CMake's functions print, with an nvcc that knows some architectures."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    nvcc = tmp_path / "nvcc"
    listed = "\\n".join(f"sm_{number}" for number in known.split())
    nvcc.write_text(f"#!/bin/sh\n[ $1 = --list-gpu-code ] && printf '{listed}\\n'\n")
    nvcc.chmod(0o755)
    script = tmp_path / "script.cmake"
    script.write_text(
        "cmake_minimum_required(VERSION 3.24)\n"
        f'include("{ROOT}/cmake/CudaArchitectures.cmake")\n'
        f'set(CMAKE_CUDA_COMPILER "{nvcc}")\n{code}\n'
    )
    return run("cmake", "-P", script)


@pytest.mark.parametrize(
    ("gpus", "known", "expected"),
    [
        ("90", KNOWN, "90-real"),
        ("86;120", KNOWN, "86-real;120-real"),
        ("70", KNOWN, ""),
        ("70;90", KNOWN, "90-real"),
        ("90;130;140", KNOWN, "90-real;121-virtual"),
        ("120", "75 80 86 89 90", "90-virtual"),
    ],
)
def test_architectures_of_present_gpus(tmp_path, gpus, known, expected):
    """What nvcc knows natively, PTX of its newest for newer ones, nothing for older ones."""
    code = f'innerloop_architectures_for("{gpus}" found)\nmessage("[${{found}}]")'
    assert architectures(tmp_path, code, known) == (0, f"[{expected}]\n")


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (KNOWN, "75-real 80-real 86-real 89-real 90-real 100-real 120-real 100-virtual"),
        ("50 60 70 75 80 86 89 90", "75-real 80-real 86-real 89-real 90-real 90-virtual"),
    ],
)
def test_a_release_has_code_for_every_gpu_from_its_oldest_on(tmp_path, known, expected):
    """Among them 110, which has neither code of its generation nor PTX of a later one."""
    code = 'innerloop_release_architectures(found)\nlist(JOIN found " " found)\nmessage("${found}")'
    status, text = architectures(tmp_path, code, known)
    assert (status, text.strip()) == (0, expected)
    for number in (75, 80, 86, 87, 88, 89, 90, 100, 101, 103, 110, 120, 121, 130):
        assert _native.has_code(text, divmod(number, 10)), number
    assert not _native.has_code(text, (7, 0))


@pytest.mark.parametrize(
    ("built", "has", "lacks"),
    [
        ("80-real", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (12, 0)]),
        ("86-real", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("90-virtual", [(9, 0), (10, 0), (12, 1)], [(8, 9)]),
        ("90", [(9, 0), (12, 0)], [(8, 0)]),
        ("90a-real", [(9, 0)], [(10, 0), (8, 9)]),
        ("100f-real", [(10, 0), (10, 3)], [(11, 0), (9, 0)]),
        ("75-real 120-virtual", [(7, 5), (12, 0), (13, 0)], [(8, 0), (11, 0)]),
    ],
)
def test_which_gpus_have_code(built, has, lacks):
    assert [gpu for gpu in has if not _native.has_code(built, gpu)] == []
    assert [gpu for gpu in lacks if _native.has_code(built, gpu)] == []


def test_a_gpu_without_code_is_refused_with_the_remedy(monkeypatch):
    """Where the module is built for another GPU than the present one."""

    class Module:
        @staticmethod
        def toolkit_version():
            return 13000

        driver_version = toolkit_version

        @staticmethod
        def build_info():
            return {"architectures": "90-real"}

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_native, "_load", lambda name: (Module, ""))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A card")
    reasons = {}
    for capability in ((9, 0), (12, 0)):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda index, found=capability: found
        )
        reasons[capability] = _native.cuda_reason.__wrapped__(None)
    assert reasons[9, 0] == ""
    assert reasons[12, 0] == (
        "the kernels are built for 90-real and A card is sm_120; install innerloop on this "
        "machine, or with INNERLOOP_CUDA=ON"
    )


def test_reason_and_report_say_what_the_build_said(monkeypatch):
    """In an installation without the module, on a machine with a GPU."""
    if _native.has_cuda_module():
        pytest.skip("this installation has CUDA kernels")
    state = _native.native().build_info()["cuda"]
    assert diagnostics.environment()["build: cuda"] == state
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _native.cuda_reason.__wrapped__(None).endswith(f"; CUDA kernels {state}")


# ---------------------------------------------------------------- the whole configuration


@pytest.fixture(scope="module")
def configure(tmp_path_factory, driver):
    """Configures the project and returns (status, what it says, on one line)."""
    pybind11 = pytest.importorskip("pybind11")
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    folder = tmp_path_factory.mktemp("build")

    def call(*options, **said):
        for cached in ("CMakeCache.txt", "CMakeFiles/cmake.check_cache"):
            (folder / cached).unlink(missing_ok=True)
        status, text = run(
            *("cmake", "-S", ROOT, "-B", folder, *options),
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            LD_LIBRARY_PATH=str(driver),
            **{"CUDAARCHS": "", "FAKE_GPUS": "", **said},
        )
        return status, " ".join(text.split())

    return call


NO_NVCC = "-DCMAKE_CUDA_COMPILER=NOTFOUND"
REMEDY = "put nvcc on the PATH or set CMAKE_CUDA_COMPILER"


@pytest.mark.parametrize(
    ("options", "said", "told"),
    [
        pytest.param(
            [],
            {"FAKE_ERROR": "803"},
            "not built: the NVIDIA driver fails with error 803. INNERLOOP_CUDA=ON builds them all "
            "the same (docs/cuda.md)",
            id="no-gpu",
        ),
        pytest.param(
            ["-DINNERLOOP_CUDA=OFF"],
            {"FAKE_GPUS": "90"},
            "not built: INNERLOOP_CUDA=OFF",
            id="off",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [NO_NVCC],
            {"FAKE_GPUS": "90"},
            f"not built: there is an NVIDIA GPU but no nvcc. To have them, {REMEDY}",
            id="no-nvcc",
        ),
    ],
)
def test_without_kernels_one_line_says_why(configure, options, said, told):
    status, text = configure(*options, **said)
    assert status == 0
    assert f"-- innerloop: CUDA kernels {told} --" in text


@pytest.mark.parametrize(
    ("options", "said", "told"),
    [
        pytest.param(
            ["-DINNERLOOP_CUDA=ON", NO_NVCC],
            {},
            f"INNERLOOP_CUDA=ON needs nvcc: {REMEDY}",
            id="on",
        ),
        pytest.param(
            ["-DCMAKE_CUDA_ARCHITECTURES=90", NO_NVCC],
            {},
            f"CMAKE_CUDA_ARCHITECTURES=90 needs nvcc: {REMEDY}",
            id="named",
        ),
        pytest.param(
            [NO_NVCC],
            {"CUDAARCHS": "90"},
            f"CMAKE_CUDA_ARCHITECTURES=90 needs nvcc: {REMEDY}",
            id="named-in-the-environment",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["-DCMAKE_CUDA_ARCHITECTURES=native"],
            {"FAKE_ERROR": "100"},
            "CMAKE_CUDA_ARCHITECTURES=native: the NVIDIA driver sees no GPU",
            id="native",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_kernels_that_are_demanded_and_impossible_are_an_error(configure, options, said, told):
    status, text = configure(*options, **said)
    assert status == 1
    assert told in text


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize(
    ("options", "said", "built"),
    [
        pytest.param(
            [], {"FAKE_GPUS": "90 86"}, "86-real 90-real", id="present",
            marks=(pytest.mark.slow, pytest.mark.ci),
        ),
        pytest.param(
            ["-DCMAKE_CUDA_ARCHITECTURES=80-real"], {}, "80-real", id="named",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_kernels_are_built_for_gpus_that_are_present_or_named(configure, options, said, built):
    status, text = configure(*options, **said)
    assert status == 0
    told = text.split("-- innerloop: CUDA kernels built by nvcc ")[1].split(" --")[0]
    assert told.split(" for ")[1] == built
