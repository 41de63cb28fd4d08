"""The figures of a sweep: a page of maps per inner rate, some rates side by side, theory against
simulation over all cells, and the crossovers of the expected risks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from innerloop.runs.figures import SERIES, figure_style, label_logarithmic, save_figure, spaced
from innerloop.runs.report import FIGURE_KINDS
from innerloop.studies.linear_regression.heat_maps import (
    HATCH,
    LABELS,
    SHARE,
    Array,
    Inches,
    Maps,
    Page,
    add_bar,
    add_key,
    add_title,
    draw_cells,
    draw_half,
    draw_undecided,
    set_up,
)
from innerloop.studies.linear_regression.report import AGAINST, CROSSOVER, PAGES, SUMMARY
from innerloop.studies.linear_regression.result import Sweep
from innerloop.studies.linear_regression.settings import Settings


def draw_figures(sweep: Sweep, folder: Path) -> Iterator[Path]:
    """Write every figure, yielding each SVG's path: heat_maps/inner_lr_<rate>.svg for each rate,
    the summary and, where there is a prediction, the two that rest on it.
    """
    maps = Maps(sweep)
    with figure_style():
        pages = folder / PAGES
        pages.mkdir(exist_ok=True)
        stems = [f"inner_lr_{rate:.10g}" for rate in sweep.settings.inner_lrs]
        kept = {f"{stem}.{kind}" for stem in stems for kind in FIGURE_KINDS}
        for old in pages.glob("inner_lr_*"):
            if old.name not in kept and old.suffix[1:] in FIGURE_KINDS:
                old.unlink()
        page = Page(maps)
        for index, stem in enumerate(stems):
            page.show(index)
            yield save_figure(page.figure, pages / stem)
        yield save_figure(_summary(maps), folder / SUMMARY)
        if maps.predicted:
            yield save_figure(_against(maps), folder / AGAINST)
            yield save_figure(_crossovers(maps), folder / CROSSOVER)


def _summary(maps: Maps) -> Figure:
    """Some rates side by side after the update: simulation with theory's line, theory below."""
    settings, rates = maps.settings, _chosen(maps.settings)
    sources = [("simulation", maps.simulated), ("theory", maps.predicted)]
    if not maps.predicted:
        sources.pop()
    side, gap, left, bottom = 1.22, 0.12, 0.72, 0.98
    place = Inches(
        max(left + len(rates) * (side + gap), 3.6), bottom + len(sources) * (side + gap) + 0.45
    )
    figure = Figure(figsize=place.size)
    for row, (name, source) in enumerate(reversed(sources)):
        for column, index in enumerate(rates):
            corner = left + column * (side + gap), bottom + row * (side + gap)
            axes = figure.add_axes(place(*corner, side, side))
            set_up(axes, maps, room=5)
            axes.tick_params(labelleft=column == 0, labelbottom=row == 0)
            shares = source[True][:, :, index]
            list(draw_cells(axes, maps, shares, SHARE))
            if source is maps.simulated:
                list(draw_undecided(axes, maps, shares, 2 * HATCH))
            if maps.predicted:
                list(draw_half(axes, maps, maps.predicted[True][:, :, index]))
            if row == len(sources) - 1:
                axes.set_title(f"α = {settings.inner_lrs[index]:g}", pad=3)
            if row == 0:
                axes.set_xlabel("samples N", labelpad=1)
            if column == 0:
                axes.set_ylabel(f"{name}\ntraining tasks M", labelpad=2)
    bar = place(left, 0.4, min(2.5, place.size[0] - left - 0.2), 0.09)
    add_bar(figure, bar, SHARE, "share of trials won by MAML")
    beside = place.size[0] > left + 5.0  # room for the key beside the bar
    add_key(figure, maps, place, *((left + 2.8, place.size[1] - 0.38) if beside else (left, 0.4)))
    add_title(
        figure,
        f"After the update, p = {settings.p}, β = {settings.beta:g}, "
        f"{settings.trials} trials a cell",
        place,
        left,
    )
    return figure


def _chosen(settings: Settings) -> list[int]:
    """Up to five rates other than 0, spread over the list in ascending order."""
    order = [i for i in np.argsort(settings.inner_lrs) if settings.inner_lrs[i] != 0]
    order = order or list(range(len(settings.inner_lrs)))
    places = np.unique(np.round(np.linspace(0.09, 1, 5) * (len(order) - 1)).astype(int))
    return [int(order[i]) for i in places]


def _against(maps: Maps) -> Figure:
    """Theory's probabilities against simulated shares in all cells and at all rates: N = 1, few and
    many samples apart.
    """
    n = maps.samples
    groups = (("N = 1", n == 1), ("N = 2 to 10", (n > 1) & (n <= 10)), ("N > 10", n > 10))
    shown = [(label, inside) for label, inside in groups if inside.any()]
    figure = Figure(figsize=(0.9 + 1.65 * len(shown), 4.1), layout="compressed")
    panels = figure.subplots(2, len(shown), sharex=True, sharey=True, squeeze=False)
    for row, after_update in zip(panels, (True, False), strict=True):
        for axes, (label, inside) in zip(row, shown, strict=True):
            _scatter(axes, maps, after_update, inside)
            if after_update:
                axes.set_title(label)
        row[0].set_ylabel(f"{LABELS[after_update]}\nshare of trials")
    panels[1, len(shown) // 2].set_xlabel("theory: probability that MAML wins")
    return figure


def _scatter(axes: Axes, maps: Maps, after_update: bool, inside: NDArray[np.bool_]) -> None:
    """One point for each cell, and two standard errors of the trials to either side."""
    axes.plot(
        maps.predicted[after_update][:, inside].ravel(),
        maps.simulated[after_update][:, inside].ravel(),
        ".", color=SERIES[0]["color"], markersize=2.5, markeredgewidth=0, rasterized=True,
    )  # fmt: skip
    line = np.linspace(0.0, 1.0, 201)
    error = 2.0 * np.sqrt(line * (1.0 - line) / maps.settings.trials)
    for end in (line - error, line + error):
        axes.plot(line, end, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    axes.set_yticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    axes.set_aspect("equal")


def _crossovers(maps: Maps) -> Figure:
    """M*(N) of some rates, also beyond the largest M simulated."""
    assert maps.crossover is not None
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    rates = _chosen(maps.settings)
    shown = maps.crossover[:, rates]
    largest = float(maps.tasks[-1])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    low = float(np.clip(shown.min(initial=largest), 1.0, largest / 2))
    top = float(np.clip(shown.max(initial=0.0), 2 * largest, 50 * largest))
    axes.set_ylim(low / 1.3, top * 1.2)
    axes.set_xlim(maps.samples[0] / 1.25, maps.samples[-1] * 1.25)
    axes.axhline(largest, color="0.4", linewidth=0.9, label="largest M here")
    for style, index in zip(SERIES, rates, strict=False):
        _crossover(axes, maps, maps.crossover[:, index], style, maps.settings.inner_lrs[index])
    axes.grid(True)
    label_logarithmic(axes.yaxis)
    axes.xaxis.set_major_locator(FixedLocator(spaced(maps.samples.tolist(), 1.9)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("samples N")
    axes.set_ylabel("training tasks M*")
    axes.set_title("From M* tasks on MAML has the lower expected risk")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _crossover(
    axes: Axes, maps: Maps, values: Array, style: dict[str, object], rate: float
) -> None:
    """One curve, which goes on above the frame where MAML never has the lower risk, is broken
    where there is no M*, and leaves N = 1 apart.
    """
    shown = np.where(values > 0, np.minimum(values, 1e12), np.nan)
    label = f"α = {rate:g}" + (" (none)" if np.isnan(shown).all() else "")
    for part in (slice(maps.single, None), slice(0, maps.single)):
        axes.plot(
            maps.samples[part], shown[part], scalex=False, scaley=False,
            label=label if part.stop is None else None, **style,  # type: ignore[arg-type]
        )  # fmt: skip
