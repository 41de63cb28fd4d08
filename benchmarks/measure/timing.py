"""The one timing function: agreement first, then warm-up and many interleaved repeats.

Rivals take turns. In a round each gets one block of consecutive calls, whose mean
is one sample; the order turns by one place every round. A slow phase of the machine thus hits
everybody alike, and ratios are taken within rounds.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Call = Callable[[], Any]
SLOW_S = 0.2  # calls slower than this need no warm-up of their own in every round


@dataclass(frozen=True)
class Effort:
    """How long to measure. `block_s` is the length of one sample, `budget_s` a rival's total."""

    rounds: int
    block_s: float
    budget_s: float
    settle_s: float = 0.01  # longer than a thread pool of OpenMP spins
    fewest_rounds: int = 3


FULL = Effort(rounds=60, block_s=0.03, budget_s=6.0, fewest_rounds=5)
QUICK = Effort(rounds=7, block_s=0.01, budget_s=0.5)


@dataclass(frozen=True)
class Timing:
    """What is reported of one rival: seconds per call, one sample per round."""

    samples_s: list[float]
    calls_per_sample: int
    disagreement: float

    def summary(self) -> dict[str, Any]:
        """Median and quartiles as JSON numbers, with the samples they come from."""
        return {**spread(self.samples_s), "calls_per_sample": self.calls_per_sample}


class Disagreement(RuntimeError):
    """A rival's numbers differ from the float64 reference."""


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and minimum of samples in seconds."""
    q1, median, q3 = (float(q) for q in np.quantile(samples, [0.25, 0.5, 0.75]))
    return {
        "median_s": median,
        "q1_s": q1,
        "q3_s": q3,
        "min_s": float(min(samples)),
        "samples": len(samples),
    }


def paired_ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of slow / fast over the rounds that both took part in."""
    rounds = min(len(slow), len(fast))
    ratios = np.asarray(slow[:rounds]) / np.asarray(fast[:rounds])
    q1, median, q3 = (float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    return {"median": median, "q1": q1, "q3": q3}


class Clock:
    """The host's clock. `wait(result)` returns when a call's numbers are there; on the CPU they
    are there when the call returns. `device_timing.EventClock` is the clock of torch on a GPU."""

    def __init__(self, wait: Callable[[Any], None] = lambda _: None) -> None:
        self._wait = wait

    def block(self, call: Call, calls: int) -> float:
        """Mean seconds of consecutive calls, the last one's numbers waited for."""
        start = time.perf_counter()
        for _ in range(calls - 1):
            call()
        self.wait(call())
        return (time.perf_counter() - start) / calls

    def wait(self, result: Any) -> None:
        """Returns when the numbers of the last call, which returned `result`, are there."""
        self._wait(result)


HOST = Clock()


def seconds_of(call: Call, clock: Clock = HOST) -> tuple[Any, float]:
    """The result of one call and its wall-clock seconds."""
    start = time.perf_counter()
    result = call()
    clock.wait(result)
    return result, time.perf_counter() - start


def _settle(call: Call, seconds: float, clock: Clock) -> None:
    """Untimed calls: own caches warm again, the previous rival's spinning threads asleep."""
    if seconds == 0.0:
        return
    end = time.perf_counter() + seconds
    clock.wait(call())
    while time.perf_counter() < end:
        clock.wait(call())


def rough_seconds(call: Call, budget_s: float = 0.2, clock: Clock = HOST) -> float:
    """Best time of a few calls, for planning and for choosing among settings."""
    end = time.perf_counter() + budget_s
    best = seconds_of(call, clock)[1]
    while time.perf_counter() < end:
        calls = max(1, int(0.02 / max(best, 1e-7)))
        best = min(best, clock.block(call, calls))
    return best


class Rival(Protocol):
    """What can be timed: here, or in another process (`rival.RivalProcess`)."""

    def estimate(self) -> float:
        """Seconds of one call, roughly; also the warm-up."""

    def block(self, calls: int, settle_s: float) -> float:
        """Mean seconds of consecutive calls, after untimed ones for `settle_s` seconds."""


class LocalRival:
    """A call of this process."""

    def __init__(self, call: Call, clock: Clock = HOST) -> None:
        self._call = call
        self._clock = clock

    def estimate(self) -> float:
        """See `Rival`."""
        first = seconds_of(self._call, self._clock)[1]
        return first if first >= SLOW_S else rough_seconds(self._call, clock=self._clock)

    def block(self, calls: int, settle_s: float) -> float:
        """See `Rival`."""
        _settle(self._call, settle_s, self._clock)
        return self._clock.block(self._call, calls)


def interleave(rivals: Mapping[str, Rival], effort: Effort) -> dict[str, tuple[list[float], int]]:
    """Samples in seconds and calls per sample of each rival, taken in turns.

    A rival too slow for `effort.rounds` samples within `effort.budget_s` takes part in the first
    rounds only (never fewer than `effort.fewest_rounds`).
    """
    plans: dict[str, tuple[int, int, float]] = {}  # calls per block, rounds, settling seconds
    for name, rival in rivals.items():
        estimate = rival.estimate()
        per_block = max(1, round(effort.block_s / estimate))
        settle_s = effort.settle_s if estimate < SLOW_S else 0.0
        block_s = per_block * estimate + settle_s
        rounds = int(min(effort.rounds, max(effort.fewest_rounds, effort.budget_s / block_s)))
        plans[name] = (per_block, rounds, settle_s)
    samples: dict[str, list[float]] = {name: [] for name in plans}
    for index in range(max((rounds for _, rounds, _ in plans.values()), default=0)):
        turn = [name for name, (_, rounds, _) in plans.items() if index < rounds]
        turn = turn[index % len(turn) :] + turn[: index % len(turn)]
        for name in turn:
            per_block, _, settle_s = plans[name]
            samples[name].append(rivals[name].block(per_block, settle_s))
    return {name: (samples[name], per_block) for name, (per_block, _, _) in plans.items()}


def disagreement_text(error: float, tolerance: float) -> str:
    """Why a rival is not timed."""
    return f"relative error {error:.2e} against the float64 reference, allowed {tolerance:.0e}"


def time_rivals(
    calls: dict[str, Call], disagreement: Callable[[Any], float], tolerance: float, effort: Effort
) -> dict[str, Timing | Disagreement]:
    """Times calls of this process against each other after checking what each returns.

    Args:
        calls: rival name to a call without arguments that returns when its numbers are there.
        disagreement: relative error of a call's result against the reference.
        tolerance: a rival above it is not timed and reported as a `Disagreement`.
        effort: repeats and time limits, see `interleave`.
    """
    results: dict[str, Timing | Disagreement] = {}
    errors: dict[str, float] = {}
    for name, call in calls.items():
        errors[name] = disagreement(call())
        if not errors[name] <= tolerance:
            results[name] = Disagreement(disagreement_text(errors[name], tolerance))
    right = {name: LocalRival(call) for name, call in calls.items() if name not in results}
    gc.collect()
    gc.freeze()  # what importing left behind is not collected again inside somebody's block
    try:
        for name, (samples, per_block) in interleave(right, effort).items():
            results[name] = Timing(samples, per_block, errors[name])
    finally:
        gc.unfreeze()
    return results


def _status_bytes(field: str) -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def peak_growth_bytes(call: Call, calls: int = 3) -> int | None:
    """How far the peak resident memory rises above the present during a few calls (Linux only).

    Free heap pages are returned to the system first, so that temporaries count although an earlier
    call has already allocated the like; memory a rival keeps between calls counts only if `call` is
    its first.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = _status_bytes("VmRSS")
        for _ in range(calls):
            call()
        peak = _status_bytes("VmHWM")
    except (OSError, AttributeError):
        return None
    return None if before is None or peak is None else max(0, peak - before)
