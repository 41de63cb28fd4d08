"""One rival in a process of its own, which runs blocks of calls when it is asked through a pipe.

Rivals that share a process slow each other down: thread pools that spin, allocators and caches of
code differ by rival, and a compiled call was seen to take twice its time next to another library.
Here only one process computes at a time; the others wait for their turn in a read.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import environment, timing
from measure.worker import Request


class RivalDied(RuntimeError):
    """A rival's process ended while it was asked for something."""


class RivalProcess:
    """A rival that waits in its own process, pinned as this one is; see `timing.Rival`.

    Args:
        request: the case, with the number of threads, the dtype and the seed.
        name: the baseline.
        expected: file of `save_expected`.
    """

    def __init__(self, request: Request, name: str, expected: Path) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        command = [sys.executable, str(environment.RUN), "--rival"]
        self._process = subprocess.Popen(
            [*command, json.dumps(asdict(request)), name, str(expected)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def prepare(self) -> dict[str, Any]:
        """Tunes the rival and checks its numbers; returns what is to be reported of it."""
        found: dict[str, Any] = self._ask({"do": "prepare"})
        return found

    def estimate(self) -> float:
        """Seconds of one call, roughly; also the warm-up."""
        return float(self._ask({"do": "estimate"}))

    def block(self, calls: int, settle_s: float) -> float:
        """Mean seconds of consecutive calls, after untimed ones for `settle_s` seconds."""
        return float(self._ask({"do": "block", "calls": calls, "settle_s": settle_s}))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = self._process.wait()
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")[-300:]
            raise RivalDied(f"its process ended with status {status}: {said}")
        return json.loads(answer)


def save_expected(arrays: list[Any], target: Path) -> None:
    """Writes the reference's numbers for the rivals' processes."""
    import numpy as np

    np.savez(target, *arrays)


def serve(text: str, name: str, expected_file: str) -> None:
    """The rival's process: answers questions, one line of JSON each, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    fields = json.loads(text)
    request = Request(**{**fields, "baselines": tuple(fields["baselines"])})
    import numpy as np
    import torch

    import baselines
    from cases.cuda import CASES_ON
    from cases.nine import make_problem
    from measure.device_timing import clock_of

    torch.set_num_threads(request.threads)
    case = CASES_ON[request.device][request.what]
    problem = make_problem(case, getattr(torch, request.dtype), request.seed, request.device)
    clock = clock_of(baselines.load(name), request.device)
    with np.load(expected_file) as stored:
        expected = [stored[key] for key in stored.files]
    local: timing.LocalRival | None = None
    for line in sys.stdin:
        question = json.loads(line)
        answer: Any
        if question["do"] == "prepare":
            answer, call = _prepare(name, problem, expected, request, clock)
            local = timing.LocalRival(call, clock) if call is not None else None
            gc.collect()
            gc.freeze()  # what importing left behind is not collected again inside a block
        elif local is None:
            raise RuntimeError(f"{name} was asked for {question['do']} before it was ready")
        elif question["do"] == "estimate":
            answer = local.estimate()
        else:
            answer = local.block(question["calls"], question["settle_s"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def once(request: Request, calls: int = 3) -> None:
    """Calls innerloop on a case in this process and does nothing else, for a profiler to watch."""
    import torch

    import baselines
    from cases.cuda import CASES_ON
    from cases.nine import make_problem
    from measure.device_timing import clock_of

    case = CASES_ON[request.device][request.what]
    problem = make_problem(case, getattr(torch, request.dtype), request.seed, request.device)
    module = baselines.load("innerloop")
    call = next(iter(module.formulations(problem).values()))()
    clock_of(module, request.device).block(call, calls)


def _prepare(
    name: str, problem: Any, expected: list[Any], request: Request, clock: timing.Clock
) -> tuple[dict[str, Any], timing.Call | None]:
    """What is to be reported of a rival, and its call if it can be timed."""
    import torch

    import baselines
    from cases.reference import TOLERANCE, disagreement, numbers
    from measure.device_timing import peak_growth_bytes
    from measure.tune import NothingRan, tune

    module = baselines.load(name)
    report = baselines.facts(name, request.device)
    reason = module.missing() or module.unfit(problem.case, request.device)
    if reason is not None:
        return {**report, "skipped": reason}, None
    if name == "innerloop":
        report["backend"] = module.backend(problem.rows(0, 1))
        fresh = next(iter(module.formulations(problem).values()))()
        # with its kept workspace
        report["peak_bytes"] = peak_growth_bytes(fresh, request.device)
    elif request.device == "cuda":
        # Graphs and compiled calls own their memory already: routines/device_memory.py measures it.
        report["peak_bytes"] = None
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # autotuning logs
            tuned = tune(module, problem, request.quick, clock)
    except NothingRan as error:
        return {**report, "failed": str(error)}, None
    report.update(choice=tuned.choice, first_call_s=tuned.first_call_s, trials=tuned.trials)
    if "peak_bytes" not in report:
        slow = tuned.trials[-1].get("rough_s", 0.0) > timing.SLOW_S
        report["peak_bytes"] = timing.peak_growth_bytes(tuned.call, calls=1 if slow else 3)
    tolerance = TOLERANCE[getattr(torch, request.dtype)]
    if request.dtype == "float32":
        tolerance = getattr(module, "TOLERANCE", tolerance)
    report["disagreement"] = disagreement(numbers(tuned.call()), expected)
    if not report["disagreement"] <= tolerance:
        failed = timing.disagreement_text(report.pop("disagreement"), tolerance)
        return {**report, "failed": failed, "disagrees": True}, None
    if request.device == "cuda" and name.startswith("innerloop"):
        report.update(_on_the_card(problem.case, tuned.call, request))
    return report, tuned.call


def _on_the_card(case: Any, call: timing.Call, request: Request) -> dict[str, Any]:
    """How a call of ours is cut into blocks, and how long its kernels take by themselves."""
    from baselines.innerloop_baseline import schedule
    from measure.device_timing import kernel_times

    found: dict[str, Any] = {"schedule": schedule(case, request.dtype == "float64")}
    try:
        found["kernels"] = kernel_times(call)
    except Exception as error:  # a profiler that may not read this card is no reason to stop
        found["kernels_failed"] = f"{type(error).__name__}: {error}"[:300]
    return found
