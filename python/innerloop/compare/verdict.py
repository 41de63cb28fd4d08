"""The answer in at most six lines of plain words: a rule on one paired interval, and the sentences
that state it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import textwrap

import numpy as np

from innerloop.compare.analysis import Analysis, Divergence
from innerloop.compare.config import Config
from innerloop.compare.theory import Theory
from innerloop.runs.methods import FIRST_ORDER, JOINT, MAML
from innerloop.runs.statistics import Interval

MAML_BETTER, AS_GOOD, JOINT_BETTER, UNDECIDED, DIVERGES = (
    "maml_better",
    "as_good",
    "joint_better",
    "undecided",
    "diverges",
)

# A terminal's width, and the lines that an answer may take of it.
WIDTH, MOST_LINES = 80, 6
# From this many tasks on more of them are no advice.
MANY_TASKS = 200
# A number of tasks that an interval would need is said if it rests on this many splits, and is not
# out of reach.
FEWEST_SPLITS, MOST_TIMES = 10, 30
# A feature whose largest value exceeds its median by more is skewed; so many of them are named.
SKEWED, _MOST_LOGGED = 5.0, 3
_LONGEST_NAME = 24
# A risk, in variances of the target, that measured targets do not have.
_DETERMINED = 1e-6


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`answer` is one of the five words above; `headline` is one line, `text` the sentences that
    support it, `action` what to do.
    """

    answer: str
    headline: str
    text: str
    action: str

    def lines(self) -> list[str]:
        """The whole answer as lines of a terminal."""
        return [
            line
            for part in (self.headline, self.text, self.action)
            for line in textwrap.wrap(part, WIDTH)
        ]


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
    failed = {method: row.failed[method] for method in (JOINT, MAML) if row.failed[method]}
    if failed:
        listed = " and ".join(f"{_NAMES[method]} in {count}" for method, count in failed.items())
        return _fitted(
            UNDECIDED,
            "Undecided: training diverges at every setting of the grid.",
            [f"That happens to {listed} of {config.splits} splits."],
            "Do: use smaller --inner-lrs, and for networks smaller --outer-lrs.",
        )
    comparison = _comparison(analysis, measure)
    if analysis.divergence is not None:
        sentences = [*_divergence(analysis, analysis.divergence, measure), comparison]
        headline = "Your fine-tuning diverges on new tasks."
        return _fitted(DIVERGES, headline, sentences, _remedy(analysis, analysis.divergence))
    answer = decide(row.relative[MAML], config.margin)
    headline = {
        JOINT_BETTER: "No: joint training plus fine-tuning is better here.",
        AS_GOOD: "No: joint training plus fine-tuning is as good here.",
        MAML_BETTER: "Yes: MAML is better than joint training plus fine-tuning here.",
        UNDECIDED: "Undecided: no reliable difference between MAML and joint training here.",
    }[answer]
    sentences = [comparison, *_skill(analysis)]
    if answer == AS_GOOD:
        sentences.append(f"A gain by MAML of {100 * config.margin:g}% or more is ruled out.")
    sentences.append(_fine_tuning(analysis))
    if answer != MAML_BETTER and decide(row.relative[FIRST_ORDER], config.margin) == MAML_BETTER:
        sentences.append(
            f"Described, not tested: first-order MAML {_change(row.relative[FIRST_ORDER], config)}."
        )
    if answer == UNDECIDED:
        sentences += _more_tasks(analysis)
    if theory is not None:
        sentences.append(theory.sentence())
    method = MAML if answer == MAML_BETTER else JOINT
    action = f"Do: {_recipe(analysis, method)}."
    if _best_risk(analysis) >= _constant_risk(analysis):
        scale = "" if analysis.has_classes else ", or another scale of the target (--log)"
        action = f"Do: first find features that tell more{scale}."
    return _fitted(answer, headline, sentences, action)


def _fitted(answer: str, headline: str, sentences: list[str], action: str) -> Verdict:
    """The verdict with as many of the sentences, the first first, as the lines allow."""
    verdict = Verdict(answer, headline, "", action)
    kept: list[str] = []
    for sentence in sentences:
        longer = dataclasses.replace(verdict, text=" ".join([*kept, sentence]))
        if len(longer.lines()) <= MOST_LINES:
            kept.append(sentence)
            verdict = longer
    return verdict


def _comparison(analysis: Analysis, measure: str) -> str:
    """Both risks, the change and its interval."""
    row, splits = analysis.picked, analysis.config.splits
    relative = row.relative[MAML]
    risks = f"MAML {row.risk[MAML].mean:.3g}, joint training {row.risk[JOINT].mean:.3g}"
    if splits == 1:
        text = f"{risks}: {percent(relative.mean)} on a single split, which allows no interval"
        return f"Held-out {measure}: {text}; use --splits 10 or more."
    text = f"{risks}: {_change(relative, analysis.config)}"
    if analysis.divergence is not None:
        return f"At rates safe for all tasks: {text}."
    return f"Held-out {measure}: {text}, lower in {row.wins[MAML]} of {splits} splits."


def _change(relative: Interval, config: Config) -> str:
    """A change of the risk with its interval."""
    interval = f"{percent(relative.low)} to {percent(relative.high)}"
    return f"{percent(relative.mean)} ({100 * config.level:g}% interval {interval})"


def _best_risk(analysis: Analysis) -> float:
    """The lower risk of both methods."""
    return min(analysis.picked.risk[method].mean for method in (JOINT, MAML))


def _constant_risk(analysis: Analysis) -> float:
    """What a constant prediction comes to, about: the mean of the training tasks in the unit of
    risks, or evenly guessed classes."""
    return math.log(len(analysis.tasks.classes)) if analysis.has_classes else 1.0


def _skill(analysis: Analysis) -> list[str]:
    """What a stranger to the data must know first: that nothing was learned, or too much."""
    best, constant = _best_risk(analysis), _constant_risk(analysis)
    if best >= constant:
        return [
            f"Neither does better than a constant prediction, whose risk is about {constant:.3g}."
        ]
    if best < _DETERMINED and not analysis.has_classes:
        return ["So small a risk says that the features determine the target: is it among them?"]
    return []


def _fine_tuning(analysis: Analysis) -> str:
    """What fine-tuning does for joint training."""
    before, after = _joint_risks(analysis)
    if _picked(analysis, JOINT)[2] == 0:
        return "Fine-tuning does not pay: joint training is best left as it is."
    if after >= before:
        return (
            f"On test tasks fine-tuning does not pay: joint training has {before:.3g} without it, "
            f"{after:.3g} as validation tasks pick it."
        )
    if not (math.isfinite(before) and before > 0):
        return "Joint training has no finite risk without fine-tuning."
    change = percent(after / before - 1.0)
    return f"Fine-tuning takes joint training from {before:.3g} to {after:.3g} ({change})."


def _joint_risks(analysis: Analysis) -> tuple[float, float]:
    """Joint training's risk without fine-tuning and as picked."""
    return analysis.by_adapt_steps[0].risk[JOINT].mean, analysis.picked.risk[JOINT].mean


def _more_tasks(analysis: Analysis) -> list[str]:
    """How many tasks would show a gain of the margin, where that is a number to think about."""
    relative, config = analysis.picked.relative[MAML], analysis.config
    tasks = analysis.test_tasks + analysis.other_tasks
    if tasks >= MANY_TASKS or config.splits < FEWEST_SPLITS or not config.margin:
        return []
    reach = 0.5 * (math.log1p(relative.high) - math.log1p(relative.low))
    needed = tasks * (reach / -math.log1p(-config.margin)) ** 2
    if not tasks < needed < MOST_TIMES * tasks:
        return []
    shown = f"{float(f'{needed:.1g}'):.0f}"
    return [
        f"To tell a gain of {100 * config.margin:g}% takes some {shown} tasks like your {tasks}."
    ]


def _picked(analysis: Analysis, method: str) -> tuple[int, float, int]:
    """Inner steps, rate and fine-tuning steps that most splits pick."""
    counted = collections.Counter(
        (choice.steps, choice.rate, choice.adapt_steps)
        for choice in analysis.picked_choices[method]
    )
    return counted.most_common(1)[0][0]


def _recipe(analysis: Analysis, method: str) -> str:
    """How to train and fine-tune, at the setting that most splits pick."""
    steps, rate, adapt_steps = _picked(analysis, method)
    train = "joint training" if method == JOINT else f"MAML with {_plural(steps, 'inner step')}"
    if adapt_steps == 0:
        return f"{train}, without fine-tuning"
    tune = f"{_plural(adapt_steps, 'fine-tuning step')} at rate {rate:g}"
    before, after = _joint_risks(analysis)
    if method == JOINT and after >= before:
        return f"{train}; validation tasks pick {tune}, test tasks tell against it"
    return f"{train}, then {tune}"


def _divergence(analysis: Analysis, found: Divergence, measure: str) -> list[str]:
    """Where fine-tuning diverges, and why."""
    listed = f"'{textwrap.shorten(found.tasks[0], _LONGEST_NAME, placeholder='…')}'"
    if len(found.tasks) > 1:
        listed += f" and {len(found.tasks) - 1} more"
    after = f"{found.after:.2g}" if math.isfinite(found.after) else "infinity"
    sentences = [
        f"In {found.splits} of {analysis.config.splits} splits, rates that suit the known tasks "
        f"blow up on held-out {listed}: {_NAMES[found.method]}'s {measure} goes from "
        f"{found.before:.2g} to {after}."
    ]
    if analysis.curvature is not None:
        worst = analysis.curvature[analysis.tasks.names.index(found.tasks[0])]
        sentences.append(
            f"Curvature there is {worst:.2g} (median task: {np.median(analysis.curvature):.2g}); "
            "rate times curvature must stay below 2."
        )
    return sentences


def _remedy(analysis: Analysis, found: Divergence) -> str:
    """What to do about fine-tuning that diverges."""
    rate = "no fine-tuning" if found.safe_rate is None else f"rates up to {found.safe_rate:g}"
    skewed = _skewed_features(analysis)
    help_from = f"; --log {','.join(skewed)} may help" if skewed else ""
    return f"Do: {rate}, or leave such tasks out{help_from}."


def _skewed_features(analysis: Analysis) -> list[str]:
    """Positive features that a logarithm would make less skewed, the most skewed first."""
    if analysis.tasks.fixed_support:
        return []
    logged = analysis.config.log
    ratios = {
        name: float(column.max() / np.median(column))
        for name, column in zip(analysis.tasks.features, analysis.tasks.x.T, strict=True)
        if name not in logged and column.min() > 0.0 and " " not in name and "=" not in name
    }
    skewed = [name for name, ratio in ratios.items() if ratio > SKEWED]
    return sorted(skewed, key=lambda name: -ratios[name])[:_MOST_LOGGED]


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


_NAMES = {JOINT: "joint training", FIRST_ORDER: "first-order MAML", MAML: "MAML"}
