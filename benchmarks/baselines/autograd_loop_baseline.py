"""The textbook loop: one task after another, autograd.grad(create_graph=True), then backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from baselines.torch_func_baseline import LOSSES, forward
from cases.nine import Case, Problem

TITLE = "autograd loop over tasks"
LIBRARY = False
MOST_TASKS_ON_CUDA = 1024  # some seconds per call


def missing() -> str | None:
    """torch is always there."""
    return None


def unfit(case: Case, device: str) -> str | None:
    """Autograd covers every case, but a loop that mostly launches is not waited for."""
    if device == "cuda" and case.tasks > MOST_TASKS_ON_CUDA:
        return f"one task after another: taken up to {MOST_TASKS_ON_CUDA} tasks"
    return None


def settings(device: str) -> dict[str, dict[str, Any]]:
    """Eager execution has no settings."""
    return {"eager": {}}


def _meta_gradient(problem: Problem) -> Callable[[], Any]:
    case = problem.case
    names = list(case.shapes())
    leaves = {name: problem.params[name].clone().requires_grad_() for name in names}
    (xs, ys), (xq, yq) = problem.support, problem.query
    loss_of = LOSSES[case.loss]

    def call() -> Any:
        for leaf in leaves.values():
            leaf.grad = None
        losses = []
        for t in range(case.tasks):
            fast: dict[str, Tensor] = leaves
            for _ in range(case.steps):
                loss = loss_of(forward(case, fast, xs[t]), ys[t])
                gradient = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
                fast = {
                    name: leaf - case.inner_lr * g
                    for (name, leaf), g in zip(fast.items(), gradient, strict=True)
                }
            query_loss = loss_of(forward(case, fast, xq[t]), yq[t])
            (query_loss / case.tasks).backward()
            losses.append(query_loss.detach())
        return torch.stack(losses), [leaves[name].grad for name in names]

    return call


def _hessian_products(problem: Problem) -> Callable[[], Any]:
    case = problem.case
    names = list(case.shapes())
    x, y = problem.support
    vector = problem.vector
    assert vector is not None

    def call() -> Any:
        products = []
        for t in range(case.tasks):
            leaves = {name: problem.params[name][t].requires_grad_() for name in names}
            loss = LOSSES[case.loss](forward(case, leaves, x[t]), y[t])
            gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
            products.append(
                torch.autograd.grad(
                    gradient, list(leaves.values()), [vector[name][t] for name in names]
                )
            )
        return None, [torch.stack(rows) for rows in zip(*products, strict=True)]

    return call


def formulations(problem: Problem) -> dict[str, Any]:
    """One formulation."""
    build = _hessian_products if problem.case.quantity == "hvp" else _meta_gradient
    return {"loop": lambda: build(problem)}
