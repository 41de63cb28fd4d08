"""Means over the processes of torch.distributed among which the tasks of a training are split.
Nothing is sent where there is one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from innerloop.rl import _checks


def check_group(op: str, rank: int, world: int) -> None:
    """Raises unless torch.distributed has a process group of this size, and this place in it."""
    if world == 1:
        return
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        raise RuntimeError(
            f"{op}: the environment holds part {rank} of {world}, but torch.distributed has no "
            "process group; call torch.distributed.init_process_group first (torchrun sets what it "
            "needs)"
        )
    found = (group.get_rank(), group.get_world_size())
    if found != (rank, world):
        _checks.refuse(
            op, "the environment's part", f"be {found[0]} of {found[1]}, as in the process group",
            f"{rank} of {world}",
        )  # fmt: skip


def mean_leaves(leaves: Mapping[str, Tensor], world: int) -> dict[str, Tensor]:
    """Mean over processes of parameters or gradients; the same bits in all of them."""
    if world == 1:
        return dict(leaves)
    flat = torch.cat([leaf.reshape(-1) for leaf in leaves.values()])
    torch.distributed.all_reduce(flat)
    parts = torch.split(flat / world, [leaf.numel() for leaf in leaves.values()])
    return {
        name: part.view_as(leaf) for (name, leaf), part in zip(leaves.items(), parts, strict=True)
    }


def mean_numbers(world: int, *values: float) -> tuple[float, ...]:
    """Mean over processes of some numbers."""
    if world == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(total)
    return tuple((total / world).tolist())


def sum_array(values: NDArray[np.float64], world: int) -> NDArray[np.float64]:
    """Sum over processes of arrays of one shape."""
    if world == 1:
        return values
    total = torch.from_numpy(values.copy())
    torch.distributed.all_reduce(total)
    found: NDArray[np.float64] = total.numpy()
    return found


def shared_object(value: Any, world: int) -> Any:
    """What the first process gives, in all of them."""
    if world == 1:
        return value
    held = [value]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]
