"""Remembers the fused description of a module for as long as the module's structure stays what it
was."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from innerloop._dispatch import Model
from innerloop.models import MLP, _chain


class Description:
    """The MLP that describes a module, read again whenever something that it depends on has
    changed."""

    def __init__(self) -> None:
        self._facts: object = None
        self._mlp: MLP | None = None

    def of(self, module: nn.Module) -> Model:
        """Returns the module's description, or the module itself if it has none."""
        if torch.compiler.is_compiling():
            return module if self._mlp is None else self._mlp
        try:
            facts = _facts(module)
            if self._mlp is None or facts != self._facts:
                self._mlp = MLP.from_module(module)
                self._facts = facts
        except NotImplementedError:
            self._facts = self._mlp = None
            return module
        return self._mlp

    def __reduce__(self) -> tuple[Any, ...]:
        return (Description, ())


def _facts(module: nn.Module) -> list[Any]:
    """Returns everything that a description is made from: names, kinds, settings, and which
    parameters are the same."""
    facts: list[Any] = []
    for name, part in _chain(module, ""):
        facts += (name, type(part))
        facts += [v for v in part.__dict__.values() if isinstance(v, (bool, int, float, str))]
        for key, parameter in part._parameters.items():
            if parameter is None:
                facts += (key, None)
            else:
                facts += (key, id(parameter), parameter.shape, parameter.dtype)
    return facts
