"""Rows of a Gaussian policy for every task, and what meta reinforcement learning computes of them
as one writes it with autograd: baddbmm over tasks, double backward for products with a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import innerloop as il
import torch
from torch import Tensor

WIDTHS = (17, 64, 64, 6)
RATE, CLIP, KL_COEFFICIENT = 0.1, 0.3, 0.5

Leaves = dict[str, Tensor]
Losses = Callable[[Leaves], Tensor]  # parameters of every task -> losses [T]


class PolicyProblem(NamedTuple):
    """Parameters, the rows that they sampled, rows sampled after one inner step, and a vector."""

    params: Leaves
    support: Any
    query: Any
    vector: Leaves

    def to(self, dtype: torch.dtype) -> PolicyProblem:
        """The same numbers in another precision."""
        sides = [
            type(side)(*(None if v is None else v.to(dtype) for v in side))
            for side in (self.support, self.query)
        ]
        params, vector = (
            {k: v.to(dtype) for k, v in leaves.items()} for leaves in (self.params, self.vector)
        )
        return PolicyProblem(params, *sides, vector)


def model() -> Any:
    """The policy."""
    return il.GaussianMLP(list(WIDTHS))


def make_problem(tasks: int, rows: int, seed: int) -> PolicyProblem:
    """The tensors of T tasks with N rows on each side, in float64: query rows are those of the
    adapted policy, or products with the KL's Hessian would not be those with its Fisher matrix."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def sampled(params: Leaves) -> Any:
        x = normal(tasks, rows, WIDTHS[0])
        mean = il.predict(params, x, model=policy)
        log_std = params["log_std"].expand(tasks, WIDTHS[-1]).contiguous()
        action = mean + normal(*mean.shape) * torch.exp(log_std)[:, None]
        return il.PolicyBatch(x, action, normal(tasks, rows), mean, log_std)

    policy = model()
    params = policy.init(generator, torch.float64)
    support = sampled(params)
    inner = {"model": policy, "inner_lr": RATE, "steps": 1, "loss": "pg_loglik"}
    query = sampled(il.adapt(params, support, **inner))
    return PolicyProblem(params, support, query, {k: normal(*v.shape) for k, v in params.items()})


# ---------------------------------------------------------------- losses by definition


def means(params: Leaves, x: Tensor) -> Tensor:
    """Outputs [T, N, K] of the policy with parameters of every task."""
    layers, h = len(WIDTHS) - 1, x
    for layer in range(layers):
        weight = params[f"{layer}.weight"].transpose(1, 2)
        h = torch.baddbmm(params[f"{layer}.bias"].unsqueeze(1), h, weight)
        h = torch.tanh(h) if layer + 1 < layers else h
    return h


def ratios(params: Leaves, batch: Any) -> Tensor:
    """pi / pi_old of every row [T, N]."""
    s, old = params["log_std"].unsqueeze(1), batch.log_std.unsqueeze(1)
    z = (batch.action - means(params, batch.x)) * torch.exp(-s)
    z_old = (batch.action - batch.mean) * torch.exp(-old)
    return torch.exp((old - s + 0.5 * (z_old.square() - z.square())).sum(-1))


def ratio_losses(batch: Any) -> Losses:
    """-mean of rho A."""
    return lambda params: -(ratios(params, batch) * batch.advantage).mean(1)


def clipped_losses(batch: Any) -> Losses:
    """-mean of min(rho A, clip(rho) A)."""

    def losses(params: Leaves) -> Tensor:
        ratio = ratios(params, batch)
        kept = ratio.clamp(1 - CLIP, 1 + CLIP)
        return -torch.minimum(ratio * batch.advantage, kept * batch.advantage).mean(1)

    return losses


def loglik_losses(batch: Any) -> Losses:
    """-mean of A log pi, less a constant."""

    def losses(params: Leaves) -> Tensor:
        s = params["log_std"].unsqueeze(1)
        z = (batch.action - means(params, batch.x)) * torch.exp(-s)
        return (batch.advantage * (s + 0.5 * z.square()).sum(-1)).mean(1)

    return losses


def kl_losses(batch: Any) -> Losses:
    """Mean KL(recorded || policy)."""

    def losses(params: Leaves) -> Tensor:
        s = params["log_std"].unsqueeze(1)
        change = s - batch.log_std.unsqueeze(1)
        gap = (means(params, batch.x) - batch.mean) * torch.exp(-s)
        return (change + 0.5 * (torch.exp(-2 * change) + gap.square() - 1)).sum(-1).mean(1)

    return losses


# ---------------------------------------------------------------- derivatives by autograd


def gradient(losses: Losses, params: Leaves, *, create_graph: bool = False) -> Leaves:
    """The gradient of the sum over tasks: each task's own in parameters of every task."""
    total = losses(params).sum()
    found = torch.autograd.grad(total, list(params.values()), create_graph=create_graph)
    return dict(zip(params, found, strict=True))


def copies(params: Leaves, tasks: int) -> Leaves:
    """Parameters for every task, as leaves of a graph."""
    return {
        k: v.expand(tasks, *v.shape[-len(s) :]).clone().requires_grad_()
        for (k, v), s in zip(params.items(), model().shapes.values(), strict=True)
    }


def hessian_product(losses: Losses, params: Leaves, vector: Leaves) -> Leaves:
    """Each task's Hessian times a vector."""
    first = gradient(losses, params, create_graph=True)
    slope = torch.stack([(first[k] * vector[k]).sum() for k in params]).sum()
    return dict(zip(params, torch.autograd.grad(slope, list(params.values())), strict=True))


def fisher_product(batch: Any, params: Leaves, vector: Leaves) -> Leaves:
    """Each task's Fisher matrix times a vector: the Hessian of the KL to the policy itself."""
    with torch.no_grad():
        mean, log_std = means(params, batch.x), params["log_std"].clone()
    itself = batch._replace(mean=mean, log_std=log_std)
    return hessian_product(kl_losses(itself), params, vector)


def adapted(inner: Losses, params: Leaves, tasks: int) -> Leaves:
    """Parameters of every task after one inner step from shared ones, with their graph."""
    start = {k: v.expand(tasks, *v.shape) for k, v in params.items()}
    step = gradient(inner, start, create_graph=True)
    return {k: v - RATE * step[k] for k, v in start.items()}


def shared(params: Leaves) -> Leaves:
    """Shared parameters as leaves of a graph."""
    return {k: v.clone().requires_grad_() for k, v in params.items()}


def promp_gradient(problem: PolicyProblem) -> Leaves:
    """ProMP's gradient: the clipped objective after one step of the ratio's, with the KL before."""
    support, tasks = problem.support, len(problem.support.x)
    params = shared(problem.params)
    start = {k: v.expand(tasks, *v.shape) for k, v in params.items()}
    losses = clipped_losses(problem.query)(adapted(ratio_losses(support), params, tasks))
    total = (losses + KL_COEFFICIENT * kl_losses(support)(start)).mean()
    return dict(zip(params, torch.autograd.grad(total, list(params.values())), strict=True))


class ConstraintProducts:
    """Products with the Hessian of the mean KL after one inner step, in shared parameters. The
    graph of the gradient is made once; each product is one more backward pass."""

    def __init__(self, problem: PolicyProblem) -> None:
        self._params = shared(problem.params)
        inner, tasks = loglik_losses(problem.support), len(problem.support.x)
        moved = kl_losses(problem.query)(adapted(inner, self._params, tasks)).mean()
        leaves = list(self._params.values())
        self._gradient = torch.autograd.grad(moved, leaves, create_graph=True)

    def __call__(self, vector: Leaves) -> Leaves:
        """The Hessian times a vector."""
        pairs = zip(self._params, self._gradient, strict=True)
        slope = torch.stack([(g * vector[k]).sum() for k, g in pairs]).sum()
        found = torch.autograd.grad(slope, list(self._params.values()), retain_graph=True)
        return dict(zip(self._params, found, strict=True))


def surrogate_and_kl(problem: PolicyProblem, params: Leaves) -> tuple[Tensor, Tensor]:
    """TRPO-MAML's objective and constraint after one inner step."""
    moved = adapted(loglik_losses(problem.support), params, len(problem.support.x))
    query = problem.query
    return ratio_losses(query)(moved).mean(), kl_losses(query)(moved).mean()
