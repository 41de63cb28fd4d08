"""Every way in which Python and torch let the forward pass of a module be changed, for every kind
of layer that can be fused."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode


class Place(NamedTuple):
    """Where a part stands in a network, `network[path[0]][path[1]]...`, and its class."""

    cls: type[nn.Module]
    path: tuple[int, ...]
    function: tuple[object, str] | None = None  # the function of torch that computes it


def network(make: Callable[[], nn.Module], before: bool = False) -> nn.Sequential:
    """Two inputs, one output, and the part in the middle or in front."""
    middle = [] if before else [make()]
    front = [make()] if before else []
    return nn.Sequential(
        *front, nn.Linear(2, 3), *middle, nn.Sequential(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 1)
    )


# name: (network, the part in it)
KINDS: dict[str, tuple[Callable[[], nn.Sequential], Place]] = {
    "Linear": (lambda: network(nn.Identity), Place(nn.Linear, (0,), (F, "linear"))),
    "last Linear": (lambda: network(nn.Identity), Place(nn.Linear, (3,), (F, "linear"))),
    "LayerNorm": (
        lambda: network(lambda: nn.LayerNorm(3)),
        Place(nn.LayerNorm, (1,), (F, "layer_norm")),
    ),
    "ReLU": (lambda: network(nn.ReLU), Place(nn.ReLU, (1,), (F, "relu"))),
    "LeakyReLU": (
        lambda: network(lambda: nn.LeakyReLU(0.2)),
        Place(nn.LeakyReLU, (1,), (F, "leaky_relu")),
    ),
    "Tanh": (lambda: network(nn.Tanh), Place(nn.Tanh, (1,), (torch, "tanh"))),
    "Sigmoid": (lambda: network(nn.Sigmoid), Place(nn.Sigmoid, (1,), (torch, "sigmoid"))),
    "Softplus": (lambda: network(nn.Softplus), Place(nn.Softplus, (1,), (F, "softplus"))),
    "SiLU": (lambda: network(nn.SiLU), Place(nn.SiLU, (1,), (F, "silu"))),
    "GELU": (lambda: network(nn.GELU), Place(nn.GELU, (1,), (F, "gelu"))),
    "Identity": (lambda: network(nn.Identity), Place(nn.Identity, (1,))),
    "Flatten": (
        lambda: network(nn.Flatten, before=True),
        Place(nn.Flatten, (0,)),
    ),
    "Dropout(0)": (lambda: network(lambda: nn.Dropout(0.0)), Place(nn.Dropout, (1,))),
    "Dropout in eval mode": (
        lambda: network(lambda: nn.Dropout(0.5)).eval(),
        Place(nn.Dropout, (1,), (F, "dropout")),
    ),
    "Sequential": (lambda: network(nn.Identity), Place(nn.Sequential, (2,))),
    "outer Sequential": (lambda: network(nn.Identity), Place(nn.Sequential, ())),
}


def part_of(net: nn.Sequential, place: Place) -> nn.Module:
    """Returns the part at a place."""
    part: nn.Module = net
    for index in place.path:
        part = list(part._modules.values())[index]
    return part


def bent(z: Tensor) -> Tensor:
    """Returns what the changed forward passes make of a result."""
    return 1.7 * z + 0.3


# ---------------------------------------------------------------- ways of changing one part


def _become(part: nn.Module, **members) -> None:
    """Gives a part another class, as if it had been built as one."""
    part.__class__ = type(f"Own{type(part).__name__}", (type(part),), members)


@contextmanager
def _set(owner: object, name: str, value: object) -> Iterator[None]:
    """Sets an attribute of a class, a module or torch, and takes it back."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextmanager
def subclass_forward(part, place):
    _become(part, forward=lambda self, x: bent(place.cls.forward(self, x)))
    yield


@contextmanager
def subclass_call(part, place):
    _become(part, __call__=lambda self, x: bent(nn.Module.__call__(self, x)))
    yield


@contextmanager
def subclass_call_impl(part, place):
    _become(part, _call_impl=lambda self, x: bent(nn.Module._call_impl(self, x)))
    yield


@contextmanager
def mixin_forward(part, place):
    class Mixin:
        """A class that is no module."""

        def forward(self, x):
            """Returns something else."""
            return bent(super().forward(x))

    part.__class__ = type("Mixed", (Mixin, place.cls), {})
    yield


@contextmanager
def subclass_getattribute(part, place):
    def read(self, name):
        if name == "forward":
            return lambda x: bent(place.cls.forward(self, x))
        return nn.Module.__getattribute__(self, name)

    _become(part, __getattribute__=read)
    yield


@contextmanager
def subclass_hook_property(part, place):
    hooks = OrderedDict({0: lambda module, given, result: bent(result)})
    _become(part, _forward_hooks=property(lambda self: hooks))
    yield


@contextmanager
def sequential_iter(part, place):
    _become(part, __iter__=lambda self: iter([*self._modules.values(), nn.Tanh()]))
    yield


@contextmanager
def sequential_registry(part, place):
    class Twice(OrderedDict):
        """Holds one more part than it says."""

        def values(self):
            """Returns the parts and an activation."""
            return [*super().values(), nn.Tanh()]

    part.__dict__["_modules"] = Twice(part._modules)
    yield


@contextmanager
def instance_forward(part, place):
    original = part.forward
    part.forward = lambda x: bent(original(x))
    yield


@contextmanager
def instance_forward_wrapped(part, place):
    original = part.forward

    @functools.wraps(original)
    def forward(*args, **kwargs):
        return bent(original(*args, **kwargs))

    part.forward = forward
    yield


@contextmanager
def instance_call_impl(part, place):
    original = part._call_impl
    part._call_impl = lambda x: bent(original(x))
    yield


@contextmanager
def instance_compiled(part, place):
    original = part._call_impl
    part._compiled_call_impl = lambda x: bent(original(x))
    yield


def _hook(register: str, function: Callable, **options):
    """Returns the way of registering a hook on the part."""

    @contextmanager
    def way(part, place):
        handle = getattr(part, register)(function, **options)
        yield
        handle.remove()

    return way


def _global_hook(register: Callable, function: Callable, **options):
    """Returns the way of registering a hook on all modules, which acts on the part alone."""

    @contextmanager
    def way(part, place):
        def hook(module, *args):
            return function(module, *args) if module is part else None

        handle = register(hook, **options)
        try:
            yield
        finally:
            handle.remove()
            torch_module._global_is_full_backward_hook = None

    return way


def _after(module, given, result):
    return bent(result)


def _after_with_kwargs(module, given, kwargs, result):
    return bent(result)


def _before(module, given):
    return (bent(given[0]),)


def _before_with_kwargs(module, given, kwargs):
    return (bent(given[0]),), kwargs


def _backward(module, grad_input, grad_output):
    return tuple(None if g is None else 1.7 * g for g in grad_input)


def _backward_pre(module, grad_output):
    return tuple(1.7 * g for g in grad_output)


@contextmanager
def class_forward(part, place):
    original = place.cls.forward

    def forward(self, x):
        return bent(original(self, x)) if self is part else original(self, x)

    with _set(place.cls, "forward", forward):
        yield


@contextmanager
def class_forward_wrapped(part, place):
    original = place.cls.forward

    @functools.wraps(original)
    def forward(self, x):
        return bent(original(self, x)) if self is part else original(self, x)

    with _set(place.cls, "forward", forward):
        yield


def _module_member(name: str):
    """Returns the way of replacing a member of nn.Module."""

    @contextmanager
    def way(part, place):
        original = getattr(nn.Module, name)

        def called(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            return bent(result) if self is part else result

        with _set(nn.Module, name, called):
            yield

    return way


@contextmanager
def class_call(part, place):
    def called(self, x):
        result = nn.Module.__call__(self, x)
        return bent(result) if self is part else result

    with _set(place.cls, "__call__", called):
        yield


@contextmanager
def torch_function(part, place):
    owner, name = place.function
    original = getattr(owner, name)
    with _set(owner, name, lambda *args, **kwargs: bent(original(*args, **kwargs))):
        yield


@contextmanager
def function_mode(part, place):
    owner, name = place.function
    wanted = getattr(owner, name)

    class Mode(TorchFunctionMode):
        """Changes one function."""

        def __torch_function__(self, func, types, args=(), kwargs=None):
            """Returns something else for the function."""
            result = func(*args, **(kwargs or {}))
            return bent(result) if func is wanted else result

    with Mode():
        yield


# ---------------------------------------------------------------- ways of Linear alone


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        """Returns another weight."""
        return 1.7 * weight


@contextmanager
def parametrised(part, place):
    parametrize.register_parametrization(part, "weight", Doubled())
    yield


@contextmanager
def parametrised_bias(part, place):
    parametrize.register_parametrization(part, "bias", Doubled())
    yield


def _wrapper(wrap: Callable[[nn.Module], nn.Module]):
    """Returns the way of one of torch.nn.utils' wrappers, after which the raw weight is another."""

    @contextmanager
    def way(part, place):
        wrap(part.eval())  # spectral_norm changes its buffers in training
        yield

    return way


@contextmanager
def weight_attribute(part, place):
    part.__dict__["weight"] = 1.7 * part.weight.detach()
    yield


@contextmanager
def weight_property(part, place):
    read = nn.Module.__getattr__
    _become(part, weight=property(lambda self: 1.7 * read(self, "weight")))
    yield


@contextmanager
def getattr_weight(part, place):
    def read(self, name):
        value = nn.Module.__getattr__(self, name)
        return 1.7 * value if name == "weight" else value

    _become(part, __getattr__=read)
    yield


class Scaled(nn.Parameter):
    """A parameter with its own functions."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Bends the result of F.linear."""
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return bent(result) if func is F.linear else result


@contextmanager
def parameter_subclass(part, place):
    part.weight = Scaled(part.weight.detach())
    yield


# ---------------------------------------------------------------- all of them

ANY = list(KINDS)
LINEAR = ["Linear", "last Linear"]
CONTAINERS = ["Sequential", "outer Sequential"]
COMPUTED = [name for name, (_, place) in KINDS.items() if place.function is not None]

# name: (way, the kinds of layer to which it applies)
WAYS: dict[str, tuple[Callable, list[str]]] = {
    "subclass, forward": (subclass_forward, ANY),
    "subclass, __call__": (subclass_call, ANY),
    "subclass, _call_impl": (subclass_call_impl, ANY),
    "subclass, __getattribute__": (subclass_getattribute, ANY),
    "subclass, property": (subclass_hook_property, ANY),
    "mixin, forward": (mixin_forward, ANY),
    "subclass, __iter__": (sequential_iter, CONTAINERS),
    "registry, values": (sequential_registry, CONTAINERS),
    "instance, forward": (instance_forward, ANY),
    "instance, wrapped forward": (instance_forward_wrapped, ANY),
    "instance, _call_impl": (instance_call_impl, ANY),
    "instance, _compiled_call_impl": (instance_compiled, ANY),
    "hook": (_hook("register_forward_hook", _after), ANY),
    "hook with kwargs": (
        _hook("register_forward_hook", _after_with_kwargs, with_kwargs=True),
        ANY,
    ),
    "hook, always called": (_hook("register_forward_hook", _after, always_call=True), ANY),
    "pre-hook": (_hook("register_forward_pre_hook", _before), ANY),
    "pre-hook with kwargs": (
        _hook("register_forward_pre_hook", _before_with_kwargs, with_kwargs=True),
        ANY,
    ),
    "backward hook": (_hook("register_full_backward_hook", _backward), ANY),
    "backward pre-hook": (_hook("register_full_backward_pre_hook", _backward_pre), ANY),
    "global hook": (_global_hook(torch_module.register_module_forward_hook, _after), ANY),
    "global hook, always called": (
        _global_hook(torch_module.register_module_forward_hook, _after, always_call=True),
        ANY,
    ),
    "global pre-hook": (
        _global_hook(torch_module.register_module_forward_pre_hook, _before),
        ANY,
    ),
    "global backward hook": (
        _global_hook(torch_module.register_module_full_backward_hook, _backward),
        ANY,
    ),
    "global backward pre-hook": (
        _global_hook(torch_module.register_module_full_backward_pre_hook, _backward_pre),
        ANY,
    ),
    "class, forward": (class_forward, ANY),
    "class, wrapped forward": (class_forward_wrapped, ANY),
    "class, __call__": (class_call, ANY),
    "nn.Module.__call__": (_module_member("__call__"), ANY),
    "nn.Module._call_impl": (_module_member("_call_impl"), ANY),
    "function of torch": (torch_function, COMPUTED),
    # the torch back end applies a norm's weight and bias apart, which a mode sees (_curvature.py)
    "function mode": (function_mode, [kind for kind in COMPUTED if kind != "LayerNorm"]),
    "parametrisation": (parametrised, LINEAR),
    "parametrisation of the bias": (parametrised_bias, LINEAR),
    "weight_norm": (_wrapper(parametrizations.weight_norm), LINEAR),
    "spectral_norm": (_wrapper(parametrizations.spectral_norm), LINEAR),
    "orthogonal": (_wrapper(parametrizations.orthogonal), LINEAR),
    "weight_norm of old": (_wrapper(nn.utils.weight_norm), LINEAR),
    "spectral_norm of old": (_wrapper(nn.utils.spectral_norm), LINEAR),
    "prune": (
        _wrapper(lambda part: prune.l1_unstructured(part, "weight", amount=1)),
        LINEAR,
    ),
    "weight as attribute": (weight_attribute, LINEAR),
    "weight as property": (weight_property, LINEAR),
    "weight by __getattr__": (getattr_weight, LINEAR),
    "weight of another class": (parameter_subclass, LINEAR),
}
