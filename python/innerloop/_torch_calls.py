"""Engine: says whether the functions of torch that the batched operations call are torch's own.

A module is read with whatever stands in place of a function of torch just then, and what it does is
noted. Were the batched operations to call the same name afterwards, it would act a second time. The
names are read off the operations' code, so that an added layer needs no list.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

import torch
from torch.nn import functional as F

from innerloop._real_forward import Glance, Place, names_in, place_of

# as they were on import, which is before the names are known
_AT_IMPORT = [
    (label, space, dict(space))
    for label, space in (
        ("torch", vars(torch)),
        ("torch.nn.functional", vars(F)),
        ("torch.Tensor", vars(torch.Tensor)),
    )
]


def replaced() -> str:
    """Returns a function of torch in whose place stands something else, in words; empty if there is
    none among those that the batched operations call."""
    for watched, glance in _watched():
        if not glance.unchanged() and (name := watched.changed()):
            return f"{name} is not torch's own"
    return ""


@functools.cache
def _watched() -> list[tuple[Place, Glance]]:
    """Returns the places where the batched operations find functions of torch."""
    package = find_spec("innerloop._batched")
    assert package is not None
    called: set[str] = set()
    for module in iter_modules(package.submodule_search_locations, "innerloop._batched."):
        loader: Any = getattr(find_spec(module.name), "loader", None)
        called |= names_in(loader.get_code(module.name))
    found = []
    for label, space, before in _AT_IMPORT:
        # of a tensor also the methods that it inherits, which a name of its own would hide
        functions = [name for name, value in before.items() if callable(value)]
        known = dir(torch.Tensor) if label == "torch.Tensor" else functions
        names = {name for name in called.intersection(known) if not name.startswith("__")}
        watched = place_of(label, before, names)._replace(namespace=space)
        found.append((watched, Glance(watched)))
    return found
