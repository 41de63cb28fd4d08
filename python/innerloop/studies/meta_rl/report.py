"""What the terminal and the reports show: what was run, what came out, and what may be said of
it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from innerloop.rl.meta_world import BENCHMARKS
from innerloop.runs.launch import RUN
from innerloop.runs.report import FIGURE_KINDS, Picture, Report, Section
from innerloop.runs.store import RESULTS
from innerloop.studies.meta_rl.document import simulator_versions
from innerloop.studies.meta_rl.settings import PAIRS, Settings
from innerloop.studies.meta_rl.summary import (
    LABELS,
    Arm,
    Comparison,
    middle_and_interval,
    middle_difference,
    update_gain,
)
from innerloop.studies.meta_rl.units import ADAPTS, STEP_SIZE, all_units
from innerloop.studies.meta_rl.work import LOGS

MARKDOWN = "report.md"
MAPS, CURVES = "tradeoff", "returns"
CLAIM = "at limited budgets DRS is better than or as good as MAML"
_CAPTIONS = {
    MAPS: "How surely which algorithm is better, over training budget and updates at test time: +1 "
    "(red) DRS, -1 (blue) MAML; 1 - 2p of Welch's test over seeds.",
    CURVES: "Return on the test tasks against control steps of training: mean of the middle half "
    "of the seeds, with bootstrap intervals over seeds.",
}


def introduction(settings: Settings) -> list[str]:
    """Lines that say what is run, shown before the work starts."""
    pairs = ", ".join(
        " against ".join(LABELS[name] for name in PAIRS[pair]) for pair in settings.pairs
    )
    return [
        f"Pairs    {pairs}; {settings.seeds} seeds",
        f"Tasks    {', '.join(settings.environments)}",
        f"Units    {len(all_units(settings))} trainings, each tested at "
        f"{settings.checkpoints + 1} checkpoints on {settings.test_tasks} tasks after 0 to "
        f"{settings.updates} updates",
    ]


def verdict(made: list[Comparison]) -> list[str]:
    """One sentence for every comparison: where which algorithm is better after one update (before
    any, if none was asked for), at all checkpoints behind the start."""
    found = []
    for one in made:
        update = _judged(one)
        signs = one.decided()[1:, update]
        steps = one.steps[1:]
        parts = [
            f"{arm.label} is better at {_steps(steps[signs == sign])}"
            for sign, arm in ((1, one.drs), (-1, one.maml))
            if (signs == sign).any()
        ]
        if (signs == 0).any():
            parts.append(f"they are not told apart at {_steps(steps[signs == 0])}")
        found.append(
            f"{one.environment}, {one.drs.label} against {one.maml.label} ({one.seeds} seeds, "
            f"{_updates(update)}): {'; '.join(parts)}."
        )
    return found


def claim(made: list[Comparison]) -> str:
    """How often the published claim held under the published settings."""
    published = [one for one in made if not one.control]
    if not published:
        return "No pair has two finished seeds yet, so nothing can be said."
    signs = np.concatenate([one.decided()[1:, _judged(one)] for one in published])
    better, worse = int((signs == 1).sum()), int((signs == -1).sum())
    return (
        f"Of {len(signs)} cells under the published settings, DRS is better in {better}, MAML in "
        f"{worse}, and {len(signs) - better - worse} are within two standard errors."
    )


def make_report(
    settings: Settings, made: list[Comparison], done: int, folder: Path, drawn: bool
) -> Report:
    """The report of a study whose figures, if they were drawn, are in `folder`.

    Args:
        done: how many trainings are finished.
    """
    total = len(all_units(settings))
    files = {RESULTS: "every number", MARKDOWN: "this report in Markdown"}
    figures = [
        Picture(folder / f"{stem}.svg", caption, wide=True) for stem, caption in _CAPTIONS.items()
    ]
    if drawn:
        files |= {f"{stem}.*": f"figure ({', '.join(FIGURE_KINDS)})" for stem in _CAPTIONS}
    files |= {
        f"{LOGS}/": "every iteration of every training, as JSON lines",
        RUN: "when, how long, with how many threads",
    }
    reasons = [
        f"The claim under test is that {CLAIM}. A cell is an environment, a pair and a budget, "
        "after one update.",
        *verdict(made),
    ]
    if done < total:
        reasons.insert(0, f"Unfinished: {done} of {total} trainings. What follows rests on those.")
    return Report(
        command="innerloop study meta-rl",
        question="Is joint training as good as meta-learning at limited budgets?",
        answer=claim(made),
        reasons=reasons,
        notes=_notes(settings),
        sections=[
            *([Section("Figures", figures)] if drawn else []),
            *(_section(one, settings) for one in made),
            Section("Sizes", [_sizes(settings), _rules(settings)]),
        ],
        settings=settings.as_dict(),
        versions=simulator_versions(settings),
        files=files,
        introduction=introduction(settings),
    )


def markdown(report: Report) -> str:
    """The same report as Markdown, without settings and versions, which results.json has."""
    parts = [f"# {report.question}", f"**{report.answer}**", *report.reasons]
    for section in report.sections:
        parts.append(f"## {section.title}")
        for part in section.parts:
            if isinstance(part, Picture):
                parts.append(f"![{part.caption}]({part.path.name})")
            else:
                parts.append(_markdown_table(part) if isinstance(part, Table) else part)
    parts += ["## How to read this", "\n".join(f"- {note}" for note in report.notes)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    columns = table.columns
    lines = [" | ".join(str(column.header).replace("\n", " ") for column in columns)]
    lines.append("|".join("---:" if column.justify == "right" else "---" for column in columns))
    lines += [" | ".join(map(str, row)) for row in zip(*(c.cells for c in columns), strict=True)]
    return "\n".join(f"| {line} |" for line in lines)


def _sizes(settings: Settings) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("environment")
    for header in ("tasks", "rollouts", "horizon", "iterations\nMAML, DRS", "control steps"):
        table.add_column(header, justify="right")
    for name in settings.environments:
        sizes, count = settings.sizes_of(name), settings.iterations_of(name)
        steps = 2 * count * math.prod(sizes.values())
        table.add_row(name, *map(str, sizes.values()), f"{count}, {2 * count}", f"{steps:,}")
    return table


def _rules(settings: Settings) -> str:
    text = (
        f"{settings.seeds} seeds from {settings.seed} on; {settings.test_tasks} test tasks, the "
        "same ones with the same starts and noise for every algorithm, seed and checkpoint; "
        f"sampling rule: {settings.sampling}; tester: {settings.tester}; test-time optimiser: "
        f"{settings.test_optimizer}; discount {settings.discount:g}; lambda "
        f"{settings.gae_lambda:g}."
    )
    if any(name in BENCHMARKS for name in settings.environments):
        text += f" Meta-World's rewards are of version {settings.reward_version}."
    return text


def _section(one: Comparison, settings: Settings) -> Section:
    """What there is to say of one comparison."""
    title = {
        "": "published settings",
        STEP_SIZE: "control: equal outer step size",
        ADAPTS: "control: DRS adapts with its partner's inner rate",
    }[one.control]
    arms = (one.drs, one.maml)
    parts: list[str | Table | Picture] = [
        f"Returns {_updates(_judged(one))}, {one.seeds} seeds.",
        _table(one, settings.level),
    ]
    if one.difference.shape[1] > 1:
        parts += [_gain(arm) for arm in arms]
    parts += [
        f"{arm.label}: {arm.diverged} of {one.seeds} trainings met a gradient that was not "
        "finite; their policies stayed as they were from there on."
        for arm in arms
        if arm.diverged
    ]
    return Section(f"{one.environment}, {one.drs.label} against {one.maml.label} ({title})", parts)


def _table(one: Comparison, level: float) -> Table:
    """Both sides and their difference at every checkpoint."""
    table = Table(box=box.SIMPLE)
    percent = f"{100 * level:g} %"
    headers = ["steps", *(f"{arm.label}:\nIQM ({percent})" for arm in (one.drs, one.maml))]
    headers += [f"IQM difference\n({percent})", "mean difference\n± s.e.", "map", "better"]
    for header in headers:
        table.add_column(header, justify="right")
    middles = [middle_and_interval(arm, level) for arm in (one.drs, one.maml)]
    middles.append(middle_difference(one, level))
    words = {1: "DRS", -1: "MAML", 0: "within 2 s.e."}
    decided = one.decided()
    for row, steps in enumerate(one.steps):
        place = (row, _judged(one))
        table.add_row(
            f"{steps:,.0f}",
            *(
                f"{m[place]:.1f} ({low[place]:.1f} to {high[place]:.1f})"
                for m, low, high in middles
            ),
            f"{one.difference[place]:.1f} ± {one.error[place]:.1f}",
            f"{one.tradeoff[place]:+.2f}",
            words[int(decided[place])],
        )
    return table


def _gain(arm: Arm) -> str:
    """What the updates at test time add at the last checkpoint."""
    updates = arm.tested.shape[3] - 1
    mean, error = update_gain(arm)
    told = "more" if abs(mean) > 2 * error else "not more"
    return (
        f"{arm.label}: {_updates(updates)} the return of the last checkpoint changes by "
        f"{mean:+.2f} ± {error:.2f}, {told} than two standard errors."
    )


def _notes(settings: Settings) -> list[str]:
    return [
        "Map: +1 (red) means that DRS is better, -1 (blue) that MAML is; 1 - 2p of Welch's "
        "one-sided test over seeds, whose variance is that over seeds plus the mean squared "
        "standard error over test tasks. 0.90 is p = 0.05. The cells of a map share seeds and "
        "tasks: they are not independent tests, and nothing is corrected for their number.",
        "Standard errors of differences: both sides meet the same test tasks, so their "
        "difference is taken task by task; the variances over seeds of both sides and that over "
        "tasks of the difference add up. The map, as published, counts the spread of the tasks on "
        "either side: it is paler.",
        "IQM: mean of the middle half of the seeds. Intervals: stratified bootstrap over seeds "
        f"(the algorithms are the strata). With {settings.seeds} seeds such intervals are too "
        "narrow.",
        "Two standard errors are a yardstick, not a test: by Student's law with 2S - 2 degrees "
        "of freedom, chance exceeds them in 8 % of cells with 5 seeds on either side, in 12 % with "
        "3 and in 18 % with 2.",
        "Steps count every control step of training, of all phases; both sides of a pair have "
        "taken equally many at a checkpoint.",
        "The first checkpoint is the untrained policy, which both sides share.",
    ]


def _judged(one: Comparison) -> int:
    """After how many updates the two are judged: one, or none if none was asked for."""
    return 1 if one.difference.shape[1] > 1 else 0


def _updates(count: int) -> str:
    return "before any update" if count == 0 else f"after {count} update{'s' * (count > 1)}"


def _steps(values: np.ndarray) -> str:
    return ", ".join(f"{value:,.0f}" for value in values) + " steps"
