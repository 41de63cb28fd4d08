"""Several processes, started by torchrun, that do every unit together: each has a share of the
tasks. The first one leads: it alone reads and writes the folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch

from innerloop.runs.errors import InputError


class Ranks(NamedTuple):
    """Which process this is, of how many."""

    rank: int
    world: int


ALONE = Ranks(0, 1)


@contextlib.contextmanager
def torchrun() -> Iterator[Ranks]:
    """The processes of torchrun, with a process group while inside; `ALONE` without torchrun."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "MASTER_ADDR" not in os.environ:
        yield ALONE
        return
    if not torch.distributed.is_available():
        raise InputError("torchrun needs a torch with torch.distributed; run without it")
    torch.distributed.init_process_group("gloo")
    try:
        yield Ranks(torch.distributed.get_rank(), world)
        torch.distributed.barrier()  # the group ends for all at once, after the leader's report
    finally:
        torch.distributed.destroy_process_group()
