"""A run's report: one HTML file that needs no network and no other file, the answer first.

A command makes a `Report` of what it knows already (its answer, the tables that the terminal shows,
its figures, settings and versions) and calls `write_report`, then `print_ending`. Everything in
a report is escaped text; equal reports give equal bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from innerloop.runs.files import write_bytes

REPORT = "report.html"
FIGURE_KINDS = ("png", "svg", "pdf")
_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure on disk, embedded in the report.

    Args:
        path: an SVG (for lines) or PNG (for maps of many cells).
        caption: what to see in it; also read out where the figure cannot be seen.
        wide: it has panels side by side, and is scrolled on a phone instead of shrunk.
    """

    path: Path
    caption: str
    wide: bool = False


Part: TypeAlias = "str | Table | Picture"


@dataclasses.dataclass(frozen=True)
class Section:
    """Paragraphs, tables of the terminal and figures under a title; a folded one opens on a tap."""

    title: str
    parts: Sequence[Part]
    folded: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report says.

    Args:
        command: such as "innerloop study sinusoid".
        question: what was asked; the title.
        answer: one line.
        reasons: paragraphs that support it.
        notes: what a reader of the numbers should know.
        sections: figures and tables, in the order of interest.
        settings: by name, as the result file has them.
        versions: of everything that computes a number.
        files: {name in the run's folder: what it holds}, without the report itself.
        introduction: what the terminal said before the work: lines of a word, spaces and the rest;
            a line that begins with a space goes on with the one before.
    """

    command: str
    question: str
    answer: str
    reasons: Sequence[str]
    notes: Sequence[str]
    sections: Sequence[Section]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    files: Mapping[str, str]
    introduction: Sequence[str] = ()


def figure_files(*stems: str) -> tuple[str, ...]:
    """The names of the files of figures, for the outputs that a command declares."""
    return tuple(f"{stem}.{kind}" for stem in stems for kind in FIGURE_KINDS)


def write_report(folder: Path, report: Report) -> Path:
    """Write `report.html` atomically and return its path.

    Raises:
        OSError: a figure cannot be read, or the file cannot be written.
    """
    write_bytes(folder / REPORT, page(report).encode())
    return folder / REPORT


def print_ending(console: Console, report: Report, folder: Path) -> None:
    """The last lines of a command: the answer, what was written where, and the file to open."""
    console.print(report.answer, style="bold", soft_wrap=True, highlight=False, markup=False)
    console.print(f"Written to {folder}:", soft_wrap=True, highlight=False, markup=False)
    width = max(map(len, report.files), default=0)
    for name, what in report.files.items():
        line = f"  {name:{width}}  {what}"
        console.print(line, soft_wrap=True, highlight=False, markup=False, style="dim")
    console.print(f"Open {folder / REPORT}", soft_wrap=True, highlight=False, markup=False)


def page(report: Report) -> str:
    """The whole document."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    files = "".join(
        f'<tr><th scope="row">{_file_link(name)}</th><td>{escape(what)}</td></tr>'
        for name, what in report.files.items()
    )
    body = [
        f'<p class="command">{escape(report.command)}</p>',
        f"<h1>{escape(report.question)}</h1>",
        '<section class="answer">',
        f"<p><strong>{escape(report.answer)}</strong></p>",
        *(f"<p>{escape(reason)}</p>" for reason in report.reasons),
        "</section>",
        f'<section class="notes"><h2>Notes</h2><ul>{notes}</ul></section>' if notes else "",
        *(_section(section) for section in report.sections),
        _folded("What was run", _introduced(report.introduction)) if report.introduction else "",
        _folded("Settings", _pairs(report.settings)),
        _folded("Versions", _pairs(report.versions)),
        _folded("Files in this folder", f'<div class="scroll"><table>{files}</table></div>'),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # No script, no network: whatever a table's names say.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(report.question)}</title>\n<style>{_CSS}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, body))
        + "\n</main></body></html>\n"
    )


def _file_link(name: str) -> str:
    """A file's name, as a link unless it stands for several files."""
    if any(letter in name for letter in "*,<"):
        return escape(name)
    return f'<a href="{escape(quote(f"./{name}"))}">{escape(name)}</a>'


def _section(section: Section) -> str:
    inside = "\n".join(_part(part) for part in section.parts)
    if section.folded:
        return _folded(section.title, inside)
    return f"<section><h2>{escape(section.title)}</h2>\n{inside}</section>"


def _folded(title: str, inside: str) -> str:
    return f"<details><summary><h2>{escape(title)}</h2></summary>\n{inside}</details>"


def _part(part: Part) -> str:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Picture):
        return _picture(part)
    return f"<p>{escape(part)}</p>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    kind = _TYPES[picture.path.suffix]
    caption = escape(picture.caption)
    return (
        f'<figure><div class="scroll{" wide" * picture.wide}" tabindex="0">'
        f'<img alt="{caption}" src="data:{kind};base64,{data}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    """A table of the terminal: its title above, its caption below, bold rows and rules kept."""
    right = [column.justify == "right" for column in table.columns]
    sides = [' class="number"' if is_right else "" for is_right in right]
    headers = "".join(
        f'<th scope="col"{side}>{_plain(column.header)}</th>'
        for column, side in zip(table.columns, sides, strict=True)
    )
    lines = []
    cells = zip(*(column.cells for column in table.columns), strict=True)
    for row, values in zip(table.rows, cells, strict=True):
        kinds = ["strong"] * ("bold" in str(row.style or "")) + ["end"] * row.end_section
        name = f' class="{" ".join(kinds)}"' if kinds else ""
        inside = "".join(
            f"<td{side}>{_plain(value, '<br>')}</td>"
            for value, side in zip(values, sides, strict=True)
        )
        lines.append(f"<tr{name}>{inside}</tr>")
    # Not a caption, which would be as wide as the table is on a phone.
    title = f'<p class="title">{_plain(table.title)}</p>' if table.title else ""
    below = f'<p class="below">{_plain(table.caption)}</p>' if table.caption else ""
    return (
        f'{title}<div class="scroll" tabindex="0"><table><thead><tr>{headers}</tr></thead>\n<tbody>'
        + "\n".join(lines)
        + f"</tbody></table></div>{below}"
    )


def _plain(value: Any, between: str = " ") -> str:
    """A text without the terminal's markup, with `between` for its line breaks."""
    text = Text.from_markup(value) if isinstance(value, str) else value
    return between.join(escape(" ".join(line.split())) for line in str(text).splitlines())


def _introduced(lines: Sequence[str]) -> str:
    """A table of the lines that open with a word."""
    items: dict[str, Any] = {}
    for line in lines:
        name, *rest = line.split(maxsplit=1)
        if line.startswith(" "):
            last = list(items)[-1]
            items[last] = f"{items[last]}; {line.strip()}"
        else:
            items[name] = "".join(rest)
    return _pairs(items)


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(_value(value))}</td></tr>'
        for name, value in values.items()
    )
    return f'<div class="scroll"><table>{rows}</table></div>'


def _value(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.12g}" if isinstance(value, float) else json.dumps(value)


_CSS = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:#1b1b1b;font:16px/1.5 system-ui,-apple-system,"Segoe UI",
"DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:54rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:1.6rem 0 .5rem}
p,li,figcaption,td:not(.number){overflow-wrap:anywhere}
.command{margin:0;color:#595959;font-family:ui-monospace,"DejaVu Sans Mono",monospace;
font-size:.85rem}
.answer{border-left:.3rem solid #1b1b1b;background:#f3f3f3;padding:.2rem 1rem}
.answer strong{font-size:1.15rem}
.notes{font-size:.9rem}
ul{padding-left:1.2rem}
figure{margin:0 0 1.2rem}
img{display:block;width:100%;max-width:44rem;height:auto}
.wide img{max-width:none;min-width:46rem}
figcaption,.below{color:#404040;font-size:.88rem;margin:.3rem 0 1rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;margin:.3rem 0}
.title{font-size:.9rem;font-weight:600;margin:1rem 0 .2rem}
th,td{padding:.2rem .6rem;text-align:left;vertical-align:top}
thead th{border-bottom:1px solid #1b1b1b;vertical-align:bottom}
.number{text-align:right;white-space:nowrap}
thead .number{white-space:normal}
tbody tr:nth-child(even){background:#f7f7f7}
.strong td{font-weight:600}
.end td{border-bottom:1px solid #9a9a9a}
tr>th[scope=row]{font-weight:400;font-family:ui-monospace,"DejaVu Sans Mono",monospace;
white-space:nowrap}
details{border-top:1px solid #d0d0d0}
details[open]{padding-bottom:1rem}
summary{cursor:pointer}
summary h2{display:inline-block;margin:.6rem 0}
@media print{body{font-size:10pt}main{max-width:none}figure,tr{break-inside:avoid}}
"""
