"""The two figures: risk against adaptation steps, and risk against the inner rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from innerloop.compare.analysis import Analysis, Row
from innerloop.runs.figures import STYLE, figure_style, save_figure
from innerloop.runs.methods import FIRST_ORDER, JOINT, LABELS, MAML, METHODS
from innerloop.runs.statistics import Interval

_CLIP = 3.0


def draw_figures(analysis: Analysis, folder: Path, measure: str, source: str) -> list[Path]:
    """Write both figures as PNG, SVG and PDF; returns the paths of the SVG files."""
    with figure_style():
        return [
            save_figure(
                _against_steps(analysis, measure, source), folder / "risk_by_adaptation_steps"
            ),
            save_figure(_against_rate(analysis, measure, source), folder / "risk_by_inner_rate"),
        ]


def _against_steps(analysis: Analysis, measure: str, source: str) -> Figure:
    """Above: each method's risk with its interval. Below: the paired change against joint
    training, which decides.
    """
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    rows = analysis.by_adapt_steps
    steps = list(range(len(rows)))
    level = f"{100 * analysis.config.level:g}%"
    _logarithmic(above)
    for offset, method in zip((-0.06, 0.0, 0.06), METHODS, strict=True):
        _line(above, [k + offset for k in steps], [row.risk[method] for row in rows], method)
    _limit(above, rows)
    above.set_ylabel(_axis(measure))
    above.set_title(
        f"{_named(source)}: risk on held-out tasks, "
        f"{level} intervals over {analysis.config.splits} splits",
        loc="left",
        fontsize=9,
    )
    below.axhline(0.0, color="0.4", linewidth=0.8)
    margin = 100 * analysis.config.margin
    band = below.axhspan(
        -margin, margin, color="0.9", zorder=0, label=f"within {margin:g}% of joint training"
    )
    ends = [-margin, margin]
    for offset, method in ((-0.05, FIRST_ORDER), (0.05, MAML)):
        scaled = [row.relative[method].mapped(lambda value: 100.0 * value) for row in rows]
        _line(below, [k + offset for k in steps], scaled, method)
        ends += [end for i in scaled for end in (i.low, i.high) if math.isfinite(end)]
    below.set_ylim(1.1 * max(min(ends), -100.0), 1.1 * min(max(ends), 150.0))
    below.set_ylabel("change against\njoint training (%)")
    below.set_xlabel(f"fine-tuning steps on {_shots(analysis)} of the test task")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, [*above.get_legend_handles_labels()[0], band])
    return figure


def _against_rate(analysis: Analysis, measure: str, source: str) -> Figure:
    """One panel for each number of inner steps: all methods trained and tested at the same rate."""
    config = analysis.config
    count = len(config.steps)
    figure = Figure(figsize=(max(6.4, 3.6 * count), 4.0), layout="constrained")
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    unadapted = analysis.by_adapt_steps[0]
    shown = [unadapted, *analysis.same_rate.values()]
    for axes, steps in zip(panels, config.steps, strict=True):
        rows = [analysis.same_rate[steps, rate] for rate in config.inner_lrs]
        for shift, method in zip((0.96, 1.0, 1.04), METHODS, strict=True):
            shifted = [shift * rate for rate in config.inner_lrs]
            _line(axes, shifted, [row.risk[method] for row in rows], method)
        axes.axhline(
            unadapted.risk[JOINT].mean,
            color="0.4",
            linewidth=1.0,
            linestyle=":",
            label="joint training, no fine-tuning",
        )
        axes.set_xscale("log")
        axes.set_xticks(config.inner_lrs, [f"{rate:g}" for rate in config.inner_lrs])
        axes.minorticks_off()
        axes.set_xlabel("inner rate (training and fine-tuning)")
        used = min(steps, config.adapt_steps)
        _logarithmic(axes)
        axes.set_title(f"{steps} inner, {used} fine-tuning step{'s' * (used > 1)}", fontsize=9)
    _limit(panels[0], shown, ceiling=_CLIP * unadapted.risk[JOINT].mean)
    panels[0].set_ylabel(_axis(measure))
    _legend(figure, panels[0].get_legend_handles_labels()[0])
    figure.suptitle(
        f"{_named(source)}: risk on held-out tasks when all methods use the same inner rate\n"
        f"Bands: {100 * config.level:g}% intervals over {config.splits} splits. Curves go on above "
        "the frame; a missing point has no stable solution.",
        x=0.01,
        ha="left",
        fontsize=9,
    )
    return figure


def _legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend below the panels, where it cannot cover data."""
    figure.legend(
        handles=list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )


def _line(axes: Axes, x: Sequence[float], intervals: Sequence[Interval], method: str) -> None:
    """A curve through the means with its band; points without a finite value are left out."""
    style = STYLE[method]
    shown = [(a, i) for a, i in zip(x, intervals, strict=True) if math.isfinite(i.mean)]
    axes.plot(
        [a for a, _ in shown],
        [i.mean for _, i in shown],
        label=LABELS[method],
        color=style["color"],
        marker=style["marker"],
        linestyle=style["linestyle"],
        markersize=4.5,
        linewidth=1.4,
    )
    bounded = [(a, i) for a, i in shown if math.isfinite(i.low) and math.isfinite(i.high)]
    where, low, high = (
        [a for a, _ in bounded],
        [i.low for _, i in bounded],
        [i.high for _, i in bounded],
    )
    axes.fill_between(where, low, high, color=style["color"], alpha=0.07, linewidth=0)
    # Edges keep the bands apart where they lie on top of each other.
    for edge in (low, high):
        axes.plot(where, edge, color=style["color"], linewidth=0.7, linestyle=style["linestyle"])


def _logarithmic(axes: Axes) -> None:
    """A logarithmic vertical axis labelled with plain numbers at 1, 2 and 5 of each decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def _limit(axes: Axes, rows: Sequence[Row], ceiling: float = math.inf) -> None:
    """Vertical limits that hold the means, and the bands as far as three times beyond them."""
    risks = [i for row in rows for i in row.risk.values() if i.mean <= ceiling]
    means = [i.mean for i in risks if math.isfinite(i.mean)]
    if means:
        low, high = min(means), max(means)
        bottom = max(low / _CLIP, min(min(i.low, i.mean) for i in risks))
        top = min(high * _CLIP, max(i.high for i in risks))
        axes.set_ylim(bottom / 1.1, top * 1.1)


def _named(source: str) -> str:
    """A table's name as a title has room for it."""
    return source if len(source) <= 40 else f"{source[:39]}…"


def _axis(measure: str) -> str:
    return measure.replace(" (", "\n(")


def _shots(analysis: Analysis) -> str:
    count = analysis.support
    return f"{count} support row{'s' * (count > 1)}"
