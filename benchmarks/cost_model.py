"""The model of cost of csrc/block/schedule.h in Python, its constants fitted to measured times.

The C++ model chooses while a program runs; this twin exists so that its constants can be varied.
The tests hold both to equal estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any

from cases import Case

FRAME_BYTES = 3072  # static shared memory of a kernel, and the driver's own
REGISTERS = 65536  # of a multiprocessor
THREAD_REGISTERS = {"resident": 200, "streamed": 200}
MORE_REGISTERS = 240  # of the other strategies
MOST_BLOCKS = 16  # on a multiprocessor
LAUNCH_CYCLES = 4000.0  # until a launch that waits for another one works
APART_LAUNCHES = 2  # with `one_product`: X W^T and the gradient of W
EXCHANGE_ROWS = 32  # between the blocks of a cluster
MOST_CHANGE = 64.0  # of a constant, by the fit
MODELLED = ("resident", "streamed", "cluster", "tiled")


@dataclass(frozen=True)
class Constants:
    """What calibration may change; the values are those of schedule.h."""

    phase_cycles: float = 120.0
    thread_cycles: float = 6.0
    multiply_adds_per_cycle: float = 32.0
    streamed_factor: float = 4.0
    exchange_cycles: float = 400.0
    remote_cycles: float = 0.25


@dataclass(frozen=True)
class Work:
    """One task's work: multiply-adds in products, results of a typical one, and barriers; exchanges
    between the blocks of a cluster and the numbers in them; and the multiply-adds of products that
    launches of their own take for all tasks at once."""

    multiply_adds: float
    width: float
    phases: float
    exchanges: float
    exchanged: float
    apart: float


def work(case: Case, one_product: bool = False, tiled: bool = False) -> Work:
    """What the model knows of a case, and of schedules with `one_product` or of tiles."""
    again = 3 if tiled else 0  # activations, back through a step
    sweeps, query_sweeps = (8, 0) if case.quantity == "hvp" else ((9 + again) * case.steps, 3)
    n, q, widths = case.support, case.query, case.widths
    passed = sweeps * n + query_sweeps * q  # rows
    multiply_adds = passed * sum(a * b for a, b in pairwise(widths))
    products = APART_LAUNCHES * (n + q) * widths[0] * widths[1]
    if is_implicit(case) and not tiled:
        multiply_adds += passed * (n - widths[0]) * widths[1] + (n + q) * n * widths[0] + products
    apart = float(products) if one_product else 0.0
    parts = sweeps * -(-n // EXCHANGE_ROWS) + query_sweeps * -(-q // EXCHANGE_ROWS)
    exchanges, exchanged = max(1, case.layers - 1) * parts, passed * sum(widths[1:-1])
    if tiled:
        exchanges = 2 * case.steps + 1
        exchanged = exchanges * case.parameters()
    return Work(
        multiply_adds=multiply_adds - apart,
        width=max(n, q) * max(widths[1:]),
        phases=2 * case.layers * (sweeps + query_sweeps) + 8,
        exchanges=exchanges,
        exchanged=exchanged,
        apart=apart,
    )


def is_implicit(case: Case) -> bool:
    """Whether the first layer's per-task weights are never built (csrc/core/request.h)."""
    n, q, (inputs, outputs) = case.support, case.query, case.widths[:2]
    saved = case.steps * (4 * inputs - 2 * n) * outputs
    pays = n <= inputs and saved > (n + q) * inputs + q * outputs
    return case.quantity != "hvp" and pays


def cycles(
    case: Case,
    entry: dict[str, Any],
    facts: Sequence[int],
    constants: Constants | None = None,
) -> float:
    """Estimated cycles of a whole call.

    Args:
        case: the case.
        entry: a schedule as `innerloop.plan` gives it.
        facts: as innerloop.schedule.DeviceFacts.
        constants: those of schedule.h unless given.
    """
    c = constants or Constants()
    tiled = entry["strategy"] == "tiled"
    task = work(case, entry["one_product"], tiled)
    group, threads, cluster = entry["tasks_per_block"], entry["threads"], entry["cluster"]
    shared = FRAME_BYTES + entry["shared_bytes"]
    slower = c.streamed_factor if entry["strategy"] in ("streamed", "low_rank") else 1.0
    slower += entry["far_steps"] / max(1, case.steps) * (c.streamed_factor - 1.0)
    tiles = max(1, -(-max(case.support, case.query) // entry["tile_rows"])) if tiled else 1
    width = group * task.width / (tiles if tiled else cluster)
    macs = group * task.multiply_adds * slower / cluster
    alone = -(-tiles // cluster) * task.phases * c.phase_cycles * slower
    alone += macs * c.thread_cycles / min(threads, width)
    if cluster > 1:
        alone += task.exchanges * c.exchange_cycles + group * task.exchanged * c.remote_cycles
    groups = -(-case.tasks // group)
    registers = THREAD_REGISTERS.get(entry["strategy"], MORE_REGISTERS)
    by_threads = REGISTERS // (registers * -(-threads // 32) * 32)
    in_flight = max(1, min(by_threads, facts[2] // shared, MOST_BLOCKS))
    waves = -(-groups // max(1, facts[0] * in_flight // cluster))
    together = min(in_flight, -(-groups * cluster // facts[0]))
    apart = case.tasks * task.apart / (c.multiply_adds_per_cycle * facts[0])
    apart += APART_LAUNCHES * LAUNCH_CYCLES if entry["one_product"] else 0.0
    return float(apart + waves * max(alone, together * macs / c.multiply_adds_per_cycle))


def fitted(log_error: Callable[[Constants], float]) -> Constants:
    """The constants with the smallest error, searched from those of schedule.h.

    One constant after the other is multiplied or divided by a factor while that helps; then the
    factor shrinks. The error has kinks (waves, maxima), so no derivatives are used. A constant that
    the times say nothing about stays within a factor of MOST_CHANGE.
    """
    start = astuple(Constants())
    best = list(start)
    least, factor = log_error(Constants(*best)), 4.0
    while factor > 1.01:
        moved = False
        for index in range(len(best)):
            for change in (factor, 1.0 / factor):
                tried = list(best)
                tried[index] *= change
                if not 1 / MOST_CHANGE <= tried[index] / start[index] <= MOST_CHANGE:
                    continue
                error = log_error(Constants(*tried))
                if error < least:
                    best, least, moved = tried, error, True
        if not moved:
            factor = math.sqrt(factor)
    return Constants(*best)


def fit(
    rows: Sequence[tuple[Case, Sequence[dict[str, Any]]]],
    facts: Sequence[int],
    hertz: float,
    launch_s: float,
) -> tuple[Constants, float]:
    """Constants fitted to measured schedules, and the typical factor by which they miss.

    Args:
        rows: each case with its entries, schedules with `seconds`; strategies that the twin does
            not model are left out.
        facts: as in `cycles`.
        hertz: clock of the multiprocessors.
        launch_s: seconds of a call that are none of the kernels'.
    """
    measured = [
        (case, entry)
        for case, entries in rows
        for entry in entries
        if "seconds" in entry and entry["strategy"] in MODELLED
    ]
    if not measured:
        raise ValueError("fit: no entry of a modelled strategy was measured")

    def log_error(constants: Constants) -> float:
        total = 0.0
        for case, entry in measured:
            estimate = launch_s + cycles(case, entry, facts, constants) / hertz
            total += math.log(estimate / entry["seconds"]) ** 2
        return total / len(measured)

    found = fitted(log_error)
    return found, math.exp(math.sqrt(log_error(found)))
