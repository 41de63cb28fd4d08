"""What the study found, in plain words."""

from __future__ import annotations

import dataclasses

from innerloop.runs.methods import JOINT, LABELS, MAML, METHODS
from innerloop.studies.sinusoid.settings import SHOWN_STEPS, Settings
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
    """MAML against joint training after as many steps as MAML is trained for, each at the rate that
    validation tasks pick.

    Args:
        same: rows for 0..K steps at the inner rate of training.
        picked: the same at the picked rates.
        bounds: the sentence on the certificates; it decides nothing.
    """
    trained = min(settings.steps, len(same) - 1)
    first, last, judged = same[trained], picked[SHOWN_STEPS[-1]], picked[trained]
    change = judged.change[MAML]
    after = f"after {trained} fine-tuning step{'s' * (trained > 1)}"
    if change.high < 0:
        answer, headline = MAML_BETTER, f"MAML is better than joint training {after}."
    elif change.low > 0:
        answer, headline = JOINT_BETTER, f"Joint training is better than MAML {after}."
    else:
        answer, headline = UNDECIDED, f"MAML and joint training are not told apart {after}."
    sentences = [
        f"After {_steps(trained)} at the training rate on {settings.shots} points, MAML's mean "
        f"squared error is {_with_interval(first, MAML, settings)}, joint training's "
        f"{_with_interval(first, JOINT, settings)}.",
        f"After {_steps(last.steps)}, each at the rate that suits it best, {_both(last)}.",
        f"Without fine-tuning, {_both(same[0])}.",
    ]
    for method in METHODS:
        failed = max(row.failed[method] for row in (first, last))
        if failed:
            sentences.append(
                f"Fine-tuning of {LABELS[method]} diverges on {failed} of {settings.test_tasks} "
                "test tasks; medians are given where it does, since a mean would say nothing."
            )
    sentences += [
        f"The intervals speak about new tasks for these trained networks "
        f"({settings.test_tasks} tasks, one training run per method), not about other seeds.",
        bounds,
    ]
    return Verdict(answer, headline, " ".join(sentences))


def _both(row: Row) -> str:
    """MAML's error against joint training's, in the same measure."""
    if row.failed[MAML] or row.failed[JOINT]:
        return f"medians of {row.median[MAML]:.3g} against {row.median[JOINT]:.3g}"
    return f"{row.error[MAML].mean:.3g} against {row.error[JOINT].mean:.3g}"


def _with_interval(row: Row, method: str, settings: Settings) -> str:
    if row.failed[method]:
        return f"{row.median[method]:.3g} (median)"
    interval = row.error[method]
    return (
        f"{interval.mean:.3g} ({100 * settings.level:g}% interval {interval.low:.3g} to "
        f"{interval.high:.3g})"
    )


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count > 1)}"
