"""One measurement in one fresh process, pinned to as many processor cores as threads are asked for.

Thread pools read their sizes when torch and JAX are imported, so nothing of theirs may be imported
before `serve` has set them; `measure` is how the parent starts such a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from measure import environment


@dataclass(frozen=True)
class Request:
    """What one process is asked to measure."""

    what: str  # a case or a routine
    threads: int
    baselines: tuple[str, ...] = ()
    quick: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    part: dict[str, Any] = field(default_factory=dict)  # one piece of a routine, if not empty

    def of(self, **part: Any) -> Request:
        """The same request for one piece of the routine, to be measured in its own process."""
        return replace(self, part=part)


class WorkerFailed(RuntimeError):
    """A measuring process ended without a result."""


def measure(request: Request, **variables: str) -> dict[str, Any]:
    """Runs a request in a fresh process and returns its result.

    Args:
        request: what to measure.
        variables: environment variables to add.
    """
    surroundings = {
        **os.environ,
        **environment.thread_environment(request.threads, request.device),
        "PYTHONFAULTHANDLER": "1",  # a crash says where
        **variables,
    }
    with tempfile.TemporaryDirectory(prefix="innerloop-bench-") as folder:
        target = Path(folder, "result.json")
        command = [
            sys.executable,
            str(environment.RUN),
            "--worker",
            json.dumps(asdict(request)),
            str(target),
        ]
        done = subprocess.run(command, env=surroundings, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0 or not target.exists():
            raise WorkerFailed(
                f"run.py: measuring {request.what} on {request.device} with "
                f"{request.threads} thread(s) failed "
                f"(exit status {done.returncode}):\n{done.stderr[-3000:]}"
            )
        result: dict[str, Any] = json.loads(target.read_text())
    return result


def cuda_reason() -> str:
    """Why innerloop's CUDA kernels cannot run here, asked of a process that may import torch."""
    question = "from innerloop import _native; print(_native.cuda_reason())"
    done = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip()[-300:]


def serve(text: str, target: str) -> None:
    """The measuring process: pins itself, measures, writes the result as JSON."""
    fields = json.loads(text)
    request = Request(**{**fields, "baselines": tuple(fields["baselines"])})
    os.sched_setaffinity(0, environment.one_cpu_per_core(request.threads))
    import torch

    torch.set_num_threads(request.threads)
    if request.part:
        result = _routine(request).measure_part(request)
    else:
        import routines
        from measure import speed

        surroundings = environment.record(request.threads, request.dtype, request.device)
        routine = request.what in routines.NAMES_ON[request.device]
        measured = _routine(request).run(request) if routine else speed.measure_case(request)
        surroundings["load_average_after"] = [round(value, 2) for value in os.getloadavg()]
        if request.device == "cuda":
            from measure import gpu

            surroundings["gpu"]["state_after"] = gpu.state()
        result = {"environment": surroundings, **measured}
    Path(target).write_text(json.dumps(result))


def _routine(request: Request) -> Any:
    import routines

    return routines.load(request.what)
