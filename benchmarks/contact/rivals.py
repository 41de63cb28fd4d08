"""The rivals: compiled on spare cores while the kernels are built, then waiting, then timed one at
a time.

One process each: the hand-written batched program, which compiles nothing and is captured in a
graph when its turn comes; JAX with all cases; torch.compile with a process for each of four. The
controller (`run`) starts them and says whose turn it is; a file tells it that the card is theirs
(`GO`).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cases.names import CASE_NAMES
from contact import place
from contact.record import WORK, Step, read
from measure.environment import RUN

LATE = "not compiled in time"
COMPILED = ("sinusoid-5", "omniglot-fc", "wide", "hvp")  # by torch.compile; a minute each
READY, GO = WORK / "rivals-ready", WORK / "rivals-go"
PATIENCE_S = 20.0  # for the case that is being compiled when the card is free


def lineup() -> list[tuple[str, tuple[str, ...]]]:
    """(rival, its cases) of each process, in the order of their turns."""
    each = CASE_NAMES["cuda"]
    return [("bmm", each), ("jax_jit", each), *(("torch_compile", (name,)) for name in COMPILED)]


def command(name: str, cases: tuple[str, ...]) -> list[str]:
    """What starts a rival's process."""
    return [sys.executable, str(RUN), "contact", "rival", name, *cases]


class Process:
    """A rival's process, whose lines are read as they come."""

    def __init__(self, name: str, cases: tuple[str, ...]) -> None:
        self.name, self.cases = name, cases
        self._process = subprocess.Popen(
            command(name, cases),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._state = "compiling"  # or "ready", or what else it said: nothing if it ended
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")  # it has ended

    def is_compiling(self, patience_s: float = 0.1) -> bool:
        """Whether it has neither said that it is ready nor ended, after a little patience."""
        if self._state == "compiling":
            with contextlib.suppress(queue.Empty):
                self._state = self._lines.get(timeout=max(0.0, patience_s)).strip()
        return self._state == "compiling"

    def tell(self, word: str) -> None:
        """Says "stop", to compile no further case, or "go", to measure."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()

    def reports(self) -> Any:
        """(case, report) as they are measured, until it ends."""
        while self._state == "ready" and (line := self._lines.get()):
            if line.startswith("{"):
                found = json.loads(line)
                yield found["case"], found["report"]

    def end(self) -> None:
        """Ends it, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def run(step: Step) -> None:
    """Starts all, waits for `GO`, then gives each its turn. Entries: case -> rival -> report."""
    for file in (READY, GO):
        file.unlink(missing_ok=True)
    processes = [
        Process(name, cases)
        for name, all_cases in lineup()
        if (cases := tuple(c for c in all_cases if name not in step.result.get(c, {})))
    ]
    try:
        while any(p.is_compiling() for p in processes) and not GO.exists():
            pass
        READY.write_text("")
        while not GO.exists():
            if os.getppid() == 1:
                return  # the script is gone
            time.sleep(0.1)
        late = [process for process in processes if process.is_compiling(0.0)]
        for process in late:
            process.tell("stop")
        last = time.monotonic() + PATIENCE_S
        late = [process for process in late if process.is_compiling(last - time.monotonic())]
        for process in processes:
            missing = set(process.cases)
            if process not in late:
                process.tell("go")
            for case, report in process.reports():
                missing.discard(case)
                _put(step, case, process.name, report)
            for case in missing:
                why = LATE if process in late else "its process ended"
                _put(step, case, process.name, {"failed": why})
            process.end()
    finally:
        for process in processes:
            process.end()


def await_end(folder: Path, controller: int) -> None:
    """Tells the controller that the card is free and returns when it has ended, with an error if it
    left a case out."""
    GO.write_text("")
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(controller, 0)
            time.sleep(0.2)
    found = read(folder, "rivals").get("result", {})
    missing = [f"{name} {case}" for name, cases in lineup() for case in cases
               if name not in found.get(case, {})]  # fmt: skip
    if missing:
        raise SystemExit(f"the rivals ended early, without {', '.join(missing)}"[:400])


def _put(step: Step, case: str, name: str, report: dict[str, Any]) -> None:
    step.put(case, {**step.result.get(case, {}), name: report})


# ---------------------------------------------------------------- a rival's process


def serve(name: str, cases: list[str]) -> None:
    """Compiles until it is done or told to stop, says "ready", waits for its turn, measures case
    after case."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import baselines

    module = baselines.load(name)
    absent = module.missing()
    prepared: dict[str, Any] = {}
    for case in cases if absent is None and name != "bmm" else ():
        if select.select([sys.stdin], [], [], 0.0)[0]:
            break
        prepared[case] = _prepared(module, case)
    print("ready", file=answers, flush=True)
    while (word := sys.stdin.readline().strip()) != "go":
        if not word:
            return
    for case in cases:
        if absent is not None:
            report: dict[str, Any] = {"skipped": absent}
        elif name == "bmm":
            report = _report(case, _prepared(module, case), module)
        else:
            report = _report(case, prepared.pop(case, {"failed": LATE}), module)
        print(json.dumps({"case": case, "report": report}), file=answers, flush=True)
        place.free()


def _prepared(module: Any, case: str) -> Any:
    """The tuned call of a rival at its plain settings, or why there is none."""
    from measure.device_timing import clock_of
    from measure.tune import NothingRan, tune

    try:
        problem = place.problem_of(case)
        if reason := module.unfit(problem.case, place.DEVICE):
            return {"skipped": reason}
        return tune(module, problem, True, clock_of(module, "cuda"))
    except NothingRan as failure:
        return {"failed": str(failure)[:400]}
    except Exception as failure:  # a rival's own failure, whatever it is, is its result
        return {"failed": place.short(failure)}


def _report(case: str, prepared: Any, module: Any) -> dict[str, Any]:
    """The rival's seconds, after a look at its numbers."""
    import torch

    from cases.reference import TOLERANCE, disagreement, numbers
    from contact.ours import sampled
    from contact.references import expected
    from measure.device_timing import clock_of

    if isinstance(prepared, dict):
        return dict(prepared)
    try:
        error = disagreement(numbers(prepared.call()), expected(case))
        if not error <= TOLERANCE[torch.float32]:
            return {"failed": f"relative error {error:.1e} against float64"}
        gc.collect()
        found = sampled(prepared.call, clock_of(module, "cuda"))
    except Exception as failure:
        return {"failed": place.short(failure)}
    return {"choice": prepared.choice, "disagreement": error, **found}
