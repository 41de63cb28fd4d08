"""The rule that turns one interval into an answer."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from innerloop.compare.verdict import (
    AS_GOOD,
    JOINT_BETTER,
    MAML_BETTER,
    UNDECIDED,
    _skill,
    decide,
    percent,
)
from innerloop.runs.methods import JOINT, MAML
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
