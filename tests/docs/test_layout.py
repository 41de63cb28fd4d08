"""CONTRIBUTING's table of the layout: it names every source, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = {"network", "solver", "objective", "engine"}
OTHERS = {"several", "all", "uses them", "theory", "commands"}


def rows() -> list[tuple[list[Path], str]]:
    """Returns the paths of each row and what it says they serve."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## Layout")[1].split("\nDependencies")[0]
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 3 and cells[0].startswith("`"):
            names = re.findall(r"`([^`]+)`", cells[0])
            folder = (ROOT / names[0]).parent
            paths = [folder / n if (folder / n).exists() else ROOT / n for n in names]
            found.append((paths, cells[1]))
    return found


def test_every_source_is_named_with_what_it_serves() -> None:
    named = {path: word for paths, word in rows() for path in paths}
    assert len(named) > 60  # the table was read
    assert [str(path) for path in named if not path.exists()] == []
    sources = [
        path
        for folder in ("csrc", "python/innerloop")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".pyi", ".h", ".cpp", ".cu"}
    ]
    assert len(sources) > 200
    lost = [str(p) for p in sources if p not in named and not any(q in named for q in p.parents)]
    assert lost == []
    known = WORDS | OTHERS
    assert {word for paths, word in rows() if not paths[0].match("tests")} <= {*known, ""}


def test_files_of_rooms_with_several_parts_begin_with_what_they_serve() -> None:
    named = {path for paths, _ in rows() for path in paths}
    rooms = [path for paths, word in rows() if word == "several" for path in paths if path.is_dir()]
    assert ROOT / "csrc" / "cpu" in rooms
    lost = []
    for path in sorted(path for room in rooms for path in room.rglob("*")):
        if path.suffix not in {".py", ".h", ".cpp"} or path.name == "__init__.py" or path in named:
            continue
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip('/" #').split(":")[0]
        if first.lower() == "for all four words":
            continue
        if not set(first.lower().split(" and ")) <= WORDS:
            lost.append(str(path.relative_to(ROOT)))
    assert lost == []
