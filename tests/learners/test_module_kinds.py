"""Second-order gradients of common layers on the torch back end, against the textbook loop.

The normalisations with weight and bias are the reason for `_curvature.py`: torch's vmap alone gives
them gradients that are 1 % off. Tolerance 1e-11 relative to the whole gradient, as in test_maml.py.
"""

from __future__ import annotations

import pytest
import torch
from learner_cases import gradients, loop_losses, regression
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import innerloop as il
from innerloop import _tasks
from innerloop._tasks import FallbackWarning


class Image(nn.Module):
    """Turns rows of four values into images [N, 4, 4, 4]."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns images whose pixels differ."""
        wave = torch.linspace(-1, 1, 16, dtype=x.dtype).reshape(1, 1, 4, 4)
        return x.reshape(-1, 4, 1, 1) * (1 + wave)


class Call(nn.Module):
    """A function with a weight and a bias as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 4))
        self.bias = nn.Parameter(torch.linspace(-0.5, 0.5, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the function's value."""
        return self.function(x, self.weight, self.bias)


class Attention(nn.Module):
    """Self-attention over three positions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns attended positions side by side."""
        h = x[:, None, :] * torch.arange(1, 4, dtype=x.dtype)[:, None]
        return self.attention(h, h, h, need_weights=False)[0].flatten(1)


class Gru(nn.Module):
    """A recurrent layer, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the last state of three steps."""
        return self.gru(x[:, None, :].repeat(1, 3, 1))[0][:, -1]


def rows(*layers):
    """Layers between two linear ones."""
    return lambda: nn.Sequential(nn.Linear(2, 4), *layers, nn.Tanh(), nn.LazyLinear(1))


def images(*layers):
    """Layers on images."""
    return rows(Image(), *layers, nn.Tanh(), nn.Flatten())


untracked = {"track_running_stats": False}
KINDS = {
    "batch_norm rows": rows(nn.BatchNorm1d(4, **untracked)),
    "batch_norm images": images(nn.BatchNorm2d(4, **untracked)),
    "batch_norm called": rows(Call(lambda x, w, b: F.batch_norm(x, None, None, w, b, True))),
    "torch.batch_norm": rows(
        Call(lambda x, w, b: torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-5, False))
    ),
    "layer_norm": rows(nn.LayerNorm(4)),
    "layer_norm called": rows(Call(lambda x, w, b: F.layer_norm(x, (4,), w, b))),
    "torch.layer_norm": rows(Call(lambda x, w, b: torch.layer_norm(x, (4,), weight=w, bias=b))),
    "instance_norm": images(nn.InstanceNorm2d(4, affine=True)),
    "torch.instance_norm": images(
        Call(lambda x, w, b: torch.instance_norm(x, w, b, None, None, True, 0.1, 1e-5, False))
    ),
    "group_norm": images(nn.GroupNorm(2, 4)),
    "rms_norm": rows(nn.RMSNorm(4)),
    "convolution and pooling": images(nn.Conv2d(4, 3, 3, padding=1), nn.MaxPool2d(2)),
    "prelu": rows(nn.PReLU()),
    "softmax": rows(nn.Softmax(1)),
    "attention": rows(Attention()),
    "transformer layer": rows(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)),
}


def check(net, steps=2):
    """Compares a learner on the torch back end with the loop."""
    support, query = regression(rows=6, seed=1), regression(rows=4, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=steps, backend="torch")
    learner(support, query).backward()
    actual = gradients(net)
    with sdpa_kernel(SDPBackend.MATH):
        losses = loop_losses(net, support, query, inner_lr=lambda k, s: 0.2, steps=steps)
        torch.stack(losses).mean().backward()
    expected = gradients(net)
    size = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, want in expected.items():
        error = ((actual[name] - want).norm() / size).item()
        assert error < 1e-11, f"{name}: {error:.1e} of the whole gradient"


def build(kind):
    """The network of a kind, in float64."""
    torch.manual_seed(0)
    net = KINDS[kind]().double()
    net(torch.ones(2, 2, dtype=torch.float64))
    return net


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # attention in torch 2.4
@pytest.mark.parametrize("kind", KINDS)
def test_meta_gradient_is_that_of_the_loop(kind):
    check(build(kind))


def test_recurrent_layers_run_task_by_task(monkeypatch):
    monkeypatch.setattr(_tasks, "_WARNED", set())  # warned of once a process
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), Gru(), nn.Linear(4, 1)).double()
    with pytest.warns(FallbackWarning, match="runs task by task"):
        check(net)


def test_normalisation_in_evaluation_mode_uses_the_running_statistics():
    torch.manual_seed(0)
    net = rows(nn.BatchNorm1d(4))().double()
    net(torch.randn(50, 2, dtype=torch.float64))
    check(net.eval())
