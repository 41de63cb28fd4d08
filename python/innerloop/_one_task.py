"""One task in plain PyTorch: network, loss, gradient and inner loop. `reference.py` maps them over
tasks. Depends on torch alone; read `unroll` first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from innerloop._stateless import call

if TYPE_CHECKING:
    from innerloop._params import InnerLr, Params
    from innerloop.models import MLP

    Model = MLP | nn.Module

Leaves = dict[str, Tensor]


class Side(NamedTuple):
    """The rows of one task: x [N, ...], y [N, ...], count [] or None, weight [N] or None."""

    x: Tensor
    y: Tensor
    count: Tensor | None = None  # type: ignore[assignment]
    weight: Tensor | None = None


# ---------------------------------------------------------------- network and loss


def activate(kind: str, z: Tensor, slope: float) -> Tensor:
    """Returns the activation of z."""
    if kind == "identity":
        return z
    if kind == "leaky_relu":
        return F.leaky_relu(z, slope)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "softplus": F.softplus,
        "silu": F.silu,
        "gelu": F.gelu,
    }
    return functions[kind](z)


def forward(model: Model, params: Params, x: Tensor) -> Tensor:
    """Returns one task's outputs: x [N, ...] -> [N, ...]."""
    if isinstance(model, nn.Module):
        output = call(model, params, x)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"predict: model must return one tensor (got {type(output).__name__}); "
                "wrap the module in one that returns its outputs alone"
            )
        return output
    h = x.flatten(1) if model.flattens else x  # [N, D]
    for layer in model.layers:
        bias = None if layer.bias is None else params[layer.bias]
        z = F.linear(h, params[layer.weight], bias)  # [N, out]
        h = activate(layer.activation, z, layer.slope)
    return h


def row_losses(loss: str, z: Tensor, y: Tensor) -> Tensor:
    """Returns the loss of each row [N]: the mean over outputs for all but cross_entropy."""
    if y.shape[0] == 0:
        return z.sum().expand(0)
    if loss == "cross_entropy":
        if z.ndim != 2 or y.ndim != 1:
            raise ValueError(
                "cross_entropy: model outputs must have shape [T, N, K] for y [T, N] "
                f"(got rows of shape {list(z.shape[1:])} for targets of shape {list(y.shape[1:])})"
            )
        return -F.log_softmax(z, dim=1).gather(1, y[:, None])[:, 0]
    outputs, targets = z.reshape(z.shape[0], -1), y.reshape(y.shape[0], -1)  # [N, K]
    if outputs.shape != targets.shape:
        raise ValueError(
            f"{loss}: y must have one value per output of the model "
            f"(got {targets.shape[1]} targets for {outputs.shape[1]} outputs)"
        )
    if loss == "mse":
        return (outputs - targets).square().mean(1)
    if loss == "half_mse":
        return 0.5 * (outputs - targets).square().mean(1)
    if loss == "huber":
        return F.huber_loss(outputs, targets, reduction="none", delta=1.0).mean(1)
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)


def task_loss(model: Model, loss: str, params: Params, side: Side) -> Tensor:
    """Returns sum_i w_i l_i over the rows in use. Other rows are replaced before the network sees
    them, so that whatever they hold (NaN as well) reaches neither the value nor a gradient."""
    x, y, count, weight = side
    rows = x.shape[0]
    if count is None and weight is None:
        return row_losses(loss, forward(model, params, x), y).sum() / max(rows, 1)
    used = torch.ones(rows, dtype=torch.bool, device=x.device)
    if count is not None:
        used = torch.arange(rows, device=x.device) < count
    if weight is not None:
        used = used & (weight != 0)
    x = torch.where(used.reshape(rows, *[1] * (x.ndim - 1)), x, 0)
    y = torch.where(used.reshape(rows, *[1] * (y.ndim - 1)), y, 0)
    losses = torch.where(used, row_losses(loss, forward(model, params, x), y), 0)
    if weight is not None:
        return (torch.where(used, weight, 0) * losses).sum()
    assert count is not None
    return losses.sum() / count.clamp(min=1)


# ---------------------------------------------------------------- gradients and steps


def value_and_grad(
    objective: Callable[[Leaves], Tensor], leaves: Leaves, looped: bool, create_graph: bool = True
) -> tuple[Tensor, Leaves]:
    """Returns a scalar and its gradient in `leaves`, differentiable again where asked."""
    if not leaves:
        return objective(leaves), {}
    if not looped:
        grad, value = torch.func.grad_and_value(objective)(leaves)
        return value, grad
    with torch.enable_grad():
        inputs = {
            k: v if v.requires_grad else v.detach().requires_grad_() for k, v in leaves.items()
        }
        value = objective(inputs)
        if not value.requires_grad:
            return value, {k: torch.zeros_like(v) for k, v in leaves.items()}
        grads = torch.autograd.grad(
            value, list(inputs.values()), create_graph=create_graph, allow_unused=True
        )
    return value, {
        k: torch.zeros_like(v) if g is None else g
        for (k, v), g in zip(leaves.items(), grads, strict=True)
    }


def _rate(inner_lr: InnerLr, name: str, shape: tuple[int, ...], step: int) -> float | Tensor:
    """Returns the rate of one leaf at one step: a number, or a tensor that broadcasts to the
    leaf."""
    per_leaf = isinstance(inner_lr, Mapping)
    value = inner_lr[name] if isinstance(inner_lr, Mapping) else inner_lr
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if per_leaf and tuple(value.shape) == shape:
        return value
    return value[step]


class Path(NamedTuple):
    """What an inner loop passed through: parameters after 0..S steps and support losses before each
    step."""

    params: list[Leaves]
    support_loss: list[Tensor]


def unroll(
    model: Model,
    loss: str,
    params: Params,
    support: Side,
    *,
    inner_lr: InnerLr,
    steps: int,
    adapted: Sequence[str],
    order: int,
    looped: bool,
) -> Path:
    """Runs the inner loop of one task: phi_{s+1} = phi_s - rate_s * grad support_loss(phi_s)."""
    phi = dict(params)
    path = Path([phi], [])
    for step in range(steps):
        fixed = {k: v for k, v in phi.items() if k not in adapted}

        def objective(leaves: Leaves, fixed: Leaves = fixed) -> Tensor:
            return task_loss(model, loss, {**fixed, **leaves}, support)

        value, grad = value_and_grad(
            objective, {k: phi[k] for k in adapted}, looped, create_graph=order == 2
        )
        phi = dict(phi)
        for k, g in grad.items():
            constant = g.detach() if order == 1 else g
            phi[k] = phi[k] - _rate(inner_lr, k, tuple(g.shape), step) * constant
        path.params.append(phi)
        path.support_loss.append(value)
    return path
