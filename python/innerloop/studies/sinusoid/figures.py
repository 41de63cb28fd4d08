"""The two figures: error against fine-tuning steps over all runs, and fits of example tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from innerloop.runs.figures import STYLE, figure_style, label_logarithmic, save_figure
from innerloop.runs.methods import JOINT, LABELS, METHODS
from innerloop.studies.sinusoid.document import Findings
from innerloop.studies.sinusoid.measuring import fits
from innerloop.studies.sinusoid.report import ERRORS, FITS
from innerloop.studies.sinusoid.settings import Settings
from innerloop.studies.sinusoid.summary import Spread
from innerloop.studies.sinusoid.waves import INPUT, Stream, draw_waves, generator

EXAMPLES = 2
_CURVES: tuple[tuple[int, Literal[":", "--", "-"], float], ...] = (
    (0, ":", 1.0),
    (1, "--", 1.3),
    (10, "-", 1.6),
)


def draw_figures(
    settings: Settings, found: Findings, trained: dict[str, torch.Tensor], folder: Path
) -> None:
    """Write both figures; `trained` holds the networks whose fits are shown."""
    with figure_style():
        save_figure(_error_by_steps(settings, found), folder / ERRORS)
        save_figure(_example_fits(settings, trained), folder / FITS)


def _error_by_steps(settings: Settings, found: Findings) -> Figure:
    """Means over tasks above, medians below: lines through the medians of the runs, and bands from
    the least to the largest.
    """
    figure = Figure(figsize=(5.2, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, part in ((above, "mean"), (below, "median")):
        for method in METHODS:
            values = [getattr(row, part)[method] for row in found.over_same]
            _curve(axes, values, method, LABELS[method])
        axes.set_yscale("log")
        axes.set_ylabel(f"squared error, {part} over tasks")
    best = [row.mean[JOINT] for row in found.over_picked]
    if best != [row.mean[JOINT] for row in found.over_same]:
        _line(above, best, color=STYLE[JOINT]["color"], label="joint training, best rate")
    oracle = found.oracle
    above.axhline(
        oracle.median, color="black", linewidth=1.0, linestyle=(0, (6, 2)), label="oracle"
    )
    if oracle.low < oracle.high:
        above.axhspan(oracle.low, oracle.high, color="0.85", linewidth=0, zorder=0)
    for axes in (above, below):
        axes.margins(y=0.06)
        label_logarithmic(axes.yaxis)
        axes.grid(axis="y")
    below.set_xlabel(f"fine-tuning steps on {settings.shots} points")
    runs = f"{settings.runs} run{'s' * (settings.runs > 1)}"
    above.set_title(f"Sine waves: {runs}, {settings.test_tasks} new tasks")
    figure.legend(handles=above.get_legend_handles_labels()[0], loc="outside lower center", ncols=2)
    return figure


def _curve(axes: Axes, values: Sequence[Spread], method: str, label: str) -> None:
    """A method's line with its band; steps at which some run has no finite value are left out."""
    shown = [(k, v) for k, v in enumerate(values) if math.isfinite(v.high)]
    steps = [k for k, _ in shown]
    axes.plot(steps, [v.median for _, v in shown], label=label, **STYLE[method])
    low, high = [v.low for _, v in shown], [v.high for _, v in shown]
    axes.fill_between(steps, low, high, color=STYLE[method]["color"], alpha=0.18, linewidth=0)


def _line(axes: Axes, values: Sequence[Spread], color: str, label: str) -> None:
    """Medians over runs alone."""
    shown = [(k, v.median) for k, v in enumerate(values) if k and math.isfinite(v.high)]
    axes.plot(
        [k for k, _ in shown], [v for _, v in shown],
        color=color, linestyle=":", linewidth=1.4, label=label,
    )  # fmt: skip


def _example_fits(settings: Settings, trained: dict[str, torch.Tensor]) -> Figure:
    """One column for each example task, one row for each method."""
    rng = generator(settings.seed, Stream.EXAMPLES)
    waves = draw_waves(rng, EXAMPLES, settings.shots, 1)
    x = np.linspace(*INPUT, 201)
    figure = Figure(figsize=(5.2, 6.6), layout="constrained")
    panels = figure.subplots(len(METHODS), EXAMPLES, sharex=True, sharey="col", squeeze=False)
    for row, method in enumerate(METHODS):
        curves = fits(settings, trained[method], waves, x)
        for column, axes in enumerate(panels[row]):
            truth = waves.amplitude[column] * np.sin(x - waves.phase[column])
            axes.plot(x, truth, color="0.72", linewidth=3.5)
            for steps, line, width in _CURVES:
                axes.plot(
                    x, curves[column, steps],
                    color=STYLE[method]["color"], linestyle=line, linewidth=width,
                )  # fmt: skip
            points = [side[column].flatten().numpy() for side in waves.support]
            axes.plot(*points, "kx", markersize=4.0)
        panels[row, 0].set_title(LABELS[method])
    for axes in panels[-1]:
        axes.set_xlabel("x")
    handles = [
        Line2D([], [], color="0.72", linewidth=3.5, label="the wave"),
        Line2D([], [], color="k", marker="x", linestyle="", markersize=4.0, label="its points"),
        *(
            Line2D([], [], color="0.3", linestyle=line, linewidth=width, label=_steps(steps))
            for steps, line, width in _CURVES
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"
