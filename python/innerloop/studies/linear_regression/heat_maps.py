"""Maps over (N, M) as cells: what was simulated is shown cell by cell, and nothing between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from innerloop.runs.figures import RISING
from innerloop.studies.linear_regression.agreement import clear
from innerloop.studies.linear_regression.result import Sweep

Array = NDArray[np.float64]

LABELS = {True: "after the update", False: "before any update"}
SHARE: dict[str, Any] = {"cmap": RISING, "norm": Normalize(0.0, 1.0)}
GAP: dict[str, Any] = {"cmap": RISING, "norm": Normalize(-0.1, 0.1)}
_APART = 0.6  # of a cell, between N = 1 and the others
HATCH = "////"
_TICK_SIZE = 7
_SIDE = 2.45  # inches of a panel of a page


class Maps:
    """A sweep as figures need it: axes in ascending order, and where its cells lie."""

    def __init__(self, sweep: Sweep) -> None:
        settings = sweep.settings
        rows, columns = np.argsort(settings.tasks), np.argsort(settings.samples)
        grid = np.ix_(rows, columns)
        self.settings = settings
        self.tasks = np.array(settings.tasks)[rows]
        self.samples = np.array(settings.samples)[columns]
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
        # With one sample the theory of many samples says least, and the grid jumps.
        self.single = int(self.samples[0] == 1 and len(self.samples) > 1)
        self.left = np.arange(len(self.samples)) + _APART * (np.arange(len(self.samples)) > 0) * (
            self.single
        )

    def boundary(self, above: NDArray[np.bool_]) -> list[list[tuple[float, float]]]:
        """The edges between cells that are `above` [M, N] and neighbours that are not."""
        edges = []
        for j, x in enumerate(self.left):
            for i in np.flatnonzero(above[1:, j] != above[:-1, j]):
                edges.append([(x, i + 1.0), (x + 1.0, i + 1.0)])
            if j and x == self.left[j - 1] + 1.0:
                edges += [
                    [(x, float(i)), (x, i + 1.0)]
                    for i in np.flatnonzero(above[:, j] != above[:, j - 1])
                ]
        return edges


def draw_cells(axes: Axes, maps: Maps, values: Array, colours: dict[str, Any]) -> Iterator[Artist]:
    """Coloured cells [M, N]."""
    rows = np.arange(len(maps.tasks) + 1.0)
    for part in (slice(0, maps.single), slice(maps.single, None)):
        if len(maps.left[part]):
            columns = np.append(maps.left[part], maps.left[part][-1] + 1.0)
            yield axes.pcolormesh(columns, rows, values[:, part], linewidth=0, **colours)


def draw_undecided(axes: Axes, maps: Maps, shares: Array, hatch: str) -> Iterator[Artist]:
    """Hatching over the cells that trials do not decide."""
    places = np.argwhere(~clear(shares, maps.settings.trials))
    if len(places):
        cells = [Rectangle((maps.left[j], float(i)), 1.0, 1.0) for i, j in places]
        hatched = PatchCollection(
            cells, facecolor="none", edgecolor="0.1", linewidth=0.0, hatch=hatch
        )
        yield axes.add_collection(hatched, autolim=False)


def draw_half(axes: Axes, maps: Maps, probabilities: Array) -> Iterator[Artist]:
    """The line between cells in which theory expects MAML to win more than half, and the others."""
    edges = maps.boundary(probabilities > 0.5)
    if edges:
        for colour, width in (("white", 3.0), ("black", 1.4)):
            line = LineCollection(edges, colors=colour, linewidths=width, capstyle="projecting")
            yield axes.add_collection(line, autolim=False)


def set_up(axes: Axes, maps: Maps, room: int) -> None:
    """Axes of cells, with labels for at most `room` values of each."""
    axes.set_xlim(0.0, float(maps.left[-1] + 1.0))
    axes.set_ylim(0.0, float(len(maps.tasks)))
    shown = _spread(len(maps.samples), room, fixed=maps.single)
    axes.set_xticks([maps.left[j] + 0.5 for j in shown], [f"{maps.samples[j]}" for j in shown])
    shown = _spread(len(maps.tasks), room)
    axes.set_yticks([i + 0.5 for i in shown], [f"{maps.tasks[i]}" for i in shown])
    axes.tick_params(length=2.0, width=0.6, labelsize=_TICK_SIZE)
    axes.tick_params(axis="x", labelrotation=90.0 * (room > 8))
    axes.spines[:].set_visible(False)


def _spread(count: int, room: int, fixed: int = 0) -> list[int]:
    """At most `room` of so many places, evenly: the first `fixed`, and both ends of the others."""
    wanted = min(count, room) - fixed
    return [*range(fixed), *np.unique(np.linspace(fixed, count - 1, wanted).round().astype(int))]


def add_bar(
    figure: Figure, place: tuple[float, float, float, float], colours: dict[str, Any], label: str
) -> None:
    """A horizontal colour bar in figure coordinates."""
    bar = figure.colorbar(
        ScalarMappable(**colours), cax=figure.add_axes(place), orientation="horizontal"
    )
    norm = colours["norm"]
    ticks = [round(float(t), 3) for t in np.linspace(norm.vmin, norm.vmax, 5)]
    bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
    bar.set_label(label, fontsize=8, labelpad=2)
    bar.outline.set_linewidth(0.6)
    bar.ax.tick_params(length=2.0, width=0.6, labelsize=_TICK_SIZE)


class Inches:
    """Places on a figure, given in inches."""

    def __init__(self, width: float, height: float) -> None:
        self.size = width, height

    def __call__(
        self, left: float, bottom: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        """A rectangle in figure coordinates."""
        across, up = self.size
        return left / across, bottom / up, width / across, height / up


def add_title(figure: Figure, text: str, place: Inches, left: float) -> None:
    """A title at the top, `left` inches from the side."""
    x, y, *_ = place(left, place.size[1] - 0.08, 0.0, 0.0)
    figure.suptitle(text, x=x, y=y, ha="left", va="top", fontsize=9.5)


def add_key(figure: Figure, maps: Maps, place: Inches, left: float, below: float) -> None:
    """What hatching and line are, `below` the top."""
    handles: list[Artist] = [
        Patch(
            facecolor="0.8", edgecolor="0.1", linewidth=0, hatch=HATCH, label="within 2 s.e. of ½"
        )
    ]
    if maps.predicted:
        halo = withStroke(linewidth=3.0, foreground="white")
        handles.append(
            Line2D(
                [], [], color="black", linewidth=1.4, path_effects=[halo], label="theory: one half"
            )
        )
    x, y, *_ = place(left, place.size[1] - below, 0.0, 0.0)
    figure.legend(
        handles=handles, loc="lower left", ncols=2, handlelength=1.6, columnspacing=1.2,
        bbox_to_anchor=(x, y), borderaxespad=0.0, borderpad=0.0,
    )  # fmt: skip


class Page:
    """The maps of one rate: after and before the update; simulation, and theory's distance from it.

    One figure serves all rates, since making axes and ticks takes longer than filling them.
    """

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._drawn: list[Artist] = []
        columns = 2 if maps.predicted else 1
        self._place = Inches(0.9 + 2.75 * columns, 7.02)
        self.figure = Figure(figsize=self._place.size)
        self._panels = [
            [
                self.figure.add_axes(self._place(0.75 + 2.75 * k, bottom, _SIDE, _SIDE))
                for k in range(columns)
            ]
            for bottom in (3.85, 1.2)
        ]
        for row, after_update in zip(self._panels, (True, False), strict=True):
            row[0].set_ylabel(f"{LABELS[after_update]}\ntraining tasks M")
            for axes in row:
                set_up(axes, maps, room=12)
                axes.tick_params(labelleft=axes is row[0], labelbottom=row is self._panels[-1])
        titles = ("simulation", "theory − simulation")
        bars = (("share of trials won by MAML", SHARE), ("theory − simulation", GAP))
        for k in range(columns):
            self._panels[0][k].set_title(titles[k])
            self._panels[1][k].set_xlabel("samples N", labelpad=2)
            label, colours = bars[k]
            add_bar(self.figure, self._place(0.75 + 2.75 * k, 0.52, _SIDE, 0.1), colours, label)
        add_key(self.figure, maps, self._place, 0.3, 0.5)

    def show(self, index: int) -> None:
        """Fill the panels with the maps of one rate."""
        maps, settings = self._maps, self._maps.settings
        for artist in self._drawn:
            artist.remove()
        self._drawn = []
        for row, after_update in zip(self._panels, (True, False), strict=True):
            simulated = maps.simulated[after_update][:, :, index]
            self._drawn += draw_cells(row[0], maps, simulated, SHARE)
            self._drawn += draw_undecided(row[0], maps, simulated, HATCH)
            if maps.predicted:
                predicted = maps.predicted[after_update][:, :, index]
                self._drawn += draw_half(row[0], maps, predicted)
                self._drawn += draw_cells(row[1], maps, predicted - simulated, GAP)
        add_title(
            self.figure,
            f"Inner rate α = {settings.inner_lrs[index]:.10g}: p = {settings.p}, "
            f"β = {settings.beta:g}, {settings.trials} trials a cell",
            self._place,
            0.3,
        )
