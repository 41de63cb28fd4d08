"""Tables of the GPU's cases: speed, nearness to the card's limits, rivals, misses, the card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cases.names import CASE_NAMES
from tables.formatting import (
    SHORT,
    Run,
    markdown,
    median,
    megabytes,
    milliseconds,
    of_kind,
    ratio,
    ratio_to,
    times,
)
from tables.speed import rival_block

NOT_RUN = "Not run: there is no result file of a GPU in `benchmarks/results`."
OURS = ("innerloop", "innerloop_graph")


def cuda_speed_runs(runs: Sequence[Run]) -> list[Run]:
    """float32 runs of the GPU's cases, in table order."""
    order = CASE_NAMES["cuda"]
    found = [
        r for r in runs if r["kind"] == "cuda-speed" and r["environment"]["dtype"] == "float32"
    ]
    return sorted(found, key=lambda run: order.index(run["case"]))


def best_seconds(run: Run) -> float | None:
    """Our time: of the plain call or of the graph, whichever is less."""
    timed = [run["rivals"][n]["median_s"] for n in OURS if "median_s" in run["rivals"].get(n, {})]
    return min(timed, default=None)


def gain(run: Run, rival: str | None) -> float | None:
    """How many times longer a rival takes than our faster call, each ratio within rounds."""
    if rival is None:
        return None
    found = run["rivals"].get(rival, {})
    ratios = [found[key]["median"] for key in ("ratio", "ratio_to_graph") if key in found]
    return max(ratios, default=None)


def _or_not_run(table: str) -> str:
    return table or NOT_RUN


def speed(runs: Sequence[Run]) -> str:
    """Our time plain, in a graph and in the kernels alone, against the fastest library."""
    rows = []
    for run in cuda_speed_runs(runs):
        library = run["fastest_library"]
        ours = run["rivals"].get("innerloop", {})
        graph = run["rivals"].get("innerloop_graph", {})
        kernels = ours.get("kernels")
        found = gain(run, library)
        rows.append(
            [
                f"`{run['case']}`: {run['describe']}",
                median(ours),
                median(graph),
                milliseconds(sum(k["seconds"] for k in kernels)) if kernels else "-",
                f"{median(run['rivals'][library])} {SHORT[library]}" if library else "-",
                times(ratio_to(run, library)),
                times(found),
                times(gain(run, "bmm")),
                times(gain(run, "autograd_loop")),
            ]
        )
    header = [
        "case",
        "innerloop",
        "in a CUDA graph",
        "kernels alone",
        "fastest library",
        "plain call faster",
        "better of both faster",
        "than bmm by hand",
        "than the autograd loop",
    ]
    return _or_not_run(markdown(header, rows))


def peak_gflops(run: Run) -> float:
    """The card's float32 peak: the most that multiply-adds or the library's product reached."""
    limits = run["environment"]["gpu"]["limits"]
    return max(float(limits.get("fma_gflops", 0.0)), float(limits["gemm_gflops"]))


def limits(runs: Sequence[Run]) -> str:
    """Achieved rates against the ceilings measured in the same process."""
    rows = []
    for run in cuda_speed_runs(runs):
        seconds = best_seconds(run)
        if seconds is None:
            continue
        card = run["environment"]["gpu"]["limits"]
        flops, least = run["flops"]["structured"], run["least_bytes"]
        rate, bandwidth = flops / seconds / 1e9, least / seconds / 1e9
        rows.append(
            [
                f"`{run['case']}`",
                f"{flops / 1e6:,.1f} M",
                f"{least / 1e6:,.3g} MB",
                f"{flops / least:.3g}",
                f"{rate:,.0f}",
                f"{rate / peak_gflops(run):.0%}",
                f"{rate / card['gemm_gflops']:.0%}",
                f"{bandwidth:,.0f}",
                f"{bandwidth / card['copy_gbytes_per_s']:.0%}",
            ]
        )
    header = [
        "case",
        "operations",
        "least bytes",
        "operations per byte",
        "GFLOP/s",
        "of multiply-add peak",
        "of GEMM rate",
        "GB/s",
        "of copy bandwidth",
    ]
    return _or_not_run(markdown(header, rows))


def roofline(runs: Sequence[Run]) -> str:
    """The picture, where there is one."""
    if not cuda_speed_runs(runs):
        return NOT_RUN
    return "![Intensity against achieved rate, one point per case](images/roofline.svg)"


def losses(runs: Sequence[Run]) -> str:
    """Every rival that is faster than both of our calls."""
    shown = cuda_speed_runs(runs)
    if not shown:
        return NOT_RUN
    lines = []
    for run in shown:
        for name in run["rivals"]:
            found = None if name.startswith("innerloop") else gain(run, name)
            if found is not None and found < 1.0:
                lines.append(f"- `{run['case']}`: slower than {SHORT[name]} ({ratio(found)}).")
    return "\n".join(lines) or "No rival is faster in any case."


def rivals(runs: Sequence[Run]) -> str:
    """Median and quartiles of every rival in every case, with the settings that won."""
    return "\n\n".join(map(rival_block, cuda_speed_runs(runs))) or NOT_RUN


def machine(runs: Sequence[Run]) -> str:
    """The card of each result file, as found, and what it reached."""
    rows: dict[str, list[str]] = {}
    for run in runs:
        card = run["environment"].get("gpu")
        if card is None or run["file"] in rows:
            continue
        rows[run["file"]] = [
            f"[`{run['file']}`](../benchmarks/results/{run['file']})",
            f"{card['name']}, sm_{card['capability'].replace('.', '')}",
            f"{card['driver']}, {card['cuda']}",
            _clocks(card["state_before"]) + " to " + _clocks(card.get("state_after", {})),
            ", ".join(f"{k} {run['environment']['versions'][k]}" for k in ("torch", "jax")),
            str(run["environment"]["commit"] or "-"),
            _reached(card["limits"]),
        ]
    header = [
        "result file",
        "card",
        "driver, CUDA",
        "clocks as found, SM/memory MHz",
        "versions",
        "innerloop",
        "reached",
    ]
    return _or_not_run(markdown(header, [rows[file] for file in sorted(rows)]))


def _clocks(state: dict[str, Any]) -> str:
    shown = (state.get("sm_mhz"), state.get("memory_mhz"))
    return "/".join("-" if mhz is None else f"{mhz:.0f}" for mhz in shown)


def _reached(card: dict[str, Any]) -> str:
    rates = {
        "multiply-add": card.get("fma_gflops"),
        "GEMM": card["gemm_gflops"],
        "tf32 GEMM": card.get("tf32_gemm_gflops"),
    }
    parts = [f"{name} {rate / 1e3:.1f} TFLOP/s" for name, rate in rates.items() if rate]
    parts.append(f"copy {card['copy_gbytes_per_s']:,.0f} GB/s")
    latencies = {
        "launch": "eager_launch_s",
        "in a graph": "graph_launch_s",
        "dependent kernel": "dependent_kernel_s",
        "round trip": "round_trip_s",
    }
    parts += [f"{name} {milliseconds(card[key])}" for name, key in latencies.items()]
    return ", ".join(parts)


def memory(runs: Sequence[Run]) -> str:
    """Peak memory of each rival beside ours by the documented formula."""
    rows = [
        [
            f"`{row['case']}`, {row['steps']} steps",
            row["title"],
            megabytes(row["peak_bytes"]),
            megabytes(row.get("formula_bytes")),
        ]
        for run in of_kind(runs, "device-memory")
        for row in run["rows"]
        if "peak_bytes" in row
    ]
    return _or_not_run(markdown(["case", "", "peak", "formula"], rows))


def capacity(runs: Sequence[Run]) -> str:
    """The most tasks of one call that the card's memory holds."""
    ends = {"memory": "memory is full", "time": "the call took too long", "limit": "not reached"}
    rows = [
        [
            f"`{row['case']}`",
            row["title"],
            f"{row['tasks']:,}",
            milliseconds(row["seconds"]),
            ends[row["ended"]],
        ]
        for run in of_kind(runs, "capacity")
        for row in run["rows"]
        if "tasks" in row
    ]
    return _or_not_run(markdown(["case", "", "most tasks", "time", "what ended it"], rows))
