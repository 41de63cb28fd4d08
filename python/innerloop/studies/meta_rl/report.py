"""report.md and what the terminal shows: what was run, what came out, and what may be said of
it."""

from __future__ import annotations

import math

import numpy as np

from innerloop.rl.meta_world import BENCHMARKS
from innerloop.studies.meta_rl.settings import PAIRS, Settings
from innerloop.studies.meta_rl.summary import (
    LABELS,
    Arm,
    Comparison,
    middle_and_interval,
    middle_difference,
)
from innerloop.studies.meta_rl.units import ADAPTS, STEP_SIZE, all_units

CLAIM = "at limited budgets DRS is better than or as good as MAML"


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
        update = min(1, one.difference.shape[1] - 1)
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
    signs = np.concatenate(
        [one.decided()[1:, min(1, one.difference.shape[1] - 1)] for one in published]
    )
    better, worse = int((signs == 1).sum()), int((signs == -1).sum())
    return (
        f"The claim under test is that {CLAIM}. Under the published settings, of {len(signs)} "
        f"cells (an environment, a pair and a budget, after one update) DRS is better in {better}, "
        f"MAML in {worse}, and {len(signs) - better - worse} are within two standard errors."
    )


def report(settings: Settings, made: list[Comparison], done: int, figures: list[str]) -> str:
    """The text of report.md."""
    total = len(all_units(settings))
    parts = ["# Joint training against meta-learning in reinforcement learning", ""]
    if done < total:
        parts += [f"Unfinished: {done} of {total} trainings. What follows rests on those.", ""]
    parts += [claim(made), "", "## Settings", "", *_settings_lines(settings), ""]
    parts += ["## Verdicts", "", *(f"- {line}" for line in verdict(made)), ""]
    if figures:
        parts += ["## Figures", "", *(f"![{name}]({name}.png)" for name in figures), ""]
    for one in made:
        parts += _section(one, settings)
    parts += ["## How to read this", "", *_notes(settings), ""]
    return "\n".join(parts)


def _settings_lines(settings: Settings) -> list[str]:
    lines = ["| environment | tasks | rollouts | horizon | iterations (MAML, DRS) | steps |"]
    lines.append("|---|---|---|---|---|---|")
    for name in settings.environments:
        sizes, count = settings.sizes_of(name), settings.iterations_of(name)
        steps = 2 * count * math.prod(sizes.values())
        lines.append(
            f"| {name} | {sizes['tasks']} | {sizes['rollouts']} | {sizes['horizon']} | {count}, "
            f"{2 * count} | {steps:,} |"
        )
    lines += [
        "",
        f"{settings.seeds} seeds from {settings.seed} on; {settings.test_tasks} test tasks, the "
        "same ones with the same starts and noise for every algorithm, seed and checkpoint; "
        f"sampling rule: {settings.sampling}; tester: {settings.tester}; test-time optimiser: "
        f"{settings.test_optimizer}; discount {settings.discount:g}; lambda "
        f"{settings.gae_lambda:g}.",
    ]
    if any(name in BENCHMARKS for name in settings.environments):
        lines.append(f"Meta-World's rewards are of version {settings.reward_version}.")
    return lines


def _section(one: Comparison, settings: Settings) -> list[str]:
    """Tables of one comparison."""
    update = min(1, one.difference.shape[1] - 1)
    title = {
        "": "published settings",
        STEP_SIZE: "control: equal outer step size",
        ADAPTS: "control: DRS adapts with its partner's inner rate",
    }[one.control]
    lines = [f"## {one.environment}, {one.drs.label} against {one.maml.label} ({title})", ""]
    lines += [f"Returns {_updates(update)}, {one.seeds} seeds.", ""]
    arms = (one.drs, one.maml)
    level = f"{100 * settings.level:g} %"
    lines.append(
        "| steps | "
        + " | ".join(f"{arm.label}: IQM ({level})" for arm in arms)
        + f" | IQM difference ({level}) | mean difference ± s.e. | map | better |"
    )
    lines.append("|---" * 7 + "|")
    middles = [middle_and_interval(arm, settings.level) for arm in arms]
    differences = middle_difference(one, settings.level)
    words = {1: "DRS", -1: "MAML", 0: "within 2 s.e."}
    for row, steps in enumerate(one.steps):
        cells = [f"{steps:,.0f}"]
        for middle, low, high in (*middles, differences):
            place = (row, update)
            cells.append(f"{middle[place]:.1f} ({low[place]:.1f} to {high[place]:.1f})")
        cells.append(f"{one.difference[row, update]:.1f} ± {one.error[row, update]:.1f}")
        cells.append(f"{one.tradeoff[row, update]:+.2f}")
        cells.append(words[int(one.decided()[row, update])])
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    if one.difference.shape[1] > 1:
        lines += [_gain(arm) for arm in arms] + [""]
    for arm in arms:
        if arm.diverged:
            lines += [
                f"{arm.label}: {arm.diverged} of {one.seeds} trainings met a gradient that was not "
                "finite; their policies stayed as they were from there on.",
                "",
            ]
    return lines


def _gain(arm: Arm) -> str:
    """What the updates at test time add at the last checkpoint, paired within seeds."""
    updates = arm.returns.shape[2] - 1
    gain = arm.returns[:, -1, updates] - arm.returns[:, -1, 0]
    mean, error = float(gain.mean()), float(gain.std(ddof=1)) / math.sqrt(len(gain))
    told = "more" if abs(mean) > 2 * error else "not more"
    return (
        f"- {arm.label}: {_updates(updates)} the return of the last checkpoint changes by "
        f"{mean:+.2f} ± {error:.2f}, {told} than two standard errors."
    )


def _notes(settings: Settings) -> list[str]:
    return [
        "- Map: +1 (red) means that DRS is better, -1 (blue) that MAML is; 1 - 2p of Welch's "
        "one-sided test over seeds, whose variance is that over seeds plus the mean squared "
        "standard error over test tasks. 0.90 is p = 0.05. The cells of a map share seeds and "
        "tasks: they are not independent tests, and nothing is corrected for their number.",
        "- Standard errors of differences: both sides meet the same test tasks, so their "
        "difference is taken task by task; the variances over seeds of both sides and that over "
        "tasks of the difference add up. The map, as published, counts the spread of the tasks on "
        "either side: it is paler.",
        "- IQM: mean of the middle half of the seeds. Intervals: stratified bootstrap over seeds "
        f"(the algorithms are the strata). With {settings.seeds} seeds such intervals are too "
        "narrow.",
        "- Two standard errors are a yardstick, not a test: by Student's law with 2S - 2 degrees "
        "of freedom, chance exceeds them in 8 % of cells with 5 seeds on either side, in 12 % with "
        "3 and in 18 % with 2.",
        "- Steps count every control step of training, of all phases; both sides of a pair have "
        "taken equally many at a checkpoint.",
        "- The first checkpoint is the untrained policy, which both sides share.",
    ]


def _updates(count: int) -> str:
    return "before any update" if count == 0 else f"after {count} update{'s' * (count > 1)}"


def _steps(values: np.ndarray) -> str:
    return ", ".join(f"{value:,.0f}" for value in values) + " steps"
