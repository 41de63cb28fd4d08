"""The rule that turns one interval into an answer."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from innerloop.compare.config import Config
from innerloop.compare.verdict import (
    AS_GOOD,
    JOINT_BETTER,
    MAML_BETTER,
    UNDECIDED,
    _skill,
    conclude,
    decide,
    percent,
)
from innerloop.runs.methods import FIRST_ORDER, JOINT, MAML
from innerloop.runs.statistics import Interval


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (0.01, 0.2, JOINT_BETTER),
        (-0.04, 0.2, AS_GOOD),
        (-0.04, 0.03, AS_GOOD),
        (-0.04, -0.01, AS_GOOD),
        (-0.3, -0.1, MAML_BETTER),
        (-0.3, -0.01, MAML_BETTER),
        (-0.3, 0.2, UNDECIDED),
        (-math.inf, math.inf, UNDECIDED),
    ],
)
def test_decision(low: float, high: float, answer: str) -> None:
    assert decide(Interval((low + high) / 2, low, high), margin=0.05) == answer


@pytest.mark.parametrize("maml", [(-0.3, 0.2), (-0.04, 0.2), (0.01, 0.2), (-0.3, -0.1)])
@pytest.mark.parametrize("first", [(-0.2, -0.06), (-0.3, 0.2), (0.01, 0.2)])
def test_another_comparison_is_described_with_its_interval(
    maml: tuple[float, float], first: tuple[float, float]
) -> None:
    relative = {
        MAML: Interval(sum(maml) / 2, *maml),
        FIRST_ORDER: Interval(sum(first) / 2, *first),
    }
    choice = SimpleNamespace(steps=0, rate=0.1, adapt_steps=5)
    row = SimpleNamespace(
        risk=dict.fromkeys((JOINT, MAML), SimpleNamespace(mean=0.5)),
        relative=relative,
        wins={MAML: 3},
        failed=dict.fromkeys((JOINT, MAML), 0),
    )
    before = SimpleNamespace(risk={JOINT: SimpleNamespace(mean=0.7)})
    analysis = SimpleNamespace(
        picked=row,
        by_adapt_steps=[before],
        config=Config(task="", target="", splits=8),
        divergence=None,
        has_classes=False,
        tasks=SimpleNamespace(classes=()),
        picked_choices={JOINT: [choice], MAML: [choice]},
        test_tasks=100,
        other_tasks=300,
    )
    verdict = conclude(analysis, "MSE")  # type: ignore[arg-type]
    said = "Described, not tested: first-order MAML -13% (95% interval -20% to -6.0%)."
    assert (said in verdict.text) == (first[1] < 0 and verdict.answer != MAML_BETTER)
    assert verdict.text.count("First-order") + verdict.text.count("first-order") <= 1


def test_percent() -> None:
    assert percent(-0.0123) == "-1.2%"
    assert percent(0.5) == "+50%"


@pytest.mark.parametrize(
    ("risk", "classes", "text"),
    [
        (1.2, (), "Neither does better than a constant prediction, whose risk is about 1."),
        (0.9, (), ""),
        (1e-12, (), "determine the target"),
        (0.9, ("a", "b"), "constant prediction, whose risk is about 0.693."),
        (0.6, ("a", "b"), ""),
        (1e-12, ("a", "b"), ""),
    ],
)
def test_what_was_not_learned_is_said(risk: float, classes: tuple[str, ...], text: str) -> None:
    picked = SimpleNamespace(
        risk={JOINT: SimpleNamespace(mean=risk), MAML: SimpleNamespace(mean=2 * risk)}
    )
    analysis = SimpleNamespace(
        picked=picked, has_classes=bool(classes), tasks=SimpleNamespace(classes=classes)
    )
    found = " ".join(_skill(analysis))
    assert text in found if text else not found
