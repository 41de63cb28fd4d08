"""One page of heat maps per inner rate, simulation beside theory, and a summary of all rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from innerloop.runs.files import write_atomically
from innerloop.studies.linear_regression.result import Sweep
from innerloop.studies.linear_regression.settings import Settings

Array = NDArray[np.float64]

PAGES = "heat_maps"
SUMMARY = "summary"
_STYLE: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "0", "axes.titlesize": 9.5}
_FRACTION: dict[str, Any] = {"cmap": "RdBu_r", "norm": Normalize(0.0, 1.0)}
_DIFFERENCE: dict[str, Any] = {"cmap": "PuOr", "norm": Normalize(-0.3, 0.3)}
_LEVELS = np.linspace(0.0, 1.0, 21)
_DIFFERENCE_LEVELS = np.linspace(-0.3, 0.3, 25)
_LABELS = {True: "after the update", False: "before any update"}


class Maps:
    """A sweep as figures need it: axes in ascending order."""

    def __init__(self, sweep: Sweep) -> None:
        settings = sweep.settings
        rows, columns = np.argsort(settings.tasks), np.argsort(settings.samples)
        grid = np.ix_(rows, columns)
        self.settings = settings
        self.as_cells = min(len(rows), len(columns)) == 1  # too few for contours
        self.tasks = np.array(settings.tasks, dtype=float)[rows]
        self.samples = np.array(settings.samples, dtype=float)[columns]
        self.simulated = {
            True: sweep.maml_better_after[grid],
            False: sweep.maml_better_before[grid],
        }
        self.predicted: dict[bool, Array] = {}
        self.crossover: Array | None = None
        if sweep.prediction is not None:
            self.predicted = {
                True: sweep.prediction.better_after[grid],
                False: sweep.prediction.better_before[grid],
            }
            self.crossover = sweep.prediction.crossover[columns]

    def largest_gap(self) -> float:
        """The largest distance of theory from simulation; 0 without theory."""
        gaps = [np.abs(self.predicted[k] - self.simulated[k]).max() for k in self.predicted]
        return float(max(gaps, default=0.0))


def draw_figures(sweep: Sweep, folder: Path) -> Iterator[Path]:
    """Write every figure, yielding each path: pages heat_maps/inner_lr_<rate>.png, the summary."""
    maps = Maps(sweep)
    with matplotlib.rc_context(_STYLE):
        pages = folder / PAGES
        pages.mkdir(exist_ok=True)
        names = [f"inner_lr_{rate:.10g}.png" for rate in sweep.settings.inner_lrs]
        for old in pages.glob("inner_lr_*.png"):
            if old.name not in names:
                old.unlink()
        page = _Page(maps)
        for index, name in enumerate(names):
            page.show(index)
            yield _save(page.figure, pages / name, 110)
        yield _save(_summary(maps), folder / f"{SUMMARY}.png", 130)


def _save(figure: Figure, path: Path, dpi: int) -> Path:
    def png(stream: IO[bytes]) -> None:
        figure.savefig(stream, format="png", dpi=dpi)

    write_atomically(path, png)
    return path


class _Page:
    """Rows: after and before the update. Columns: simulation, theory, their difference.

    One figure serves all rates, since making axes and ticks takes longer than filling them.
    """

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._drawn: list[Artist] = []
        columns = 3 if maps.predicted else 1
        left, right = (0.07, 0.86) if columns == 3 else (0.17, 0.74)
        self.figure = Figure(figsize=(1.2 + 3.3 * columns, 6.6))
        self._panels = self.figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
        self.figure.subplots_adjust(left, 0.085, right, 0.86, wspace=0.08, hspace=0.14)
        titles = ("simulation", "theory (Result 10a)", "theory − simulation")
        for row, after_update in zip(self._panels, (True, False), strict=True):
            row[0].set_ylabel(f"{_LABELS[after_update]}\ntraining tasks M")
            for axes in row:
                _logarithmic(axes, maps, apart=1.6)
        for axes, title in zip(self._panels[0], titles, strict=False):
            axes.set_title(title, y=1.02)
        for axes in self._panels[1]:
            axes.set_xlabel("samples N")
        self._add_bars(right, columns)

    def _add_bars(self, right: float, columns: int) -> None:
        """Colour bars beside the panels."""
        fraction = ("fraction: MAML lower", _FRACTION, np.linspace(0, 1, 6), "neither")
        beyond = "both" if self._maps.largest_gap() > 0.3 else "neither"
        difference = ("theory − simulation", _DIFFERENCE, np.linspace(-0.3, 0.3, 7), beyond)
        both = [(fraction, 0.5, 0.36), (difference, 0.085, 0.36)]
        for (label, colours, ticks, extend), low, height in (
            both if columns == 3 else [(fraction, 0.085, 0.775)]
        ):
            place = (right + 0.02, low, 0.18 / self.figure.get_figwidth(), height)
            bar = self.figure.colorbar(
                ScalarMappable(**colours),
                cax=self.figure.add_axes(place),
                ticks=ticks,
                extend=extend,
            )
            bar.set_label(label)

    def show(self, index: int) -> None:
        """Fill the panels with the maps of one rate."""
        maps, settings = self._maps, self._maps.settings
        for artist in self._drawn:
            artist.remove()
        self._drawn = []
        for row, after_update in zip(self._panels, (True, False), strict=True):
            simulated = maps.simulated[after_update][:, :, index]
            self._drawn += _heat(row[0], maps, simulated, _FRACTION, _LEVELS)
            if maps.predicted:
                predicted = maps.predicted[after_update][:, :, index]
                self._drawn += _heat(row[1], maps, predicted, _FRACTION, _LEVELS)
                gap = predicted - simulated
                self._drawn += _heat(row[2], maps, gap, _DIFFERENCE, _DIFFERENCE_LEVELS)
            if after_update and maps.crossover is not None:
                for axes in row:
                    self._drawn += _crossover(axes, maps, maps.crossover[:, index])
        self.figure.suptitle(
            "Fraction of trials in which MAML has the lower risk, inner rate "
            f"α = {settings.inner_lrs[index]:.10g}\n"
            f"p = {settings.p}, β = {settings.beta:g}, {settings.trials} trials per cell; "
            + _lines(maps, [index]),
            x=0.02, y=0.975, ha="left", fontsize=10.5,
        )  # fmt: skip


def _heat(axes: Axes, maps: Maps, values: Array, colours: Any, levels: Array) -> list[Artist]:
    """Filled contours over (N, M); a grid with one value along an axis gets coloured cells."""
    if maps.as_cells:
        return [axes.pcolormesh(_edges(maps.samples), _edges(maps.tasks), values, **colours)]
    grid = maps.samples, maps.tasks
    drawn: list[Artist] = [
        axes.contourf(*grid, np.clip(values, levels[0], levels[-1]), levels, **colours)
    ]
    if colours is _FRACTION and values.min() < 0.5 < values.max():
        drawn.append(
            axes.contour(*grid, values, [0.5], colors="0.15", linewidths=0.8, linestyles=":")
        )
    return drawn


def _logarithmic(axes: Axes, maps: Maps, apart: float) -> None:
    """Logarithmic axes labelled with the grid's own numbers, at least a factor `apart` apart."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, values in ((axes.xaxis, maps.samples), (axes.yaxis, maps.tasks)):
        axis.set_major_locator(FixedLocator(_spaced(values, apart)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    for limit, values in ((axes.set_xlim, maps.samples), (axes.set_ylim, maps.tasks)):
        ends = _edges(values) if maps.as_cells else values
        limit(float(ends[0]), float(ends[-1]))
    axes.tick_params(length=2.5, width=0.6)


def _spaced(values: Array, apart: float) -> list[float]:
    """Values at least a factor `apart` from each other, both ends among them."""
    kept = [float(values[0])]
    for value in values[1:-1]:
        if value >= apart * kept[-1] and value * apart <= values[-1]:
            kept.append(float(value))
    return kept if len(values) == 1 else [*kept, float(values[-1])]


def _edges(values: Array) -> Array:
    """Cell borders halfway between values on a logarithmic axis."""
    logs = np.log(values)
    if len(logs) == 1:
        return np.asarray(np.exp(logs[0] + np.array([-0.3, 0.3])))
    middle = (logs[1:] + logs[:-1]) / 2
    ends = [2 * logs[0] - middle[0]], [2 * logs[-1] - middle[-1]]
    return np.asarray(np.exp(np.concatenate([ends[0], middle, ends[1]])))


def _crossover(axes: Axes, maps: Maps, crossover: Array, **style: Any) -> list[Artist]:
    """M*(N), broken where it is NaN, from far below to far above the axes, which keep limits."""
    shown = np.clip(crossover, 1e-3, 1e12)
    options = {"color": "black", "linewidth": 1.6, "marker": "o", "markersize": 2.5, **style}
    return list(axes.plot(maps.samples, shown, scalex=False, scaley=False, **options))


def _lines(maps: Maps, rates: Sequence[int]) -> str:
    """What the lines over the maps of some rates are."""
    half = "dotted: half of the trials"
    if maps.crossover is None:
        return half
    shown = maps.crossover[:, rates]
    if not ((shown >= maps.tasks[0]) & (shown <= maps.tasks[-1])).any():
        return f"{half}; no crossover M*(N) is predicted in this range"
    return f"solid: predicted crossover M*(N), {half}"


# ---------------------------------------------------------------- summary


def _summary(maps: Maps) -> Figure:
    """Some rates side by side; below, what the theory says of all of them."""
    settings, rates = maps.settings, _chosen(maps.settings)
    sources = [("simulation", maps.simulated), ("theory", maps.predicted)]
    if not maps.predicted:
        sources.pop()
    full = len(sources) == 2
    figure = Figure(figsize=(13.75, 10.0 if full else 3.7))
    low, middle, high = (0.06, 0.45, 0.92) if full else (0.16, 0.16, 0.8)
    outer = figure.add_gridspec(
        3 if full else 1, 1, left=0.065, right=0.915, bottom=low, top=high, hspace=0.3,
        height_ratios=[1, 1, 1.25] if full else [1],
    )  # fmt: skip
    for row, (name, source) in enumerate(sources):
        inner = outer[row].subgridspec(1, len(rates), wspace=0.08)
        for column, index in enumerate(rates):
            axes = figure.add_subplot(inner[column])
            _heat(axes, maps, source[True][:, :, index], _FRACTION, _LEVELS)
            _logarithmic(axes, maps, apart=2.2)
            if maps.crossover is not None:
                _crossover(axes, maps, maps.crossover[:, index])
            axes.set_title(f"{name}, α = {settings.inner_lrs[index]:g}")
            axes.set_xlabel("samples N")
            if column:
                axes.tick_params(labelleft=False)
            else:
                axes.set_ylabel("training tasks M")
    bar = figure.colorbar(
        ScalarMappable(**_FRACTION),
        cax=figure.add_axes((0.93, middle, 0.012, high - middle)),
        ticks=np.linspace(0, 1, 6),
    )
    bar.set_label("fraction: MAML lower")
    if full:
        below = outer[2].subgridspec(1, 3, wspace=0.22)
        for column, after_update in enumerate((True, False)):
            _scatter(figure.add_subplot(below[column]), maps, after_update)
        _crossovers(figure.add_subplot(below[2]), maps)
    figure.suptitle(
        "Fraction of trials in which MAML has the lower risk after the update, "
        f"p = {settings.p}, β = {settings.beta:g}, {settings.trials} trials per cell; "
        + _lines(maps, rates),
        x=0.02, y=0.985, ha="left", fontsize=11,
    )  # fmt: skip
    return figure


def _chosen(settings: Settings) -> list[int]:
    """Up to five rates other than 0, spread over the list in ascending order."""
    order = [i for i in np.argsort(settings.inner_lrs) if settings.inner_lrs[i] != 0]
    order = order or list(range(len(settings.inner_lrs)))
    places = np.unique(np.round(np.linspace(0.09, 1, 5) * (len(order) - 1)).astype(int))
    return [int(order[i]) for i in places]


def _scatter(axes: Axes, maps: Maps, after_update: bool) -> None:
    """Predicted against simulated fractions, coloured by N."""
    simulated, predicted = maps.simulated[after_update], maps.predicted[after_update]
    groups: Sequence[tuple[str, Any, str]] = (
        ("N = 1", maps.samples == 1, "#D55E00"),
        ("N = 2 to 10", (maps.samples > 1) & (maps.samples <= 10), "#E69F00"),
        ("N > 10", maps.samples > 10, "#0072B2"),
    )
    axes.plot([0, 1], [0, 1], color="0.5", linewidth=0.8, zorder=3)
    size = 2.5 if simulated.size > 500 else 6.0
    for label, inside, colour in reversed(groups):
        if inside.any():
            axes.plot(
                predicted[:, inside].ravel(), simulated[:, inside].ravel(), ".", markersize=size,
                color=colour, label=label, alpha=0.55, markeredgewidth=0,
            )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("theory: probability that MAML is lower")
    axes.set_ylabel("simulation: fraction of trials")
    axes.set_title(f"all cells and rates, {_LABELS[after_update]}")
    axes.legend(
        frameon=False, fontsize=8, markerscale=10 / size, loc="upper left", handletextpad=0.2
    )


def _crossovers(axes: Axes, maps: Maps) -> None:
    """M*(N) of every rate, also beyond the largest M simulated."""
    assert maps.crossover is not None
    _logarithmic(axes, maps, apart=1.6)
    shown = maps.crossover[np.isfinite(maps.crossover)]
    largest = float(maps.tasks[-1])
    top = float(np.clip(shown.max(initial=0.0), 2 * largest, 50 * largest))
    axes.set_ylim(float(maps.tasks[0]) / 1.2, top)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.axhline(largest, color="0.6", linewidth=0.8, linestyle=":")
    rates = np.array(maps.settings.inner_lrs)
    norm = Normalize(float(rates.min()), float(max(rates.max(), rates.min() + 1e-9)))
    colours = matplotlib.colormaps["viridis"]
    marker = 3.0 if len(maps.samples) == 1 else 0.0
    for curve, rate in zip(maps.crossover.T, rates, strict=True):
        _crossover(axes, maps, curve, color=colours(norm(rate)), linewidth=1.0, markersize=marker)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("samples N")
    axes.set_ylabel("training tasks M")
    axes.set_title("predicted crossover M*(N): MAML wins above")
    mapped = ScalarMappable(norm=norm, cmap=colours)
    bar = axes.figure.colorbar(mapped, ax=axes, pad=0.02, aspect=30)
    bar.set_label("inner rate α")
