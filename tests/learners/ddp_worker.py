"""What each process of the DistributedDataParallel tests runs: over gloo on the CPU, over NCCL with
a GPU of its own (tests/cuda)."""

from __future__ import annotations

import os
from contextlib import nullcontext

import torch
from learner_cases import gated_net, regression, sine_net
from torch import distributed, nn

import innerloop as il

TASKS = 6


def normalised_net():
    """A network that has no kernels."""
    torch.manual_seed(0)
    layers = [nn.Linear(2, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)]
    return nn.Sequential(*layers).double()


def learners(device="cpu"):
    """The learners under test, by name. On a GPU "auto" may mean torch: kernels are demanded."""
    fused = "auto" if device == "cpu" else "fused"
    found = {
        "fused": il.MAML(
            sine_net(), inner_lr=0.2, steps=2, learn_inner_lr="per_tensor", backend=fused
        ),
        "unused": il.MAML(gated_net(), inner_lr=0.2, steps=2, backend="torch"),
        "batched": il.MAML(normalised_net(), inner_lr=0.2, steps=2, backend="batched"),
        "joint": il.JointTraining(sine_net()),
    }
    return {name: learner.to(device) for name, learner in found.items()}


def data(device="cpu"):
    """All tasks."""
    sides = regression(tasks=TASKS, seed=1), regression(tasks=TASKS, rows=3, seed=2)
    return [tuple(v.to(device) for v in side) for side in sides]


def step(model, support, query):
    """Two optimiser steps on the mean loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(support, query).backward()
        optimizer.step()


def unequal_step(model, support, query, processes):
    """Two optimiser steps on the mean loss of all tasks, whose number differs between processes,
    each accumulated over two parts of this process's tasks."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half = len(support[0]) // 2
    for _ in range(2):
        optimizer.zero_grad()
        for part in (slice(None, half), slice(half, None)):
            sides = [tuple(v[part] for v in side) for side in (support, query)]
            x = sides[0][0]
            weight = x.new_full((len(x),), processes / TASKS)  # DDP takes the mean over processes
            with nullcontext() if part.stop is None else model.no_sync():
                model(*sides, task_weight=weight).backward()
        optimizer.step()


def check(found, device="cpu", rtol=1e-12):
    """Refuses learners that did not learn, from all processes, what one process learns."""
    for name, learner in learners(device).items():
        before = {k: v.clone() for k, v in learner.state_dict().items()}
        step(learner, *data(device))
        for key, value in learner.state_dict().items():
            start = before[key].cpu()
            moved = value.cpu() - start
            for how in ("", ", unequal"):
                if name + how in found:
                    got = found[name + how][key] - start
                    torch.testing.assert_close(got, moved, rtol=rtol, atol=1e-3 * rtol)
        assert any(not torch.equal(v, before[k]) for k, v in learner.state_dict().items())


def run(rank: int, processes: int, folder: str, on_gpu: bool = False) -> None:
    """Trains every learner on this process's share of the tasks; rank 0 saves what came out."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    device = f"cuda:{rank}" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=processes,
    )
    share = slice(rank * TASKS // processes, (rank + 1) * TASKS // processes)
    found = {}
    for name, learner in learners(device).items():
        wrapped = nn.parallel.DistributedDataParallel(learner)
        support, query = (tuple(v[share] for v in side) for side in data(device))
        step(wrapped, support, query)
        found[name] = {key: value.cpu() for key, value in learner.state_dict().items()}
    # 4 tasks for the first process and 2 for the second, in two parts each: another way to the same
    share = slice(0, 4) if rank == 0 else slice(4, TASKS)
    for name, learner in (learners(device) if processes == 2 else {}).items():
        wrapped = nn.parallel.DistributedDataParallel(learner)
        support, query = (tuple(v[share] for v in side) for side in data(device))
        unequal_step(wrapped, support, query, processes)
        state = learner.state_dict().items()
        found[f"{name}, unequal"] = {key: value.cpu() for key, value in state}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    distributed.destroy_process_group()
    # torch keeps a group's threads alive once DistributedDataParallel was made; one that still lets
    # go of its last tensor while Python winds up aborts the process. Nothing is left to wind up
    os._exit(0)
