"""Networks that public MAML code trains, written anew from their published definitions, as classes
with a forward pass of their own; with the plain loop that they are trained by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]


class Sine(nn.Module):
    """1-40-40-1, relu (Finn, Abbeel, Levine 2017, section 5.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(1, 40), nn.Linear(40, 40), nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns one value a row."""
        return self.last(F.relu(self.second(F.relu(self.first(x)))))


class OmniglotFC(nn.Module):
    """784-256-128-64-64-5 with batch norm and relu (the same paper, section 5.2)."""

    def __init__(self, normalised: bool = True) -> None:
        super().__init__()
        widths = (784, 256, 128, 64, 64)
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            blocks.append(nn.Linear(inputs, outputs))
            if normalised:
                blocks.append(nn.BatchNorm1d(outputs, track_running_stats=False))
            blocks.append(nn.ReLU())
        self.features, self.classifier = nn.Sequential(*blocks), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns five logits a row."""
        return self.classifier(self.features(x.view(-1, 784)))


class Block(nn.Module):
    """A 3 x 3 convolution, batch norm, relu, and a max pool or a stride of two."""

    def __init__(self, inputs: int, outputs: int, pools: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=1 if pools else 2, padding=1)
        self.norm = nn.BatchNorm2d(outputs, track_running_stats=False)
        self.pools = pools

    def forward(self, x: Tensor) -> Tensor:
        """Returns half the places."""
        h = F.relu(self.norm(self.conv(x)))
        return F.max_pool2d(h, 2) if self.pools else h


class OmniglotCNN(nn.Module):
    """Four strided blocks of 64 channels and a mean over places."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.base = nn.Sequential(*(Block(hidden if i else 1, hidden, False) for i in range(4)))
        self.linear = nn.Linear(hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns five logits a row."""
        return self.linear(self.base(x.view(-1, 1, 28, 28)).mean(dim=[2, 3]))


class CNN4(nn.Module):
    """Four blocks of 32 channels with max pools, for images of 84 x 84 (mini-ImageNet)."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(*(Block(hidden if i else 3, hidden, True) for i in range(4)))
        self.classifier = nn.Linear(25 * hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns five logits a row."""
        return self.classifier(self.features(x).flatten(1))


@dataclass(frozen=True)
class NetworkCase:
    """One meta-step: a network, the shape of a row, tasks, steps and rows."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tasks: int
    steps: int
    support: int
    query: int
    loss: str

    def problem(self, dtype: torch.dtype, seed: int) -> tuple[nn.Module, Batch, Batch]:
        """The network and both sides, the same numbers in every dtype."""
        torch.manual_seed(seed)
        net = self.make().to(dtype)
        sides = []
        for rows in (self.support, self.query):
            x = torch.randn(self.tasks, rows, *self.shape).to(dtype)
            if self.loss == "mse":
                y = torch.sin(x.sum(2, keepdim=True))
            else:
                y = torch.randint(5, (self.tasks, rows))
            sides.append((x, y))
        return net, sides[0], sides[1]


def _classes(make: Callable[[], nn.Module], *sizes: Any) -> NetworkCase:
    shape, tasks, steps = sizes
    return NetworkCase(make, shape, tasks, steps, 5, 15, "cross_entropy")


CASES = {
    "sine, as a class": NetworkCase(Sine, (1,), 100, 1, 10, 10, "mse"),
    "OmniglotFC, batch norm": _classes(OmniglotFC, (1, 28, 28), 32, 1),
    "OmniglotFC, no norm": _classes(lambda: OmniglotFC(False), (1, 28, 28), 32, 1),
    **{
        f"OmniglotCNN, 64 channels, T = {tasks}": _classes(OmniglotCNN, (1, 28, 28), tasks, 1)
        for tasks in (4, 8, 32)
    },
    **{
        f"CNN4, 32 channels, 84 x 84, T = {tasks}, {steps} step(s)": _classes(
            CNN4, (3, 84, 84), tasks, steps
        )
        for tasks in (2, 4)
        for steps in (1, 5)
    },
}
RATE = 0.01  # small enough for float32 to follow float64 through five steps


def plain_loop(net: nn.Module, support: Batch, query: Batch, steps: int, loss: str) -> Tensor:
    """Backward of the mean query loss, task by task, and that loss: inner gradients with
    create_graph, updated parameters, as in learn2learn's `adapt`."""
    objective = F.mse_loss if loss == "mse" else F.cross_entropy
    initial = dict(net.named_parameters())
    total = torch.zeros((), dtype=support[0].dtype)
    for xs, ys, xq, yq in zip(*support, *query, strict=True):
        phi = initial
        for _ in range(steps):
            value = objective(torch.func.functional_call(net, phi, (xs,)), ys)
            grads = torch.autograd.grad(value, list(phi.values()), create_graph=True)
            phi = {k: v - RATE * g for (k, v), g in zip(phi.items(), grads, strict=True)}
        value = objective(torch.func.functional_call(net, phi, (xq,)), yq) / len(support[0])
        value.backward()
        total += value.detach()
    return total


def vmapped(net: nn.Module, support: Batch, query: Batch, steps: int, loss: str) -> list[Tensor]:
    """The gradient of the mean query loss with torch.func: vmap over tasks, grad of grad."""
    objective = F.mse_loss if loss == "mse" else F.cross_entropy

    def task_loss(phi: dict[str, Tensor], xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        def support_loss(phi: dict[str, Tensor]) -> Tensor:
            return objective(torch.func.functional_call(net, phi, (xs,)), ys)

        for _ in range(steps):
            grads = torch.func.grad(support_loss)(phi)
            phi = {k: v - RATE * grads[k] for k, v in phi.items()}
        return objective(torch.func.functional_call(net, phi, (xq,)), yq)

    def mean_loss(phi: dict[str, Tensor]) -> Tensor:
        return torch.vmap(task_loss, (None, 0, 0, 0, 0))(phi, *support, *query).mean()

    initial = {k: v.detach() for k, v in net.named_parameters()}
    return list(torch.func.grad(mean_loss)(initial).values())


def cloned(maml: Any, support: Batch, query: Batch, steps: int, loss: str) -> None:
    """Backward of the mean query loss as learn2learn's examples write it: clone, adapt, backward,
    one task after another. `maml` is its wrapper of the network."""
    objective = F.mse_loss if loss == "mse" else F.cross_entropy
    for xs, ys, xq, yq in zip(*support, *query, strict=True):
        learner = maml.clone()
        for _ in range(steps):
            learner.adapt(objective(learner(xs), ys))
        (objective(learner(xq), yq) / len(support[0])).backward()
