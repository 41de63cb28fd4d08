"""Stand-ins for a GPU in a rehearsal of benchmarks/first_contact.sh: tensors on the CPU, the host's
clock in place of events, the kernels on emulated blocks, cases of a few numbers.

Everything else of the steps runs as it would on a card. `bin` holds stand-ins for the tools.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

H100 = (132, 232448, 233472)


class Event:
    """Of torch.cuda, by the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return max(1e-4, 1e3 * (end.at - self.at))


class Stream:
    """Of torch.cuda."""

    cuda_stream = 0

    def wait_stream(self, other: Stream) -> None:
        pass


class Graph:
    """Of torch.cuda: what was captured has run already."""

    def replay(self) -> None:
        time.sleep(1e-6)


class Profile:
    """Of torch.profiler: one kernel."""

    def __init__(self, activities: Any) -> None:
        assert activities

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def key_averages(self) -> list[Any]:
        import torch

        kind = torch.autograd.DeviceType.CUDA
        found = {"key": "task_kernel", "count": 10, "device_time_total": 50.0, "device_type": kind}
        return [SimpleNamespace(**found)]


@contextmanager
def nothing(_: Any) -> Any:
    """A context that does nothing."""
    yield


def install() -> None:
    """Puts the stand-ins in the place of the device, of its limits and of the kernels."""
    import torch
    from cases import nine as cases
    from contact import place, smoke
    from measure import gpu

    fakes: dict[str, Any] = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "stream": nothing,
        "graph": nothing,
        "synchronize": lambda: None,
        "current_device": lambda: 0,
        "current_stream": lambda device=None: Stream(),
        "_compile_kernel": lambda source, name: lambda **launch: None,
        "get_device_properties": lambda index: SimpleNamespace(
            name="a stand-in", major=9, minor=0, multi_processor_count=1, total_memory=1 << 30
        ),
    }
    for name, fake in fakes.items():
        setattr(torch.cuda, name, fake)
    torch.profiler.profile = Profile  # type: ignore[misc,assignment]
    torch.compile = lambda function, **options: function  # type: ignore[assignment]
    torch.set_num_threads(1)
    cases.Problem.device = "cuda"  # type: ignore[assignment]  # how it is computed, not where
    smoke.NETWORKS["small"] |= {"widths": [3, 8, 8, 2], "tasks": 3, "rows": 4, "steps": 1}
    smoke.NETWORKS["wide inputs"] |= {"widths": [40, 8, 8, 2], "tasks": 2, "rows": 2, "steps": 1}
    gpu.DEVICE, gpu.GEMM_SIZE, gpu.COPY_MEGABYTES = "cpu", 64, 1
    place.DEVICE, place.BUDGET_S = "cpu", 0.002
    shrink_cases()
    if importlib.util.find_spec("innerloop") is not None:
        emulate_kernels()


def shrink_cases() -> None:
    """Keeps what the cases are and takes nearly all of their numbers away."""
    from cases.cuda import CUDA_CASES
    from contact import rivals

    for name, case in CUDA_CASES.items():
        first = 16 if case.data == "characters" else min(case.widths[0], 6)
        hidden = (4,) * min(2, case.layers - 1)
        CUDA_CASES[name] = replace(
            case,
            widths=(first, *hidden, case.widths[-1]),
            tasks=3,
            support=min(case.support, 4),
            query=min(case.query, 3),
            steps=min(case.steps, 2),
        )
    rivals.COMPILED = rivals.COMPILED[:1]


def emulate_kernels() -> None:
    """The emulation as the CUDA module, and in the place of the CPU kernels."""
    import torch
    from contact.build import STAGE

    from innerloop import _kernels, _native

    path = next((STAGE / "innerloop").glob("_cuda*.so"), None)
    if path is None or not Path(_native.__file__).is_relative_to(STAGE):
        return  # the card is looked at before anything is built
    spec = importlib.util.spec_from_file_location("_emulated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.set_device(*H100)  # type: ignore[attr-defined]
    module.device_facts = lambda index: H100  # type: ignore[attr-defined]
    sys.modules["innerloop._cuda"] = module
    kept = []

    def allocate(size: int) -> int:
        kept.append(torch.full((size,), 255, dtype=torch.uint8))
        return int(kept[-1].data_ptr())

    def target(plan: Any, x: Any) -> Any:
        kept.clear()
        there = 0, 0, allocate, None, plan.options.execution.allow_tf32
        return module, _kernels.native_plan(plan, module), there

    _kernels.TARGETS["cpu"] = target
    _native.cuda_reason = lambda index=None: ""  # type: ignore[assignment]
