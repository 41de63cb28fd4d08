"""What the functions of `innerloop.bounds` return: numbers that know where they come from."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

Standing = Literal["checked", "assumed", "estimated"]


@dataclasses.dataclass(frozen=True)
class Assumption:
    """One condition a result rests on.

    Args:
        text: the condition in plain words.
        standing: "checked" if the code verified it on these arguments, "assumed" if it takes the
            caller's word, "estimated" if it rests on constants estimated from data.
    """

    text: str
    standing: Standing = "assumed"


class Quantity(float):
    """A float that carries its name, its source and what it assumes.

    It is a float everywhere: arithmetic, comparison and formatting give plain floats.

    Args:
        value: the number; infinite when the statement behind it says nothing.
        name: what the number is, in words.
        source: the result it evaluates, as docs/theory.md numbers them ("Result 11").
        assumptions: the conditions of that result.
        reason: why the value is infinite or otherwise special; None for an ordinary value.
    """

    name: str
    source: str
    assumptions: tuple[Assumption, ...]
    reason: str | None

    def __new__(
        cls,
        value: float,
        *,
        name: str,
        source: str,
        assumptions: tuple[Assumption, ...] = (),
        reason: str | None = None,
    ) -> Quantity:
        """Makes the number."""
        made = super().__new__(cls, value)
        made.name = name
        made.source = source
        made.assumptions = assumptions
        made.reason = reason
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[float], dict[str, Any]]:
        """What pickle and copy pass to the constructor."""
        return (float(self),), {
            "name": self.name,
            "source": self.source,
            "assumptions": self.assumptions,
            "reason": self.reason,
        }

    def explain(self) -> str:
        """The number, its source and its assumptions in plain words."""
        lines = [f"{self.name} = {float(self):.6g}  ({self.source})"]
        if self.reason is not None:
            lines.append(f"  {self.reason}")
        lines += [f"  {item.standing}: {item.text}" for item in self.assumptions]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything the number carries, ready for JSON."""
        return {
            "value": plain(float(self)),
            "name": self.name,
            "source": self.source,
            "assumptions": [dataclasses.asdict(item) for item in self.assumptions],
            "reason": self.reason,
        }


def quantity(
    value: Any,
    *,
    name: str,
    source: str,
    assumptions: tuple[Assumption, ...] = (),
    reason: str | None = None,
) -> Any:
    """A `Quantity` for a single value, a float64 array for several (arguments as `Quantity`)."""
    array = np.asarray(value, dtype=np.float64)
    if array.ndim:
        return array
    return Quantity(float(array), name=name, source=source, assumptions=assumptions, reason=reason)


class Record:
    """Base of the result dataclasses: gives `to_dict`; each class writes its own `explain`."""

    def explain(self) -> str:
        """The result in plain words."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON: arrays as lists, infinities as "inf"."""
        assert dataclasses.is_dataclass(self)
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def plain(value: Any) -> Any:
    """`value` in types that JSON knows; non-finite numbers become "inf", "-inf" or "nan"."""
    if isinstance(value, Quantity):
        return value.to_dict()
    if isinstance(value, Record):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    return value
