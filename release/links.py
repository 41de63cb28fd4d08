"""Prepares a checkout for a release: absolute links in README.md and the project's addresses.

    python release/links.py HOME REF

In the repository, links are relative, so that they work in every clone and fork; a package index
shows the README alone. HOME is the address of the repository that makes the release (https://...),
REF the tag.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?![a-z]+:|#)([^)]+)\)")
URLS = """[project.urls]
Homepage = "{home}"
Documentation = "{home}/tree/{ref}/docs"
Source = "{home}/tree/{ref}"
Issues = "{home}/issues"
Changelog = "{home}/blob/{ref}/CHANGELOG.md"

[project.scripts]
"""


def absolute_links(text: str, home: str, ref: str) -> str:
    """A page of the repository's root with links that work anywhere."""

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match[1] else "blob"  # pictures lead to the files themselves
        return f"{match[1]}[{match[2]}]({home}/{kind}/{ref}/{match[3]})"

    return LINK.sub(absolute, text)


def main(arguments: list[str]) -> None:
    """Rewrites README.md and pyproject.toml of this checkout."""
    if len(arguments) != 2 or not arguments[0].startswith("https://"):
        raise SystemExit("usage: python release/links.py https://HOME REF")
    home, ref = arguments[0].rstrip("/"), arguments[1]
    readme, project = ROOT / "README.md", ROOT / "pyproject.toml"
    settings = project.read_text(encoding="utf-8")
    if "[project.urls]" in settings:
        raise SystemExit("links.py: pyproject.toml has [project.urls] already")
    readme.write_text(
        absolute_links(readme.read_text(encoding="utf-8"), home, ref), encoding="utf-8"
    )
    urls = URLS.format(home=home, ref=ref)
    project.write_text(settings.replace("[project.scripts]\n", urls), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
