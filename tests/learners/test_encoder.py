"""An encoder in front of a MAML head: the gradient in x, which the fused operations lack."""

import pytest
import torch
from torch import nn

import innerloop as il


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_an_encoder_and_a_head_learn_together():
    torch.manual_seed(0)
    encoder = nn.Linear(5, 3).double()
    head = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    xs, ys, xq, yq = (torch.randn(4, 6, d, dtype=torch.float64) for d in (5, 1, 5, 1))
    weights = [*encoder.parameters(), *head.parameters()]
    loss = il.MAML(head, inner_lr=0.1, steps=2)((encoder(xs), ys), (encoder(xq), yq))
    found = torch.autograd.grad(loss, weights)

    total = torch.zeros((), dtype=torch.float64)
    for t in range(4):
        leaves = dict(head.named_parameters())
        for _ in range(2):
            z = torch.func.functional_call(head, leaves, (encoder(xs[t]),))
            steps = torch.autograd.grad(
                (z - ys[t]).square().mean(), list(leaves.values()), create_graph=True
            )
            leaves = {k: v - 0.1 * d for (k, v), d in zip(leaves.items(), steps, strict=True)}
        z = torch.func.functional_call(head, leaves, (encoder(xq[t]),))
        total = total + (z - yq[t]).square().mean() / 4
    for got, wanted in zip(found, torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-14)
