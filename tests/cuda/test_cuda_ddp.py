"""DistributedDataParallel over NCCL: two processes, each with a GPU and half the tasks, learn what
one process with one GPU learns.

Tolerance 1e-10 in float64: sums over tasks in another order, and cuBLAS chooses by batch size.
"""

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

LEARNERS = Path(__file__).resolve().parents[1] / "learners"  # the processes' code is shared


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_nccl_available()),
    reason="this torch has no NCCL",
)
def test_two_gpus_equal_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(LEARNERS))
    from ddp_worker import check, run

    multiprocessing.spawn(run, args=(2, str(tmp_path), True), nprocs=2)
    check(torch.load(tmp_path / "found.pt", weights_only=True), "cuda:0", rtol=1e-10)
