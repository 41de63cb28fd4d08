"""How torch.compile is set for the rivals that use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "cpp_wrapper": {"options": {"cpp_wrapper": True}},
    "max-autotune-no-cudagraphs": {"mode": "max-autotune-no-cudagraphs"},
    "max-autotune, cpp_wrapper": {"options": {"max_autotune": True, "cpp_wrapper": True}},
}


def compiled_call(
    function: Callable[..., Any], arguments: tuple[Any, ...], names: list[str], **options: Any
) -> Callable[[], Any]:
    """A call of the compiled function: static shapes, whole graph, no autograd bookkeeping."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=False, **options)

    def call() -> Any:
        with torch.no_grad():
            losses, leaves = compiled(*arguments)
        return losses, [leaves[name] for name in names]

    return call
