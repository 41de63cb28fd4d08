"""What the terminal and the HTML report show: what is trained, tables of errors, the answer."""

from __future__ import annotations

import math
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from innerloop import bounds
from innerloop.runs.document import versions
from innerloop.runs.launch import RUN
from innerloop.runs.methods import LABELS, MAML, METHODS
from innerloop.runs.report import FIGURE_KINDS, Picture, Report, Section
from innerloop.runs.store import RESULTS
from innerloop.studies.sinusoid.certificates import FILE, Certificates
from innerloop.studies.sinusoid.document import ARRAYS, Findings
from innerloop.studies.sinusoid.settings import SHOWN_STEPS, Settings
from innerloop.studies.sinusoid.summary import Row, Spread, Summary
from innerloop.studies.sinusoid.training import network
from innerloop.studies.sinusoid.verdict import Verdict, in_words

ERRORS, FITS = "error_by_steps", "example_fits"


def introduction(settings: Settings) -> list[str]:
    """Lines that say what is trained, shown before the work starts."""
    model = network(settings)
    plural = "s" * (settings.steps > 1)
    seeds = f", seeds {settings.seed} to {settings.seed + settings.runs - 1}"
    return [
        "Tasks    a sin(x - b), a from U(0.1, 5), b from U(0, pi), x from U(-5, 5)",
        f"Model    {'-'.join(map(str, settings.widths))} relu, {model.parameters} parameters",
        f"Training {settings.iterations} iterations of {settings.meta_batch} tasks, "
        f"{settings.shots} + {settings.shots} points each, Adam {settings.outer_lr:g}; MAML: "
        f"{settings.steps} inner step{plural} at rate {settings.inner_lr:g}",
        f"Runs     {settings.runs}{seeds if settings.runs > 1 else f', seed {settings.seed}'}; an "
        "oracle is told amplitude and phase",
    ]


def tables(settings: Settings, found: Findings) -> list[Table]:
    """Errors at the rate of training, and at the rates that validation tasks pick."""
    several = settings.runs > 1
    brackets = (
        f"Medians of {settings.runs} runs, with the least and the largest. Change: MAML minus "
        f"joint training, with its {100 * settings.level:g}% interval over runs."
        if several
        else f"Change: MAML minus joint training, with its {100 * settings.level:g}% interval over "
        "tasks, paired by task."
    )
    oracle = (
        f" An oracle, told each wave's amplitude and phase, has {in_words(found.oracle)}."
        if math.isfinite(found.oracle.high)
        else ""
    )
    spoiled = (
        " Where a task diverges in some run a mean would say nothing: medians over tasks stand "
        "below, and the change is that of medians."
        if any(count for row in found.over_same for count in row.failed.values())
        else ""
    )
    made = []
    for title, over, first, caption in (
        (
            f"Mean squared error on {settings.test_tasks} new tasks after fine-tuning on "
            f"{settings.shots} points at rate {settings.inner_lr:g}",
            found.over_same,
            0,
            brackets + spoiled + oracle,
        ),
        (
            "The same, each method at the fine-tuning rate that validation tasks pick",
            found.over_picked,
            1,
            None,
        ),
    ):
        table = _plain_table(title, caption)
        for header in ("steps", *(LABELS[method] for method in METHODS), "change"):
            table.add_column(header.replace(" ", "\n"), justify="right", no_wrap=True)
        for steps in SHOWN_STEPS[first:]:
            row = over[steps]
            table.add_row(str(steps), *(_error(row, method) for method in METHODS), _ends(row))
        made.append(table)
    return made


def runs_table(settings: Settings, found: Findings) -> Table:
    """Every run by itself."""
    trained = min(settings.steps, SHOWN_STEPS[-1])
    steps = sorted({0, trained, SHOWN_STEPS[-1]})
    table = _plain_table(
        f"Each run at rate {settings.inner_lr:g}: mean (median) over tasks of the squared error",
        None,
    )
    for header in ("seed", "steps", *(LABELS[method] for method in METHODS)):
        table.add_column(header.replace(" ", "\n"), justify="right", no_wrap=True)
    for run, same in enumerate(found.same):
        for count in steps:
            row = same[count]
            table.add_row(
                str(settings.seed + run),
                str(count),
                *(_in_run(row, method) for method in METHODS),
                end_section=count == steps[-1],
            )
    return table


def _in_run(row: Row, method: str) -> str:
    failed = row.failed[method]
    mean = f"{failed} diverge" if failed else f"{row.error[method].mean:.3f}"
    return f"{mean} ({row.median[method]:.3f})"


def print_tables(
    console: Console, settings: Settings, found: Findings, certificates: Certificates
) -> None:
    """All tables on a console."""
    for table in tables(settings, found):
        console.print(table)
    if settings.runs > 1:
        console.print(runs_table(settings, found))
    if certificates.reports:
        console.print(certificates_table(certificates.reports))


def print_verdict(console: Console, verdict: Verdict) -> None:
    """The answer and what supports it."""
    for reason in verdict.reasons:
        console.print(reason, highlight=False, markup=False)


def make_report(
    settings: Settings,
    found: Findings,
    certificates: Certificates,
    verdict: Verdict,
    folder: Path,
    drawn: bool,
) -> Report:
    """The report of a study whose figures, if they were drawn, are in `folder`."""
    files = {
        RESULTS: "every number",
        ARRAYS: "errors of single tasks, trained networks",
        FILE: "the bounds' reports in words",
    }
    sections = []
    if drawn:
        sections.append(
            Section(
                "Error by fine-tuning steps",
                [Picture(folder / f"{ERRORS}.svg", _errors_caption(settings))],
            )
        )
        files.update(
            {f"{stem}.*": f"figure ({', '.join(FIGURE_KINDS)})" for stem in (ERRORS, FITS)}
        )
    sections.append(Section("Errors", tables(settings, found)))
    if drawn:
        sections.append(
            Section("What the networks make of two waves", [Picture(folder / f"{FITS}.svg", _FITS)])
        )
    if settings.runs > 1:
        sections.append(Section("Every run", [runs_table(settings, found)], folded=True))
    if certificates.reports:
        table = certificates_table(certificates.reports)
        sections.append(Section("What the non-convex bounds say", [table], folded=True))
    files[RUN] = "when, how long, with how many threads"
    return Report(
        command="innerloop study sinusoid",
        question="Is MAML worth it on sine waves?",
        answer=verdict.headline,
        reasons=verdict.reasons,
        notes=[],
        sections=sections,
        settings=settings.as_dict(),
        versions=versions(),
        files=files,
        introduction=introduction(settings),
    )


def _errors_caption(settings: Settings) -> str:
    bands = (
        f"Lines are medians over {settings.runs} training runs, bands run from the least to the "
        "largest. "
        if settings.runs > 1
        else ""
    )
    return (
        f"Error on new points of {settings.test_tasks} new waves after fine-tuning on "
        f"{settings.shots} points; above its mean over waves, below its median. {bands}Steps at "
        "which a task diverges in some run have no mean. The oracle is the same network, told each "
        "wave's amplitude and phase."
    )


_FITS = (
    "Two waves (grey), the points that are seen (crosses), and each method's network of the first "
    "run after 0, 1 and 10 steps."
)


def certificates_table(reports: dict[str, bounds.Report]) -> Table:
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


def _error(row: Summary, method: str) -> str:
    """The mean over tasks, or medians and how many tasks spoil it."""
    if row.failed[method]:
        return f"{row.failed[method]} diverge\n{_spread(row.median[method])}"
    return _spread(row.mean[method])


def _spread(values: Spread) -> str:
    if values.low == values.high:
        return f"{values.median:.3f}"
    return f"{values.median:.3f}\n{values.low:.3f}-{values.high:.3f}"


def _ends(row: Summary) -> str:
    change = row.change[MAML]
    if not math.isfinite(change.low):
        return "-"
    return f"{change.low:+.2f}\nto {change.high:+.2f}"
