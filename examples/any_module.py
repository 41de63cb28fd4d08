"""MAML for a convolutional network with batch norm, as its own class: read, and run batched.

python examples/any_module.py [--iterations 30]
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il

WAYS = 3


class ConvNet(nn.Module):
    """Two convolutions with batch statistics and a linear head."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        # an inner loop has no use for running statistics: each forward pass takes those of its rows
        self.norm = nn.BatchNorm2d(channels, track_running_stats=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Linear(channels * 16, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        """Returns scores of the classes for pictures x [N, 1, 16, 16]."""
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        return self.head(x.flatten(1))


def episodes(tasks: int, rows: int, generator: torch.Generator):
    """Pictures x [T, 3 rows, 1, 16, 16] of new classes and their labels, as support and as
    query."""
    patterns = torch.randn(tasks, WAYS, 1, 1, 16, 16, generator=generator)
    sides = []
    for _ in range(2):
        noise = torch.randn(tasks, WAYS, rows, 1, 16, 16, generator=generator)
        labels = torch.arange(WAYS)[None, :, None].expand(tasks, WAYS, rows)
        sides.append(((patterns + noise).flatten(1, 2), labels.flatten(1)))
    return sides


def main(arguments: list[str] | None = None) -> il.learners.Evaluation:
    """Trains with every parameter adapted, then with the head alone (ANIL)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--tasks", type=int, default=4, help="tasks in a meta-batch")
    options = parser.parse_args(arguments)

    for make in (il.MAML, il.ANIL):
        torch.manual_seed(0)
        learner = make(ConvNet(), inner_lr=0.1, steps=2, loss="cross_entropy")
        print(learner.explain())
        optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(1)
        for _ in range(options.iterations):
            support, query = episodes(options.tasks, 2, generator)
            optimizer.zero_grad()
            learner(support, query).backward()
            optimizer.step()
        result = learner.evaluate(*episodes(20, 2, generator))
        print(result, end="\n\n")
    return result


if __name__ == "__main__":
    main()
