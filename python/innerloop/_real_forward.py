"""Says whether calling a module runs the forward pass that torch wrote for its class: the only one
that a description may stand for.

Python lets a forward pass be changed by a subclass, on an instance, on torch's own classes and
functions, by hooks of one module or of all, and by function modes. The rule looks wherever a call
looks, each time it is asked, so that what was changed later counts as well. What torch's functions
look up is read off their code, so that an added layer needs no list of names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from operator import is_, itemgetter
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as _torch_module

# torch's own function modes that change no value: torch.set_default_device, which acts on new
# tensors, and the one that takes notes for make_fx and torch.func.linearize
_HARMLESS = {
    ("torch.utils._device", "DeviceContext"),
    ("torch.fx.experimental.proxy_tensor", "TorchFunctionMetadataMode"),
}
# torch's own dispatch modes that see calls of innerloop's operators as a whole
_TRACERS = ("torch._subclasses.", "torch.fx.", "torch._functorch.", "torch._higher_order_ops.")
# what a call of any module looks up on its class
_ON_CLASS = (
    "__call__",
    "__getattr__",
    "__getattribute__",
    "__iter__",
    "_call_impl",
    "_compiled_call_impl",
    "_slow_forward",
    "_wrapped_call_impl",
    "forward",
)
# and on the instance itself
_ON_INSTANCE = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_buffers",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_modules",
    "_parameters",
)
_LOOKED_UP = frozenset((*_ON_CLASS, *_ON_INSTANCE))
_NEVER_OWN = frozenset(_ON_CLASS) - {"_compiled_call_impl"}
_SMALL = 40  # names; more than these are compared faster one by one than all together


class Place(NamedTuple):
    """Names in a namespace of torch, and what each stood for when innerloop was imported."""

    label: str
    namespace: Mapping[str, Any]
    values: dict[str, Any]
    absent: frozenset[str]

    def changed(self) -> str | None:
        """Returns a name that stands for something else now, or None."""
        for name, value in self.values.items():
            if self.namespace.get(name) is not value:
                return f"{self.label}.{name}"
        for name in self.absent:
            if name in self.namespace:
                return f"{self.label}.{name}"
        return None


class Glance:
    """The quick question whether a place is as it was. `no` may be wrong, `yes` is not."""

    __slots__ = ("_absent", "_all", "_pick", "_space", "_values")

    def __init__(self, place: Place) -> None:
        self._space = place.namespace
        names = list(place.values)
        self._pick = itemgetter(*names, *names[:1]) if names else None
        self._values = self._pick(place.values) if self._pick else None
        self._absent = place.absent
        whole = dict(place.namespace)
        self._all = whole if len(whole) < _SMALL and place.changed() is None else None

    def unchanged(self) -> bool:
        """Says whether all names stand for what they did."""
        if self._all is not None and self._space == self._all:
            return True
        try:
            same = self._pick is None or self._pick(self._space) == self._values
        except KeyError:
            return False
        return bool(same and self._space.keys().isdisjoint(self._absent))


def place_of(label: str, namespace: Mapping[str, Any], names: Iterable[str]) -> Place:
    """Returns a place as it is now. What somebody else has put there already counts as changed."""
    values = {name: namespace[name] for name in sorted(names) if name in namespace}
    theirs = {name: value if is_torchs(value) else object() for name, value in values.items()}
    return Place(label, namespace, theirs, frozenset(names) - values.keys())


def is_torchs(value: object) -> bool:
    """Says whether a function is torch's: whoever wraps one leaves his own globals in it."""
    if isinstance(value, FunctionType):
        name = str(value.__globals__.get("__name__")).partition(".")[0]
        if name == "contextlib" and hasattr(value, "__wrapped__"):
            return is_torchs(value.__wrapped__)
        return name == "torch"
    return True


def names_in(code: CodeType) -> set[str]:
    """Returns the names that a function looks up, its inner functions included."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(names_in, inner))


def _is_module_of_torch(value: object) -> bool:
    """Says whether something is a module of Python that is a part of torch."""
    return isinstance(value, ModuleType) and value.__name__.partition(".")[0] == "torch"


def _callees(function: object, seen: set[int]) -> Iterator[Place]:
    """Yields the places where a function of torch finds the functions that it calls."""
    if not isinstance(function, FunctionType) or id(function) in seen:
        return
    seen.add(id(function))
    space, names = function.__globals__, names_in(function.__code__)
    found = [name for name in names if name in space]
    yield place_of(str(space["__name__"]), space, found)
    modules = [space[name] for name in found if _is_module_of_torch(space[name])]
    for module in modules:  # F.relu, or torch._C._nn.silu
        inside = {name: vars(module)[name] for name in names if name in vars(module)}
        modules += [m for m in inside.values() if _is_module_of_torch(m) and m not in modules]
        yield place_of(module.__name__, vars(module), inside)
        if type(module) is not ModuleType:  # torch._VF, which hands on what it has not itself
            yield place_of(module.__name__, vars(module), names)
            yield place_of(module.__name__, vars(type(module)), ["__getattr__"])
        for value in inside.values():
            yield from _callees(value, seen)


@functools.cache
def _glances_of(function: FunctionType) -> tuple[tuple[Place, Glance], ...]:
    """Returns the places on which a function of torch depends."""
    places = [place for place in _callees(function, set()) if place.values or place.absent]
    return tuple((place, Glance(place)) for place in places)


def replaced_in(function: object) -> str | None:
    """Returns what somebody has put in the place of a function of torch that `function`, which is
    torch's own, calls; or None."""
    if isinstance(function, FunctionType):
        for place, glance in _glances_of(function):
            if not glance.unchanged():
                name = place.changed()
                if name is not None:
                    return name
    return None


class Kind:
    """A class of torch with the places on which its forward pass depends."""

    __slots__ = ("cls", "places")

    def __init__(self, cls: type[nn.Module]) -> None:
        self.cls = cls
        forward = next(vars(base)["forward"] for base in cls.__mro__ if "forward" in vars(base))
        read = set(_LOOKED_UP)
        if isinstance(forward, FunctionType):
            read |= names_in(forward.__code__)
        bases = [base for base in cls.__mro__ if base not in (nn.Module, object)]
        places = [place_of(f"{b.__module__}.{b.__qualname__}", vars(b), read) for b in bases]
        places += _callees(forward, set())
        if cls is nn.Flatten:
            bases = [torch.Tensor, torch._C.TensorBase]
            places += [place_of("torch.Tensor", vars(base), ["flatten"]) for base in bases]
        self.places = [place for place in places if place.values or place.absent]

    def changed(self) -> str | None:
        """Returns what was replaced in torch since, in words, or None."""
        for place in self.places:
            name = place.changed()
            if name is not None:
                return _replaced(name)
        return None


def _replaced(name: str) -> str:
    return f"{name} is not torch's own"


_MODULE = place_of("torch.nn.Module", vars(nn.Module), _LOOKED_UP | {"training"})


@functools.cache
def _glances(kinds: frozenset[Kind]) -> tuple[Glance, ...]:
    """Returns the places of some kinds, each namespace once."""
    merged: dict[int, Place] = {}
    for place in (_MODULE, *(place for kind in kinds for place in kind.places)):
        known = merged.get(id(place.namespace), place)
        values, absent = {**known.values, **place.values}, known.absent | place.absent
        merged[id(place.namespace)] = Place(place.label, place.namespace, values, absent)
    return tuple(Glance(place) for place in merged.values())


def torch_unchanged(kinds: frozenset[Kind]) -> bool:
    """Says, in a few microseconds, whether torch computes these kinds as it did on import."""
    return surroundings() is None and all(map(Glance.unchanged, _glances(kinds)))


def surroundings() -> str | None:
    """Returns what acts on the forward pass of every module just now, in words, or None."""
    hooks = _torch_module
    if len(hooks._global_forward_hooks) or len(hooks._global_forward_pre_hooks):
        return "forward hooks of all modules (torch.nn.modules.module) would not run"
    if len(hooks._global_backward_hooks) or len(hooks._global_backward_pre_hooks):
        return "backward hooks of all modules (torch.nn.modules.module) would not run"
    for i in range(torch._C._len_torch_function_stack()):
        mode = torch._C._get_function_stack_at(i)
        if (type(mode).__module__, type(mode).__qualname__) not in _HARMLESS:
            return f"the function mode {type(mode).__name__} would not see its operations"
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():
        for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
            if type(mode).__module__.startswith(_TRACERS):
                continue
            return f"the dispatch mode {type(mode).__name__} would not see its operations"
    return None


def changes_of_torch(kind: Kind) -> str | None:
    """Returns what makes a class compute something else than on import, in words, or None."""
    name = _MODULE.changed()
    return surroundings() or (_replaced(name) if name else kind.changed())


def own_forward(part: nn.Module, kind: Kind) -> str | None:
    """Returns what changes the forward pass of an instance of `kind` (or of a subclass of it) in
    words, or None. What `kind` itself depends on is not looked at."""
    space = part.__dict__
    # list() and len(): torch.compile then compiles anew when there is more or less
    if not _NEVER_OWN.isdisjoint(list(space)):
        own = [name for name in space if name in _NEVER_OWN]
        return f"its own {own[0]}, set on the instance, cannot be read"
    if space.get("_compiled_call_impl") is not None:
        return "it is compiled in place; give the module as it was before .compile()"
    hooks = hooks_of(part)
    if hooks is not None:
        return hooks
    for base in own_bases(type(part), kind):
        for name, member in vars(base).items():
            if name in _LOOKED_UP:
                return f"its own {name}{'()' if callable(member) else ''} cannot be read"
    return None


def hooks_of(part: nn.Module) -> str | None:
    """Returns which hooks of a module would not run, in words, or None."""
    space = part.__dict__
    if len(space["_forward_hooks"]) or len(space["_forward_pre_hooks"]):
        return "its forward hooks would not run"
    if len(space["_backward_hooks"]) or len(space["_backward_pre_hooks"]):
        return "its backward hooks would not run"
    return None


def own_bases(cls: type[nn.Module], kind: Kind) -> list[type]:
    """Returns the classes between `cls` and the kind of which it is a subclass."""
    if cls is kind.cls:
        return []
    return [base for base in cls.__mro__ if base not in kind.cls.__mro__]


class Sight:
    """What `own_forward` and a description have read of one part, to be compared with later."""

    __slots__ = ("_bases", "_cls", "_inner", "_params", "_registries", "_space", "part")

    def __init__(self, part: nn.Module, kind: Kind) -> None:
        self.part = part
        self._cls = type(part)
        self._space = dict(part.__dict__)
        self._registries = part._modules, part._parameters
        self._inner = list(part._modules.items())
        self._params = list(part._parameters.values())
        self._bases = own_bases(type(part), kind)

    def unchanged(self) -> bool:
        """Says whether all is as it was. A part that had hooks is never unchanged."""
        part, space = self.part, self.part.__dict__
        inner, params = space["_modules"], space["_parameters"]
        if (
            type(part) is not self._cls
            or inner is not self._registries[0]
            or params is not self._registries[1]
            or space["_forward_hooks"]
            or space["_forward_pre_hooks"]
            or space["_backward_hooks"]
            or space["_backward_pre_hooks"]
            or (self._inner and list(inner.items()) != self._inner)
            or len(params) != len(self._params)
            or not all(map(is_, params.values(), self._params))
        ):
            return False
        try:
            if space != self._space:
                return False
        except RuntimeError:  # two tensors among the attributes, which have no single answer
            return False
        return not self._bases or all(_LOOKED_UP.isdisjoint(vars(b)) for b in self._bases)
