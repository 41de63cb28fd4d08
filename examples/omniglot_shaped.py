"""MAML on episodes in the shape of 5-way Omniglot, and how its speed compares with an autograd
loop.

The pictures are synthetic (one random stroke pattern per class, shifted and blurred with noise), so
that nothing is downloaded; sizes, network and cost are those of the fully connected Omniglot
experiment.

    python examples/omniglot_shaped.py [--iterations 40] [--tasks 32] [--steps 1]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il

Batch = tuple[Tensor, Tensor]
WAYS = 5


def network() -> nn.Sequential:
    """The fully connected network of Finn et al. 2017, without its normalisation."""
    widths = [784, 256, 128, 64, 64]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], WAYS))


def episodes(
    tasks: int, generator: torch.Generator, shots: int = 1, queries: int = 15
) -> tuple[Batch, Batch]:
    """Support [T, 5 shots, 28, 28] and query pictures of new classes, with their labels [T,
    rows]."""
    rows = shots + queries
    coarse = torch.randn(tasks, WAYS, 1, 7, 7, generator=generator)
    patterns = F.interpolate(coarse.flatten(0, 1), size=(28, 28), mode="bilinear")
    pictures = patterns.reshape(tasks, WAYS, 1, 28, 28).repeat(1, 1, rows, 1, 1)
    pictures += 0.7 * torch.randn(pictures.shape, generator=generator)
    labels = torch.arange(WAYS)[None, :, None].expand(tasks, WAYS, rows)

    def side(part: slice) -> Batch:
        return pictures[:, :, part].flatten(1, 2), labels[:, :, part].flatten(1)

    return side(slice(shots)), side(slice(shots, rows))


def autograd_loop(
    net: nn.Module, support: Batch, query: Batch, inner_lr: float, steps: int
) -> Tensor:
    """The same meta-loss as written by hand: a loop over tasks that keeps the graph."""
    losses = []
    for xs, ys, xq, yq in zip(*support, *query, strict=True):
        params = dict(net.named_parameters())
        for _ in range(steps):
            loss = F.cross_entropy(torch.func.functional_call(net, params, (xs,)), ys)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {k: p - inner_lr * g for (k, p), g in zip(params.items(), grads, strict=True)}
        losses.append(F.cross_entropy(torch.func.functional_call(net, params, (xq,)), yq))
    return torch.stack(losses).mean()


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


def main(arguments: list[str] | None = None) -> float:
    """Trains for a few iterations, measures, and returns how many times faster than the loop it
    is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--tasks", type=int, default=32, help="tasks in a meta-batch")
    parser.add_argument("--steps", type=int, default=1, help="inner steps")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    net = network()
    learner = il.MAML(net, inner_lr=0.1, steps=options.steps, loss="cross_entropy")
    print(learner.explain())
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    for iteration in range(options.iterations):
        support, query = episodes(options.tasks, generator)
        optimizer.zero_grad()
        loss = learner(support, query)
        loss.backward()
        optimizer.step()
        if iteration % 10 == 0:
            print(f"iteration {iteration}: meta-loss {loss.item():.3f}")
    print(learner.evaluate(*episodes(100, generator), steps=3))

    support, query = episodes(options.tasks, generator)
    loop_loss = autograd_loop(net, support, query, 0.1, options.steps)
    same = torch.allclose(learner(support, query), loop_loss, rtol=1e-4)
    print(f"same meta-loss as the autograd loop: {same}")
    fused = milliseconds(lambda: learner(support, query).backward(), options.repeats)
    loop = milliseconds(
        lambda: autograd_loop(net, support, query, 0.1, options.steps).backward(),
        options.repeats,
    )
    print(
        f"one meta-gradient: {fused:.1f} ms fused, {loop:.1f} ms in the loop: {loop / fused:.1f}x"
    )
    return loop / fused


if __name__ == "__main__":
    main()
