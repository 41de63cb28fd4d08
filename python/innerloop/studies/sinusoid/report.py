"""What the terminal shows: what is trained, two tables of errors, and the verdict."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from innerloop.bounds import Report
from innerloop.runs.methods import JOINT, LABELS, MAML, METHODS
from innerloop.studies.sinusoid.certificates import FILE, Certificates
from innerloop.studies.sinusoid.measuring import Measured
from innerloop.studies.sinusoid.settings import SHOWN_STEPS, Settings
from innerloop.studies.sinusoid.summary import Row
from innerloop.studies.sinusoid.training import network
from innerloop.studies.sinusoid.verdict import JOINT_BETTER, MAML_BETTER, UNDECIDED, Verdict


def introduction(settings: Settings) -> list[str]:
    """Lines that say what is trained, shown before the work starts."""
    model = network(settings)
    plural = "s" * (settings.steps > 1)
    return [
        "Tasks    a sin(x - b), a from U(0.1, 5), b from U(0, pi), x from U(-5, 5)",
        f"Model    {'-'.join(map(str, settings.widths))} relu, {model.parameters} parameters",
        f"Training {settings.iterations} iterations of {settings.meta_batch} tasks, "
        f"{settings.shots} + {settings.shots} points each, Adam {settings.outer_lr:g}; MAML: "
        f"{settings.steps} inner step{plural} at rate {settings.inner_lr:g}",
    ]


def print_report(
    console: Console,
    settings: Settings,
    measured: Measured,
    same: list[Row],
    picked: list[Row],
    certificates: Certificates,
    verdict: Verdict,
    paths: list[Path],
) -> None:
    """The whole answer on a console."""
    console.print(_same_table(settings, same))
    console.print(_picked_table(measured, picked))
    if certificates.reports:
        console.print(_certificates_table(certificates.reports))
    colour = {MAML_BETTER: "green", JOINT_BETTER: "cyan", UNDECIDED: "yellow"}[verdict.answer]
    console.print(
        Panel(
            Group(Text(verdict.headline, style=f"bold {colour}"), Text(verdict.text)),
            title="Is MAML worth it on sine waves?",
            border_style=colour,
            box=box.ROUNDED,
            padding=(0, 1),
        )
    )
    console.print(
        "Written: " + ", ".join(str(path) for path in paths), soft_wrap=True, highlight=False
    )


def _same_table(settings: Settings, rows: list[Row]) -> Table:
    table = _table(
        f"Mean squared error on {settings.test_tasks} new tasks after fine-tuning on "
        f"{settings.shots} points at rate {settings.inner_lr:g}",
        f"With {100 * settings.level:g}% intervals over tasks. Change: MAML minus joint training, "
        "paired by task.",
    )
    for steps in SHOWN_STEPS:
        row = rows[steps]
        table.add_row(
            str(steps),
            *(_spread(row, method) for method in METHODS),
            _ends(row),
        )
    return table


def _picked_table(measured: Measured, rows: list[Row]) -> Table:
    table = _table("The same, each method at the fine-tuning rate that validation tasks pick", None)
    for steps in SHOWN_STEPS[1:]:
        row = rows[steps]
        table.add_row(
            str(steps),
            *(
                f"{_mean(row, method)} at {measured.picked_rate[method][steps]:g}"
                for method in METHODS
            ),
            _ends(row),
        )
    return table


def _certificates_table(reports: dict[str, Report]) -> Table:
    standings = sorted({made.standing for made in reports.values()})
    table = _plain_table(
        "innerloop.bounds.report: certificates of the mean squared MAML gradient",
        f"For the samples that training used; {' and '.join(standings)}, since the constants are "
        "measured (at the start and at the trained network). A certificate above the value at the "
        f"start (± one standard error) says nothing. Full reports: {FILE}.",
    )
    headers = (
        "constants from\nthe run of",
        "joint\ntraining",
        "MAML",
        "at the\nstart",
        "crossover\n(samples)",
        "MAML's is\ndriven by",
    )
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for method, made in reports.items():
        found = made.comparison
        start = made.problem.measured["gradient2_maml_start"]
        table.add_row(
            LABELS[method],
            f"{float(found.drs.maml):.3g}",
            f"{float(found.maml.maml):.3g}",
            f"{start:.2g} ± {start.origin.standard_error:.1g}",
            f"{made.crossover:.3g}",
            ", ".join(list(found.maml.elasticities)[:2]),
        )
    return table


def _plain_table(title: str, caption: str | None) -> Table:
    return Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        pad_edge=False,
    )


def _table(title: str, caption: str | None) -> Table:
    table = _plain_table(title, caption)
    for header in ("steps", *(LABELS[method] for method in METHODS), "change by MAML"):
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _spread(row: Row, method: str) -> str:
    if row.failed[method]:
        return _mean(row, method)
    interval = row.error[method]
    return f"{interval.mean:.3f} ± {interval.high - interval.mean:.3f}"


def _mean(row: Row, method: str) -> str:
    """The mean, or how many tasks spoil it."""
    if row.failed[method]:
        return f"{row.failed[method]} diverge"
    return f"{row.error[method].mean:.3f}"


def _ends(row: Row) -> str:
    if row.failed[MAML] or row.failed[JOINT]:
        return "-"
    return f"{row.change[MAML].low:+.2f} to {row.change[MAML].high:+.2f}"
