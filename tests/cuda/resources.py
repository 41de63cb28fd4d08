"""Compiles the CUDA kernels with warnings as errors and reads what ptxas says of registers, shared
memory and spills.

`python tests/cuda/resources.py` writes docs/cuda-resources.md; with `--check` it compares instead.
Both fail if a function of any kernel keeps registers in memory (spills), or if the regression study
holds an operation that is not rounded as the CPU rounds it. Needs nvcc, and no GPU: some minutes
for all architectures, `--architectures 90` for one.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs/cuda-resources.md"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)  # as in cmake/Cuda.cmake
OPERATIONS = {  # how a kernel's mangled name is recognised, and what runs it
    "ClusterBlock.*TiledUnroll": "meta_grad, meta_loss, adapt: tiled, in clusters",
    "TiledUnroll": "meta_grad, meta_loss, adapt: tiled",
    "FactorBlock": "meta_grad, meta_loss: low-rank",
    "ClusterBlock": "meta_grad, meta_loss, adapt: cluster",
    "Unroll": "meta_grad, meta_loss, adapt",
    "HvpPass": "hvp",
    "LossPass": "loss_and_grad",
    "PredictPass": "predict",
    "inputs_kernel": "inputs of all tasks",
    "cotangents_kernel": "first gradient of all tasks",
    "sum_kernel": "sum over blocks",
    "store_kernel": "long descriptions",
}
STUDY = {
    **{f"SumChunkIdLi{p}E": f"regression study: sums, p = {p or 'any'}" for p in (1, 2, 3, 4, 0)},
    "AddChunks": "regression study: sums over chunks",
    **{f"EstimateIdLi{p}E": f"regression study: rates, p = {p or 'any'}" for p in (1, 2, 3, 4, 0)},
}
ENTRY = re.compile(r"Compiling entry function '(\w+)'")
FUNCTION = re.compile(r"Function properties for (\w+)")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
STACK = re.compile(r"(\d+) bytes cumulative stack size")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
# what may be contracted, or is rounded otherwise than by the CPU
INEXACT = re.compile(r"\b(?:fma\.\S*|(?:add|sub|mul|div|rcp|sqrt)\.(?!rn\.)\S*f64|ex2\S*|lg2\S*)")


class Unit(NamedTuple):
    """A source file as cmake/Cuda.cmake compiles it."""

    dtype: str
    source: str
    flags: tuple[str, ...]
    kernels: dict[str, str]


UNITS = (
    *(
        Unit(
            dtype,
            "kernels.cu",
            (f"-DINNERLOOP_REAL={real}", "-DINNERLOOP_TABLE=kBlocks"),
            OPERATIONS,
        )
        for dtype, real in (("float32", "float"), ("float64", "double"))
    ),
    Unit("float64", "regression.cu", ("-fmad=false",), STUDY),
)


class Kernel(NamedTuple):
    """What one kernel takes, with all functions that it calls."""

    registers: int
    shared_bytes: int
    stack_bytes: int


def compile_one(architecture, unit, kind, folder):
    """Returns the file, a cubin or PTX, of one architecture and unit, and ptxas's report."""
    to = folder / f"{architecture}-{UNITS.index(unit)}.{kind}"
    command = [
        *("nvcc", "-std=c++17", f"-arch=sm_{architecture}", f"-{kind}", f"-I{ROOT / 'csrc'}"),
        *("-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror,-Wno-unknown-pragmas"),
        *(*unit.flags, "-Xptxas=-v", "-o", str(to), str(ROOT / "csrc/cuda" / unit.source)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"resources: nvcc failed for sm_{architecture}, {unit.source}\n{done.stderr}")
    return to, done.stderr


def check_rounding(architecture, folder):
    """Exits if an operation of the study may be contracted or is not correctly rounded."""
    ptx, _ = compile_one(architecture, UNITS[-1], "ptx", folder)
    text = ptx.read_text()
    if "add.rn.f64" not in text:
        sys.exit("resources: the study's PTX holds no sums: not what is meant here")
    if found := sorted(set(INEXACT.findall(text))):
        sys.exit(f"resources: {UNITS[-1].source} is not rounded as the CPU rounds: {found}")


def kernel_name(mangled):
    """Returns the key of a kernel that a mangled name belongs to."""
    return next(pattern for pattern in (*OPERATIONS, *STUDY) if re.search(pattern, mangled))


def read_report(report):
    """Returns {kernel: Kernel} of one report."""
    found, name = {}, None
    for line in report.splitlines():
        if entry := ENTRY.search(line):
            name = kernel_name(entry.group(1))
        elif used := USED.search(line):
            sizes = [pattern.search(line) for pattern in (SHARED, STACK)]
            found[name] = Kernel(int(used.group(1)), *(int(s.group(1)) if s else 0 for s in sizes))
    return found


def spilling(report):
    """Returns the mangled names of functions that spill."""
    names, name = [], None
    for line in report.splitlines():
        if function := FUNCTION.search(line):
            name = function.group(1)
        elif (memory := SPILLS.search(line)) and int(memory.group(1)) + int(memory.group(2)):
            names.append(name)
    return names


def version():
    """Returns nvcc's version."""
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", text).group(1)


def table(reports, architectures):
    """Returns the page of {(architecture, unit): {kernel: Kernel}}; units by their index."""
    lines = [
        "# Registers and memory of the CUDA kernels",
        "",
        f"Generated by `python tests/cuda/resources.py` from ptxas's report, nvcc {version()}.",
        "Registers per thread; static shared memory and stack in bytes, the most of all",
        "architectures (the workspace of a resident block comes on top). No function of these",
        "kernels keeps registers in memory (spills): the script fails where one does.",
        "",
        "| kernel | dtype | "
        + " | ".join(f"sm_{a}" for a in architectures)
        + " | shared | stack |",
        "|---|---|" + "---:|" * (len(architectures) + 2),
    ]
    for key, title in (OPERATIONS | STUDY).items():
        for index, unit in enumerate(UNITS):
            if key not in unit.kernels:
                continue
            row = [reports[a, index][key] for a in architectures]
            numbers = [str(kernel.registers) for kernel in row]
            numbers.append(str(max(kernel.shared_bytes for kernel in row)))
            numbers.append(str(max(kernel.stack_bytes for kernel in row)))
            lines.append(f"| {title} | {unit.dtype} | " + " | ".join(numbers) + " |")
    return "\n".join(lines) + "\n"


def main():
    """Compiles, reports, and writes or compares the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed table")
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("resources: nvcc not found")
    cases = [(a, index) for a in options.architectures for index in range(len(UNITS))]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        folder = Path(name)
        check_rounding(options.architectures[-1], folder)
        texts = list(
            pool.map(lambda case: compile_one(case[0], UNITS[case[1]], "cubin", folder)[1], cases)
        )
    bad = [(case, name) for case, text in zip(cases, texts, strict=True) for name in spilling(text)]
    if bad:
        for (architecture, index), name in bad:
            print(f"sm_{architecture} {UNITS[index].dtype}: {name}", file=sys.stderr)
        sys.exit("resources: these functions spill registers")
    reports = {case: read_report(text) for case, text in zip(cases, texts, strict=True)}
    if tuple(options.architectures) != ARCHITECTURES:
        print(table(reports, options.architectures), end="")
        return
    page = table(reports, ARCHITECTURES)
    if not options.check:
        TABLE.write_text(page, encoding="utf-8")
    elif f"nvcc {version()}." not in TABLE.read_text(encoding="utf-8"):
        print("resources: the committed table is of another nvcc and is not compared")
    elif page != TABLE.read_text(encoding="utf-8"):
        sys.exit(f"resources: {TABLE.name} is out of date; run python tests/cuda/resources.py")
    print(f"resources: {len(cases)} compilations without warnings or spills")


if __name__ == "__main__":
    main()
