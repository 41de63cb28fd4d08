"""Policy objectives for per-task leaves, as plain differentiable torch: what `objectives.py` takes
derivatives of."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from innerloop import _one_task
from innerloop.policies import LOG_STD, GaussianMLP, PolicyBatch
from innerloop.rl import _checks
from innerloop.rl._policy_checks import check_params

Params = Mapping[str, Tensor]
Leaves = dict[str, Tensor]

# ---------------------------------------------------------------- rows


def clean_rows(batch: PolicyBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (x, used, weight): observations with unused rows replaced, which rows are used
    [T, N], and the weight of each [T, N]."""
    x = batch.x
    tasks, rows = x.shape[:2]
    used = torch.ones(tasks, rows, dtype=torch.bool, device=x.device)
    weight = batch.weight
    if batch.count is not None:
        used = torch.arange(rows, device=x.device) < batch.count[:, None]
    if weight is None:
        weight = used.to(x.dtype) / used.sum(1, keepdim=True).clamp(min=1)
    used = used & (weight != 0)
    weight = torch.where(used, weight, 0)
    return torch.where(used[..., None], x, 0), used, weight


def task_losses(
    leaves: Leaves, batch: PolicyBatch, model: GaussianMLP, loss: str, clip: float
) -> Tensor:
    """Returns each task's objective [T] for per-task leaves."""
    x, used, weight = clean_rows(batch)
    advantage = torch.where(used, batch.advantage, 0)
    if loss != "kl":  # 0 times an overflowing ratio is 0
        used = used & (advantage != 0)
    chosen = used[..., None]
    action = torch.where(chosen, batch.action, 0)
    recorded = torch.where(chosen, batch.mean, 0)
    mean = means(leaves, x, model)  # [T, N, k]
    s = floored(leaves, model)[:, None]  # [T, 1, k]
    old = batch.log_std.expand(len(x), -1)[:, None]
    if loss == "kl":
        gap = (mean - recorded) * torch.exp(-s)
        rows = (s - old + 0.5 * (torch.exp(2 * (old - s)) + gap.square() - 1)).sum(2)
        return (weight * torch.where(used, rows, 0)).sum(1)
    z = (action - mean) * torch.exp(-s)
    if loss == "pg_loglik":
        rows = -(s + 0.5 * z.square()).sum(2) - 0.5 * model.outputs * math.log(2 * math.pi)
        return -(weight * advantage * torch.where(used, rows, 0)).sum(1)
    z_old = (action - recorded) * torch.exp(-old)
    log_ratio = (old - s + 0.5 * (z_old.square() - z.square())).sum(2)  # [T, N]
    log_ratio = torch.where(used, log_ratio, 0)
    if loss == "pg_ratio":
        return -(weight * advantage * torch.exp(log_ratio)).sum(1)
    ratio = torch.exp(log_ratio.detach())
    above = (advantage > 0) & (ratio > 1 + clip)
    below = (advantage < 0) & (ratio < 1 - clip)
    # a clipped row is a constant; its ratio may be infinite and must not meet a gradient of 0
    live = torch.exp(torch.where(above | below, 0, log_ratio))
    value = torch.where(above, 1 + clip, torch.where(below, 1 - clip, live))
    return -(weight * advantage * value).sum(1)


def means(leaves: Params, x: Tensor, model: GaussianMLP) -> Tensor:
    """Returns the means [T, N, k] for per-task leaves."""
    h = x
    for layer in model.network.layers:
        assert layer.bias is not None
        z = torch.baddbmm(leaves[layer.bias][:, None], h, leaves[layer.weight].mT)
        h = _one_task.activate(layer.activation, z, layer.slope)
    return h


def floored(params: Params, model: GaussianMLP) -> Tensor:
    """Returns s [..., k]; its gradient is 0 below the floor."""
    return params[LOG_STD].clamp(min=model.min_log_std)


# ---------------------------------------------------------------- leaves


def per_task(params: Params, model: GaussianMLP, tasks: int) -> Leaves:
    """Returns every leaf as [T, ...], shared ones as views."""
    return {
        name: params[name].expand(tasks, *shape)
        if params[name].ndim == len(shape)
        else params[name]
        for name, shape in model.shapes.items()
    }


def constants(leaves: Params) -> Leaves:
    """Returns the same values as leaves of a new graph."""
    return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}


def gradient(value: Tensor, leaves: Leaves, create_graph: bool = False) -> Leaves:
    """Returns the gradient of a scalar; zeros where it does not depend on a leaf."""
    found = torch.autograd.grad(
        value, list(leaves.values()), create_graph=create_graph, allow_unused=True
    )
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def stepped(
    leaves: Leaves,
    batch: PolicyBatch,
    model: GaussianMLP,
    inner_lr: float,
    loss: str,
    clip: float,
    order: int,
) -> Leaves:
    """Returns per-task leaves after one gradient step, differentiably if order is 2."""
    with torch.enable_grad():
        value = task_losses(leaves, batch, model, loss, clip).sum()
        grad = gradient(value, leaves, create_graph=order == 2)
    return {name: leaf - inner_lr * grad[name] for name, leaf in leaves.items()}


def check_batch(op: str, params: Params, batch: PolicyBatch, model: GaussianMLP) -> None:
    """Raises if rows do not fit the policy or the parameters; reads shapes only."""
    if not isinstance(batch, PolicyBatch):
        _checks.refuse_type(op, "batch", "be an innerloop.PolicyBatch", type(batch).__name__)
    if batch.x.ndim != 3:
        _checks.refuse(op, "batch.x", f"have shape [T, N, {model.inputs}]", list(batch.x.shape))
    tasks, rows = batch.x.shape[:2]
    check_params(op, params, model, tasks)
    k = model.outputs
    for name, shape in (
        ("x", (tasks, rows, model.inputs)),
        ("action", (tasks, rows, k)),
        ("advantage", (tasks, rows)),
        ("mean", (tasks, rows, k)),
        ("log_std", (tasks, k)),
        ("count", (tasks,)),
        ("weight", (tasks, rows)),
    ):
        value = getattr(batch, name)
        if value is None:
            continue
        if tuple(value.shape) != shape and not (name == "log_std" and tuple(value.shape) == (k,)):
            _checks.refuse(op, f"batch.{name}", f"have shape {list(shape)}", list(value.shape))
        wanted = torch.int64 if name == "count" else params[LOG_STD].dtype
        if value.dtype != wanted:
            _checks.refuse_type(op, f"batch.{name}", f"be {wanted}", value.dtype)
