"""The speed picture: how many times faster innerloop is, case by case, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

NEAR, FAR, INK, GREY = "#1f6f8b", "#a8d0db", "#1b2a33", "#8a979e"


def draw(runs: Sequence[dict[str, Any]], target: Path) -> Path:
    """Writes a bar chart of speed ratios: one pair of bars per case.

    Args:
        runs: speed runs in the order they are to be shown, top to bottom.
        target: the file to write; its extension decides the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "innerloop", "svg.fonttype": "path"})
    import matplotlib.pyplot as plt

    def gain(run: dict[str, Any], rival: str | None) -> float | None:
        found = run["rivals"].get(rival, {}).get("ratio") if rival else None
        return None if found is None else float(found["median"])

    figure, axes = plt.subplots(figsize=(8.0, 0.55 * len(runs) + 1.3))
    height = 0.36
    for row, run in enumerate(runs):
        near, far = gain(run, run["fastest_library"]), gain(run, "autograd_loop")
        for value, offset, colour in ((far, height / 2, FAR), (near, -height / 2, NEAR)):
            if value is None:
                continue
            start, length = min(1.0, value), abs(value - 1.0)
            axes.barh(row + offset, length, height, left=start, color=colour)
            text = f"{value:.1f}×" if value < 10 else f"{value:,.0f}×"
            axes.annotate(
                text,
                (max(value, 1.0), row + offset),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=INK,
            )
    axes.set_xscale("log")
    highest = max((gain(run, "autograd_loop") or 10.0 for run in runs), default=10.0)
    lowest = min((gain(run, run["fastest_library"]) or 1.0 for run in runs), default=1.0)
    axes.set_xlim(min(0.9, 0.8 * lowest), highest * 2.5)
    axes.axvline(1.0, color=INK, linewidth=1.0)
    axes.set_yticks(range(len(runs)), [run["case"] for run in runs], fontsize=9.5, color=INK)
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.tick_params(axis="x", colors=GREY, labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e9eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    threads = runs[0]["environment"]["threads"]
    axes.set_title(
        f"Times faster than …   ({threads} thread{'s'[: threads != 1]}, float32)",
        loc="left",
        fontsize=11,
        color=INK,
        pad=26,
    )
    from matplotlib.patches import Patch

    axes.legend(
        handles=[
            Patch(color=NEAR, label="the fastest library (torch.compile or JAX, compiled)"),
            Patch(color=FAR, label="the autograd loop"),
        ],
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=2,
        frameon=False,
        fontsize=8.5,
        handlelength=1.2,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return target
