"""The nine benchmark cases: sizes, data generators and the problem each one poses.

A case is a row of the speed table. `make_problem` turns it into seeded tensors that every rival
receives alike; the generators imitate the data the case is named after, since relu patterns and
sparse inputs are part of the cost of some implementations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One row of the speed table: the network and the sizes."""

    name: str
    widths: tuple[int, ...]
    loss: str
    tasks: int
    support: int
    query: int
    steps: int
    data: str
    activation: str = "relu"
    bias: bool = True
    inner_lr: float = 0.01
    quantity: str = "meta_grad"  # or "hvp", with parameters and vectors of each task
    reported: str = ""  # what the fastest library took on another 2-core machine

    @property
    def layers(self) -> int:
        """Number of linear layers."""
        return len(self.widths) - 1

    @property
    def classes(self) -> int:
        """Number of outputs, which is the number of classes for cross entropy."""
        return self.widths[-1]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters, in the order innerloop uses."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.layers):
            shapes[f"{layer}.weight"] = (self.widths[layer + 1], self.widths[layer])
            if self.bias:
                shapes[f"{layer}.bias"] = (self.widths[layer + 1],)
        return shapes

    def parameters(self) -> int:
        """Number of parameters P of the network."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def sizes(self) -> dict[str, int]:
        """The sizes of the case under the letters used everywhere."""
        return {
            "T": self.tasks,
            "N": self.support,
            "Q": self.query,
            "D": self.widths[0],
            "K": self.widths[-1],
            "S": self.steps,
            "P": self.parameters(),
        }

    def describe(self) -> str:
        """The case in one line, for tables."""
        net = "-".join(str(width) for width in self.widths)
        hidden = f" {self.activation}" if self.layers > 1 else ""
        bias = "" if self.bias else " no bias"
        loss = self.loss.replace("_", " ")
        rows = f"{self.support}" if self.quantity == "hvp" else f"{self.support}+{self.query}"
        steps = "" if self.quantity == "hvp" else f", {self.steps} step{'s'[: self.steps != 1]}"
        return f"{net}{hidden}{bias}, {loss}, T={self.tasks}, {rows}{steps}"


SINUSOID_NET = (1, 40, 40, 1)
OMNIGLOT_NET = (784, 256, 128, 64, 64, 5)

_SINUSOID = Case(
    name="sinusoid",
    widths=SINUSOID_NET,
    loss="mse",
    tasks=25,
    support=10,
    query=10,
    steps=1,
    data="sinusoid",
    reported="0.60 ms",
)
_OMNIGLOT = Case(
    name="omniglot-fc",
    widths=OMNIGLOT_NET,
    loss="cross_entropy",
    tasks=32,
    support=5,
    query=75,
    steps=1,
    data="characters",
    inner_lr=0.4,
    reported="53 ms",
)

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _SINUSOID,
        replace(_SINUSOID, name="sinusoid-5", steps=5, reported="1.6-2.5 ms"),
        replace(_SINUSOID, name="sinusoid-1000", tasks=1000, reported="12.4 ms"),
        _OMNIGLOT,
        replace(_OMNIGLOT, name="omniglot-fc-5", steps=5, reported="160 ms"),
        Case(
            name="linear",
            widths=(16, 1),
            loss="half_mse",
            tasks=4096,
            support=16,
            query=16,
            steps=1,
            data="linear",
            activation="identity",
            bias=False,
            inner_lr=0.1,
            reported="0.69 ms",
        ),
        Case(
            name="wide",
            widths=(64, 256, 256, 10),
            loss="cross_entropy",
            tasks=64,
            support=25,
            query=75,
            steps=5,
            data="clusters",
            inner_lr=0.05,
            reported="169 ms",
        ),
        replace(
            _SINUSOID,
            name="hvp",
            tasks=1000,
            query=0,
            steps=0,
            quantity="hvp",
            reported="6.7-7.5 ms",
        ),
        replace(
            _OMNIGLOT,
            name="hvp-omniglot",
            query=0,
            steps=0,
            quantity="hvp",
            reported="13.5-18 ms",
        ),
    )
}


@dataclass(frozen=True)
class Problem:
    """A case with its tensors. Leaves are `[...]`, or `[T, ...]` when the quantity is hvp."""

    case: Case
    params: dict[str, Tensor]
    support: tuple[Tensor, Tensor]  # x [T, N, D], y [T, N, K] or int64 [T, N]
    query: tuple[Tensor, Tensor]  # the same with Q rows; zero rows when the quantity is hvp
    vector: dict[str, Tensor] | None  # [T, ...] leaves, hvp only

    @property
    def device(self) -> str:
        """Where the tensors are: "cpu" or "cuda"."""
        return self.support[0].device.type

    def to(self, dtype: torch.dtype) -> Problem:
        """The same problem with every floating tensor in another precision."""
        return self._map(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def rows(self, start: int, stop: int) -> Problem:
        """The problem of tasks start..stop alone."""
        chosen = self._map(lambda t: t)
        per_task = self.case.quantity == "hvp"
        params = chosen.params
        if per_task:
            params = {name: leaf[start:stop] for name, leaf in params.items()}
        return replace(
            chosen,
            case=replace(self.case, tasks=stop - start),
            params=params,
            support=(self.support[0][start:stop], self.support[1][start:stop]),
            query=(self.query[0][start:stop], self.query[1][start:stop]),
            vector=None
            if self.vector is None
            else {name: leaf[start:stop] for name, leaf in self.vector.items()},
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> Problem:
        return replace(
            self,
            params={name: change(leaf) for name, leaf in self.params.items()},
            support=(change(self.support[0]), change(self.support[1])),
            query=(change(self.query[0]), change(self.query[1])),
            vector=None
            if self.vector is None
            else {name: change(leaf) for name, leaf in self.vector.items()},
        )


def _sinusoid(case: Case, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sine curves, amplitude in [0.1, 5], phase in [0, pi], inputs in [-5, 5]."""
    amplitude = 0.1 + 4.9 * torch.rand(case.tasks, 1, 1, generator=generator)
    phase = math.pi * torch.rand(case.tasks, 1, 1, generator=generator)
    x = 10.0 * torch.rand(case.tasks, rows, 1, generator=generator) - 5.0
    return x, amplitude * torch.sin(x - phase)


def _characters(case: Case, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mostly white 28x28 images: blobs of ink per class, one pixel in twenty flipped per sample."""
    side = math.isqrt(case.widths[0])
    noise = torch.rand(case.tasks * case.classes, 1, side, side, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2, count_include_pad=False)
    ink = (smooth > 0.56).float().reshape(case.tasks, case.classes, -1)  # [T, classes, D]
    y = (torch.arange(rows) % case.classes).expand(case.tasks, rows).contiguous()
    x = torch.gather(ink, 1, y.unsqueeze(-1).expand(-1, -1, ink.shape[-1]))  # [T, N, D]
    flipped = torch.rand(x.shape, generator=generator) < 0.05
    return torch.where(flipped, 1.0 - x, x), y


def _clusters(case: Case, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussian clusters, one centre per task and class."""
    features = case.widths[0]
    centres = torch.randn(case.tasks, case.classes, features, generator=generator)
    y = (torch.arange(rows) % case.classes).expand(case.tasks, rows).contiguous()
    x = torch.gather(centres, 1, y.unsqueeze(-1).expand(-1, -1, features))
    return 0.5 * x + 0.7 * torch.randn(x.shape, generator=generator), y


def _linear(case: Case, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Linear responses with one weight vector per task and a little noise."""
    features = case.widths[0]
    weight = torch.randn(case.tasks, features, case.classes, generator=generator)
    x = torch.randn(case.tasks, rows, features, generator=generator)
    noise = torch.randn(case.tasks, rows, case.classes, generator=generator)
    return x, x @ weight + 0.1 * noise


_GENERATORS = {
    "sinusoid": _sinusoid,
    "characters": _characters,
    "clusters": _clusters,
    "linear": _linear,
}


def make_problem(
    case: Case, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu"
) -> Problem:
    """The tensors of a case; the same seed gives the same numbers in either precision.

    Args:
        case: the case.
        dtype: torch.float32 or torch.float64; values are drawn in float32 and then widened.
        seed: seed of the one generator everything is drawn from.
        device: "cpu" or "cuda"; tensors are drawn there, so the two have different numbers.
    """
    with torch.device(device):
        return _drawn(case, torch.Generator(device).manual_seed(seed)).to(dtype)


def _drawn(case: Case, generator: torch.Generator) -> Problem:
    """A case's problem in float32, on the device of the generator and of the context."""
    # Support and query are cut from one draw, so that they come from the same tasks.
    x, y = _GENERATORS[case.data](case, case.support + case.query, generator)
    params: dict[str, Tensor] = {}
    for layer in range(case.layers):
        bound = 1.0 / math.sqrt(case.widths[layer])  # as nn.Linear initialises
        for kind in ("weight", "bias"):
            shape = case.shapes().get(f"{layer}.{kind}")
            if shape is not None:
                params[f"{layer}.{kind}"] = bound * (2 * torch.rand(shape, generator=generator) - 1)
    vector = None
    if case.quantity == "hvp":
        for name, leaf in params.items():
            moved = torch.randn(case.tasks, *leaf.shape, generator=generator)
            params[name] = leaf + 0.1 * leaf.abs().mean() * moved
        vector = {
            name: torch.randn(leaf.shape, generator=generator) for name, leaf in params.items()
        }
    n = case.support
    return Problem(
        case=case,
        params=params,
        support=(x[:, :n].contiguous(), y[:, :n].contiguous()),
        query=(x[:, n:].contiguous(), y[:, n:].contiguous()),
        vector=vector,
    )
