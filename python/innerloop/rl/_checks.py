"""What the package refuses, in one place: numbers, names, arrays, and extras that are missing."""

from __future__ import annotations

import difflib
import importlib
import operator
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

LARGEST_SEED = 2**63 - 1


def refuse(op: str, argument: str, requirement: str, got: object, remedy: str = "") -> NoReturn:
    """Raises the ValueError of one argument."""
    tail = f"; {remedy}" if remedy else ""
    raise ValueError(f"{op}: {argument} must {requirement} (got {got}){tail}")


def refuse_type(
    op: str, argument: str, requirement: str, got: object, remedy: str = ""
) -> NoReturn:
    """Raises the TypeError of one argument."""
    tail = f"; {remedy}" if remedy else ""
    raise TypeError(f"{op}: {argument} must {requirement} (got {got}){tail}")


def integer(op: str, argument: str, value: object, least: int = 1, most: int = 2**31 - 1) -> int:
    """Returns a whole number in [least, most]."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        refuse_type(op, argument, "be an int", repr(value))
    number = operator.index(value)
    if not least <= number <= most:
        refuse(op, argument, f"lie between {least} and {most}", number)
    return number


def seed(op: str, value: object) -> int:
    """Returns a seed."""
    return integer(op, "seed", value, 0, LARGEST_SEED)


def number(
    op: str, argument: str, value: object, least: float = 0.0, most: float = np.inf
) -> float:
    """Returns a finite real number in [least, most]."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        refuse_type(op, argument, "be a number", repr(value))
    if not (least <= value <= most and np.isfinite(value)):
        span = f"be at least {least:g}" if most == np.inf else f"lie in [{least:g}, {most:g}]"
        span = "be finite" if (least, most) == (-np.inf, np.inf) else f"{span} and be finite"
        refuse(op, argument, span, value)
    return float(value)


def nearest(word: object, known: Iterable[str]) -> str:
    """Returns "did you mean ...?" for a word that is not known, or an empty text."""
    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(str(word).lower(), names, n=1, cutoff=0.5)
    return f"did you mean {names[found[0]]!r}?" if found else ""


def choice(op: str, argument: str, value: object, known: Iterable[str]) -> str:
    """Returns a name that is one of some; the error names the nearest one."""
    names = list(known)
    if not isinstance(value, str) or value not in names:
        remedy = nearest(value, names)
        refuse(op, argument, f"be one of {', '.join(names)}", repr(value), remedy)
    return value


def array(
    op: str, argument: str, value: object, shape: tuple[int, ...], letters: str
) -> NDArray[np.float64]:
    """Returns numbers of one shape as a float64 array, without a copy where that is possible."""
    found = np.asarray(value)
    if found.dtype.kind not in "fiu":
        refuse_type(op, argument, "hold real numbers", f"dtype {found.dtype}")
    if found.shape != shape:
        refuse(op, argument, f"have shape {letters} = {list(shape)}", list(found.shape))
    return np.asarray(found, dtype=np.float64)


def unwritable(op: str, path: object, error: OSError) -> OSError:
    """Returns an error of the same kind that names the file that was asked for."""
    why = error.strerror or str(error)
    return OSError(error.errno, f"{op}: the file cannot be written ({why})", str(path))


def package(op: str, name: str, extra: str) -> Any:
    """Returns an imported package of an extra, or says in one line what to install."""
    try:
        module: ModuleType = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f'{op}: package {error.name!r} is missing; run pip install "innerloop[{extra}]"',
            name=error.name,
        ) from None
    return module
