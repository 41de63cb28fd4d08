"""DistributedDataParallel over tasks: two processes with half the tasks each learn what one process
learns.

Tolerance 1e-12 in float64: the sums over tasks are the same up to their order.
"""

from __future__ import annotations

import pytest
import torch
from ddp_worker import data, learners, run, step
from torch import distributed, multiprocessing


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(run, args=(2, str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, learner in learners().items():
        before = {k: v.clone() for k, v in learner.state_dict().items()}
        step(learner, *data())
        for key, value in learner.state_dict().items():
            moved = value - before[key]
            torch.testing.assert_close(
                found[name][key] - before[key], moved, rtol=1e-12, atol=1e-15
            )
        assert any(not torch.equal(v, before[k]) for k, v in learner.state_dict().items())
