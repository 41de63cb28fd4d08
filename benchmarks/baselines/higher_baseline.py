"""facebookresearch/higher, as its README writes MAML: innerloop_ctx per task, then backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from baselines.torch_func_baseline import LOSSES
from cases.nine import Case, Problem

TITLE = "higher"
LIBRARY = False


def missing() -> str | None:
    """Why higher cannot run here, or None."""
    try:
        import higher  # noqa: F401
    except ImportError as error:
        return f"import failed: {error}"
    return None


def unfit(case: Case, device: str) -> str | None:
    """higher differentiates through optimiser steps, nothing else."""
    return "has no Hessian-vector product" if case.quantity == "hvp" else None


def settings(device: str) -> dict[str, dict[str, Any]]:
    """Eager execution has no settings."""
    return {"eager": {}}


def module_of(problem: Problem) -> nn.Sequential:
    """The case's network as torch modules, holding the problem's parameters."""
    case = problem.case
    layers: list[nn.Module] = []
    for layer in range(case.layers):
        weight = problem.params[f"{layer}.weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=case.bias, dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if case.bias:
                linear.bias.copy_(problem.params[f"{layer}.bias"])
        layers.append(linear)
        if layer < case.layers - 1:
            layers.append({"relu": nn.ReLU, "tanh": nn.Tanh}[case.activation]())
    return nn.Sequential(*layers)


def _build(problem: Problem) -> Callable[[], Any]:
    import higher

    case = problem.case
    module = module_of(problem)
    optimiser = torch.optim.SGD(module.parameters(), lr=case.inner_lr)
    (xs, ys), (xq, yq) = problem.support, problem.query
    loss_of = LOSSES[case.loss]

    def call() -> Any:
        module.zero_grad(set_to_none=True)
        losses = []
        for t in range(case.tasks):
            with higher.innerloop_ctx(module, optimiser, copy_initial_weights=False) as (net, opt):
                for _ in range(case.steps):
                    opt.step(loss_of(net(xs[t]), ys[t]))
                query_loss = loss_of(net(xq[t]), yq[t])
                losses.append(query_loss.detach())
                (query_loss / case.tasks).backward()
        return torch.stack(losses), [leaf.grad for leaf in module.parameters()]

    return call


def formulations(problem: Problem) -> dict[str, Any]:
    """One formulation."""
    return {"innerloop_ctx": lambda: _build(problem)}
