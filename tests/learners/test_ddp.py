"""DistributedDataParallel over tasks: two processes learn what one process learns, with half the
tasks each, and with unequal shares whose gradients are accumulated over parts.

Tolerance 1e-12 in float64: the sums over tasks are the same up to their order.
"""

from __future__ import annotations

import pytest
import torch
from ddp_worker import check, run
from torch import distributed, multiprocessing


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(run, args=(2, str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert "fused, unequal" in found
    check(found)
