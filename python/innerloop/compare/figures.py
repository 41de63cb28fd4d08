"""The two figures: risk against adaptation steps, and risk against the inner rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from innerloop.compare.analysis import Analysis, Row
from innerloop.compare.report import BY_RATE, BY_STEPS
from innerloop.runs.figures import STYLE, figure_style, label_logarithmic, save_figure
from innerloop.runs.methods import FIRST_ORDER, JOINT, LABELS, MAML, METHODS
from innerloop.runs.statistics import Interval

_CLIP = 3.0
_WIDTH = 5.2
_OFFSETS = (-0.12, 0.0, 0.12)
_MOST_LABELS = 9


def draw_figures(analysis: Analysis, folder: Path, measure: str, source: str) -> None:
    """Write both figures."""
    with figure_style():
        save_figure(_against_steps(analysis, measure, source), folder / BY_STEPS)
        save_figure(_against_rate(analysis, measure, source), folder / BY_RATE)


def _against_steps(analysis: Analysis, measure: str, source: str) -> Figure:
    """Above: each method's risk with its interval. Below: the paired change against joint
    training, which decides.
    """
    figure = Figure(figsize=(_WIDTH, 5.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    rows = analysis.by_adapt_steps
    steps = list(range(len(rows)))
    above.set_yscale("log")
    for offset, method in zip(_OFFSETS, METHODS, strict=True):
        _points(above, [k + offset for k in steps], [row.risk[method] for row in rows], method)
    _limit(above, rows)
    above.set_ylabel(_axis(measure))
    above.set_title(f"{_named(source)}: held-out tasks, {_intervals(analysis)}")
    below.axhline(0.0, color="0.4", linewidth=0.8)
    margin = 100 * analysis.config.margin
    band = below.axhspan(
        -margin, margin, color="0.88", zorder=0, label=f"within {margin:g}% of joint training"
    )
    ends = [-margin, margin]
    for offset, method in zip(_OFFSETS[1:], (FIRST_ORDER, MAML), strict=True):
        scaled = [row.relative[method].mapped(lambda value: 100.0 * value) for row in rows]
        _points(below, [k + offset for k in steps], scaled, method)
        ends += [end for i in scaled for end in (i.low, i.mean, i.high) if math.isfinite(end)]
    # A per cent to either side: with one split, no margin and no change there is nothing else.
    below.set_ylim(1.1 * max(min(ends) - 1.0, -100.0), 1.1 * min(max(ends) + 1.0, 150.0))
    below.set_ylabel("change against\njoint training (%)")
    below.set_xlabel(f"fine-tuning steps on {_shots(analysis)} of the test task")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, [*above.get_legend_handles_labels()[0], band])
    return figure


def _against_rate(analysis: Analysis, measure: str, source: str) -> Figure:
    """One panel for each number of inner steps: all methods trained and tested at the same rate."""
    config = analysis.config
    count = len(config.steps)
    figure = Figure(figsize=(_WIDTH, 1.3 + 2.3 * count), layout="constrained")
    panels = figure.subplots(count, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    unadapted = analysis.by_adapt_steps[0]
    rates = sorted(config.inner_lrs)
    places = list(range(len(rates)))  # equally far apart, so that error bars stand side by side
    shown = sorted({round(k) for k in np.linspace(0, places[-1], min(len(rates), _MOST_LABELS))})
    for axes, steps in zip(panels, config.steps, strict=True):
        rows = [analysis.same_rate[steps, rate] for rate in rates]
        for offset, method in zip(_OFFSETS, METHODS, strict=True):
            _points(axes, [k + offset for k in places], [row.risk[method] for row in rows], method)
        axes.axhline(
            unadapted.risk[JOINT].mean,
            color="0.3",
            linewidth=1.0,
            linestyle=(0, (1, 1)),
            label="joint training, no fine-tuning",
        )
        axes.set_yscale("log")
        axes.set_xticks(shown, [f"{rates[k]:g}" for k in shown])
        used = min(steps, config.adapt_steps)
        axes.set_title(f"{_steps(steps, 'inner')}, {_steps(used, 'fine-tuning')}")
    shown_rows = [unadapted, *analysis.same_rate.values()]
    _limit(panels[0], shown_rows, ceiling=_CLIP * unadapted.risk[JOINT].mean)
    for axes in panels[1:]:
        label_logarithmic(axes.yaxis)
        axes.grid(axis="y")
    panels[-1].set_xlabel("inner rate of training and of fine-tuning")
    figure.supylabel(measure, fontsize=9)
    figure.suptitle(
        f"{_named(source)}: held-out tasks, {_intervals(analysis)}", x=0.01, ha="left", fontsize=9
    )
    line, *curves = panels[0].get_legend_handles_labels()[0]
    _legend(figure, [*curves, line])
    return figure


def _legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend below the panels, where it cannot cover data."""
    figure.legend(handles=list(handles), loc="outside lower center", ncols=2)


def _points(axes: Axes, x: Sequence[float], intervals: Sequence[Interval], method: str) -> None:
    """Means with error bars, joined by a thin line; points without a finite value are left out, and
    an unknown end has no bar.
    """
    shown = [(a, i) for a, i in zip(x, intervals, strict=True) if math.isfinite(i.mean)]
    reach = [
        [_reach(i.mean - i.low) for _, i in shown],
        [_reach(i.high - i.mean) for _, i in shown],
    ]
    axes.errorbar(
        [a for a, _ in shown],
        [i.mean for _, i in shown],
        yerr=reach,
        label=LABELS[method],
        elinewidth=1.0,
        capsize=2.5,
        **{**STYLE[method], "linewidth": 1.0},
    )


def _reach(length: float) -> float:
    return length if math.isfinite(length) else math.nan


def _limit(axes: Axes, rows: Sequence[Row], ceiling: float = math.inf) -> None:
    """Vertical limits that hold the means, and the bars as far as three times beyond them."""
    risks = [i for row in rows for i in row.risk.values() if i.mean <= ceiling]
    means = [i.mean for i in risks if math.isfinite(i.mean)]
    if means:
        low, high = min(means), max(means)
        bottom = max(low / _CLIP, min(min(i.low, i.mean) for i in risks))
        top = min(high * _CLIP, max(i.high for i in risks))
        axes.set_ylim(bottom / 1.1, top * 1.1)
    label_logarithmic(axes.yaxis)
    axes.grid(axis="y")


def _named(source: str) -> str:
    """A table's name as a title has room for it."""
    return source if len(source) <= 32 else f"{source[:31]}…"


def _intervals(analysis: Analysis) -> str:
    """What the bars are."""
    return f"{100 * analysis.config.level:g}% intervals"


def _axis(measure: str) -> str:
    return measure.replace(" (", "\n(")


def _steps(count: int, kind: str) -> str:
    return f"{count} {kind} step{'s' * (count > 1)}"


def _shots(analysis: Analysis) -> str:
    count = analysis.support
    return f"{count} support row{'s' * (count > 1)}"
