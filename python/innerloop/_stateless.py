"""Runs a module as a function of its parameters and leaves it exactly as it was.

torch.func.functional_call does not always. It puts tensors in name by name and back in the same
order, so that of a layer with two names the second puts back what the first had put in; what
forward() writes to buffers and attributes stays; and a parameter that forward() takes from anywhere
but its attribute is not replaced, without a word. Here each object is visited once, parameters are
found by identity, and everything that a pass can write to is put back.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from innerloop._checks.network import refuse_statistics
from innerloop._curvature import traceable
from innerloop._derivatives import observed, refuse_question, transforms_active
from innerloop._real_forward import is_torchs
from innerloop._storage import has_own_functions
from innerloop._tasks import warn_of_fallback

_DICTS = (dict, OrderedDict, defaultdict, Counter)
_PLAIN = (Tensor, nn.Parameter)
_SIMPLE = {bool, int, float, str, tuple, type(None), *_DICTS, list, deque, set}
_CONTAINERS = (*_DICTS, list, deque, set)
# where somebody may put a function in place of one that torch hands to function modes
_REPLACEABLE = (F, torch, Tensor, torch._C.TensorBase, torch._C._nn, torch.linalg, torch.special)
_WARNED: set[tuple[type, str]] = set()
_RUN_AGAIN = (
    "predict: model must not use activation checkpointing or other saved-tensor hooks, since its "
    "forward pass would run again with other parameters; turn them off"
)


def call(
    module: nn.Module,
    values: Mapping[str, Tensor],
    x: Tensor,
    *,
    selects: bool = False,
    then: Callable[[Any], Any] | None = None,
) -> Any:
    """Returns module(x) with `values`, by the names of named_parameters(), in place of parameters;
    or what `then` makes of it, which meets the module as the pass left it.

    A parameter has its value wherever an attribute of a module holds it, under as many names as
    there are. The pass starts from the module's own buffers and attributes; what it writes to them,
    to lists, dicts and sets among them and to x is dropped.

    Raises:
        NotImplementedError: the module is TorchScript or nn.DataParallel, or the pass changes a
            parameter in place or takes one from elsewhere than its attribute.
        RuntimeError: plain autograd records the pass, and would have to run it again in backward.

    Cost: a copy of x and of every buffer; about 20 us a module inside.
    """
    parts = list(_parts(module, set()))
    names = {}
    for name, parameter in module.named_parameters():
        names[id(parameter)] = name
        if type(parameter) not in _PLAIN and has_own_functions(type(parameter)):
            _refuse(
                f"have a plain Parameter as {name!r}",
                f"{type(parameter).__name__}, which has functions of its own",
                "torch.func does not call these; convert it",
            )
    given = {key: values[name] for key, name in names.items()}
    if not (torch.compiler.is_compiling() or torch.is_grad_enabled() or transforms_active()):
        given = _as_required(module, given)
    if torch.compiler.is_compiling():
        return _traced(module, parts, given, names, x, selects, then)
    versions = _versions(given.values())
    torch_state = _Torch()
    kept: list[_Torch | Kept] = [torch_state, *map(Kept, parts)]
    done = False
    try:
        try:
            copies = _put_in(parts, given, names)
            marks = _versions(copy for _, _, copy in copies)
            torch_state.prepare(_Strays(module, names, selects))
            result = module(x.clone())
            written = _written(copies, marks)
            if then is not None:
                torch_state.leave_modes()
                result = then(result)
        finally:
            done = _put_back(kept)
    finally:
        if not done:  # a KeyboardInterrupt came between
            _put_back(kept)
    for key, before, after in zip(given, versions, _versions(given.values()), strict=False):
        if before != after:
            _refuse(
                f"not change its parameter {names[key]!r} in place",
                type(module).__name__,
                "let forward() compute with a changed copy of it",
            )
    for name in written:
        _warn_of_state(module, name)
    return result


def _as_required(module: nn.Module, given: dict[int, Tensor]) -> dict[int, Tensor]:
    """Returns values that say of themselves that they require gradients where the parameters do, as
    they do in training."""
    required = {id(p) for p in module.parameters() if p.requires_grad}
    return {
        key: value.detach().requires_grad_()
        if key in required and not value.requires_grad
        else value
        for key, value in given.items()
    }


def _parts(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    """Yields every module inside `module`, once."""
    seen.add(id(module))
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        remedy = "hand in the Python module that it was made from"
        _refuse("not be TorchScript, whose parameters are out of reach", kind, remedy)
    if isinstance(module, nn.DataParallel):
        _refuse("not copy itself", kind, "hand in the module that it wraps")
    if type(module._parameters) not in _DICTS or type(module._buffers) not in _DICTS:
        _refuse("hold parameters and buffers as torch does", kind, "use register_parameter")
    yield module
    for part in module._modules.values():
        if part is not None and id(part) not in seen:
            yield from _parts(part, seen)


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    """Returns how often each tensor was written to."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # under torch.inference_mode, nobody counts
        return []


def _refuse(requirement: str, got: str, remedy: str) -> NoReturn:
    """Raises because a module is no function of its parameters that can be followed. (`predict`
    stands for whatever was called.)"""
    raise NotImplementedError(f"predict: model must {requirement} (got {got}); {remedy}")


def _warn_of_state(module: nn.Module, name: str) -> None:
    """Warns once per kind of module and buffer."""
    if (type(module), name) not in _WARNED:
        _WARNED.add((type(module), name))
        warn_of_fallback(
            f"the forward pass of {type(module).__name__} writes to its buffer {name!r}; within an "
            "operation each pass starts from the module's own, and what it writes is dropped"
        )


# ---------------------------------------------------------------- what a module holds


_Copy = tuple[dict[str, Any], str, Tensor]  # the registry of a buffer, its name there, its copy


def _put_in(
    parts: Sequence[nn.Module], given: dict[int, Tensor], names: dict[int, str]
) -> list[_Copy]:
    """Gives parameters their values, and replaces buffers and other tensors among the attributes by
    copies; returns those of buffers. Views of parameters that attributes hold are added to `names`:
    they have no new value."""
    replaced = dict(given)
    copies: list[_Copy] = []

    def copy_of(value: Tensor) -> Tensor:
        if id(value) not in replaced:
            replaced[id(value)] = value.clone()
        return replaced[id(value)]

    for part in parts:
        params, buffers = _registries(part)
        for name, value in params.items():
            params[name] = replaced.get(id(value), value)
        for name, value in buffers.items():
            if value is not None:
                buffers[name] = copy_of(value)
                copies.append((buffers, name, buffers[name]))
        for name, value in part.__dict__.items():
            if not isinstance(value, Tensor) or id(value) in names:
                continue
            if id(value._base) in names:
                names[id(value)] = names[id(value._base)]
            elif not value.requires_grad and not is_functorch_wrapped_tensor(value):
                part.__dict__[name] = copy_of(value)
    return copies


def _registries(part: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns where a module holds its parameters and its buffers."""
    return part._parameters, part._buffers


def _written(copies: Sequence[_Copy], marks: Sequence[int]) -> list[str]:
    """Returns the names of the buffers that are not what they were put in as."""
    after = _versions(copy for _, _, copy in copies)
    return [
        name
        for (registry, name, copy), old, new in zip(copies, marks, after, strict=False)
        if registry.get(name) is not copy or old != new
    ]


def kept_parts(module: nn.Module) -> list[Kept]:
    """Returns everything that a pass can write to in a module, to be put back after it."""
    return [Kept(part) for part in _parts(module, set())]


def _differs(held: Any, before: Any) -> bool:
    """Says whether a container holds other objects than before."""
    if not before or not held:
        return bool(before) or bool(held)
    if isinstance(held, dict):
        if held.keys() != before.keys():
            return True
        held, before = held.values(), before.values()
    return [*map(id, held)] != [*map(id, before)]


def _own_space(value: Any) -> dict[str, Any] | None:
    """Returns the attributes of an object of somebody's own class, such as a helper that a module
    calls; None of what is a part, a tensor, or a library's."""
    space = getattr(value, "__dict__", None)
    if type(space) is not dict or isinstance(value, (nn.Module, Tensor)) or _is_code(value):
        return None
    library = type(value).__module__.partition(".")[0]
    return None if library in ("torch", "numpy", "builtins", "innerloop") else space


def _is_code(value: Any) -> bool:
    """Says whether something is a function, a class or a module of Python."""
    return isinstance(value, (type, FunctionType, MethodType, ModuleType))


class Kept:
    """Everything that a pass can write to in one module, and tensors that it leaves in helpers that
    its attributes are."""

    __slots__ = ("_contents", "_helpers", "_kind", "_part")

    def __init__(self, part: nn.Module) -> None:
        self._part = part
        self._kind = type(part)
        space = part.__dict__
        self._contents: list[tuple[Any, Any]] = _contents_of(space)
        self._helpers: list[tuple[Any, Any]] = []
        for held in space.values():
            if type(held) not in _SIMPLE and (helper := _own_space(held)) is not None:
                self._helpers += _contents_of(helper)

    def written(self) -> list[tuple[nn.Module, str]]:
        """Returns what is another object than before: the part, and the name of an attribute; ""
        stands for what lies inside of one, such as a list or a helper."""
        found: list[tuple[nn.Module, str]] = []
        space = self._part.__dict__
        for held, before in self._contents:
            if not _differs(held, before):
                continue
            names = [""]
            if held is space:
                old = dict(before)
                names = [k for k in {**old, **held} if held.get(k, found) is not old.get(k, found)]
            found += [(self._part, name) for name in names]
        for held, before in self._helpers:
            changed = _new_tensors(held, before) if isinstance(held, dict) else held
            if _differs(held, before) and changed:
                found.append((self._part, ""))
        return found

    def put_back(self) -> None:
        """Undoes what was written."""
        if type(self._part) is not self._kind:
            self._part.__class__ = self._kind
        for held, before in self._contents:
            _restore(held, before)
        for held, before in self._helpers:
            if isinstance(held, dict):
                old = dict(before)
                for name in _new_tensors(held, before):
                    if name in old:
                        held[name] = old[name]
                    else:
                        del held[name]
            elif _differs(held, before) and any(isinstance(value, Tensor) for value in held):
                _restore(held, before)


def _contents_of(space: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Returns attributes, and the containers among them, with copies."""
    found: list[tuple[Any, Any]] = [(space, space.copy())]
    for held in space.values():
        if type(held) in _CONTAINERS:
            found.append((held, held.copy() if held else ()))
    return found


def _new_tensors(held: dict[Any, Any], before: Any) -> list[Any]:
    """Returns the names under which tensors are that were not there before."""
    old = dict(before)
    return [k for k, v in held.items() if isinstance(v, Tensor) and old.get(k) is not v]


def _restore(held: Any, before: Any) -> None:
    """Makes a container what it was."""
    if not before:
        if held:
            held.clear()
    elif isinstance(held, dict):
        if list(held) != list(before):
            held.clear()  # so that the order is the old one, too
        held.update(before)
    elif isinstance(held, list):
        held[:] = before
    else:
        held.clear()
        (held.update if isinstance(held, set) else held.extend)(before)


class _Torch:
    """What torch keeps for this thread or the process that `call` changes for a pass."""

    def __init__(self) -> None:
        self._modes = torch._C._len_torch_function_stack()
        self._saved = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
        self._cache = parametrize._cache_enabled, parametrize._cache

    def prepare(self, mode: _Strays) -> None:
        """Forgets parametrised weights, which were made of other values, and starts looking out for
        what a pass must not do. A pass that plain autograd records must not run again in backward,
        when the module has its own parameters back; under torch.func, torch refuses that."""
        parametrize._cache_enabled, parametrize._cache = 0, {}
        if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            torch._C._autograd._saved_tensors_hooks_disable(_RUN_AGAIN)
        mode.__enter__()  # type: ignore[no-untyped-call]

    def leave_modes(self) -> None:
        """Ends the watch; not by leaving `with`, on whose way an interrupt can come."""
        while torch._C._len_torch_function_stack() > self._modes:
            torch._C._pop_torch_function_stack()

    def put_back(self) -> None:
        """Undoes all of it."""
        self.leave_modes()
        if self._saved is None:
            torch._C._autograd._saved_tensors_hooks_enable()
        else:
            torch._C._autograd._saved_tensors_hooks_disable(self._saved)
        parametrize._cache_enabled, parametrize._cache = self._cache


def _put_back(kept: Sequence[_Torch | Kept]) -> bool:
    """Makes all as it was, however often it is called; returns True."""
    for part in kept:
        part.put_back()
    return True


# ---------------------------------------------------------------- what a pass must not do


class _Strays(TorchFunctionMode):
    """Raises when a parameter itself is computed with, in place of the value put in for it, and
    when statistics are taken over rows that are left out."""

    def __init__(self, module: nn.Module, names: Mapping[int, str], selects: bool) -> None:
        super().__init__()
        self._selects = selects
        self._module = module
        self._names = names

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        """Calls a function of torch and looks at its arguments."""
        traced = torch.compiler.is_compiling()  # functions have no globals then
        if not traced:
            refuse_question(func)
        if not traced and isinstance(func, FunctionType) and not is_torchs(func):
            self._check_function(func)
        if self._selects and func is F.batch_norm and _is_training(args, kwargs or {}):
            refuse_statistics("predict", "F.batch_norm with training=True")
        if traced:
            result = traceable(func)(*args, **(kwargs or {}))
        else:
            result = observed(func, traceable(func), args, kwargs or {})
        for value in (*args, *kwargs.values()) if kwargs else args:
            if id(value) in self._names or type(value) in (list, tuple):
                self._check(value, result)
        return result

    def _check_function(self, func: Any) -> None:
        """Raises if somebody has put a function in place of one of torch's that hands itself on to
        function modes: it would act once more for each mode."""
        if any(func is own for space in _REPLACEABLE for own in vars(space).values()):
            _refuse(
                "call torch's own functions",
                f"{func.__module__}.{func.__qualname__} in place of one",
                "it would act twice; put it back, or let forward() call it by its own name",
            )

    def _check(self, value: Any, result: Any) -> None:
        """Raises if one of the arguments is a parameter and the result is made of it."""
        if not any(isinstance(r, Tensor) for r in (result if _is_many(result) else (result,))):
            return
        for tensor in value if _is_many(value) else (value,):
            if id(tensor) in self._names:
                _refuse(
                    f"read its parameter {self._names[id(tensor)]!r} from the attribute that it is "
                    "registered as, so that adapted values reach it",
                    f"{type(self._module).__name__}, which keeps it in a list, a closure or a view",
                    "read the attribute in forward()",
                )


def _is_training(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Says whether a call of F.batch_norm takes the statistics of its input."""
    return bool(kwargs.get("training", args[5] if len(args) > 5 else False))


def _is_many(value: Any) -> bool:
    return isinstance(value, (list, tuple))


# ---------------------------------------------------------------- torch.compile


def _traced(
    module: nn.Module,
    parts: Sequence[nn.Module],
    given: Mapping[int, Tensor],
    names: Mapping[int, str],
    x: Tensor,
    selects: bool,
    then: Callable[[Any], Any] | None,
) -> Any:
    """Returns what `call` returns while torch.compile traces it: the tracer keeps apart what a pass
    writes to attributes, and its guards read no versions."""
    registries = [held for part in parts for held in _registries(part)]
    before = [dict(registry) for registry in registries]
    replaced = dict(given)
    try:
        for registry in registries:
            for name, value in registry.items():
                if value is not None:
                    if id(value) not in replaced:
                        replaced[id(value)] = value.clone()
                    registry[name] = replaced[id(value)]
        with _Strays(module, names, selects):
            result = module(x.clone())
        return result if then is None else then(result)
    finally:
        for registry, old in zip(registries, before, strict=True):
            registry.update(old)
