"""What the terminal and the HTML report show: what is simulated, the answer, the agreement by
region, and what to keep in mind.
"""

from __future__ import annotations

import math
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from innerloop.bounds.linear import mean_excess_exists, published_law
from innerloop.bounds.linear.guarantee import Method
from innerloop.runs.document import versions
from innerloop.runs.launch import RUN
from innerloop.runs.report import FIGURE_KINDS, Part, Picture, Report, Section
from innerloop.studies.linear_regression.agreement import Region, tabulate
from innerloop.studies.linear_regression.result import Sweep
from innerloop.studies.linear_regression.settings import Settings
from innerloop.studies.linear_regression.verdict import Verdict

# Up to this p the averages over the law are exact (innerloop.bounds.linear.published_law).
EXACT_DIMENSIONS = 4
NUMBERS, AGREEMENT = "results.npz", "agreement.json"
PAGES = "heat_maps"
SUMMARY, AGAINST, CROSSOVER = "summary", "theory_against_simulation", "crossover"


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


def print_tables(console: Console, regions: list[Region], remarks: list[str]) -> None:
    """Tables of agreement and notes."""
    for table in tables(regions):
        console.print(table)
    for note in remarks:
        console.print(f"Note: {note}.", soft_wrap=True, highlight=False, style="dim")


def tables(regions: list[Region]) -> list[Table]:
    """The agreement after and before the update: a row per range of steps and samples, a column per
    range of tasks.
    """
    made = []
    for after_update, title in ((True, "after the update"), (False, "before any update")):
        part = [region for region in regions if region.after_update is after_update]
        if not part:
            continue
        table = Table(
            title=f"|theory − simulation| of the share of trials that MAML wins, {title}",
            caption="Each entry: mean and largest over the cells, and the share of clear cells in "
            "which theory names the right winner.",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            title_justify="left",
            title_style="bold",
            caption_justify="left",
        )
        header, rows = tabulate(part, _shown)
        for name in header:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        made.append(table)
    return made


def make_report(
    sweep: Sweep,
    regions: list[Region],
    verdict: Verdict,
    remarks: list[str],
    folder: Path,
    drawn: bool,
) -> Report:
    """The report of a run whose figures, if they were drawn, are in `folder`."""
    settings, predicted = sweep.settings, sweep.prediction is not None
    files = {NUMBERS: "all numbers; innerloop.studies.linear_regression.load reads it"}
    sections = []
    if predicted:
        files[AGREEMENT] = "distance of theory from simulation, by region"
    if drawn:
        stems = [SUMMARY, *([AGAINST, CROSSOVER] if predicted else [])]
        for stem in stems:
            files[f"{stem}.*"] = f"figure ({', '.join(FIGURE_KINDS)})"
        files[f"{PAGES}/"] = "a figure for each inner rate"
        captions = {SUMMARY: _SUMMARY_CAPTION, AGAINST: _AGAINST_CAPTION, CROSSOVER: _STAR_CAPTION}
        parts: list[Part] = [
            Picture(
                folder / f"{stem}.svg",
                captions[stem],
                wide=stem == SUMMARY and len(settings.inner_lrs) > 4,
            )
            for stem in stems
        ]
        sections.append(Section("Who wins where", parts))
    if regions:
        text = (
            "αβ is the largest eigenvalue that a step can meet, as a multiple of 1/α. Chance alone "
            "makes the means that the answer states."
        )
        sections.append(Section("Theory against simulation", [text, *tables(regions)]))
    if drawn:
        pages: list[Part] = [
            Picture(folder / PAGES / f"inner_lr_{rate:.10g}.png", _page_caption(rate))
            for rate in settings.inner_lrs
        ]
        sections.append(Section("Every inner rate", pages, folded=True))
    files[RUN] = "when, how long, with how many threads"
    return Report(
        command="innerloop study linear-regression",
        question="MAML or pooled least squares on linear-regression tasks?",
        answer=verdict.headline,
        reasons=verdict.reasons,
        notes=[f"{remark[0].upper()}{remark[1:]}." for remark in remarks],
        sections=sections,
        settings=settings.as_dict(),
        versions=versions(),
        files=files,
        introduction=introduction(settings),
    )


_SUMMARY_CAPTION = (
    "Share of trials in which MAML has the lower risk after one gradient step, for some rates α; "
    "N = 1 stands apart. Light: MAML wins. Hatched cells are within two standard errors of one "
    "half. The line separates cells in which theory expects MAML to win more than half."
)
_AGAINST_CAPTION = (
    "Every cell (M, N, α): theory's probability against the simulated share; one, few and many "
    "samples apart. Dashed: two standard errors of the trials."
)
_STAR_CAPTION = (
    "The number of tasks from which MAML has the lower expected risk (Result 9): a criterion "
    "on means, not on shares of trials. A curve leaves the frame where MAML never has it, and is "
    "broken where the crossover lies below the numbers of tasks that Result 9 describes."
)


def _page_caption(rate: float) -> str:
    return f"Inner rate {rate:g}: simulation with theory's line, and theory's distance from it."


def _shown(region: Region) -> str:
    share = "" if math.isnan(region.same_side) else f"{100 * region.same_side:.0f}%"
    return f"{region.mean:.3f} {region.worst:.2f} {share:>4s}"
