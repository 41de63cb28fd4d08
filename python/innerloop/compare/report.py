"""What the terminal shows: the answer first, then the data, the method and tables."""

from __future__ import annotations

import math
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from innerloop.bounds.linear import Estimate
from innerloop.compare.analysis import Analysis, Row
from innerloop.compare.document import measure_name
from innerloop.compare.episodes import split_sizes
from innerloop.compare.problem import Problem
from innerloop.compare.theory import PER_RISK, Theory, tasks_text
from innerloop.compare.verdict import (
    AS_GOOD,
    DIVERGES,
    JOINT_BETTER,
    MAML_BETTER,
    UNDECIDED,
    Verdict,
    percent,
)
from innerloop.runs.document import versions
from innerloop.runs.errors import printable
from innerloop.runs.launch import RUN
from innerloop.runs.methods import MAML, METHODS
from innerloop.runs.report import FIGURE_KINDS, Part, Picture, Report, Section
from innerloop.runs.statistics import Interval
from innerloop.runs.store import RESULTS

BY_STEPS, BY_RATE = "risk_by_adaptation_steps", "risk_by_inner_rate"

_COLOURS = {
    MAML_BETTER: "green",
    AS_GOOD: "cyan",
    JOINT_BETTER: "cyan",
    UNDECIDED: "yellow",
    DIVERGES: "red",
}


def plural(count: int, word: str) -> str:
    """A count with its noun."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def introduction(problem: Problem) -> list[str]:
    """Lines that say what is compared on what."""
    tasks, config = problem.tasks, problem.config
    training, validation, test = split_sizes(len(tasks.names), config)
    low, high = int(tasks.counts.min()), int(tasks.counts.max())
    rows = f"{low} rows each" if low == high else f"{low} to {high} rows each"
    kind = f"{plural(len(tasks.classes), 'class')[:-1]}es" if tasks.classes else tasks.target
    features = ", ".join(tasks.features)
    if len(features) > 72:
        features = plural(len(tasks.features), "feature")
    widths = "-".join(str(w) for w in (tasks.x.shape[1], *config.hidden, tasks.outputs))
    model = "linear model" if not config.hidden else (f"{config.activation} network {widths}")
    reason = "" if problem.backend == "fused" else f": {problem.backend_reason}"
    trained = "solved exactly" if problem.exact else "trained with Adam, equal sample budgets"
    support = tasks.fixed_support or config.shots
    ignored = [f"Ignored  {problem.ignored}"] if problem.ignored else []
    return [
        f"Data     {tasks.source}: {len(tasks.names)} tasks, {rows}; {kind} from {features}",
        f"         {'; '.join(tasks.notes)}",
        f"Model    {model}, {plural(problem.parameters, 'parameter')}, {trained} "
        f"({str(problem.dtype).removeprefix('torch.')}, {problem.backend} ops{reason})",
        f"Method   {plural(support, 'support row')} per task; "
        f"{plural(config.splits, 'random split')} of the tasks: "
        f"{training} training, {validation} validation (pick the settings), {test} test",
        *ignored,
    ]


def print_report(
    console: Console,
    problem: Problem,
    analysis: Analysis,
    verdict: Verdict,
    theory: Theory | None,
) -> None:
    """The whole report: the answer in plain text, then what it rests on."""
    first, *others = verdict.lines()
    console.print(Text(printable(first), style=f"bold {_COLOURS[verdict.answer]}"))
    for line in map(printable, others):
        console.print(line, highlight=False, markup=False)
    console.print()
    for line in map(printable, introduction(problem)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(_main_table(problem, analysis))
    console.print(_rate_table(analysis))
    if theory is not None:
        if theory.estimates:
            console.print(_theory_table(theory))
        console.print(printable(theory.sentence()), highlight=False)
    for note in analysis.notes():
        console.print(Text(f"Note: {printable(note)}", style="dim"))


def make_report(
    problem: Problem,
    analysis: Analysis,
    verdict: Verdict,
    theory: Theory | None,
    folder: Path,
    drawn: bool,
) -> Report:
    """The report of a run whose figures, if they were drawn, are in `folder`."""
    files = {RESULTS: "every number"}
    parts: list[Part] = []
    if drawn:
        captions = {BY_STEPS: _steps_caption(analysis), BY_RATE: _RATE_CAPTION}
        parts += [Picture(folder / f"{stem}.svg", text) for stem, text in captions.items()]
        files.update({f"{stem}.*": f"figure ({', '.join(FIGURE_KINDS)})" for stem in captions})
    sections = [Section("Figures", parts)] if drawn else []
    sections.append(Section("Risks", [_main_table(problem, analysis), _rate_table(analysis)]))
    if theory is not None:
        tables = [_theory_table(theory)] if theory.estimates else []
        sections.append(Section("How many tasks MAML would need", [theory.sentence(), *tables]))
    files[RUN] = "when, how long, with how many threads"
    return Report(
        command="innerloop compare",
        question=f"Is MAML worth it on {problem.tasks.source}?",
        answer=verdict.headline,
        reasons=[verdict.text, verdict.action],
        notes=analysis.notes(),
        sections=sections,
        settings=problem.config.as_dict(),
        versions=versions(),
        files=files,
        introduction=introduction(problem),
    )


def _steps_caption(analysis: Analysis) -> str:
    return (
        f"Above: risk on held-out tasks with {100 * analysis.config.level:g}% intervals over "
        f"{analysis.config.splits} splits of the tasks. Below: the change against joint training "
        "on the same splits, which decides. Bars that overlap above do not mean no difference, "
        "since splits are shared."
    )


_RATE_CAPTION = (
    "Risk when all methods train and fine-tune at the same inner rate. Curves go on above the "
    "frame; a missing point has no stable solution in some split."
)


def _main_table(problem: Problem, analysis: Analysis) -> Table:
    level = f"{100 * analysis.config.level:g}%"
    table = _table(
        f"Risk on held-out tasks: {measure_name(problem)}",
        "fine-tune\nsteps",
        "Geometric means over splits; settings picked on validation tasks. Change: MAML's risk "
        f"against joint training's on the same splits, {level} interval corrected for overlap.",
    )
    for count, row in enumerate(analysis.by_adapt_steps):
        _add(table, str(count), row, analysis, end_section=count == analysis.config.adapt_steps)
    _add(table, "picked", analysis.picked, analysis, style="bold")
    if analysis.has_classes:
        table.add_section()
        error = analysis.picked.error
        table.add_row(
            "error rate", *(f"{100 * error[method].mean:.1f}%" for method in METHODS), "", ""
        )
    return table


def _rate_table(analysis: Analysis) -> Table:
    steps = analysis.config.steps[0]
    used = min(steps, analysis.config.adapt_steps)
    table = _table(
        f"The same inner rate for all methods, after {plural(used, 'fine-tuning step')}",
        "inner\nrate",
        None,
    )
    for rate in analysis.config.inner_lrs:
        _add(table, f"{rate:g}", analysis.same_rate[steps, rate], analysis)
    return table


def _theory_table(theory: Theory) -> Table:
    steps, picked = theory.setting
    table = _plain_table(
        f"Theory for M = {theory.tasks} tasks, {plural(steps, 'inner step')} (Result 36)",
        "Modelling error: what joint training loses with unlimited tasks (an estimate may fall "
        "below zero). Statistical error: what each method loses by having only M tasks. From the "
        "crossover on, MAML pays. ± one standard error (jackknife over tasks).",
    )
    errors = ("modelling\nerror", "statistical\nof joint", "statistical\nof MAML")
    for header in ("inner\nrate", *errors, "crossover\n(tasks)", "its\ninterval"):
        table.add_column(header, justify="right", no_wrap=True)
    for (count, rate), estimate in theory.estimates.items():
        if count != steps:
            continue
        error = estimate.standard_errors["modelling_error"]
        table.add_row(
            f"{rate:g}",
            f"{PER_RISK * estimate.modelling_error:.2g} ± {PER_RISK * error:.1g}",
            f"{PER_RISK * estimate.drs / theory.tasks:.2g}",
            f"{PER_RISK * estimate.maml / theory.tasks:.2g}",
            _tasks(estimate.crossover, estimate),
            " to ".join(_tasks(end, estimate) for end in estimate.interval),
            style="bold" if rate == picked else None,
        )
    return table


def _tasks(value: float, estimate: Estimate) -> str:
    if estimate.tasks < estimate.fewest_tasks:
        return "–"
    text = tasks_text(value, estimate.fewest_tasks)
    return "∞" if math.isinf(value) else text.replace("fewer than ", "< ")


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


def _table(title: str, first: str, caption: str | None) -> Table:
    table = _plain_table(title, caption)
    for header in (first, "joint\ntraining", "first-order\nMAML", "MAML", "change by\nMAML"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("MAML\nlower", justify="right", no_wrap=True)
    return table


def _add(
    table: Table,
    label: str,
    row: Row,
    analysis: Analysis,
    style: str | None = None,
    end_section: bool = False,
) -> None:
    splits = analysis.config.splits
    table.add_row(
        label,
        *(_risk(row.risk[method], row.failed[method], splits) for method in METHODS),
        _change(row.relative[MAML]),
        f"{row.wins[MAML]}/{splits}",
        style=style,
        end_section=end_section,
    )


def _risk(interval: Interval, failed: int, splits: int) -> str:
    return f"fails {failed}/{splits}" if failed else number(interval.mean)


def _change(interval: Interval) -> str:
    """The relative change with its interval, in aligned columns."""
    if not math.isfinite(interval.mean):
        return "-"
    if not math.isfinite(interval.low):
        return percent(interval.mean)
    return f"{percent(interval.mean)} [{percent(interval.low)}, {percent(interval.high)}]"


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if not math.isfinite(value):
        return "-"
    if 1e-4 <= abs(value) < 1e4 or value == 0:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:.1e}"
