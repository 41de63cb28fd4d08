"""Draws tasks from a user's sampler, whatever source of randomness it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Sampler = Callable[..., Any]


def draw_tasks(
    sampler: Sampler, count: int, generator: torch.Generator, *, function: str = "draw_tasks"
) -> tuple[Tensor, Tensor]:
    """Returns (x [count, R, ...], y [count, R] or [count, R, K]) from sampler(count, source).

    Args:
        sampler: gets the number of tasks and a source of randomness: the torch generator; or, if
            its second parameter is named "seed", an int; or, if it is named "rng", a NumPy
            Generator. It returns (x, y), tensors or arrays with equally many rows in every task.
        count: number of tasks.
        generator: what the tasks are drawn from.
        function: the caller, for messages.

    Raises:
        TypeError: the sampler cannot be called or returns something else.
        ValueError: it returns another number of tasks.

    Assumes:
        The sampler draws i.i.d. tasks. Checked: shapes.

    Example:
        >>> x, y = draw_tasks(lambda count, seed: (np.ones((count, 3, 1)), np.ones((count, 3))), 2,
        ...                   torch.Generator())
        >>> x.shape, y.shape
        (torch.Size([2, 3, 1]), torch.Size([2, 3]))
    """
    if not callable(sampler):
        raise TypeError(f"{function}: sampler must be callable (got {type(sampler).__name__})")
    drawn = sampler(count, _source(sampler, generator))
    if not isinstance(drawn, (tuple, list)) or len(drawn) != 2:
        raise TypeError(f"{function}: sampler must return (x, y) (got {type(drawn).__name__})")
    sides = []
    for name, value in zip("xy", drawn, strict=True):
        if not isinstance(value, (Tensor, np.ndarray)):
            raise TypeError(
                f"{function}: sampler must return tensors or arrays "
                f"(got {type(value).__name__} for {name})"
            )
        side = torch.as_tensor(value)
        if side.ndim < 2 or side.shape[0] != count:
            raise ValueError(
                f"{function}: sampler must return {name} of shape [{count}, rows, ...] "
                f"(got {list(side.shape)})"
            )
        sides.append(side)
    x, y = sides
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{function}: sampler must return equally many rows of x and y "
            f"(got {x.shape[1]} and {y.shape[1]})"
        )
    return x, y


def _source(sampler: Sampler, generator: torch.Generator) -> Any:
    """Returns the generator in the form that the sampler's second parameter asks for."""
    try:
        names = list(inspect.signature(sampler).parameters)
    except (TypeError, ValueError):  # builtins without a signature
        names = []
    asked = names[1] if len(names) > 1 else ""
    if asked not in ("seed", "rng"):
        return generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return seed if asked == "seed" else np.random.default_rng(seed)
