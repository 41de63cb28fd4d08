"""Remembers the fused description of a module for as long as the module's structure stays what it
was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from innerloop._chain import Memory, NotFusible, read_chain
from innerloop._choice import Model
from innerloop.models import MLP, model_of


class Description:
    """The MLP that describes a module, made anew whenever something that it depends on has
    changed."""

    def __init__(self) -> None:
        self._known: tuple[Memory, MLP, dict[str, Tensor]] | None = None

    def of(self, module: nn.Module) -> tuple[Model, dict[str, Tensor]]:
        """Returns the description, or the module itself if it has none, and the parameters by
        name."""
        if torch.compiler.is_compiling():
            return module, dict(module.named_parameters())
        known = self._known
        if known is None or not known[0].holds(module):
            self._known = None
            try:
                chain = read_chain(module)
            except NotFusible:
                return module, dict(module.named_parameters())
            known = self._known = Memory(chain), model_of(chain), chain.params
        return known[1], dict(known[2])

    def __reduce__(self) -> tuple[Any, ...]:
        return (Description, ())
