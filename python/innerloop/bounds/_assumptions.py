"""The conditions a result rests on, in words."""

from __future__ import annotations

import dataclasses
from typing import Literal

from innerloop.bounds._standing import Standing

Condition = Literal["checked", "assumed", "estimated", "violated"]

_IMPLIED: dict[str, Standing] = {
    "checked": "certified",
    "assumed": "certified",
    "estimated": "plug-in",
    "violated": "heuristic",
}


@dataclasses.dataclass(frozen=True)
class Assumption:
    """One condition a result rests on.

    Args:
        text: the condition in plain words.
        standing: "checked" if the code verified it on these arguments or analysis proves it for
            them, "assumed" if it takes the caller's word, "estimated" if it rests on constants
            estimated from data, "violated" if it is known to be false.
    """

    text: str
    standing: Condition = "assumed"


def implied(assumption: Assumption) -> Standing:
    """The best standing that a number with this assumption can have.

    An assumption that takes the caller's word limits nothing by itself: it is stated beside the
    number, and what the caller gave carries its own standing.
    """
    return _IMPLIED[assumption.standing]
