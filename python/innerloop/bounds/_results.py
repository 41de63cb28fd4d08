"""What the functions of `innerloop.bounds` return: numbers with a standing, and records of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from innerloop.bounds._arguments import array
from innerloop.bounds._assumptions import Assumption
from innerloop.bounds._plain import plain
from innerloop.bounds._quantities import Quantities, Quantity, quantity

__all__ = ["Assumption", "Quantities", "Quantity", "Record", "plain", "plug_in", "quantity"]


def plug_in(value: Any, *, name: str = "estimate", source: str = "given by the caller") -> Any:
    """`value` marked as an estimate, for the functions of `innerloop.bounds` that take constants.

    Args:
        value: number or array.
        name: what it estimates.
        source: where it comes from.

    Returns:
        Quantity or Quantities with standing "plug-in"; results computed from it are plug-in too.

    Raises:
        TypeError: not real numbers.

    Assumes:
        Nothing. Checked: the value is numeric.

    Source:
        None of its own: Results 11-31 are no better than their constants (docs/theory/trust.md).

    Example:
        >>> from innerloop.bounds import nonconvex
        >>> known = nonconvex.Constants(L_plus=1.0, ell=plug_in(0.5))
        >>> nonconvex.kappa(known, inner_lr=0.1).standing
        'plug-in'
    """
    made = array(value, function="plug_in", name="value")
    return quantity(made, name=name, source=source, standing="plug-in")


class Record:
    """Base of the result dataclasses: gives `to_dict`; each class writes its own `explain`."""

    def explain(self) -> str:
        """The result in plain words."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON: arrays as lists, infinities as "inf"."""
        assert dataclasses.is_dataclass(self)
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
