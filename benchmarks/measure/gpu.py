"""The card a measurement was taken on: name, driver, clocks as found, and its measured limits."""

from __future__ import annotations

import statistics
import subprocess
from typing import Any

QUERY = {
    "name": "name",
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "most_sm_mhz": "clocks.max.sm",
    "most_memory_mhz": "clocks.max.mem",
    "celsius": "temperature.gpu",
    "watts": "power.draw",
    "most_watts": "power.limit",
    "mig": "mig.mode.current",
}
TEXT = ("name", "driver", "mig")
# One multiply-add per turn on each of eight independent sums, enough to hide its latency.
FMA_SOURCE = """
extern "C" __global__ void multiply_add(float* out, const float* factors, int turns) {
  const float a = factors[0], b = factors[1];
  float x0 = threadIdx.x, x1 = x0 + 1, x2 = x0 + 2, x3 = x0 + 3;
  float x4 = x0 + 4, x5 = x0 + 5, x6 = x0 + 6, x7 = x0 + 7;
  for (int i = 0; i < turns; ++i) {
    x0 = fmaf(x0, a, b); x1 = fmaf(x1, a, b); x2 = fmaf(x2, a, b); x3 = fmaf(x3, a, b);
    x4 = fmaf(x4, a, b); x5 = fmaf(x5, a, b); x6 = fmaf(x6, a, b); x7 = fmaf(x7, a, b);
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7;
}
"""
SUMS = 8
# What the limits are measured on, far larger than any cache.
DEVICE = "cuda"
GEMM_SIZE = 8192
COPY_MEGABYTES = 2048


def state() -> dict[str, Any]:
    """Clocks, temperature and power at this moment; empty without nvidia-smi. Changes nothing."""
    command = [
        "nvidia-smi",
        f"--query-gpu={','.join(QUERY.values())}",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return parsed(done.stdout)


def parsed(text: str) -> dict[str, Any]:
    """The first card's values in the output of nvidia-smi; None where it knows none."""
    values = [value.strip() for value in text.strip().splitlines()[0].split(",")]
    found: dict[str, Any] = {}
    for key, value in zip(QUERY, values, strict=True):
        if key in TEXT:
            found[key] = value
            continue
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = None
    return found


def record(dtype_name: str) -> dict[str, Any]:
    """Everything about the card that a reader needs to judge the numbers beside it."""
    import torch

    facts = torch.cuda.get_device_properties(0)
    before = state()
    return {
        "name": facts.name,
        "driver": before.get("driver"),
        "cuda": torch.version.cuda,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_bytes": facts.total_memory,
        "state_before": before,
        "limits": limits(dtype_name),
    }


def limits(dtype_name: str) -> dict[str, Any]:
    """What this card reached just now: rates in GFLOP/s and GB/s, latencies in seconds."""
    found: dict[str, Any] = {
        "gemm_gflops": gemm_gflops(dtype_name),
        "copy_gbytes_per_s": copy_gbytes_per_s(),
        **launch_seconds(),
    }
    if dtype_name == "float32":
        found["tf32_gemm_gflops"] = gemm_gflops(dtype_name, tf32=True)
        try:
            found["fma_gflops"] = fma_gflops()
        except Exception as error:  # torch's run-time compiler is private to it and may move
            found["fma_failed"] = f"{type(error).__name__}: {error}"[:300]
    return found


def _seconds(call: Any, calls: int, repeats: int = 7) -> float:
    """The best of some blocks of calls, by events."""
    from measure.device_timing import EventClock

    clock = EventClock()
    clock.block(call, calls)
    return min(clock.block(call, calls) for _ in range(repeats))


def gemm_gflops(dtype_name: str = "float32", tf32: bool = False) -> float:
    """Rate of torch.mm on two large square matrices of random numbers."""
    import torch

    dtype, size = getattr(torch, dtype_name), GEMM_SIZE
    a, b = (torch.randn(size, size, dtype=dtype, device=DEVICE) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        seconds = _seconds(lambda: torch.mm(a, b, out=out), calls=2, repeats=4)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * size**3 / seconds / 1e9


def fma_gflops(turns: int = 4096) -> float:
    """Rate of multiply-adds that touch nothing but registers, two operations each."""
    import torch

    kernel = torch.cuda._compile_kernel(FMA_SOURCE, "multiply_add")
    threads = 256
    blocks = 16 * torch.cuda.get_device_properties(0).multi_processor_count
    out = torch.empty(blocks * threads, device=DEVICE)
    factors = torch.tensor([0.999, 0.5], device=DEVICE)

    def call() -> None:
        kernel(grid=(blocks, 1, 1), block=(threads, 1, 1), args=[out, factors, turns])

    return 2 * SUMS * turns * blocks * threads / _seconds(call, calls=4) / 1e9


def copy_gbytes_per_s() -> float:
    """Rate of a device-to-device copy, reads and writes both counted."""
    import torch

    source = torch.randn(COPY_MEGABYTES * 2**18, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _seconds(lambda: target.copy_(source), calls=4) / 1e9


def launch_seconds() -> dict[str, float]:
    """Seconds of one tiny kernel: launched from Python in a row, replayed in a graph of one, each
    of a graph of a hundred dependent ones, and from the launch to the end of waiting for it."""
    import torch

    from baselines.cuda_graph import captured
    from measure.timing import seconds_of

    one = torch.zeros(1, device=DEVICE)

    def tiny() -> Any:
        return one.add_(1.0)

    def hundred() -> Any:
        for _ in range(100):
            one.add_(1.0)
        return one

    def waited() -> None:
        tiny()
        torch.cuda.synchronize()

    return {
        "eager_launch_s": _seconds(tiny, calls=1000),
        "graph_launch_s": _seconds(captured(tiny), calls=1000),
        "dependent_kernel_s": _seconds(captured(hundred), calls=20) / 100,
        "round_trip_s": statistics.median(seconds_of(waited)[1] for _ in range(200)),
    }
