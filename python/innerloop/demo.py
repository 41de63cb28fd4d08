"""What the library is for, in four lines: the loop that one writes by hand and ours, timed here on
MAML's sine regression, with equal gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from innerloop.learners import MAML

TASKS, ROWS, STEPS, RATE = 25, 10, 5, 0.01
TOLERANCE = 1e-10  # of gradients in float64; rounding leaves some 1e-15

Batch = tuple[Tensor, Tensor]


def show(seconds: float = 0.5) -> None:
    """Prints both times and how far apart the gradients are, after checking them.

    Args:
        seconds: how long each of the two is timed, in seconds.

    Raises:
        RuntimeError: the gradients differ by more than 1e-10 of their size in float64.
    """
    net, support, query = problem(torch.float64)
    learner = MAML(net, inner_lr=RATE, steps=STEPS)
    difference = disagreement(
        gradients(net, lambda: learner(support, query)),
        gradients(net, lambda: plain_loop(net, support, query)),
    )
    if not difference < TOLERANCE:
        raise RuntimeError(
            f"innerloop demo: the gradients of innerloop ({learner.backend} back end) and of the "
            f"plain loop differ by {difference:.1e} of their size, above {TOLERANCE:.0e}: please "
            "report this, with the output of innerloop info"
        )
    net, support, query = problem(torch.float32)
    learner = MAML(net, inner_lr=RATE, steps=STEPS)
    theirs = seconds_per_call(lambda: plain_loop(net, support, query).backward(), seconds)
    ours = seconds_per_call(lambda: learner(support, query).backward(), seconds)
    print(
        f"MAML's sine regression, {TASKS} tasks, {STEPS} inner steps; one meta-gradient, on one "
        "thread of this machine:"
    )
    print(f"  loop in plain PyTorch  {1e3 * theirs:8.2f} ms")
    print(
        f"  innerloop              {1e3 * ours:8.2f} ms   {theirs / ours:.0f} times faster, "
        f"{learner.backend} back end"
    )
    print(f"  gradients              equal to {difference:.0e} of their size, in float64")


def plain_loop(net: nn.Module, support: Batch, query: Batch) -> Tensor:
    """The mean query loss after the inner steps, one task after the other, as one writes it."""
    losses = []
    for xs, ys, xq, yq in zip(*support, *query, strict=True):
        params: dict[str, Tensor] = dict(net.named_parameters())
        for _ in range(STEPS):
            loss = mse_loss(torch.func.functional_call(net, params, xs), ys)
            slopes = torch.autograd.grad(loss, tuple(params.values()), create_graph=True)
            pairs = zip(params.items(), slopes, strict=True)
            params = {name: value - RATE * slope for (name, value), slope in pairs}
        losses.append(mse_loss(torch.func.functional_call(net, params, xq), yq))
    return torch.stack(losses).mean()


def problem(dtype: torch.dtype) -> tuple[nn.Sequential, Batch, Batch]:
    """The network and the sine waves of Finn, Abbeel and Levine (2017), section 5.1.

    Returns:
        the network; support and query rows, x and y [25, 10, 1] of the dtype, the same each time.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
        )
    amplitude = 0.1 + 4.9 * torch.rand(TASKS, 1, 1, generator=generator)
    phase = math.pi * torch.rand(TASKS, 1, 1, generator=generator)
    x = 10 * torch.rand(TASKS, 2 * ROWS, 1, generator=generator) - 5
    x, y = x.to(dtype), (amplitude * torch.sin(x - phase)).to(dtype)
    return net.to(dtype), (x[:, :ROWS], y[:, :ROWS]), (x[:, ROWS:], y[:, ROWS:])


def gradients(net: nn.Module, loss: Callable[[], Tensor]) -> list[Tensor]:
    """The gradient of a loss in each parameter of the network."""
    return list(torch.autograd.grad(loss(), tuple(net.parameters())))


def disagreement(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest distance of two gradients over the leaves, relative to the second one's norm."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def seconds_per_call(call: Callable[[], object], seconds: float) -> float:
    """The shortest time of a call on one thread, over some time and three calls at least.

    The shortest, and one thread: other programs of this machine can only add to a time, and
    threads that wait for each other suffer most from them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        call()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times)
