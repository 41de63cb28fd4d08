"""The Conv-4 of MAML++ (Antoniou, Edwards, Storkey 2019): batch norms with a scale and a shift for
each inner step, which the inner loop leaves alone, and a learned rate for each tensor and step.

python examples/maml_plus_plus.py [--iterations 30] [--channels 16]
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import innerloop as il

WAYS, STEPS = 3, 3


def conv4(channels: int) -> nn.Sequential:
    """Four stages of convolution, norm, leaky relu and pool, and a head, for 28 x 28 pictures."""
    stages: list[nn.Module] = []
    for inputs in (1, channels, channels, channels):
        stages += [
            nn.Conv2d(inputs, channels, 3, padding=1),
            il.nn.PerStepBatchNorm(channels, STEPS),
            nn.LeakyReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(channels, WAYS))


def episodes(tasks: int, rows: int, generator: torch.Generator):
    """Pictures x [T, 3 rows, 1, 28, 28] of new classes and their labels, as support and as
    query."""
    patterns = torch.randn(tasks, WAYS, 1, 1, 28, 28, generator=generator)
    labels = torch.arange(WAYS).repeat_interleave(rows).expand(tasks, -1)
    shape = (tasks, WAYS, rows, 1, 28, 28)
    return [
        ((patterns + torch.randn(shape, generator=generator)).flatten(1, 2), labels)
        for _ in range(2)
    ]


def main(arguments: list[str] | None = None) -> il.learners.Evaluation:
    """Trains, and evaluates after each inner step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--tasks", type=int, default=4, help="tasks in a meta-batch")
    parser.add_argument("--channels", type=int, default=16, help="64 in the paper")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    net = conv4(options.channels)
    norms = {
        id(p) for part in net if isinstance(part, il.nn.PerStepBatchNorm) for p in part.parameters()
    }
    learner = il.MAML(
        net,
        inner_lr=torch.full((STEPS,), 0.1),
        steps=STEPS,
        loss="cross_entropy",
        adapt_params=[name for name, p in net.named_parameters() if id(p) not in norms],
        learn_inner_lr="per_tensor",
    )
    print(learner.explain())
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(options.iterations):
        support, query = episodes(options.tasks, 2, generator)
        optimizer.zero_grad()
        learner(support, query).backward()
        optimizer.step()
    result = learner.evaluate(*episodes(20, 2, generator))
    print(result)
    return result


if __name__ == "__main__":
    main()
