"""Every operation in plain PyTorch: the definition that the fused operations are tested against,
and the back end that takes any nn.Module. Depends on torch alone; read `_unroll` first.

A task's function is written for one task and mapped over tasks by torch.vmap; modules that vmap
cannot take run in a loop over tasks, with torch.autograd in place of torch.func.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from innerloop._tasks import over_tasks

if TYPE_CHECKING:
    from innerloop._params import BatchLike, InnerLr, Params
    from innerloop.models import MLP

    Model = MLP | nn.Module

Leaves = dict[str, Tensor]


class Side(NamedTuple):
    """The rows of one task: x [N, ...], y [N, ...], count [] or None, weight [N] or None."""

    x: Tensor
    y: Tensor
    count: Tensor | None = None  # type: ignore[assignment]
    weight: Tensor | None = None


# ---------------------------------------------------------------- one task: network and loss


def _activate(kind: str, z: Tensor, slope: float) -> Tensor:
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


def _forward(model: Model, params: Params, x: Tensor) -> Tensor:
    """Returns one task's outputs: x [N, ...] -> [N, ...]."""
    if isinstance(model, nn.Module):
        output = functional_call(model, dict(params), (x,))
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
        h = _activate(layer.activation, z, layer.slope)
    return h


def _row_losses(loss: str, z: Tensor, y: Tensor) -> Tensor:
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


def _task_loss(model: Model, loss: str, params: Params, side: Side) -> Tensor:
    """Returns sum_i w_i l_i over the rows in use. Other rows are replaced before the network sees
    them, so that whatever they hold (NaN as well) reaches neither the value nor a gradient."""
    x, y, count, weight = side
    rows = x.shape[0]
    if count is None and weight is None:
        return _row_losses(loss, _forward(model, params, x), y).sum() / max(rows, 1)
    used = torch.ones(rows, dtype=torch.bool, device=x.device)
    if count is not None:
        used = torch.arange(rows, device=x.device) < count
    if weight is not None:
        used = used & (weight != 0)
    x = torch.where(used.reshape(rows, *[1] * (x.ndim - 1)), x, 0)
    y = torch.where(used.reshape(rows, *[1] * (y.ndim - 1)), y, 0)
    losses = torch.where(used, _row_losses(loss, _forward(model, params, x), y), 0)
    if weight is not None:
        return (torch.where(used, weight, 0) * losses).sum()
    assert count is not None
    return losses.sum() / count.clamp(min=1)


# ---------------------------------------------------------------- one task: gradients and steps


def _value_and_grad(
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


class _Path(NamedTuple):
    """What an inner loop passed through: parameters after 0..S steps and support losses before each
    step."""

    params: list[Leaves]
    support_loss: list[Tensor]


def _unroll(
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
) -> _Path:
    """Runs the inner loop of one task: phi_{s+1} = phi_s - rate_s * grad support_loss(phi_s)."""
    phi = dict(params)
    path = _Path([phi], [])
    for step in range(steps):
        fixed = {k: v for k, v in phi.items() if k not in adapted}

        def objective(leaves: Leaves, fixed: Leaves = fixed) -> Tensor:
            return _task_loss(model, loss, {**fixed, **leaves}, support)

        value, grad = _value_and_grad(
            objective, {k: phi[k] for k in adapted}, looped, create_graph=order == 2
        )
        phi = dict(phi)
        for k, g in grad.items():
            constant = g.detach() if order == 1 else g
            phi[k] = phi[k] - _rate(inner_lr, k, tuple(g.shape), step) * constant
        path.params.append(phi)
        path.support_loss.append(value)
    return path


# ---------------------------------------------------------------- all tasks


def _axes(model: Model, params: Params) -> dict[str, int | None]:
    """Returns the task axis of each leaf: 0 for a per-task leaf, None for a shared one."""
    if isinstance(model, nn.Module):
        own = {k: v.ndim for k, v in model.named_parameters()}
    else:
        own = {k: len(shape) for k, shape in model.shapes.items()}
    return {k: 0 if v.ndim == own[k] + 1 else None for k, v in params.items()}


def _side(batch: BatchLike) -> tuple[Side, Side]:
    """Returns a batch of all tasks as a Side with leading task axes, and the Side of these axes."""
    side = Side(*batch)
    return side, Side(*(None if v is None else 0 for v in side))  # type: ignore[arg-type]


def _trainable(params: Params) -> list[str]:
    """Returns the names of the leaves that have gradients: integer leaves are constants."""
    return [k for k, v in params.items() if v.is_floating_point()]


def _adapted(params: Params, adapt_params: Sequence[str] | None) -> list[str]:
    """Returns the names of the leaves that the inner loop changes, in the order of `params`."""
    return [k for k in _trainable(params) if adapt_params is None or k in adapt_params]


def predict(params: Params, x: Tensor, *, model: Model) -> Tensor:
    """Returns the model's outputs [T, N, K] for x [T, N, ...]; see `functional.predict`."""

    def task(p: Leaves, rows: Tensor, looped: bool) -> Tensor:
        return _forward(model, p, rows)

    result: Tensor = over_tasks(model, task, (dict(params), x), (_axes(model, params), 0), len(x))
    return result


def loss_and_grad(
    params: Params, batch: BatchLike, *, model: Model, loss: str = "mse"
) -> tuple[Tensor, Leaves]:
    """Returns each task's loss [T] and its gradient {name: [T, ...]}; see
    `functional.loss_and_grad`."""
    side, side_axes = _side(batch)
    names = _trainable(params)

    def task(p: Leaves, rows: Side, looped: bool) -> tuple[Tensor, Leaves]:
        def objective(leaves: Leaves) -> Tensor:
            return _task_loss(model, loss, {**p, **leaves}, rows)

        return _value_and_grad(objective, {k: p[k] for k in names}, looped)

    trees, axes = (dict(params), side), (_axes(model, params), side_axes)
    result: tuple[Tensor, Leaves] = over_tasks(model, task, trees, axes, len(side.x))
    return result


def hvp(
    params: Params, batch: BatchLike, vector: Params, *, model: Model, loss: str = "mse"
) -> Leaves:
    """Returns each task's Hessian times `vector`, {name: [T, ...]}; see `functional.hvp`."""
    side, side_axes = _side(batch)
    names = _trainable(params)

    def task(p: Leaves, v: Leaves, rows: Side, looped: bool) -> Leaves:
        def objective(leaves: Leaves) -> Tensor:
            return _task_loss(model, loss, {**p, **leaves}, rows)

        def slope(leaves: Leaves) -> Tensor:
            grad = _value_and_grad(objective, leaves, looped)[1]
            return torch.stack([(grad[k] * v[k]).sum() for k in names]).sum()

        return _value_and_grad(slope, {k: p[k] for k in names}, looped)[1]

    trees = (dict(params), dict(vector), side)
    axes = (_axes(model, params), _axes(model, vector), side_axes)
    result: Leaves = over_tasks(model, task, trees, axes, len(side.x))
    return result


def adapt(
    params: Params,
    support: BatchLike,
    *,
    model: Model,
    inner_lr: InnerLr,
    steps: int,
    loss: str = "mse",
    adapt_params: Sequence[str] | None = None,
    stepwise: bool = False,
) -> Leaves:
    """Returns the parameters after the inner loop, {name: [T, ...]}; see `functional.adapt`."""
    side, side_axes = _side(support)
    adapted = _adapted(params, adapt_params)

    def task(p: Leaves, rows: Side, looped: bool) -> Leaves:
        path = _unroll(
            model,
            loss,
            p,
            rows,
            inner_lr=inner_lr,
            steps=steps,
            adapted=adapted,
            order=2,
            looped=looped,
        )
        if stepwise:
            return {k: torch.stack([phi[k] for phi in path.params]) for k in p}
        return {k: v.clone() for k, v in path.params[-1].items()}

    trees, axes = (dict(params), side), (_axes(model, params), side_axes)
    result: Leaves = over_tasks(model, task, trees, axes, len(side.x))
    return result


class TaskLosses(NamedTuple):
    """loss [T]; support_loss [T, S] before each step; query_loss [T, S + 1] after 0..S steps, or
    None."""

    loss: Tensor
    support_loss: Tensor
    query_loss: Tensor | None


def meta_losses(
    params: Params,
    support: BatchLike,
    query: BatchLike,
    *,
    model: Model,
    inner_lr: InnerLr,
    steps: int,
    loss: str = "mse",
    order: int = 2,
    adapt_params: Sequence[str] | None = None,
    stepwise: bool = False,
) -> TaskLosses:
    """Returns every loss of the inner loops, differentiable any number of times."""
    support_side, support_axes = _side(support)
    query_side, query_axes = _side(query)
    adapted = _adapted(params, adapt_params)

    def task(p: Leaves, s: Side, q: Side, looped: bool) -> tuple[Tensor, Tensor, Tensor]:
        path = _unroll(
            model,
            loss,
            p,
            s,
            inner_lr=inner_lr,
            steps=steps,
            adapted=adapted,
            order=order,
            looped=looped,
        )
        visited = path.params if stepwise else path.params[-1:]
        query_loss = torch.stack([_task_loss(model, loss, phi, q) for phi in visited])
        before = torch.stack(path.support_loss) if steps else query_loss[:0]
        return query_loss[-1], before, query_loss

    trees = (dict(params), support_side, query_side)
    axes = (_axes(model, params), support_axes, query_axes)
    final, before, after = over_tasks(model, task, trees, axes, len(support_side.x))
    return TaskLosses(final, before, after if stepwise else None)


def meta_loss(
    params: Params, support: BatchLike, query: BatchLike, *, model: Model, **options: Any
) -> Tensor:
    """Returns each task's query loss after adaptation [T]; see `functional.meta_loss`."""
    return meta_losses(params, support, query, model=model, **options).loss


class ReferenceMetaGrad(NamedTuple):
    """The members of `functional.MetaGrad` that hold results."""

    loss: Tensor
    grad: Leaves
    inner_lr_grad: Tensor | Leaves
    support_loss: Tensor
    query_loss: Tensor | None


def _outer_grad(
    objective: Callable[[dict[Any, Tensor]], tuple[Tensor, tuple[Tensor, ...]]],
    variables: dict[Any, Tensor],
) -> tuple[dict[Any, Tensor], tuple[Tensor, ...]]:
    """Returns the gradient of a scalar and what comes with it. By autograd where that is possible:
    modules that run task by task may hold functions that torch.func refuses."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        grads, rest = torch.func.grad(objective, has_aux=True)(variables)
        return grads, rest
    with torch.enable_grad():
        inputs = {k: v.detach().requires_grad_() for k, v in variables.items()}
        value, rest = objective(inputs)
        found = torch.autograd.grad(value, list(inputs.values()), allow_unused=True)
    return {
        k: torch.zeros_like(v) if g is None else g
        for (k, v), g in zip(inputs.items(), found, strict=True)
    }, tuple(v.detach() for v in rest)


def meta_grad(
    params: Params,
    support: BatchLike,
    query: BatchLike,
    *,
    model: Model,
    inner_lr: InnerLr,
    steps: int,
    task_weight: Tensor | None = None,
    **options: Any,
) -> ReferenceMetaGrad:
    """Returns the gradient of sum_t task_weight_t loss_t (weights 1/T if None); see
    `functional.meta_grad`."""
    probe = next(v for v in params.values() if v.is_floating_point())

    def rate_leaf(value: float | Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=probe.dtype, device=probe.device)

    whole = not isinstance(inner_lr, Mapping)
    rates = dict(inner_lr) if isinstance(inner_lr, Mapping) else {"": inner_lr}
    names = _trainable(params)
    variables = {
        **{("params", k): params[k] for k in names},
        **{("inner_lr", k): rate_leaf(v) for k, v in rates.items()},
    }

    def objective(leaves: dict[tuple[str, str], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        changed = {k: leaves["params", k] for k in names}
        inner = {k: leaves["inner_lr", k] for k in rates}
        losses = meta_losses(
            {**params, **changed},
            support,
            query,
            model=model,
            inner_lr=inner[""] if whole else inner,
            steps=steps,
            **options,
        )
        present = tuple(v for v in losses if v is not None)
        if task_weight is None:
            return losses.loss.sum() / max(len(losses.loss), 1), present
        return (task_weight * losses.loss).sum(), present

    grads, (loss, support_loss, *query_loss) = _outer_grad(objective, variables)
    rate_grad = {k: grads["inner_lr", k] for k in rates}
    return ReferenceMetaGrad(
        loss,
        {k: grads["params", k] for k in names},
        rate_grad[""] if whole else rate_grad,
        support_loss,
        query_loss[0] if query_loss else None,
    )
