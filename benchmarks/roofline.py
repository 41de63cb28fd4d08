"""The roofline picture: intensity against achieved rate, one point per case and strategy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import traffic
from cuda_cases import CUDA_CASES
from cuda_tables import best_seconds, cuda_speed_runs, peak_gflops
from figure import GREY, INK

COLOURS = ("#1f6f8b", "#c8553d", "#5a8f3c", "#8e5aa8", "#b08a2e")


def points(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One point per case and strategy: operations per byte and GFLOP/s of its fastest schedule.

    The model's own choice comes from the speed runs, the other strategies from the calibration,
    where it was taken. Operations are `flops.structured`; bytes are those that the schedule must
    move (`traffic.schedule_bytes`).
    """
    fastest: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}

    def offer(case: str, schedule: dict[str, Any], seconds: float) -> None:
        key = (case, schedule["strategy"])
        if key not in fastest or seconds < fastest[key][0]:
            fastest[key] = (seconds, schedule)

    operations = {}
    for run in cuda_speed_runs(runs):
        operations[run["case"]] = run["flops"]["structured"]
        seconds = best_seconds(run)
        schedule = run["rivals"].get("innerloop", {}).get("schedule")
        if seconds is not None and schedule is not None:
            offer(run["case"], schedule, seconds)
    for run in runs:
        if run["kind"] != "calibration":
            continue
        for row in run["rows"]:
            operations[row["case"]] = row["flops"]["structured"]
            for entry in row["entries"]:
                if "seconds" in entry:
                    offer(row["case"], entry, entry["seconds"])
    return [
        {
            "case": case,
            "strategy": strategy,
            "intensity": operations[case] / traffic.schedule_bytes(CUDA_CASES[case], schedule),
            "gflops": operations[case] / seconds / 1e9,
        }
        for (case, strategy), (seconds, schedule) in fastest.items()
    ]


def draw(runs: Sequence[dict[str, Any]], target: Path) -> Path:
    """Writes the roofline of the newest run's card with the points of all runs.

    Args:
        runs: runs on a GPU, with at least one point.
        target: the file to write; its extension decides the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "innerloop", "svg.fonttype": "path"})
    import matplotlib.pyplot as plt

    shown = points(runs)
    card = next(r for r in runs if "gpu" in r["environment"])
    limits = card["environment"]["gpu"]["limits"]
    peak, copy = peak_gflops(card), limits["copy_gbytes_per_s"]
    figure, axes = plt.subplots(figsize=(8.0, 5.6))
    low = min(0.5, *(0.5 * point["intensity"] for point in shown))
    high = max(1000.0, *(2.0 * point["intensity"] for point in shown))
    ridge = peak / copy
    axes.plot([low, ridge, high], [low * copy, peak, peak], color=INK, linewidth=1.4)
    axes.annotate(f"multiply-adds: {peak / 1e3:.1f} TFLOP/s", (high, peak), ha="right", va="bottom")
    axes.annotate(f"copy: {copy / 1e3:.2f} TB/s", (ridge, peak), ha="right", va="bottom")
    if "tf32_gemm_gflops" in limits:
        axes.axhline(limits["tf32_gemm_gflops"], color=GREY, linewidth=0.8, linestyle="--")
        axes.annotate("GEMM with tf32", (high, limits["tf32_gemm_gflops"]), ha="right", va="bottom")
    strategies = sorted({point["strategy"] for point in shown})
    for strategy, colour in zip(strategies, COLOURS, strict=False):
        chosen = [point for point in shown if point["strategy"] == strategy]
        axes.scatter(
            [point["intensity"] for point in chosen],
            [point["gflops"] for point in chosen],
            s=26,
            color=colour,
            label=strategy,
            zorder=3,
        )
        for point in chosen:
            axes.annotate(
                point["case"],
                (point["intensity"], point["gflops"]),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=7.5,
                color=colour,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel("operations per byte that the schedule must move")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(f"{card['environment']['gpu']['name']}, float32", loc="left", fontsize=11)
    axes.grid(color="#e4e9eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return target
