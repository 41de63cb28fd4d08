"""Remembers the fused description of a module for as long as the module's structure stays what it
was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from innerloop._dispatch import Model
from innerloop.models import MLP, NotFusible, _chain, describe

# what a description reads of a layer besides its kind and parameters
_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Dropout: ("p", "training"),
    nn.LeakyReLU: ("negative_slope",),
    nn.Softplus: ("beta", "threshold"),
    nn.GELU: ("approximate",),
}


class Description:
    """The MLP that describes a module, made anew whenever something that it depends on has
    changed."""

    def __init__(self) -> None:
        self._facts: object = None
        self._mlp: MLP | None = None

    def of(self, module: nn.Module) -> tuple[Model, dict[str, Tensor]]:
        """Returns the description, or the module itself if it has none, and the parameters by
        name."""
        if not torch.compiler.is_compiling():
            try:
                facts, params = _read(module)
                if self._mlp is None or facts != self._facts:
                    self._mlp = describe(module)
                    self._facts = facts
                return self._mlp, params
            except NotFusible:
                self._facts = self._mlp = None
        return module, dict(module.named_parameters())

    def __reduce__(self) -> tuple[Any, ...]:
        return (Description, ())


def _read(module: nn.Module) -> tuple[list[Any], dict[str, Tensor]]:
    """Returns everything that a description is made from (names, kinds, settings, and which
    parameters are the same), and the parameters by name."""
    facts: list[Any] = []
    params: dict[str, Tensor] = {}
    for name, part in _chain(module, ""):
        kind = type(part)
        facts.append(name)
        facts.append(kind)
        if kind in _SETTINGS:
            for setting in _SETTINGS[kind]:
                facts.append(getattr(part, setting))
        for key, parameter in part._parameters.items():
            facts.append(key)
            if parameter is not None:
                facts.append(id(parameter))
                facts.append(parameter.dtype)
                params[f"{name}.{key}" if name else key] = parameter
    return facts, params


def summary(mlp: MLP) -> str:
    """Returns widths and activations in words, such as "1-40-40-1 (relu)"."""
    widths = "-".join(str(n) for n in (mlp.inputs, *(layer.outputs for layer in mlp.layers)))
    kinds = dict.fromkeys(layer.activation for layer in mlp.layers)
    named = [kind for kind in kinds if kind != "identity"]
    return f"{widths} ({', '.join(named) or 'linear'})"
