"""What the study found, in plain words."""

from __future__ import annotations

import dataclasses

from innerloop.compare.statistics import Interval
from innerloop.studies.sinusoid.settings import JOINT, MAML, SHOWN_STEPS, Settings
from innerloop.studies.sinusoid.summary import Row

MAML_BETTER, JOINT_BETTER, UNDECIDED = "maml_better", "joint_better", "undecided"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`answer` is one of the three words above; `headline` is one line, `text` the sentences that
    support it.
    """

    answer: str
    headline: str
    text: str


def conclude(settings: Settings, same: list[Row], picked: list[Row], bounds: str) -> Verdict:
    """MAML against joint training after fine-tuning, joint training at its own best rate.

    Args:
        same: rows for 0..K steps at the inner rate of training.
        picked: the same with every method at the rate that validation tasks pick.
        bounds: the sentence on the certificates; it decides nothing.
    """
    steps = [count for count in SHOWN_STEPS if count > 0]
    changes = [picked[count].change[MAML] for count in steps]
    if all(change.high < 0 for change in changes):
        answer = MAML_BETTER
        headline = "MAML is better than joint training with fine-tuning on sine waves."
    elif all(change.low > 0 for change in changes):
        answer = JOINT_BETTER
        headline = "Joint training with fine-tuning is better than MAML on sine waves."
    else:
        answer = UNDECIDED
        headline = "MAML and joint training are not told apart at every number of steps."
    first, last = same[settings.steps if settings.steps < len(same) else -1], picked[steps[-1]]
    sentences = [
        f"After {_steps(first.steps)} at the training rate on {settings.shots} points, MAML's mean "
        f"squared error is {_with_interval(first.error[MAML], settings)}, joint training's "
        f"{_with_interval(first.error[JOINT], settings)}.",
        f"After {_steps(last.steps)}, each at the rate that suits it best, {number(last, MAML)} "
        f"against {number(last, JOINT)}.",
        f"Without fine-tuning they are at {number(same[0], MAML)} and {number(same[0], JOINT)}: "
        "MAML's start is not a better guess, it is a better place to start from."
        if same[0].change[MAML].high > 0
        else f"Without fine-tuning they are at {number(same[0], MAML)} and "
        f"{number(same[0], JOINT)}.",
        f"The intervals speak about new tasks for these trained networks "
        f"({settings.test_tasks} tasks, one training run per method), not about other seeds.",
        bounds,
    ]
    return Verdict(answer, headline, " ".join(sentences))


def number(row: Row, method: str) -> str:
    """A method's mean error with three significant digits."""
    return f"{row.error[method].mean:.3g}"


def _with_interval(interval: Interval, settings: Settings) -> str:
    return (
        f"{interval.mean:.3g} ({100 * settings.level:g}% interval {interval.low:.3g} to "
        f"{interval.high:.3g})"
    )


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count > 1)}"
