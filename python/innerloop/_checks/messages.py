"""For all four words: how an error about an argument reads."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor


def value_error(
    op: str, argument: str, requirement: str, got: object, remedy: str = ""
) -> NoReturn:
    """Raises the ValueError of one argument."""
    raise ValueError(_text(op, argument, requirement, got, remedy))


def type_error(op: str, argument: str, requirement: str, got: object, remedy: str = "") -> NoReturn:
    """Raises the TypeError of one argument."""
    raise TypeError(_text(op, argument, requirement, got, remedy))


def _text(op: str, argument: str, requirement: str, got: object, remedy: str) -> str:
    """Returns `op: argument must requirement (got value); remedy`."""
    return f"{op}: {argument} must {requirement} (got {got})" + (f"; {remedy}" if remedy else "")


def kind(value: object) -> str:
    """Returns the name of a value's type."""
    return type(value).__name__


def sizes(tensor: Tensor) -> list[int]:
    """Returns a tensor's shape as a plain list, for messages."""
    return list(tensor.shape)
