"""What the study found, in plain words."""

from __future__ import annotations

import dataclasses

from innerloop.runs.methods import FIRST_ORDER, JOINT, LABELS, MAML, METHODS
from innerloop.studies.sinusoid.settings import SHOWN_STEPS, Settings
from innerloop.studies.sinusoid.summary import Spread, Summary

MAML_BETTER, JOINT_BETTER, UNDECIDED = "maml_better", "joint_better", "undecided"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`answer` is one of the three words above; `headline` is one line, `reasons` the sentences
    that support it.
    """

    answer: str
    headline: str
    reasons: list[str]


def conclude(
    settings: Settings, same: list[Summary], picked: list[Summary], oracle: Spread, bounds: str
) -> Verdict:
    """MAML against joint training after as many steps as MAML is trained for, each at the rate that
    validation tasks pick.

    Args:
        same: summaries for 0..K steps at the inner rate of training.
        picked: the same at the picked rates.
        oracle: mean errors of the oracle.
        bounds: the sentence on the certificates; it decides nothing.
    """
    trained = min(settings.steps, len(same) - 1)
    first, last, judged = same[trained], picked[SHOWN_STEPS[-1]], picked[trained]
    change = judged.change[MAML]
    after = f"after {_steps(trained)} of fine-tuning"
    if change.high < 0:
        answer, headline = MAML_BETTER, f"MAML is better than joint training {after}."
    elif change.low > 0:
        answer, headline = JOINT_BETTER, f"Joint training is better than MAML {after}."
    else:
        answer, headline = UNDECIDED, f"MAML and joint training are not told apart {after}."
    sentences = [
        f"After {_steps(trained)} at the training rate on {settings.shots} points the mean squared "
        f"error of MAML is {_shown(first, MAML)}, of first-order MAML "
        f"{_shown(first, FIRST_ORDER)}, of joint training {_shown(first, JOINT)}"
        f"{_over(settings)}. An oracle, the same network told each wave's amplitude and phase, "
        f"has {in_words(oracle)}.",
        f"At the rates that validation tasks pick, MAML changes the error by {change.mean:+.3g} "
        f"({100 * settings.level:g}% interval {change.low:+.3g} to {change.high:+.3g}, over "
        f"{'runs' if settings.runs > 1 else 'tasks'}); after {_steps(last.steps)} it is "
        f"{_shown(last, MAML)} against {_shown(last, JOINT)}.",
        f"Without fine-tuning it is {_shown(same[0], MAML)} against {_shown(same[0], JOINT)}.",
    ]
    for method in METHODS:
        failed = max(row.failed[method] for row in (first, last))
        if failed:
            sentences.append(
                f"Fine-tuning of {LABELS[method]} diverges on {failed} of "
                f"{settings.runs * settings.test_tasks} test tasks; medians over tasks are given "
                "where it does, since a mean would say nothing."
            )
    if settings.runs == 1:
        sentences.append(
            f"The intervals speak about new tasks for these trained networks "
            f"({settings.test_tasks} tasks, one training run per method), not about other seeds."
        )
    return Verdict(answer, headline, [*sentences, bounds])


def _over(settings: Settings) -> str:
    """What the brackets hold."""
    return f" (median of {settings.runs} runs, least to largest)" if settings.runs > 1 else ""


def _shown(row: Summary, method: str) -> str:
    """The mean over tasks, or the median where some run has a task that diverges."""
    if row.failed[method]:
        return f"{in_words(row.median[method])} (median over tasks)"
    return in_words(row.mean[method])


def in_words(values: Spread) -> str:
    """The median, and the ends if there are several runs."""
    if values.low == values.high:
        return f"{values.median:.3g}"
    return f"{values.median:.3g} [{values.low:.3g}, {values.high:.3g}]"


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count > 1)}"
