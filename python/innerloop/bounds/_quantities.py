"""Numbers that know where they come from and how far they can be trusted, and that keep the weakest
standing of what they are computed from.

`Quantity` is a float and `Quantities` an array of them, for users. `Tracked` is what formulas
compute with: an array throughout, also for a single number, so that NumPy's rules for infinities
and broadcasting hold.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np

from innerloop.bounds._assumptions import Assumption, implied
from innerloop.bounds._carrying import bare, through_function, through_ufunc, trust_of
from innerloop.bounds._plain import plain
from innerloop.bounds._standing import (
    CERTAIN,
    Standing,
    Trust,
    in_words,
    joined,
    trust_in,
    weakest,
)

P = ParamSpec("P")
R = TypeVar("R")

_NOTHING_KNOWN = Trust("assumed", frozenset())


class Quantity(np.float64):
    """A float that carries its name, its source, what it assumes and its standing.

    It is a float everywhere: comparison, formatting, JSON and `float()` see the number alone. (One
    of NumPy's floats, so that np.float64 on the left of an operator leaves the result to it.)
    Arithmetic with it, and NumPy's functions of it, give a `Quantity` again (an array for an
    array), with the weakest standing of everything used: of both sides of np.maximum, and of a
    factor whose partner is 0. Plain numbers in between are coefficients and change nothing.

    What takes the bare number loses the rest: `float()`, `int()`, the `math` module, np.asarray,
    lists of quantities handed to NumPy, and Python's own `max` and `min`, which return one of their
    arguments; with NumPy before 2.4 also `array ** quantity` for the exponents that it computes
    apart (2, say). A plain number handed to a bound counts as the caller's word ("assumed").

    Args:
        value: the number; infinite when the statement behind it says nothing.
        name: what the number is, in words; empty for one that was computed from others.
        source: the result it evaluates, as docs/theory.md numbers them ("Result 11").
        assumptions: the conditions of that result.
        reason: why the value is infinite or otherwise special; None for an ordinary value.
        standing: "certified" (proved for the problem that the constants describe), "assumed" (it
            holds if what the caller gave holds), "plug-in" (computed from estimates) or "heuristic"
            (an assumption behind it is known to fail). None: "assumed", or what the assumptions
            and `rests_on` imply if that is weaker.
        rests_on: the numbers that it is made of, by name, with their standings; itself if None.

    Raises:
        ValueError: a standing that is none of the four words.
    """

    name: str
    source: str
    assumptions: tuple[Assumption, ...]
    reason: str | None
    in_formula = False
    _trust: Trust

    def __new__(
        cls,
        value: float,
        *,
        name: str,
        source: str,
        assumptions: tuple[Assumption, ...] = (),
        reason: str | None = None,
        standing: Standing | None = None,
        rests_on: Mapping[str, Standing] | None = None,
    ) -> Quantity:
        """Makes the number; one made of another is never above it."""
        made: Quantity = super().__new__(cls, float(value))
        made.name = name
        made.source = source
        made.assumptions = assumptions
        made.reason = reason
        word = weakest([standing or "assumed", *map(implied, assumptions)])
        if rests_on is None:
            rests_on = _itself(name, word)
        made._trust = joined([trust_in(word, rests_on), trust_of(value) or CERTAIN])
        return made

    def __reduce__(self) -> Any:
        """What pickle and copy make it from: the number and everything that it carries."""
        return _again, (type(self), float(self), self.__dict__)

    def __repr__(self) -> str:
        """The number, as a float shows it."""
        return float.__repr__(self)

    __str__ = __repr__

    @property
    def standing(self) -> Standing:
        """How far to trust it: "certified", "assumed", "plug-in" or "heuristic"."""
        return self._trust.standing

    @property
    def rests_on(self) -> dict[str, Standing]:
        """The numbers that it is made of, by name, with their standings."""
        return self._trust.rests_on

    def explain(self) -> str:
        """The number, its source, its standing and its assumptions in plain words."""
        lines = [f"{self.name or 'computed'} = {float(self):.6g}{self._cited()}"]
        if self.reason is not None:
            lines.append(f"  {self.reason}")
        if set(self.rests_on) - {self.name} or self.standing in ("plug-in", "heuristic"):
            lines.append(f"  {self._standing_in_words()}")
        lines += [f"  {item.standing}: {item.text}" for item in self.assumptions]
        return "\n".join(lines)

    def _standing_in_words(self) -> str:
        """The standing and, where it is made of other numbers, their names."""
        itself = set(self.rests_on) == {self.name}
        return in_words(Trust(self.standing, frozenset()) if itself else self._trust)

    def _cited(self) -> str:
        """The source in brackets, nothing where there is none."""
        return f"  ({self.source})" if self.source else ""

    def to_dict(self) -> dict[str, Any]:
        """Everything the number carries, ready for JSON."""
        return {
            "value": plain(float(self)),
            "name": self.name,
            "source": self.source,
            "standing": self.standing,
            "rests_on": self.rests_on,
            "assumptions": [plain(item) for item in self.assumptions],
            "reason": self.reason,
        }

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """NumPy's arithmetic."""
        return through_ufunc(_dressed, ufunc, method, inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        """NumPy's other functions."""
        return through_function(_dressed, function, args, options)

    def __round__(self, digits: Any = None) -> Any:
        """As a float: a whole number without digits, which is plain."""
        value = round(float(self), digits)
        return value if digits is None else computed(value, self._trust)


def _unary(name: str) -> Callable[[Quantity], Quantity]:
    operation = getattr(float, name)

    def apply(self: Quantity) -> Quantity:
        return computed(operation(float(self)), self._trust)

    return apply


def _compared(name: str) -> Callable[[Quantity, Any], Any]:
    operation, other_way = getattr(float, name), getattr(np.float64, name)

    def apply(self: Quantity, other: Any) -> Any:
        if isinstance(other, (int, float)):
            return operation(float(self), float(other) if isinstance(other, float) else other)
        if isinstance(other, np.ndarray):
            return NotImplemented  # the array's own operator comes back through NumPy
        return other_way(self, other)

    return apply


def _again(kind: type[Quantity], value: float, carried: dict[str, Any]) -> Quantity:
    """A copy of a quantity."""
    made: Quantity = np.float64.__new__(kind, value)
    made.__dict__.update(carried)
    return made


def _binary(name: str) -> Callable[[Quantity, Any], Any]:
    operation = getattr(float, name)

    def apply(self: Quantity, other: Any) -> Any:
        trust = self._trust
        if isinstance(other, Quantity):
            trust = joined([trust, other._trust])
        elif isinstance(other, np.generic) and not isinstance(other, float):
            other = other.item()
        elif not isinstance(other, (int, float)):
            return NotImplemented
        if isinstance(other, complex):
            return NotImplemented
        value = operation(float(self), float(other))
        return value if value is NotImplemented else _dressed(value, trust, False)

    return apply


def _method(name: str) -> Callable[..., Any]:
    def apply(self: Quantity, *arguments: Any, **options: Any) -> Any:
        used: list[Trust] = [self._trust]
        given = [bare(value, used) for value in arguments]
        named = {key: bare(value, used) for key, value in options.items()}
        value = getattr(np.asarray(float(self)), name)(*given, **named)
        return _dressed(value, joined(used), False)

    return apply


# What NumPy's scalars have in common with arrays.
for _name in ("astype", "clip", "conj", "conjugate", "copy", "cumsum", "max", "mean", "min", "prod",
              "ravel", "repeat", "reshape", "round", "squeeze", "std", "sum", "take",
              "var"):  # fmt: skip
    setattr(Quantity, _name, _method(_name))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Quantity, f"__{_name}__", _compared(f"__{_name}__"))
for _name in ("neg", "pos", "abs"):
    setattr(Quantity, f"__{_name}__", _unary(f"__{_name}__"))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow"):
    for _side in ("", "r"):
        setattr(Quantity, f"__{_side}{_name}__", _binary(f"__{_side}{_name}__"))


def computed(value: float, *sources: Any) -> Quantity:
    """A number without a name that was computed from `sources`: numbers, arrays or trusts.

    For values that no tracked arithmetic leads to, such as roots found by bisection. Where no
    source carries anything, the number is the caller's word.
    """
    found = [item if isinstance(item, Trust) else trust_of(item) for item in (value, *sources)]
    known = [trust for trust in found if trust is not None]
    made: Quantity = np.float64.__new__(Quantity, float(value))
    made.name, made.source, made.assumptions, made.reason = "", "", (), None
    made._trust = joined(known) if known else _NOTHING_KNOWN
    return made


class Tracked(np.ndarray[Any, Any]):
    """A NumPy array with a trust, which every NumPy operation hands on.

    What is written into an element joins the trust of the whole array.
    """

    in_formula = True
    _trust: Trust
    _label: dict[str, Any] | None
    _whole: Tracked | None  # the array that this one is a view of

    def __array_finalize__(self, template: Any) -> None:
        """Views and copies keep the trust; a label stays with the array it was given to."""
        self._trust = getattr(template, "_trust", _NOTHING_KNOWN)
        self._label = None
        self._whole = None

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """What functions that do not ask NumPy's two doors return."""
        return _dressed(np.asarray(array), self._trust, self.in_formula)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """NumPy's arithmetic."""
        return through_ufunc(_dressed, ufunc, method, inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        """NumPy's other functions."""
        return through_function(_dressed, function, args, options)

    def __getitem__(self, index: Any) -> Any:
        """Elements and parts, with the trust of the whole and of the index."""
        used: list[Trust] = [self._trust]
        value = self.view(np.ndarray)[bare(index, used)]
        made = _dressed(value, joined(used), self.in_formula)
        if self._label is not None:
            if isinstance(made, Quantity):
                return Quantity(made, standing=made.standing, rests_on=made.rests_on, **self._label)
            made._label = self._label
        if isinstance(made, Tracked) and np.may_share_memory(made, self):
            made._whole = self
        return made

    def __setitem__(self, index: Any, value: Any) -> None:
        """Writes elements; their trust joins that of the array."""
        used: list[Trust] = [self._trust]
        super().__setitem__(bare(index, used), bare(value, used))
        self._joins(joined(used))

    def _joins(self, trust: Trust) -> None:
        """Weakens an array, and those that it is a view of, by what is written into it."""
        array: Tracked | None = self
        while array is not None:
            array._trust = joined([array._trust, trust])
            array = array._whole

    def fill(self, value: Any) -> None:
        """Writes one number everywhere; its trust joins that of the array."""
        self[...] = value

    def put(self, indices: Any, values: Any, mode: Any = "raise") -> None:
        """Writes elements; their trust joins that of the array."""
        used: list[Trust] = [self._trust]
        np.ndarray.put(self.view(np.ndarray), bare(indices, used), bare(values, used), mode)
        self._joins(joined(used))

    def __iter__(self) -> Iterator[Any]:
        """Elements with their trust."""
        return (self[k] for k in range(len(self)))

    def __pow__(self, other: Any, modulus: None = None) -> Any:
        """np.power, which the operator of arrays does not ask for every exponent."""
        return np.power(self, other)

    def dot(self, other: Any, out: Any = None) -> Any:
        """np.dot, which the method of arrays would not ask."""
        return np.dot(self, other) if out is None else np.dot(self, other, out)

    def _kept(self, method: str, arguments: Any, options: Any) -> Any:
        """What a method of NumPy's arrays gives, which asks neither door for a single number."""
        used: list[Trust] = [self._trust]
        plain = self.view(np.ndarray)
        given = [bare(value, used) for value in arguments]
        named = {name: bare(value, used) for name, value in options.items()}
        value = getattr(plain, method)(*given, **named)
        return _dressed(value, joined(used), self.in_formula)

    def __reduce__(self) -> Any:
        """What pickle and copy store, with trust and label behind NumPy's own state."""
        parts: Any = super().__reduce__()
        return parts[0], parts[1], (*parts[2], self._trust, self._label)

    def __setstate__(self, state: Any) -> None:
        """Takes what `__reduce__` stored."""
        super().__setstate__(state[:-2])
        self._trust, self._label = state[-2:]


def _keeping(name: str) -> Callable[..., Any]:
    def apply(self: Tracked, *arguments: Any, **options: Any) -> Any:
        return self._kept(name, arguments, options)

    return apply


for _name in ("mean", "std", "var", "take", "choose", "compress", "diagonal", "trace"):
    setattr(Tracked, _name, _keeping(_name))


class Quantities(Tracked):
    """An array of quantities with one standing; single elements and sums are `Quantity`."""

    in_formula = False

    def __repr__(self) -> str:
        """The numbers, as an array shows them."""
        return repr(np.asarray(self))

    @property
    def name(self) -> str:
        """What the numbers are, in words; empty for ones that were computed from others."""
        return str(self._label["name"]) if self._label else ""

    @property
    def standing(self) -> Standing:
        """How far to trust it: "certified", "assumed", "plug-in" or "heuristic"."""
        return self._trust.standing

    @property
    def rests_on(self) -> dict[str, Standing]:
        """The numbers that it is made of, by name, with their standings."""
        return self._trust.rests_on


def given(value: Any, name: str) -> Trust:
    """The trust of a number that a caller gives as `name`.

    Its own; but the caller's word for a plain number, and for a certified one without a name:
    somebody computed that, and no proof covers it.
    """
    trust = trust_of(value)
    if trust is None or (trust.standing == "certified" and not getattr(value, "name", None)):
        return trust_in("assumed", {name: "assumed"})
    return trust


def tracked(value: Any, trust: Trust) -> Tracked:
    """`value` as float64 with this trust and what it carries already."""
    used = [trust]
    made = np.asarray(bare(value, used), dtype=np.float64).view(Tracked)
    made._trust = joined(used)
    return made


def parted(value: Any) -> tuple[Any, Trust | None]:
    """`value` without trust, and the trust; None where it carries none. Looks into lists."""
    used: list[Trust] = []
    plain = bare(value, used)
    return plain, joined(used) if used else None


def hands_on(function: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that computes with plain numbers, whose results are trusted no further
    than the numbers that it was given: a `Quantity`, `Quantities`, and tuples and dataclasses of
    them."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        used: list[Trust] = []
        positions: Any = [_bare_argument(value, used) for value in args]
        named: Any = {name: _bare_argument(value, used) for name, value in kwargs.items()}
        result = function(*positions, **named)
        weakened: R = _weakened(result, joined(used)) if used else result
        return weakened

    return wrapped


def _bare_argument(value: Any, used: list[Trust]) -> Any:
    """A number or numbers without trust, which joins `used`; anything else as it is."""
    if isinstance(value, (Quantity, Tracked, list, tuple)):
        return bare(value, used)
    return value


def _weakened(value: Any, trust: Trust) -> Any:
    """A result with another trust joined to its own."""
    if isinstance(value, Quantity):
        own = {k: getattr(value, k) for k in ("name", "source", "assumptions", "reason")}
        both = joined([value._trust, trust])
        return Quantity(float(value), standing=both.standing, rests_on=both.rests_on, **own)
    if isinstance(value, Quantities):
        made = np.asarray(value).view(Quantities)
        made._trust, made._label = joined([value._trust, trust]), value._label
        return made
    if isinstance(value, tuple):
        parts = [_weakened(part, trust) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        weaker = {name: _weakened(part, trust) for name, part in fields.items()}
        changed = {name: part for name, part in weaker.items() if part is not fields[name]}
        return dataclasses.replace(value, **changed) if changed else value
    return value


def quantity(
    value: Any,
    *,
    name: str,
    source: str,
    assumptions: tuple[Assumption, ...] = (),
    reason: str | None = None,
    standing: Standing | None = None,
) -> Any:
    """A `Quantity` for a single value, `Quantities` for several (arguments as `Quantity`).

    The standing is that of the value where it carries one.
    """
    plain_value, trust = parted(value)
    if trust is None:
        trust = Trust(standing or "assumed", frozenset())
    trust = joined([trust, *(Trust(implied(item), frozenset()) for item in assumptions)])
    label: dict[str, Any] = {
        "name": name,
        "source": source,
        "assumptions": assumptions,
        "reason": reason,
    }
    array = np.asarray(plain_value, dtype=np.float64)
    rests_on = trust.rests_on or _itself(name, trust.standing)
    if array.ndim:
        made = array.view(Quantities)
        made._trust, made._label = trust_in(trust.standing, rests_on), label
        return made
    return Quantity(float(array), standing=trust.standing, rests_on=rests_on, **label)


def _itself(name: str, standing: Standing) -> dict[str, Standing]:
    """What a number rests on that is made of no others."""
    return {name: standing} if name and standing != "certified" else {}


def _dressed(value: Any, trust: Trust, internal: bool) -> Any:
    """What NumPy returned, with the trust."""
    if isinstance(value, (tuple, list)):
        parts = [_dressed(item, trust, internal) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if not isinstance(value, (float, np.ndarray, np.generic)):
        return value
    if np.ndim(value) == 0 and not internal:
        single = np.asarray(value)[()]
        return computed(float(single), trust) if single.dtype.kind == "f" else single
    made = np.asarray(value).view(Tracked if internal else Quantities)
    made._trust = trust
    return made
