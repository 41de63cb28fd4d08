"""What a meta-RL study found, in the documentation: its results.json as results/meta-rl.json, its
figures as docs/images/meta_rl_*.svg, and the tables of docs/meta-rl.md. Nothing is computed.

`innerloop study meta-rl --only-report --out FOLDER` writes that folder's files, finished or not.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from measure import environment
from tables.meta_rl import FORMAT
from untimed.measurement import renew_table, write

DOCUMENT = Path("docs") / "meta-rl.md"
IMAGES = Path("docs") / "images"
RESULT = Path("benchmarks") / "results" / "meta-rl.json"
FIGURES = ("tradeoff", "returns")


def take(folder: Path, root: Path) -> None:
    """Copies results and figures of a study's folder into a checkout.

    Raises:
        SystemExit: the folder is not one of such a study, or has no figures.
    """
    source = folder / "results.json"
    needed = [source, *(folder / f"{name}.svg" for name in FIGURES)]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise SystemExit(
            f"run.py meta-rl: FOLDER must be that of a meta-RL study with two finished seeds "
            f"({folder.name} lacks {', '.join(missing)})"
        )
    text = source.read_text(encoding="utf-8")
    if json.loads(text).get("format") != FORMAT:
        raise SystemExit(f"run.py meta-rl: results.json must be in the format {FORMAT}")
    write(root / RESULT, text)
    for name in FIGURES:
        shutil.copyfile(folder / f"{name}.svg", root / IMAGES / f"meta_rl_{name}.svg")


def main(arguments: list[str]) -> int:
    """Takes a study's folder over and writes the tables."""
    parser = argparse.ArgumentParser("run.py meta-rl", description=__doc__)
    parser.add_argument("folder", type=Path, help="what --out of the study named")
    take(parser.parse_args(arguments).folder, environment.ROOT)
    renew_table(DOCUMENT)
    return 0
