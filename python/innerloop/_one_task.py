"""One task in plain PyTorch: network, loss, gradient and inner loop. `reference.py` maps them over
tasks; `objectives/` says what a loss is. Depends on torch alone; read `unroll` first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from innerloop._derivatives import forward_mode
from innerloop._inner_step import at_step
from innerloop._params import Side
from innerloop._solver import Solver
from innerloop._stateless import call
from innerloop.objectives import Objective, check_shapes, task_value
from innerloop.objectives.policy import LOG_STD

if TYPE_CHECKING:
    from innerloop._chain import Layer
    from innerloop._params import InnerLr, Params
    from innerloop.models import MLP

    Model = MLP | nn.Module

Leaves = dict[str, Tensor]


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


def forward(
    model: Model,
    params: Params,
    x: Tensor,
    *,
    selects: bool = False,
    then: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Returns one task's outputs: x [N, ...] -> [N, ...]; or what `then` makes of them, while a
    module is as its forward pass left it. `selects`: some rows are left out."""
    if isinstance(model, nn.Module):

        def checked(output: object) -> Tensor:
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"predict: model must return one tensor (got {type(output).__name__}); "
                    "wrap the module in one that returns its outputs alone"
                )
            return output if then is None else then(output)

        result: Tensor = call(model, params, x, selects=selects, then=checked)
        return result
    h = x.flatten(1) if model.flattens else x  # [N, D]
    for layer in model.layers:
        weight = None if layer.weight is None else params[layer.weight]
        bias = None if layer.bias is None else params[layer.bias]
        h = activate(layer.activation, _linear_part(layer, h, weight, bias), layer.slope)
    return h if then is None else then(h)


def _linear_part(layer: Layer, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Returns what the activation of a layer is taken of [N, out]."""
    if layer.kind == "linear":
        assert weight is not None
        return F.linear(h, weight, bias)
    # torch's batching rule of the derivative is wrong with weight and bias
    z = F.layer_norm(h, (layer.inputs,), eps=layer.eps)
    z = z if weight is None else z * weight
    return z if bias is None else z + bias


def task_loss(model: Model, objective: Objective, params: Params, side: Side) -> Tensor:
    """Returns sum_i w_i l_i over the rows in use. Other rows are replaced before the network sees
    them, so that whatever they hold (NaN as well) reaches neither the value nor a gradient. For a
    callable there are no others: `_ragged.py` has taken them out."""
    x, y, count, weight = side
    rows = x.shape[0]
    if rows == 0:  # no network need take that
        nothing = [v.reshape(-1)[:0].sum() for v in params.values() if v.is_floating_point()]
        return torch.stack(nothing).sum()
    used: Tensor | None = None
    if count is not None:
        used = torch.arange(rows, device=x.device) < count
    if weight is not None and objective.rows is not None:
        used = weight != 0 if used is None else used & (weight != 0)
    if used is not None:  # by one that is in use, which is nothing new to a module
        row = x.index_select(0, used.to(torch.int32).argmax(0, keepdim=True))
        row = torch.where(used.any(), row, torch.nan_to_num(x[:1]))
        x = torch.where(used.reshape(rows, *[1] * (x.ndim - 1)), x, row)

    def of_callable(z: Tensor) -> Tensor:  # within the pass: it may look at the module
        check_shapes(objective, z, y)
        return task_value(objective, z, y, weight)

    if objective.rows is None:
        return forward(model, params, x, selects=used is not None, then=of_callable)
    z = forward(model, params, x, selects=used is not None)
    check_shapes(objective, z, y)
    if objective.ignored is not None:
        kept = y != objective.ignored
        used = kept if used is None else used & kept
    outputs = (z, y, params[LOG_STD]) if objective.is_policy else (z, y)
    if used is None and not objective.class_weights:
        return objective.rows(*outputs).sum() / rows
    if used is None:
        used = torch.ones(rows, dtype=torch.bool, device=x.device)
    y = torch.where(used.reshape(rows, *[1] * (y.ndim - 1)), y, 0)
    losses = torch.where(used, objective.rows(z, y, *outputs[2:]), 0)
    if weight is not None:
        return (torch.where(used, weight, 0) * losses).sum()
    return losses.sum() / objective.divisor(used, y, z.dtype)


# ---------------------------------------------------------------- gradients and steps


def _tracked(value: Tensor) -> Tensor:
    """Returns the same numbers as autograd records them, with the tangent that they may have."""
    primal, tangent = forward_ad.unpack_dual(value) if forward_mode() else (value, None)
    leaf = primal.detach().requires_grad_()
    return leaf if tangent is None else forward_ad.make_dual(leaf, tangent)


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
        inputs = {k: v if v.requires_grad else _tracked(v) for k, v in leaves.items()}
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


def rate_of(inner_lr: InnerLr, name: str, shape: tuple[int, ...], step: int) -> float | Tensor:
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
    objective: Objective,
    params: Params,
    support: Side,
    *,
    inner_lr: InnerLr,
    steps: int,
    adapted: Sequence[str],
    solver: Solver,
    order: int,
    looped: bool,
) -> Path:
    """Runs the inner loop of one task, by the recursion of `Solver`, where g_s is the gradient of
    the support loss at phi_s; at order 1 g_s is a constant."""
    phi = dict(params)
    velocity: Leaves = {}
    path = Path([phi], [])
    for step in range(steps):
        fixed = {k: v for k, v in phi.items() if k not in adapted}

        def support_loss(leaves: Leaves, fixed: Leaves = fixed) -> Tensor:
            return task_loss(model, objective, {**fixed, **leaves}, support)

        with at_step(step):
            value, grad = value_and_grad(
                support_loss, {k: phi[k] for k in adapted}, looped, create_graph=order == 2
            )
        phi = dict(phi)
        for k, g in grad.items():
            change = g.detach() if order == 1 else g
            if solver.decay:
                change = change + solver.decay * phi[k]
            if solver.has_velocity:
                v = change if step == 0 else solver.momentum * velocity[k] + change
                velocity[k] = v
                share = solver.gradient_share
                change = solver.velocity_share * v + (share * change if share else 0)
            phi[k] = phi[k] - rate_of(inner_lr, k, tuple(g.shape), step) * change
        path.params.append(phi)
        path.support_loss.append(value)
    return path
