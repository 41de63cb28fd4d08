"""One look for the figures of all commands, and how they are written.

What tells curves apart is drawn three times over (colour, line, marker), and maps rise in lightness
from end to end, so that a grey print says the same.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import matplotlib
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from innerloop.runs.files import write_atomically
from innerloop.runs.methods import FIRST_ORDER, JOINT, MAML
from innerloop.runs.report import FIGURE_KINDS

_RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.5,
    "savefig.dpi": 160,
    "pdf.fonttype": 42,
    "svg.hashsalt": "innerloop",
}
# Okabe and Ito's colours.
SERIES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#009E73", "marker": "s", "linestyle": "--", "markerfacecolor": "white"},
    {"color": "#D55E00", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": ":", "markerfacecolor": "white"},
    {"color": "#000000", "marker": "v", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
)
STYLE = dict(zip((JOINT, FIRST_ORDER, MAML), SERIES, strict=False))
# Blue where the quantity is small, orange where it is large, grey in the middle.
RISING = LinearSegmentedColormap.from_list(
    "rising", ["#0b2f66", "#33609b", "#8c8a88", "#eba55f", "#ffeec2"]
)


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Draw and save inside: the settings of all figures hold there."""
    with matplotlib.rc_context(_RC):
        yield


def save_figure(figure: Figure, stem: Path) -> Path:
    """Write a figure as PNG, SVG and PDF, with equal bytes for equal numbers; returns the SVG's
    path.
    """
    metadata: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    for kind in FIGURE_KINDS:

        def write(stream: IO[bytes], kind: str = kind) -> None:
            figure.savefig(stream, format=kind, metadata=metadata.get(kind))

        write_atomically(stem.with_name(f"{stem.name}.{kind}"), write)
    return stem.with_name(f"{stem.name}.svg")


def spaced(values: Sequence[float], factor: float) -> list[float]:
    """Ascending positive values at least a factor from each other, both ends among them: those
    that have room for a label on a logarithmic axis.
    """
    kept = [float(values[0])]
    for value in values[1:-1]:
        if value >= factor * kept[-1] and value * factor <= values[-1]:
            kept.append(float(value))
    return kept if len(values) == 1 else [*kept, float(values[-1])]


def label_logarithmic(axis: Axis) -> None:
    """Plain numbers along a logarithmic axis whose limits are set, as many as have room."""
    low, high = axis.get_view_interval()
    few = math.log10(high / low) < 2.5
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
