"""MAML on sine waves (Finn, Abbeel, Levine 2017, section 5.1), against joint training.

python examples/sinusoid.py [--iterations 1500] [--steps 1]
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor, nn

import innerloop as il

Batch = tuple[Tensor, Tensor]


def waves(tasks: int, generator: torch.Generator, rows: int = 10) -> tuple[Batch, Batch]:
    """Support and query rows of sine waves with random amplitude and phase."""
    amplitude = 0.1 + 4.9 * torch.rand(tasks, 1, 1, generator=generator)
    phase = math.pi * torch.rand(tasks, 1, 1, generator=generator)
    x = 10 * torch.rand(tasks, 2 * rows, 1, generator=generator) - 5
    y = amplitude * torch.sin(x - phase)
    return (x[:, :rows], y[:, :rows]), (x[:, rows:], y[:, rows:])


def network() -> nn.Sequential:
    """The network of the paper."""
    return nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )


def main(arguments: list[str] | None = None) -> dict[str, il.learners.Evaluation]:
    """Trains every learner on the same waves and measures it on new ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=1, help="inner steps in training")
    parser.add_argument("--tasks", type=int, default=25, help="tasks in a meta-batch")
    options = parser.parse_args(arguments)

    results = {}
    for name in ("MAML", "FOMAML", "MetaSGD", "JointTraining"):
        torch.manual_seed(0)
        inner = {"inner_lr": 0.01, "steps": options.steps}
        learner = getattr(il, name)(network(), **inner)
        optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(1)
        start = time.perf_counter()
        for _ in range(options.iterations):
            support, query = waves(options.tasks, generator)
            optimizer.zero_grad()
            learner(support, query).backward()
            optimizer.step()
        seconds = time.perf_counter() - start
        fresh = waves(600, torch.Generator().manual_seed(2))
        # rates that Meta-SGD learned fit the number of steps that it was trained with, no other
        steps = options.steps if name == "MetaSGD" else 5
        results[name] = learner.evaluate(*fresh, steps=steps)
        print(f"{name}: {options.iterations / seconds:.0f} iterations/s ({learner.backend})")
        print(results[name], end="\n\n")
    return results


if __name__ == "__main__":
    main()
