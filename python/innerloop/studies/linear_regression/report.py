"""What the terminal shows: what is simulated, the agreement by region, and what to keep in mind."""

from __future__ import annotations

import math
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from innerloop.bounds.linear import mean_excess_exists, published_law
from innerloop.bounds.linear.guarantee import Method
from innerloop.studies.linear_regression.agreement import Region, tabulate
from innerloop.studies.linear_regression.result import Sweep
from innerloop.studies.linear_regression.settings import Settings

# Up to this p the averages over the law are exact (innerloop.bounds.linear.published_law).
EXACT_DIMENSIONS = 4


def introduction(settings: Settings) -> list[str]:
    """Lines that say what is simulated, shown before the work starts."""
    rates = settings.inner_lrs
    span = f"{min(rates):g} to {max(rates):g}" if len(rates) > 1 else f"{rates[0]:g}"
    return [
        f"Tasks    eigenvalues and regression vector U(0, {settings.beta:g})^{settings.p}, random "
        f"orientation, noise variance U(0, {settings.beta:g})",
        f"Grid     M {_span(settings.tasks)}, N {_span(settings.samples)}: "
        f"{len(settings.cells())} cells, {settings.trials} trials each; "
        f"{len(rates)} inner rate{'s' * (len(rates) > 1)} ({span})",
    ]


def _span(values: tuple[int, ...]) -> str:
    return f"{min(values)} to {max(values)}" if len(values) > 1 else f"{values[0]}"


def notes(sweep: Sweep) -> list[str]:
    """What a reader of the numbers should know."""
    settings = sweep.settings
    found = []
    infinite = infinite_means(settings)
    if infinite:
        where = "; ".join(
            f"M = {tasks}, "
            + (
                "all N"
                if len(samples) == len(settings.samples)
                else "N = " + ", ".join(map(str, samples))
            )
            for tasks, samples in infinite.items()
        )
        found.append(
            f"mean risks at {where} estimate infinite expectations (Result 13): read the fractions "
            "and the quantiles there"
        )
    if sweep.prediction is not None and settings.p > EXACT_DIMENSIONS:
        found.append(
            f"for p = {settings.p} the theory's averages over tasks come from a sample of tasks, "
            "to about two digits"
        )
    return found


def infinite_means(settings: Settings) -> dict[int, list[int]]:
    """The N of every M at which the mean risk of an estimator is infinite at some rate."""
    law = published_law(settings.p, settings.beta)
    signs = {rate > 0.0 for rate in settings.inner_lrs}  # all that the verdict depends on
    kinds: list[tuple[Method, float]] = [("drs", 0.0), *(("maml", float(sign)) for sign in signs)]
    found: dict[int, list[int]] = {}
    for tasks, samples in sorted(settings.cells()):
        verdicts = [
            mean_excess_exists(law, method=method, inner_lr=rate, samples=samples, tasks=tasks)
            for method, rate in kinds
        ]
        if any(verdict.finite is False for verdict in verdicts):
            found.setdefault(tasks, []).append(samples)
    return found


def print_report(console: Console, sweep: Sweep, regions: list[Region], paths: list[Path]) -> None:
    """Tables of agreement, notes and the files written."""
    for after_update, title in ((True, "after the update"), (False, "before any update")):
        part = [region for region in regions if region.after_update is after_update]
        if part:
            heading = f"|theory − simulation| of the fraction in which MAML is lower, {title}"
            console.print(heading, style="bold", soft_wrap=True, highlight=False)
            console.print(_table(part))
    if regions:
        noise = sum(r.noise * r.cells for r in regions) / sum(r.cells for r in regions)
        console.print(
            "Each entry: mean and largest over the cells, and the share of clear cells in which "
            f"theory names the right winner. Finite trials alone give a mean of about {noise:.3f}.",
            highlight=False,
        )
    for note in notes(sweep):
        console.print(f"Note: {note}.", soft_wrap=True, highlight=False, style="dim")
    console.print(
        "Written: " + ", ".join(str(path) for path in paths), soft_wrap=True, highlight=False
    )


def _table(regions: list[Region]) -> Table:
    """A row per range of steps and samples, a column per range of tasks."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    header, rows = tabulate(regions, _shown)
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _shown(region: Region) -> str:
    share = "" if math.isnan(region.same_side) else f"{100 * region.same_side:.0f}%"
    return f"{region.mean:.3f} {region.worst:.2f} {share:>4s}"
