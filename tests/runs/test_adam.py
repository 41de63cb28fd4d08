"""The optimiser against torch's."""

from __future__ import annotations

import torch

from innerloop.runs.adam import Adam


def test_adam_is_torch_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(7, generator=generator, dtype=torch.float64)
    other = theta.clone().requires_grad_()
    ours, theirs = Adam(theta), torch.optim.Adam([other])
    for index in range(20):
        gradient = torch.randn(7, generator=generator, dtype=torch.float64)
        other.grad = gradient.clone()
        theirs.param_groups[0]["lr"] = rate = 0.1 / (1 + index)
        theirs.step()
        ours.step(gradient, rate)
    torch.testing.assert_close(theta, other.detach(), rtol=1e-12, atol=1e-12)
