"""Hooks of mkdocs: pages outside of docs/, links to sources, and mathematics as MathML.

Every browser since 2023 shows MathML itself, so no script and no other host takes part.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
PLACES = {page: path for path, page in OUTSIDE.items()}  # of pages in the repository
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that lie outside of docs/."""
    for path, page in OUTSIDE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Points links between files of the repository to pages of the site, or to the sources."""
    here = page.file.src_uri
    place = PLACES.get(here, f"docs/{here}")
    home = config.repo_url

    def changed(match: re.Match[str]) -> str:
        mark, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        inside = OUTSIDE.get(path) or (path[5:] if path.startswith("docs/") else None)
        if inside is not None:
            found = posixpath.relpath(inside, posixpath.dirname(here) or ".")
            return f"{mark}[{text}]({found}{anchor})"
        if not (ROOT / path).exists():
            raise ValueError(f"{place}: there is no {path}")
        return f"[{text}]({home}/blob/main/{path}{anchor})" if home else text

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(changed, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html_text: str, page: Any, **_: Any) -> str:
    """Formulas of arithmatex as MathML."""

    def formula(match: re.Match[str]) -> str:
        source = html.unescape(match[2]).strip()
        block = source.startswith(r"\[")
        return convert(source[2:-2].strip(), display="block" if block else "inline")

    return FORMULA.sub(formula, html_text)
