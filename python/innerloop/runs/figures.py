"""How figures of all commands show the methods, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from matplotlib.figure import Figure

from innerloop.runs.files import write_atomically
from innerloop.runs.methods import FIRST_ORDER, JOINT, MAML

# Okabe and Ito's colours, each with a marker and a dash pattern for grey prints.
STYLE = {
    JOINT: {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    FIRST_ORDER: {"color": "#009E73", "marker": "s", "linestyle": "--"},
    MAML: {"color": "#D55E00", "marker": "^", "linestyle": "-"},
}


def save_figure(figure: Figure, stem: Path) -> Path:
    """Write a figure as PNG and SVG, with equal bytes for equal numbers; returns the PNG's path."""

    def png(stream: IO[bytes]) -> None:
        figure.savefig(stream, format="png", dpi=160)

    def svg(stream: IO[bytes]) -> None:
        figure.savefig(stream, format="svg", metadata={"Date": None})

    write_atomically(stem.with_suffix(".svg"), svg)
    write_atomically(stem.with_suffix(".png"), png)
    return stem.with_suffix(".png")
