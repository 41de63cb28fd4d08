"""The optimiser with which the commands train networks."""

from __future__ import annotations

import torch


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) on one flat vector, changed in place.

    torch.optim would do the same; importing it loads the compiler, which takes seconds.
    """

    def __init__(self, theta: torch.Tensor) -> None:
        self.theta = theta
        self.first = torch.zeros_like(theta)
        self.second = torch.zeros_like(theta)
        self.count = 0

    def step(self, gradient: torch.Tensor, rate: float) -> None:
        """Move against the gradient."""
        self.count += 1
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = self.second.div(1.0 - 0.999**self.count).sqrt_().add_(1e-8)
        self.theta.addcdiv_(self.first, scale, value=-rate / (1.0 - 0.9**self.count))
