"""How NumPy's operations hand on what the numbers they are given carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from innerloop.bounds._standing import Trust, joined

# Makes a result of (value, trust, in_formula); set where the classes of results are.
Dressing = Callable[[Any, Trust, bool], Any]


def trust_of(value: Any) -> Trust | None:
    """The trust of a number or an array, None for one that carries none."""
    found: Trust | None = getattr(value, "_trust", None)
    return found


_PLAIN = frozenset({float, int, bool, str, type(None), np.ndarray, np.float64})


def bare(value: Any, used: list[Trust]) -> Any:
    """`value` without trust, also inside of lists, tuples and dictionaries; appends the trusts."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    trust = trust_of(value)
    if trust is not None:
        used.append(trust)
        return float(value) if isinstance(value, float) else value.view(np.ndarray)
    if kind is tuple or kind is list:
        return kind([bare(item, used) for item in value])
    if kind is dict:
        return {key: bare(item, used) for key, item in value.items()}
    return value


def _internal(value: Any) -> bool:
    """Whether a formula is computing with it."""
    if trust_of(value) is not None:
        return bool(value.in_formula)
    return type(value) in (list, tuple) and any(map(_internal, value))


def through_ufunc(
    dressed: Dressing, ufunc: np.ufunc, method: str, inputs: Any, options: dict[str, Any]
) -> Any:
    """One operation of NumPy on numbers of which some carry a trust."""
    out = options.pop("out", None)
    used: list[Trust] = []
    operands, further = bare(inputs, used), bare(options, used)
    internal = _internal(inputs) or (bool(options) and _internal([*options.values()]))
    if out is not None:
        further["out"] = bare(out, used)
    result = getattr(ufunc, method)(*operands, **further)
    trust = joined(used)
    if out is None and method != "at":
        return dressed(result, trust, internal)
    for target in out or inputs[:1]:
        if trust_of(target) is not None:
            target._trust = trust
    if out is not None and len(out) == 1 and trust_of(out[0]) is not None:
        return out[0]
    return dressed(result, trust, internal)


def through_function(dressed: Dressing, function: Any, args: Any, options: Any) -> Any:
    """One of NumPy's other functions on numbers of which some carry a trust."""
    used: list[Trust] = []
    result = function(*bare(args, used), **bare(options, used))
    if result is None and args:  # it wrote into its first argument
        if trust_of(args[0]) is None:
            raise TypeError(
                f"numpy.{function.__name__} would lose the standing of what it writes into a plain "
                "array; take float() of a Quantity or np.asarray of Quantities first"
            )
        args[0]._trust = joined(used)
        return None
    return dressed(result, joined(used), _internal([*args, *options.values()]))
