"""Reports: everything escaped, nothing fetched, equal bytes, and a page that a browser shows."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from innerloop.runs.figures import SERIES, figure_style, label_logarithmic, save_figure
from innerloop.runs.report import (
    FIGURE_KINDS,
    REPORT,
    Picture,
    Report,
    Section,
    figure_files,
    print_ending,
    write_report,
)

HOSTILE = "<script>alert(1)</script> \"quoted\" & 'so' </style> &amp; <img src=http://a.b/c>"
VOID = {"meta", "img", "br"}


def table() -> Table:
    made = Table(title=f"Errors {HOSTILE}", caption="A caption.")
    made.add_column("steps")
    made.add_column("joint\ntraining", justify="right")
    made.add_row("0", "[bold]1.5[/]", end_section=True)
    made.add_row(HOSTILE, "[-22%, +53%]", style="bold")
    return made


def figure(folder: Path, stem: str = "curve") -> Path:
    from matplotlib.figure import Figure

    with figure_style():
        drawn = Figure(figsize=(4.8, 3.0), layout="constrained")
        axes = drawn.subplots()
        axes.plot([1, 2, 3], [0.02, 0.5, 3.0], label="a curve", **SERIES[1])
        axes.set_yscale("log")
        label_logarithmic(axes.yaxis)
        axes.legend()
        return save_figure(drawn, folder / stem)


@pytest.fixture
def made(tmp_path: Path) -> Report:
    path = figure(tmp_path)
    return Report(
        command="innerloop study waves",
        question=f"Is it worth it? {HOSTILE}",
        answer=f"Yes, by far. {HOSTILE}",
        reasons=["A reason.", HOSTILE],
        notes=[HOSTILE],
        sections=[
            Section("Result", [Picture(path, f"A curve. {HOSTILE}"), "A paragraph.", table()]),
            Section("More", [Picture(path.with_suffix(".png"), "Wide", wide=True)], folded=True),
        ],
        settings={"rates": [0.1, 0.25], "seed": 0, "features": [], "log": None, "x": HOSTILE},
        versions={"torch": "2.13.0"},
        files={"results.json": "every number", "curve.*": "the figure", "a b.txt": HOSTILE},
        introduction=["Data     a table", "         of rows", f"Model    {HOSTILE}"],
    )


class Outline(HTMLParser):
    """Elements of a page, and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def test_page_is_well_formed_and_everything_is_text(made: Report, tmp_path: Path) -> None:
    text = write_report(tmp_path, made).read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.open == []
    tags = [tag for tag, _ in outline.seen]
    assert not {"script", "iframe", "link", "object"} & set(tags)
    assert tags.count("img") == 2
    shown = "".join(outline.text)
    for place in (made.question, made.answer, HOSTILE, "1.5", "[-22%, +53%]", "joint training"):
        assert place in shown
    for _, attributes in outline.seen:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "./").startswith("./")
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in text
    assert text.index("Yes, by far") < text.index("<img")


def test_settings_read_as_people_write_them(made: Report, tmp_path: Path) -> None:
    text = write_report(tmp_path, made).read_text(encoding="utf-8")
    for name, value in (
        ("rates", "0.1, 0.25"),
        ("seed", "0"),
        ("features", "none"),
        ("log", "none"),
    ):
        assert f'<th scope="row">{name}</th><td>{value}</td>' in text
    assert '<a href="./a%20b.txt">a b.txt</a>' in text
    assert '<th scope="row">curve.*</th>' in text  # several files are no link
    assert '<th scope="row">Data</th><td>a table; of rows</td>' in text


def test_rows_keep_their_emphasis(made: Report, tmp_path: Path) -> None:
    text = write_report(tmp_path, made).read_text(encoding="utf-8")
    assert '<tr class="end"><td>0</td><td class="number">1.5</td></tr>' in text
    assert '<tr class="strong">' in text


def test_equal_reports_give_equal_bytes(made: Report, tmp_path: Path) -> None:
    first = write_report(tmp_path, made).read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    assert write_report(other, made).read_bytes() == first


@pytest.mark.slow
@pytest.mark.ci
def test_figures_have_equal_bytes_in_every_process(tmp_path: Path) -> None:
    """Also where hashes of strings differ."""
    source = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:];"
        "from test_report import figure; figure(pathlib.Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        subprocess.run(
            [
                sys.executable,
                "-c",
                source,
                str(tmp_path / seed),
                *sys.path,
                str(Path(__file__).parent),
            ],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
    for kind in FIGURE_KINDS:
        one, two = ((tmp_path / seed / f"curve.{kind}").read_bytes() for seed in ("1", "2"))
        assert one == two, kind
    assert figure_files("curve") == ("curve.png", "curve.svg", "curve.pdf")


def test_series_differ_in_line_and_marker() -> None:
    for name in ("color", "marker", "linestyle"):
        assert len({str(style[name]) for style in SERIES}) == len(SERIES)


def test_maps_rise_in_lightness() -> None:
    """So that a grey print keeps the order."""
    import numpy as np

    from innerloop.runs.figures import RISING

    grey = RISING(np.linspace(0, 1, 64))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey) > 0).all()


def test_the_end_names_the_answer_the_files_and_the_one_to_open(made: Report) -> None:
    stream = io.StringIO()
    print_ending(Console(file=stream, width=40), made, Path("out/a [red] folder"))
    lines = stream.getvalue().splitlines()
    assert lines[0] == made.answer
    assert lines[1] == "Written to out/a [red] folder:"
    assert lines[2].split() == ["results.json", "every", "number"]
    assert lines[-1] == f"Open out/a [red] folder/{REPORT}"


CHROMIUM = shutil.which("chromium")


def browse(page: Path, profile: Path, *options: str) -> str:
    """What headless Chromium prints for a page, with an empty profile and no network."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--hide-scrollbars", f"--user-data-dir={profile}"),
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_browser_shows_it_on_a_phone(made: Report, tmp_path: Path) -> None:
    """Both figures are decoded, and the page is no wider than the phone's frame."""
    from matplotlib.image import imread

    path = write_report(tmp_path, made)
    probe = (
        "<script>addEventListener('load', () => { document.querySelectorAll('details').forEach("
        "d => { d.open = true }); document.title = [document.images.length, "
        "[...document.images].filter(i => i.naturalWidth > 100).length, "
        "document.documentElement.scrollWidth <= innerWidth, innerWidth].join() })</script>"
    )
    text = path.read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"  # scripts are forbidden in the page itself
    probed.write_text(
        re.sub("<meta http-equiv=[^>]*>", "", text).replace("</main>", f"{probe}</main>")
    )
    phone = "--window-size=400,900"
    dom = browse(probed, tmp_path / "profile", phone, "--dump-dom")
    found = re.search("<title>(.*?)</title>", dom, re.DOTALL)
    assert found is not None
    images, decoded, fits, width = found[1].split(",")
    assert (images, decoded, fits) == ("2", "2", "true")
    assert int(width) <= 500
    assert "Yes, by far." in browse(path, tmp_path / "profile", phone, "--dump-dom")
    shot = tmp_path / "shot.png"
    browse(path, tmp_path / "profile", phone, f"--screenshot={shot}")
    pixels = imread(shot)
    assert 0.02 < (pixels[..., :3].min(axis=-1) < 0.6).mean() < 0.5
