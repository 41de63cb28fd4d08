"""Builds the CUDA module with warnings as errors and reads what ptxas says of registers, shared
memory and spills.

`python tests/cuda/resources.py` writes docs/cuda-resources.md, of the oldest architecture, of
Hopper and of the newest; with `--check` it compares instead; of other `--architectures` it prints.
All fail if a function of any kernel spills registers, or if the regression study holds an operation
that is not rounded as the CPU rounds it. Needs nvcc, no GPU, and some minutes.
"""

import argparse
import difflib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pybind11

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs/cuda-resources.md"
ARCHITECTURES = (75, 90, 120)  # of the table, and of continuous integration
DTYPES = {"f": "float32", "d": "float64"}
STUDY = "regression study"
# How a kernel's mangled name is recognised, with a letter for its dtype, and what runs it.
KERNELS = {
    r"task_kernelI([fd])N.*6Unroll": "meta_grad, meta_loss, adapt",
    r"task_kernelI([fd])N.*HvpPass": "hvp",
    r"task_kernelI([fd])N.*MetricPass": "fisher_product",
    r"task_kernelI([fd])N.*LossPass": "loss_and_grad",
    r"task_kernelI([fd])N.*PredictPass": "predict",
    r"sum_kernelI([fd])E": "sum over blocks",
    r"store_kernel": "long descriptions",
    **{rf"SumChunkI(d)Li{p}E": f"{STUDY}: sums, p = {p or 'any'}" for p in (1, 2, 3, 4, 0)},
    r"AddChunksI(d)E": f"{STUDY}: sums over chunks",
    **{rf"EstimateI(d)Li{p}E": f"{STUDY}: rates, p = {p or 'any'}" for p in (1, 2, 3, 4, 0)},
}
STATE = re.compile(r"innerloop: CUDA kernels built by nvcc (\S+) for")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
FUNCTION = re.compile(r"Function properties for (\w+)")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
STACK = re.compile(r"(\d+) bytes cumulative stack size")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
# what may be contracted, or is rounded otherwise than by the CPU
INEXACT = re.compile(r"\b(?:fma\.\S*|(?:add|sub|mul|div|rcp|sqrt)\.(?!rn\.)\S*f64|ex2\S*|lg2\S*)")


class Kernel(NamedTuple):
    """What one kernel takes on one architecture, with all functions that it calls."""

    registers: int
    shared_bytes: int
    stack_bytes: int


Report = dict[tuple[str, str], dict[int, Kernel]]  # {(title, dtype): {architecture: Kernel}}


def run(*command):
    """Returns what a command prints, which must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"resources: {command[0]} failed\n{done.stdout[-8000:]}")
    return done.stdout


def configure(architectures, folder):
    """Configures a build as CMake makes it. Returns nvcc's version."""
    options = ["-DINNERLOOP_CUDA=ON", "-DINNERLOOP_WERROR=ON", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v"]
    options.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    options.append(f"-DPython_EXECUTABLE={sys.executable}")
    named = ";".join(f"{number}-real" for number in architectures)
    options.append(f"-DCMAKE_CUDA_ARCHITECTURES={named}")
    text = run("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *options)
    if not (state := STATE.search(text)):
        sys.exit(f"resources: CMake builds no kernels\n{text[-8000:]}")
    return state.group(1)


def check_rounding(architecture, folder):
    """Exits if an operation of the study may be contracted or is not correctly rounded."""
    commands = json.loads((folder / "compile_commands.json").read_text())
    [found] = [each for each in commands if each["file"].endswith("cuda/regression.cu")]
    words = shlex.split(found["command"])  # newer versions of CMake quote their arguments
    kept = [w for w in words if not w.startswith(("--generate-code", "-Xptxas"))]
    kept = kept[: kept.index("-c")] if "-c" in kept else kept
    ptx = folder / "regression.ptx"
    run(*kept, f"-arch=compute_{architecture}", "-ptx", found["file"], "-o", ptx)
    text = ptx.read_text()
    if "add.rn.f64" not in text:
        sys.exit("resources: the study's PTX holds no sums: not what is meant here")
    if inexact := sorted(set(INEXACT.findall(text))):
        sys.exit(f"resources: regression.cu is not rounded as the CPU rounds: {inexact}")


def kernel_of(mangled):
    """Returns (title, dtype) of a kernel's mangled name."""
    for pattern, title in KERNELS.items():
        if found := re.search(pattern, mangled):
            return title, DTYPES[found.group(1)] if found.groups() else "-"
    sys.exit(f"resources: {mangled} is no kernel that this script knows")


def read_report(text):
    """Returns the Report in a build's output, and (architecture, name) of functions that spill."""
    report: Report = {}
    spilling, name, function, architecture = [], "", "", 0
    for line in text.splitlines():
        if entry := ENTRY.search(line):
            name, architecture = entry.group(1), int(entry.group(2))
        elif properties := FUNCTION.search(line):
            function = properties.group(1)
        elif memory := SPILLS.search(line):
            if int(memory.group(1)) + int(memory.group(2)):
                spilling.append((architecture, function))
        elif used := USED.search(line):
            sizes = [pattern.search(line) for pattern in (SHARED, STACK)]
            numbers = [int(size.group(1)) if size else 0 for size in sizes]
            report.setdefault(kernel_of(name), {})[architecture] = Kernel(
                int(used.group(1)), *numbers
            )
    return report, spilling


def rows_of(report):
    """Returns the kernels in the order of the table."""
    titles = list(KERNELS.values())
    return sorted(report, key=lambda kernel: (titles.index(kernel[0]), kernel[1]))


def table(report, architectures, version):
    """Returns the page."""
    shown = " | ".join(f"sm_{number}" for number in architectures)
    lines = [
        "# Registers and memory of the CUDA kernels",
        "",
        f"Generated by `python tests/cuda/resources.py` from ptxas's report, nvcc {version}.",
        "Registers per thread; static shared memory and local stack in bytes, the most of all",
        "architectures (a block's workspace comes on top). No function spills",
        "registers: the script fails where one does. The stack holds what functions hand to those",
        "that they call.",
        "",
        f"| kernel | dtype | {shown} | shared | stack |",
        "|---|---|" + "---:|" * (len(architectures) + 2),
    ]
    for title, dtype in rows_of(report):
        kernels = report[title, dtype]
        numbers = [kernels[number].registers for number in architectures]
        numbers.append(max(kernel.shared_bytes for kernel in kernels.values()))
        numbers.append(max(kernel.stack_bytes for kernel in kernels.values()))
        lines.append(f"| {title} | {dtype} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines) + "\n"


def main():
    """Builds, reports, and writes or compares the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed table")
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--build", type=Path, help="a folder for the build, which stays there")
    options = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("resources: nvcc not found")
    with tempfile.TemporaryDirectory() as name:
        folder = (options.build or Path(name)).resolve()
        version = configure(options.architectures, folder)
        check_rounding(options.architectures[-1], folder)
        run("ninja", "-C", folder, "-t", "clean")  # what is built already would report nothing
        report, spilling = read_report(run("ninja", "-C", folder, "-j", options.jobs, "_cuda"))
    for architecture, function in spilling:
        print(f"sm_{architecture}: {function}", file=sys.stderr)
    if spilling:
        sys.exit("resources: these functions spill registers")
    page = table(report, options.architectures, version)
    if tuple(options.architectures) != ARCHITECTURES:
        print(page, end="")
    elif not options.check:
        TABLE.write_text(page, encoding="utf-8")
    elif f"nvcc {version}." not in (committed := TABLE.read_text(encoding="utf-8")):
        print("resources: the committed table is of another nvcc and is not compared")
    elif page != committed:
        changed = difflib.unified_diff(committed.splitlines(), page.splitlines(), lineterm="", n=0)
        print("\n".join(changed))
        sys.exit(f"resources: {TABLE.name} is out of date; run python tests/cuda/resources.py")
    print(f"resources: {sum(map(len, report.values()))} kernels without warnings or spills")


if __name__ == "__main__":
    main()
