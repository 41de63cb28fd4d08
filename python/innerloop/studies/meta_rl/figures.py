"""Figures: a trade-off map for every comparison, and returns against environment steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from innerloop.runs.figures import SERIES, STYLE, figure_style, save_figure
from innerloop.runs.methods import FIRST_ORDER, JOINT, MAML
from innerloop.studies.meta_rl.report import CURVES, MAPS
from innerloop.studies.meta_rl.settings import PAIRS
from innerloop.studies.meta_rl.summary import Arm, Comparison, middle_and_interval
from innerloop.studies.meta_rl.units import ADAPTS, STEP_SIZE

_STYLES = {
    "drs": STYLE[JOINT],
    "maml": STYLE[MAML],
    STEP_SIZE: STYLE[FIRST_ORDER],
    ADAPTS: SERIES[3],
}


def draw_figures(made: list[Comparison], level: float, folder: Path) -> list[Path]:
    """Write the figures of finished comparisons, at least one; returns the paths of the SVGs."""
    with figure_style():
        return [
            save_figure(_maps(made), folder / MAPS),
            save_figure(_returns(made, level), folder / CURVES),
        ]


def _grid(made: list[Comparison]) -> tuple[list[str], list[str]]:
    """Rows (pairs) and columns (environments) of what there is to show."""
    pairs = [pair for pair in PAIRS if any(one.pair == pair for one in made)]
    environments = list(dict.fromkeys(one.environment for one in made))
    return pairs, environments


def _maps(made: list[Comparison]) -> Figure:
    """Each comparison's map over budget and updates."""
    rows = -(-len(made) // 3)
    columns = min(3, len(made))
    figure = Figure(figsize=(1.2 + 3.1 * columns, 0.9 + 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    image = None
    for axes in grid.flat[len(made) :]:
        axes.set_axis_off()
    for axes, one in zip(grid.flat, made, strict=False):
        image = axes.imshow(
            one.tradeoff.T, cmap="RdBu_r", vmin=-1, vmax=1, origin="lower", aspect="auto"
        )
        axes.set_title(
            f"{one.environment}\n{one.drs.label} vs {one.maml.label}, {one.seeds} seeds",
            fontsize=7.5,
        )
        places = np.unique(np.linspace(0, len(one.steps) - 1, min(6, len(one.steps))).astype(int))
        engineering = EngFormatter(sep="")
        axes.set_xticks(places, [engineering(one.steps[place]) for place in places])
        axes.set_yticks(range(one.tradeoff.shape[1]))
        axes.set_xlabel("environment steps")
        axes.set_ylabel("updates at test time")
        _write_values(axes, one)
    assert image is not None
    bar = figure.colorbar(image, ax=grid, shrink=0.9, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("1 − 2p, with the sign of the better")
    figure.suptitle("+1 (red): DRS better     −1 (blue): MAML better", fontsize=9)
    return figure


def _write_values(axes: Axes, one: Comparison) -> None:
    """The numbers in the cells, where they fit."""
    if one.tradeoff.size > 60:
        return
    for (column, row), value in np.ndenumerate(one.tradeoff):
        color = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, f"{value:+.2f}", ha="center", va="center", color=color, fontsize=7)


def _returns(made: list[Comparison], level: float) -> Figure:
    """Return after one update against steps: IQM over seeds with bootstrap intervals."""
    pairs, environments = _grid(made)
    figure = Figure(
        figsize=(1.0 + 3.6 * len(environments), 0.6 + 2.7 * len(pairs)), layout="constrained"
    )
    grid = figure.subplots(len(pairs), len(environments), squeeze=False)
    for row, pair in enumerate(pairs):
        for column, environment in enumerate(environments):
            axes = grid[row, column]
            here = [one for one in made if (one.pair, one.environment) == (pair, environment)]
            if not here:
                axes.set_axis_off()
                continue
            shown: dict[str, Arm] = {}
            for one in here:
                shown.setdefault("maml" if one.control != STEP_SIZE else STEP_SIZE, one.maml)
                shown.setdefault("drs" if one.control != ADAPTS else ADAPTS, one.drs)
            for kind in sorted(shown, key=list(_STYLES).index):
                _curve(axes, shown[kind], kind, level)
            axes.set_title(f"{environment}, {here[0].seeds} seeds", fontsize=9)
            axes.set_xlabel("environment steps")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.legend(frameon=False, fontsize=7.5)
        updates = min(1, made[0].difference.shape[1] - 1)
        word = f"after {updates} update" if updates else "before any update"
        grid[row, 0].set_ylabel(f"return {word}\n(IQM, {100 * level:g} % bootstrap)")
    return figure


def _curve(axes: Axes, arm: Arm, kind: str, level: float) -> None:
    style = _STYLES[kind]
    middle, low, high = (
        values[:, min(1, values.shape[1] - 1)] for values in middle_and_interval(arm, level)
    )
    (line,) = axes.plot(arm.steps, middle, label=arm.label, markersize=3.5, linewidth=1.2)
    line.set(**style)
    axes.fill_between(arm.steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
