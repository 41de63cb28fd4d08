"""For all four words: options that are numbers, truth values, sizes or names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from innerloop._checks.messages import type_error, value_error


def check_number(op: str, argument: str, value: object, low: float = -math.inf) -> float:
    """Checks that an option is a finite number above a bound."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        type_error(op, argument, "be a number", repr(value))
    if not low < value < math.inf:
        wanted = "be finite" if low == -math.inf else f"be finite and above {low:g}"
        value_error(op, argument, wanted, repr(value))
    return float(value)


def check_not_negative(op: str, argument: str, value: object) -> float:
    """Checks that an option is a finite number and not negative, and returns it."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number:
        type_error(op, argument, "be a number", repr(value))
    if not value:
        return 0.0  # also of a symbol under torch.compile, which plans cannot hold
    number = plain_number(value)  # type: ignore[arg-type]
    if not 0 <= number < math.inf:
        value_error(op, argument, "be finite and not negative", repr(value))
    return number


def plain_number(value: float) -> float:
    """Returns a number as a float, and what torch.compile holds as a symbol as the number that it
    stands for, since plans cannot hold symbols: other numbers are compiled anew."""
    if not torch.compiler.is_compiling():
        return float(value)
    return float.fromhex(float(value).hex())


def check_size(op: str, argument: str, value: object) -> None:
    """Checks that a size is a positive int."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        value_error(op, argument, "be an int of at least 1", repr(value))


def check_flag(op: str, argument: str, value: object) -> None:
    """Checks that an option is a truth value."""
    if value is not True and value is not False:
        type_error(op, argument, "be True or False", repr(value))


def check_choice(op: str, argument: str, value: object, choices: Sequence[str]) -> None:
    """Checks that an option is one of some names."""
    if value not in choices:
        value_error(op, argument, f"be one of {', '.join(choices)}", repr(value))
