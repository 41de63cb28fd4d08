"""What each process of the DistributedDataParallel test runs."""

from __future__ import annotations

import os

import torch
from learner_cases import gated_net, regression, sine_net
from torch import distributed, nn

import innerloop as il

TASKS = 6


def learners():
    """The learners under test, by name."""
    return {
        "fused": il.MAML(sine_net(), inner_lr=0.2, steps=2, learn_inner_lr="per_tensor"),
        "unused": il.MAML(gated_net(), inner_lr=0.2, steps=2, backend="torch"),
        "joint": il.JointTraining(sine_net()),
    }


def data():
    """All tasks."""
    return regression(tasks=TASKS, seed=1), regression(tasks=TASKS, rows=3, seed=2)


def step(model, support, query):
    """Two optimiser steps on the mean loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(support, query).backward()
        optimizer.step()


def run(rank: int, processes: int, folder: str) -> None:
    """Trains every learner on this process's share of the tasks; rank 0 saves what came out."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes
    )
    share = slice(rank * TASKS // processes, (rank + 1) * TASKS // processes)
    found = {}
    for name, learner in learners().items():
        wrapped = nn.parallel.DistributedDataParallel(learner)
        support, query = (tuple(v[share] for v in side) for side in data())
        step(wrapped, support, query)
        found[name] = learner.state_dict()
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    distributed.destroy_process_group()
