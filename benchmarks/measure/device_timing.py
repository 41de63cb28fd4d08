"""Time and memory on a GPU: events around blocks of calls, peaks of the allocator, kernel times."""

from __future__ import annotations

import gc
from typing import Any

import torch

from measure import timing
from measure.timing import Call, Clock


class EventClock(Clock):
    """Times blocks of torch calls by events of the current stream.

    A block starts on an idle device and ends when its last kernel ends, so launches that the host
    makes too slowly count as they would in a program.
    """

    def block(self, call: Call, calls: int) -> float:
        """See `Clock`."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / calls

    def wait(self, result: Any) -> None:
        """See `Clock`."""
        torch.cuda.synchronize()


def clock_of(module: Any, device: str) -> Clock:
    """How a rival is timed: events for torch on a GPU, else the host's clock.

    A rival with a queue of its own (JAX) has `wait(result)`, and the host's clock stops after it.
    """
    if device == "cpu":
        return timing.HOST
    return Clock(module.wait) if hasattr(module, "wait") else EventClock()


def peak_growth_bytes(call: Call, device: str, calls: int = 3) -> int | None:
    """How far memory rises above the present during a few calls: torch's allocator on a GPU, the
    resident set on the CPU."""
    if device == "cpu":
        return timing.peak_growth_bytes(call, calls)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return max(0, int(torch.cuda.max_memory_allocated()) - before)


def kernel_times(call: Call, calls: int = 10) -> list[dict[str, Any]]:
    """What a call runs on the GPU: name, launches and seconds per call of each kernel, slowest
    first; from torch's profiler, whose own cost is not in these times."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    kernels = [
        {
            "name": event.key[:120],
            "launches": event.count / calls,
            "seconds": event.device_time_total / 1e6 / calls,
        }
        for event in found.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(kernels, key=lambda kernel: -float(kernel["seconds"]))
