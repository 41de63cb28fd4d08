"""The rule that turns one interval into an answer."""

from __future__ import annotations

import math

import pytest

from innerloop.compare.verdict import AS_GOOD, JOINT_BETTER, MAML_BETTER, UNDECIDED, decide, percent
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
