"""What a measurement was taken on: processor, threads, versions, and the limits measured there."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "benchmarks" / "run.py"
PACKAGES = ("torch", "jax", "jaxlib", "numpy", "higher", "learn2learn", "innerloop")


def one_cpu_per_core(count: int) -> list[int]:
    """CPU numbers to run on: of those allowed, distinct cores before hyper-threads."""
    allowed = sorted(os.sched_getaffinity(0))
    seen: set[tuple[str, str]] = set()
    first: list[int] = []
    second: list[int] = []
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            package = (topology / "physical_package_id").read_text().strip()
            core = (package, (topology / "core_id").read_text().strip())
        except OSError:
            core = ("", str(cpu))
        (second if core in seen else first).append(cpu)
        seen.add(core)
    return (first + second)[:count]


def thread_environment(threads: int, device: str = "cpu") -> dict[str, str]:
    """Variables that must be set before torch and JAX are imported."""
    common = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "NPROC": str(threads),  # size of JAX's CPU thread pool
    }
    if device == "cuda":
        return {
            **common,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the rivals share the card's memory
            "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
        }
    return {
        **common,
        "JAX_PLATFORMS": "cpu",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no forked compiler pool beside JAX's threads
    }


def _processor() -> dict[str, Any]:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return {"model": platform.processor()}
    flags = fields.get("flags", "").split()
    return {
        "model": fields.get("model name", platform.processor()),
        "family": fields.get("cpu family"),
        "model_number": fields.get("model"),
        "simd": [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16") if flag in flags],
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    if versions["innerloop"] is None:
        try:
            versions["innerloop"] = importlib.import_module("innerloop").__version__
        except (ImportError, AttributeError):
            versions["innerloop"] = None
    return versions


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def commit() -> str | None:
    """The checked-out commit, marked when files outside benchmarks/results and docs differ."""
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", "csrc", "python", "benchmarks/*.py"
    )
    return None if not head else head + (" with local changes" if changed else "")


def _native() -> dict[str, Any] | None:
    """Facts about innerloop's native module, if it is built."""
    try:
        native = importlib.import_module("innerloop._cpu")
    except ImportError:
        return None
    return {
        "simd_level": str(native.simd_level()),
        "build": {key: str(value) for key, value in dict(native.build_info()).items()},
    }


def gemm_gflops(dtype_name: str = "float32", size: int = 2048, repeats: int = 8) -> float:
    """Best rate of torch.mm on two large square matrices, at torch's present thread count."""
    import torch

    dtype = getattr(torch, dtype_name)
    a = torch.rand(size, size, dtype=dtype)
    b = torch.rand(size, size, dtype=dtype)
    out = torch.empty(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def copy_gbytes_per_s(megabytes: int = 256, repeats: int = 6) -> float:
    """Best rate of a large copy, reading and writing both counted."""
    import torch

    source = torch.zeros(megabytes * 2**18)
    target = torch.zeros_like(source)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * 4 / best / 1e9


def record(threads: int, dtype_name: str, device: str = "cpu") -> dict[str, Any]:
    """Everything about the machine that a reader needs to judge the numbers beside it."""
    if device == "cuda":
        from measure import gpu

        limits: dict[str, Any] = {"gpu": gpu.record(dtype_name)}
    else:
        limits = {
            "gemm_gflops": round(gemm_gflops(dtype_name), 1),
            "copy_gbytes_per_s": round(copy_gbytes_per_s(), 1),
        }
    return {
        "device": device,
        "processor": _processor(),
        "cpus_visible": os.cpu_count(),
        "threads": threads,
        "pinned_to_cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": _versions(),
        "innerloop_native": _native(),
        "commit": commit(),
        "dtype": dtype_name,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        **limits,
    }
