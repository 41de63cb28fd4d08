"""The answer in plain words: a rule on one paired interval, and the sentences that state it."""

from __future__ import annotations

import dataclasses
import math

from innerloop.compare.analysis import Analysis
from innerloop.compare.theory import Theory
from innerloop.runs.methods import FIRST_ORDER, JOINT, MAML
from innerloop.runs.statistics import Interval

MAML_BETTER, AS_GOOD, JOINT_BETTER, UNDECIDED = (
    "maml_better",
    "as_good",
    "joint_better",
    "undecided",
)


# Share of the splits won from which the text speaks of a tendency.
LEANING = 0.8


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`answer` is one of the four words above; `headline` is one line, `text` the sentences that
    support it.
    """

    answer: str
    headline: str
    text: str


def decide(relative: Interval, margin: float) -> str:
    """The answer that an interval for (MAML's risk - joint's risk) / joint's risk allows.

    Joint training is better when the interval lies above zero, and as good when it excludes a gain
    by MAML of `margin` or more; MAML is better when the interval lies below zero and reaches a
    gain of `margin`; otherwise undecided.
    """
    if relative.low > 0:
        return JOINT_BETTER
    if relative.low > -margin:
        return AS_GOOD
    if relative.high < 0:
        return MAML_BETTER
    return UNDECIDED


def percent(value: float) -> str:
    """A signed percentage, with one decimal below ten."""
    number = 100.0 * value
    return f"{number:+.1f}%" if abs(number) < 10 else f"{number:+.0f}%"


def conclude(analysis: Analysis, measure: str, theory: Theory | None = None) -> Verdict:
    """The verdict on MAML against joint training, each at the setting that validation tasks pick.

    Args:
        analysis: the finished run.
        measure: what a risk is, such as "MSE".
        theory: what Result 36 says about the same tasks; adds a sentence, decides nothing.
    """
    row, config = analysis.picked, analysis.config
    relative = row.relative[MAML]
    answer = decide(relative, config.margin)
    level = f"{100 * config.level:g}%"
    splits = config.splits
    headline = {
        JOINT_BETTER: "No: joint training plus fine-tuning is better here.",
        AS_GOOD: "No: joint training plus fine-tuning is as good here.",
        MAML_BETTER: "Yes: MAML is better than joint training plus fine-tuning here.",
        UNDECIDED: "Undecided: no reliable difference from joint training with fine-tuning.",
    }[answer]
    failed = {method: row.failed[method] for method in (JOINT, MAML) if row.failed[method]}
    if failed:
        listed = " and ".join(f"{_NAMES[method]} in {count}" for method, count in failed.items())
        return Verdict(
            UNDECIDED,
            "Undecided: a picked setting diverged on test tasks.",
            f"{listed} of {splits} splits. Lower the largest --inner-lrs or --adapt-steps.",
        )
    maml, joint = row.risk[MAML].mean, row.risk[JOINT].mean
    sentences = [
        f"On held-out tasks, after fine-tuning, MAML's {measure} is {maml:.3g} and joint "
        f"training's {joint:.3g}: a change of {percent(relative.mean)}",
    ]
    if config.splits > 1:
        sentences[0] += f" ({level} interval {percent(relative.low)} to {percent(relative.high)})."
    else:
        sentences[0] += " on a single split, which allows no interval; use --splits 10 or more."
    sentences.append(f"MAML has the lower risk in {row.wins[MAML]} of {splits} splits.")
    if answer == AS_GOOD:
        sentences.append(
            f"A gain by MAML of {100 * config.margin:g}% or more (--margin) is ruled out."
        )
    if answer == UNDECIDED and config.splits > 1:
        share = row.wins[MAML] / splits
        if share >= LEANING or share <= 1.0 - LEANING:
            sentences.append(f"The splits lean to {'MAML' if share > 0.5 else 'joint training'}.")
        sentences.append(
            "More tasks would narrow the interval (more splits help little); until then joint "
            "training is the cheaper choice."
        )
    before = analysis.by_adapt_steps[0].risk[JOINT].mean
    if math.isfinite(before) and before > 0:
        sentences.append(
            f"Fine-tuning itself takes joint training from {before:.3g} to {joint:.3g} "
            f"({percent(joint / before - 1.0)})."
        )
    first = decide(row.relative[FIRST_ORDER], config.margin)
    if answer != MAML_BETTER and first == MAML_BETTER:
        sentences.append(
            f"First-order MAML does change the risk: {percent(row.relative[FIRST_ORDER].mean)}."
        )
    if theory is not None:
        sentences.append(theory.sentence())
    return Verdict(answer, headline, " ".join(sentences))


_NAMES = {JOINT: "joint training", FIRST_ORDER: "first-order MAML", MAML: "MAML"}
