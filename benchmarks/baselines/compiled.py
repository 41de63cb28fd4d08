"""How torch.compile is set for the rivals that use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "default": {},
        "cpp_wrapper": {"options": {"cpp_wrapper": True}},
        "max-autotune-no-cudagraphs": {"mode": "max-autotune-no-cudagraphs"},
        "max-autotune, cpp_wrapper": {"options": {"max_autotune": True, "cpp_wrapper": True}},
    },
    # Both are modes with CUDA graphs.
    "cuda": {
        "reduce-overhead": {"mode": "reduce-overhead"},
        "max-autotune": {"mode": "max-autotune"},
    },
}


def compiled_call(
    function: Callable[..., Any], arguments: tuple[Any, ...], names: list[str], **options: Any
) -> Callable[[], Any]:
    """A call of the compiled function: static shapes, whole graph, no autograd bookkeeping.

    On a GPU the arguments are declared to stay in place, which saves CUDA graphs from copying them
    at every call.
    """
    torch._dynamo.reset()
    for tensor in _tensors(arguments):
        if tensor.is_cuda:
            torch._dynamo.mark_static_address(tensor)
    compiled = torch.compile(function, fullgraph=True, dynamic=False, **options)

    def call() -> Any:
        with torch.no_grad():
            losses, leaves = compiled(*arguments)
        return losses, [leaves[name] for name in names]

    return call


def _tensors(arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(arguments) if leaf is not None]
