"""The roofline picture: intensity against achieved rate, one point per case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import traffic
from cases.cuda import CUDA_CASES
from tables.cuda import best_seconds, cuda_speed_runs, peak_gflops
from tables.figure import GREY, INK

COLOUR = "#1f6f8b"


def points(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One point per case: operations per byte and GFLOP/s of our faster call.

    Operations are `flops.structured`; bytes are those that the schedule must move
    (`traffic.schedule_bytes`).
    """
    found = []
    for run in cuda_speed_runs(runs):
        seconds = best_seconds(run)
        schedule = run["rivals"].get("innerloop", {}).get("schedule")
        if seconds is None or schedule is None:
            continue
        operations = run["flops"]["structured"]
        moved = traffic.schedule_bytes(CUDA_CASES[run["case"]], schedule)
        point = {"intensity": operations / moved, "gflops": operations / seconds / 1e9}
        found.append({"case": run["case"], **point})
    return found


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
    axes.scatter(
        [point["intensity"] for point in shown],
        [point["gflops"] for point in shown],
        s=26,
        color=COLOUR,
        zorder=3,
    )
    for point in shown:
        axes.annotate(
            point["case"],
            (point["intensity"], point["gflops"]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7.5,
            color=COLOUR,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel("operations per byte that the schedule must move")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(f"{card['environment']['gpu']['name']}, float32", loc="left", fontsize=11)
    axes.grid(color="#e4e9eb", linewidth=0.8)
    axes.set_axisbelow(True)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return target
