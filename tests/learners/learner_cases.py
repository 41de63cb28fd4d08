"""Networks, episodes and a plain autograd MAML loop that the learner tests share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOSSES = {
    "mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
}


def sine_net(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A small regression network that the fused back end takes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 5), nn.Softplus(), nn.Linear(5, 1)
    ).to(dtype)


def class_net(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A small classifier that the fused back end takes."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


class Gated(nn.Module):
    """A module that only the torch back end takes, with a parameter that it never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(2, 4)
        self.gate = nn.Linear(2, 4)
        self.out = nn.Linear(4, 1)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """Returns gated outputs."""
        value, gate = torch.tanh(self.value(x)), torch.sigmoid(self.gate(x))
        return self.out(torch.addcmul(value, value, gate))


def gated_net(dtype: torch.dtype = torch.float64, seed: int = 0) -> Gated:
    """A seeded Gated."""
    torch.manual_seed(seed)
    return Gated().to(dtype)


def regression(
    tasks: int = 4, rows: int = 5, dtype: torch.dtype = torch.float64, seed: int = 1
) -> tuple[Tensor, Tensor]:
    """Rows x [T, N, 2], y [T, N, 1] of one side."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tasks, rows, 2, generator=generator, dtype=dtype)
    phase = torch.randn(tasks, 1, 1, generator=generator, dtype=dtype)
    return x, torch.sin(x.sum(2, keepdim=True) + phase)


def classification(
    tasks: int = 4, rows: int = 6, dtype: torch.dtype = torch.float64, seed: int = 1
) -> tuple[Tensor, Tensor]:
    """Rows x [T, N, 2, 3], y [T, N] in three classes, of one side."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tasks, rows, 2, 3, generator=generator, dtype=dtype)
    return x, torch.randint(3, (tasks, rows), generator=generator)


def _weight_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """What torch's is, but for its second derivative, which fails gradgradcheck."""
    assert dim == 0
    return v * (g / v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1)))


@contextlib.contextmanager
def right_weight_norm() -> Iterator[None]:
    """Puts weight norm written out in the place of torch's."""
    older = sys.modules["torch.nn.utils.weight_norm"]  # hidden by the function of that name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "_weight_norm", _weight_norm)
        patch.setattr(older, "_weight_norm", _weight_norm)
        yield


@right_weight_norm()
def loop_losses(
    module: nn.Module,
    support: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    *,
    inner_lr,
    steps: int,
    order: int = 2,
    loss: str = "mse",
    adapted: tuple[str, ...] | None = None,
    retained: bool = True,
) -> list[Tensor]:
    """The textbook loop: query loss of each task after `steps`. `inner_lr(name, step)` is the
    rate."""
    objective = LOSSES[loss]
    initial = dict(module.named_parameters())
    names = [k for k in initial if adapted is None or k in adapted]
    losses = []
    for xs, ys, xq, yq in zip(*support, *query, strict=True):
        phi = dict(initial)
        for step in range(steps):
            value = objective(torch.func.functional_call(module, phi, (xs,)), ys)
            grads = torch.autograd.grad(
                value,
                [phi[k] for k in names],
                create_graph=order == 2 and retained,
                allow_unused=True,
            )
            for k, g in zip(names, grads, strict=True):
                if g is not None:
                    phi[k] = phi[k] - inner_lr(k, step) * g
        losses.append(objective(torch.func.functional_call(module, phi, (xq,)), yq))
    return losses


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Clones of every gradient, after which there are none."""
    found = {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return found


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Checks the gradients leaf by leaf, relative to each leaf's own size and by their ratio of
    magnitudes."""
    assert set(actual) == set(expected)
    for name, want in expected.items():
        got, want = actual[name].detach(), want.detach()
        size, error = want.norm().item(), (got - want).norm().item()
        assert error <= tolerance * size, f"{name}: error {error:.2e} for a gradient of {size:.2e}"
        if size > 0:
            assert abs(got.norm().item() / size - 1) <= tolerance, name
