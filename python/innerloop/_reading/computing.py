"""Takes notes of what is computed from parameters alone: normalised weights, learned temperatures.

Such calls are not read one by one. They are noted as they are, run on tensors without numbers for
the shapes of what they give, and run again by the passes with the parameters of each task. What
depends on no parameter is made with its numbers: a forward pass may keep it for later.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from innerloop._curvature import EXACT
from innerloop._program import (
    Computation,
    Leaf,
    Number,
    Reference,
    Sequenced,
    Sliced,
    function_of,
    run,
)


class Unsuited(Exception):
    """A call cannot be run again; the text says why."""


class Computing:
    """The computations of one forward pass, in order."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []  # that stand for leaves and results, without numbers
        self._constants: dict[int, Tensor] = {}  # with their numbers, by place among these
        self._results_at: dict[int, int] = {}  # of results, by identity: which of these they are
        self._leaves_at: dict[int, int] = {}  # likewise of leaves themselves
        self._sources: list[Leaf | Computation] = []  # how they come about

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._results_at

    def call(self, function: Any, args: Any, kwargs: Any, leaves: Mapping[int, Leaf]) -> Any:
        """Notes a call and returns what stands for its results.

        Raises:
            Unsuited: it is random, changes a parameter, or gives something but tensors.
        """
        positions = tuple(self._template(value, leaves) for value in args)
        keywords = tuple((name, self._template(value, leaves)) for name, value in kwargs.items())
        made = Computation(EXACT.get(function, function), positions, keywords)
        with _Watch(self._tensors):
            result = run(made, self._tensors)
        return self._results(result, made, self._numbers(made))

    def _numbers(self, made: Computation) -> Any:
        """Returns what a computation on constants gives, None of others."""
        used = _references((made.arguments, made.keywords))
        if not used or not all(at in self._constants for at in used):
            return None
        known = [self._constants.get(at) for at in range(len(self._tensors))]
        try:
            return run(made, known)
        except Exception as error:
            raise Unsuited(f"it raises {type(error).__name__} on its numbers") from None

    def is_constant(self, tensor: object) -> bool:
        """Says whether something is a tensor of numbers that depends on no parameter."""
        return self._results_at.get(id(tensor), -1) in self._constants

    def constant(
        self, function: Any, args: Any, kwargs: Mapping[str, Any], device: torch.device
    ) -> Any:
        """Notes a call that makes a tensor of numbers, on a device; returns what stands for it.

        Raises:
            Unsuited: its arguments cannot be noted.
        """
        positions = tuple(self._template(value, {}) for value in args)
        keywords = {name: self._template(value, {}) for name, value in kwargs.items()}
        made = Computation(function, positions, tuple({**keywords, "device": device}.items()))
        numbers = function(*args, **{**kwargs, "device": device})
        return self._results(torch.empty_like(numbers, device="meta"), made, numbers)

    def _results(self, result: Any, made: Computation, numbers: Any = None) -> Any:
        """Notes what a call gave, and what it gave with numbers if it depends on no parameter."""
        if isinstance(result, Tensor):
            stand_in = result.detach().requires_grad_(result.is_floating_point())
            at = self._noted(stand_in, made)
            given = stand_in
            if isinstance(numbers, Tensor):
                given = self._constants[at] = numbers.detach()
            self._results_at[id(given)] = at
            return given
        if not isinstance(result, (tuple, list)) or not all(isinstance(r, Tensor) for r in result):
            raise Unsuited(f"it gives a {type(result).__name__}, which may depend on numbers")
        whole = Reference(self._noted(torch.empty(0, device="meta"), made))
        parts = tuple(
            self._results(
                part,
                Computation(operator.getitem, (whole, Number(n, str(n))), ()),
                None if numbers is None else numbers[n],
            )
            for n, part in enumerate(result)
        )
        named = isinstance(result, tuple) and type(result) is not tuple
        return type(result)(parts) if named else parts  # of torch.return_types

    def _noted(self, stand_in: Tensor, source: Leaf | Computation) -> int:
        """Notes a leaf or a result; returns which it is."""
        self._tensors.append(stand_in)
        self._sources.append(source)
        return len(self._tensors) - 1

    def _template(self, value: Any, leaves: Mapping[int, Leaf]) -> Any:
        """Returns an argument with references in the place of tensors."""
        if isinstance(value, Tensor):
            if value in self:
                return Reference(self._results_at[id(value)])
            if id(value) not in self._leaves_at:
                stand_in = torch.empty_like(value, device="meta").detach()
                stand_in.requires_grad_(value.is_floating_point())
                self._leaves_at[id(value)] = self._noted(stand_in, leaves[id(value)])
            return Reference(self._leaves_at[id(value)])
        if isinstance(value, (tuple, list)):
            parts = tuple(self._template(part, leaves) for part in value)
            return Sequenced(parts, isinstance(value, list))
        if isinstance(value, slice):
            return Sliced(value.start, value.stop, value.step)
        if isinstance(value, (int, float, complex)):
            return Number(value, repr(value))
        try:
            hash(value)
        except TypeError:
            raise Unsuited(f"its argument {value!r} cannot be noted") from None
        return value

    def expression(self, tensor: Tensor) -> tuple[tuple[Leaf, ...], tuple[Computation, ...]]:
        """Returns the leaves and the computations that a result is made of.

        Raises:
            Unsuited: they do not run for several tasks at once.
        """
        needed: set[int] = set()
        ahead = [self._results_at[id(tensor)]]
        while ahead:
            at = ahead.pop()
            if at not in needed:
                needed.add(at)
                source = self._sources[at]
                if isinstance(source, Computation):
                    ahead += _references((source.arguments, source.keywords))
        leaves = [at for at in sorted(needed) if not isinstance(self._sources[at], Computation)]
        calls = [at for at in sorted(needed) if isinstance(self._sources[at], Computation)]
        places = {at: Reference(place) for place, at in enumerate([*leaves, *calls])}
        found = [_renumbered(self._sources[at], places) for at in calls]
        kinds = [(tuple(self._tensors[at].shape), self._tensors[at].dtype) for at in leaves]
        reason = refusal(tuple(found), tuple(kinds))
        if reason:
            raise Unsuited(f"a weight cannot be computed for several tasks at once ({reason})")
        return tuple(self._sources[at] for at in leaves), tuple(found)  # type: ignore[misc]


def _references(template: Any) -> list[int]:
    """Returns what an argument refers to."""
    if isinstance(template, Reference):
        return [template.at]
    if isinstance(template, (Sequenced, tuple)) and not isinstance(template, Sliced):
        return [at for part in _parts(template) for at in _references(part)]
    return []


def _parts(template: Any) -> tuple[Any, ...]:
    """Returns the parts of a sequence."""
    parts: tuple[Any, ...] = template.parts if isinstance(template, Sequenced) else template
    return parts


def _renumbered(template: Any, places: Mapping[int, Reference]) -> Any:
    """Returns a computation, or an argument, with other references."""
    if isinstance(template, Reference):
        return places[template.at]
    if isinstance(template, Sequenced):
        return template._replace(parts=tuple(_renumbered(part, places) for part in template.parts))
    if isinstance(template, Computation):
        keywords = tuple((name, _renumbered(value, places)) for name, value in template.keywords)
        arguments = tuple(_renumbered(value, places) for value in template.arguments)
        return Computation(template.function, arguments, keywords)
    return template


Kind = tuple[tuple[int, ...], torch.dtype]  # of a leaf


@functools.lru_cache(maxsize=256)
def refusal(computations: tuple[Computation, ...], kinds: tuple[Kind, ...]) -> str:
    """Returns why computations do not run for several tasks at once, or not with their first and
    second derivatives; empty if they do."""
    if not kinds:
        return ""  # constants
    leaves = [
        torch.empty((2, *shape), dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)
        for shape, dtype in kinds
    ]
    variables = [leaf for leaf in leaves if leaf.requires_grad]

    def slopes(outputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        there = [y for y in outputs if y is not None and y.requires_grad]
        if not there:
            return []
        along = [torch.empty_like(y) for y in there]
        return torch.autograd.grad(there, variables, along, create_graph=True, allow_unused=True)

    try:
        slopes(slopes([torch.func.vmap(function_of(computations))(*leaves)]))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
    return ""


class _Watch(TorchDispatchMode):
    """Refuses operations that are random, and those that change what was there before."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = {_memory(tensor) for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unsuited("it is random")
        if func._schema.is_mutable:
            changed = [value for value in args if isinstance(value, Tensor)]
            if any(_memory(value) in self._kept for value in changed):
                raise Unsuited("it changes a parameter, or what was made of one")
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    """Returns where a tensor's numbers would be."""
    return int(tensor.untyped_storage()._cdata)
