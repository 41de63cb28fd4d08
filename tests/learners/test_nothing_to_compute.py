"""Sides without rows, layers without numbers, outputs without parameters: every back end agrees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import innerloop as il
from helpers import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning")
BACKENDS = ("auto", "torch")


def rows(inputs=3, outputs=1, number=6):
    """Rows of four tasks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, number, inputs, generator=generator, dtype=torch.float64)
    return x, torch.randn(4, number, outputs, generator=generator, dtype=torch.float64)


class NeedsRows(nn.Module):
    """Cannot take a batch without rows."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(2, 1)

    def forward(self, x):
        """Returns outputs [N, 1]."""
        h = self.first(x).view(x.size(0), 2, -1) @ x[..., None]
        return self.last(h[..., 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_network_is_called_without_rows(backend):
    net = NeedsRows().double()
    params = {k: v.detach() for k, v in net.named_parameters()}
    x, y = rows()
    none = x[:, :0], y[:, :0]
    options = {"model": net, "inner_lr": 0.1, "steps": 1, "backend": backend}
    joint = il.meta_grad(params, (x, y), (x, y), **{**options, "steps": 0})
    kept = il.meta_grad(params, none, (x, y), **options)
    assert_close(kept.loss, joint.loss, 1e-12)
    assert_close(kept.grad, joint.grad, 1e-12)
    nothing = il.meta_grad(params, (x, y), none, **options)
    assert nothing.loss.eq(0).all()
    assert all(g.eq(0).all() for g in nothing.grad.values())
    empty = torch.tensor([0, 2, 0, 6])
    il.meta_grad(params, (x, y, empty), (x, y), **options)
    alone = il.meta_grad(params, (x[:1], y[:1], empty[:1]), (x[:1], y[:1]), **options)
    assert_close(alone.loss, joint.loss[:1], 1e-12)


class Unused(nn.Module):
    """Outputs that no parameter changes."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        """Returns twice the first entry."""
        return x[:, :1] * 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [0, 1])
def test_outputs_without_parameters_have_zero_gradients(backend, steps):
    net = Unused()
    x, y = rows()
    params = dict(net.named_parameters())
    options = {"model": net, "inner_lr": 0.1, "steps": steps, "backend": backend}
    found = il.meta_grad(params, (x, y), (x, y), **options)
    assert_close(found.loss, (x[..., :1] * 2 - y).square().mean((1, 2)), 1e-12)
    assert found.grad["p"].eq(0)
    il.MAML(net, inner_lr=0.1, steps=steps, backend=backend)((x, y), (x, y)).backward()
    assert net.p.grad.eq(0)


@pytest.mark.parametrize("widths", [(0, 3, 1), (3, 0, 1)])
def test_layers_without_numbers(widths):
    inputs, hidden, outputs = widths
    with pytest.warns(UserWarning, match="zero-element") if 0 in widths[:2] else ():
        net = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
    net = net.double()
    x, y = rows(inputs)
    found = {}
    for backend in BACKENDS:
        learner = il.MAML(net, inner_lr=0.1, steps=1, backend=backend)
        found[backend] = learner((x, y), (x, y), reduction="none")
        assert learner.backend == "torch"
    assert_close(found["auto"], found["torch"], 1e-12)
