"""The two figures: error against fine-tuning steps, and fits of example tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from innerloop.runs.figures import STYLE, figure_style, save_figure
from innerloop.runs.methods import JOINT, LABELS, METHODS
from innerloop.studies.sinusoid.measuring import Measured, fits
from innerloop.studies.sinusoid.settings import Settings
from innerloop.studies.sinusoid.summary import Row
from innerloop.studies.sinusoid.waves import INPUT, Stream, draw_waves, generator

EXAMPLES = 2
_CURVES: tuple[tuple[int, Literal[":", "--", "-"], float], ...] = (
    (0, ":", 0.9),
    (1, "--", 1.3),
    (10, "-", 1.6),
)


def draw_figures(
    settings: Settings,
    measured: Measured,
    same: list[Row],
    picked: list[Row],
    trained: dict[str, torch.Tensor],
    folder: Path,
) -> list[Path]:
    """Write both figures as PNG, SVG and PDF; returns the paths of the SVG files."""
    with figure_style():
        return [
            save_figure(
                _error_by_steps(settings, measured, same, picked), folder / "error_by_steps"
            ),
            save_figure(_example_fits(settings, trained), folder / "example_fits"),
        ]


def _error_by_steps(
    settings: Settings, measured: Measured, same: list[Row], picked: list[Row]
) -> Figure:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for method in METHODS:
        style = STYLE[method]
        shown = [row for row in same if not row.failed[method]]
        steps = [row.steps for row in shown]
        axes.plot(
            steps,
            [row.error[method].mean for row in shown],
            label=LABELS[method],
            color=style["color"],
            marker=style["marker"],
            linestyle=style["linestyle"],
            markersize=4.5,
            linewidth=1.4,
        )
        axes.fill_between(
            steps,
            [row.error[method].low for row in shown],
            [row.error[method].high for row in shown],
            color=style["color"],
            alpha=0.2,
            linewidth=0,
        )
    best = [row for row in picked if row.steps and not row.failed[JOINT]]
    if set(measured.picked_rate[JOINT][1:]) != {settings.inner_lr}:
        axes.plot(
            [row.steps for row in best],
            [row.error[JOINT].mean for row in best],
            label="joint training, best rate",
            color=STYLE[JOINT]["color"],
            linestyle=":",
            linewidth=1.4,
        )
    any_failed = any(count for row in same for count in row.failed.values())
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"fine-tuning steps on {settings.shots} points, rate {settings.inner_lr:g}")
    axes.set_ylabel("mean squared error on new points")
    axes.set_title(
        f"Sine waves: {settings.test_tasks} new tasks, {100 * settings.level:g}% intervals"
        + ("; no point where tasks diverge" if any_failed else ""),
        loc="left",
        fontsize=9,
    )
    axes.legend(frameon=False, fontsize=8)
    return figure


def _example_fits(settings: Settings, trained: dict[str, torch.Tensor]) -> Figure:
    """One row for each example task, one column for each method."""
    rng = generator(settings.seed, Stream.EXAMPLES)
    waves = draw_waves(rng, EXAMPLES, settings.shots, 1)
    x = np.linspace(*INPUT, 201)
    figure = Figure(figsize=(8.4, 2.6 * EXAMPLES), layout="constrained")
    panels = figure.subplots(EXAMPLES, len(METHODS), sharex=True, sharey="row", squeeze=False)
    for column, method in enumerate(METHODS):
        curves = fits(settings, trained[method], waves, x)
        for row, axes in enumerate(panels[:, column]):
            truth = waves.amplitude[row] * np.sin(x - waves.phase[row])
            axes.plot(x, truth, color="0.7", linewidth=3.0)
            for steps, line, width in _CURVES:
                axes.plot(
                    x,
                    curves[row, steps],
                    color=STYLE[method]["color"],
                    linestyle=line,
                    linewidth=width,
                )
            points = [side[row].flatten().numpy() for side in waves.support]
            axes.plot(*points, "k^", markersize=3.5)
        panels[0, column].set_title(LABELS[method], loc="left", fontsize=9)
        panels[-1, column].set_xlabel("x")
    handles = [
        Line2D([], [], color="0.7", linewidth=3.0, label="the wave"),
        *(
            Line2D([], [], color="0.3", linestyle=line, linewidth=width, label=_steps(steps))
            for steps, line, width in _CURVES
        ),
        Line2D([], [], color="k", marker="^", linestyle="", markersize=3.5, label="its points"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"
