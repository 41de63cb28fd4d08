"""Every operation in plain PyTorch: the definition that the fused operations are tested against,
and the back end that takes any nn.Module. Depends on torch alone; read `_one_task.py` first.

A task's function is written for one task and mapped over tasks by torch.vmap; modules that vmap
cannot take run in a loop over tasks, with torch.autograd in place of torch.func.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from innerloop._checks.solver import settle_rates
from innerloop._inner_step import at_step, last_step
from innerloop._one_task import Leaves, forward, task_loss, unroll, value_and_grad
from innerloop._params import Side, leaf_shapes
from innerloop._ragged import over_ragged_tasks
from innerloop._solver import GRADIENT_DESCENT, Solver
from innerloop._tasks import over_tasks
from innerloop.objectives import Loss, Objective, resolve, suited
from innerloop.objectives.policy import LOG_STD

if TYPE_CHECKING:
    from innerloop._one_task import Model
    from innerloop._params import BatchLike, InnerLr, Params


def _shapes(model: Model) -> Mapping[str, tuple[int, ...]]:
    """Returns the shape of each leaf of one task."""
    if isinstance(model, nn.Module):
        return {k: tuple(v.shape) for k, v in model.named_parameters()}
    return model.shapes


def _axes(model: Model, params: Params) -> dict[str, int | None]:
    """Returns the task axis of each leaf: 0 for a per-task leaf, None for a shared one."""
    own = _shapes(model)
    return {k: 0 if v.ndim == len(own[k]) + 1 else None for k, v in params.items()}


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
        return forward(model, p, rows)

    trees, axes = (dict(params), x), (_axes(model, params), 0)
    result: Tensor = over_tasks(model, None, task, trees, axes, len(x))
    return result


def loss_and_grad(
    params: Params, batch: BatchLike, *, model: Model, loss: Loss = "mse"
) -> tuple[Tensor, Leaves]:
    """Returns each task's loss [T] and its gradient {name: [T, ...]}; see
    `functional.loss_and_grad`."""
    wanted = suited(resolve("reference", loss), batch)
    side, side_axes = _side(batch)
    names = _trainable(params)

    def task(p: Leaves, rows: Side, looped: bool) -> tuple[Tensor, Leaves]:
        def objective(leaves: Leaves) -> Tensor:
            return task_loss(model, wanted, {**p, **leaves}, rows)

        return value_and_grad(objective, {k: p[k] for k in names}, looped)

    trees, axes = (dict(params), side), (_axes(model, params), side_axes)
    result: tuple[Tensor, Leaves] = over_ragged_tasks(model, wanted, task, trees, axes, len(side.x))
    return result


def hvp(
    params: Params,
    batch: BatchLike,
    vector: Params,
    *,
    model: Model,
    loss: Loss = "mse",
) -> Leaves:
    """Returns each task's Hessian times `vector`, {name: [T, ...]}; see `functional.hvp`."""
    wanted = suited(resolve("reference", loss), batch)

    def as_given(p: Leaves, rows: Side) -> Side:
        return rows

    return _products(params, batch, vector, model, wanted, as_given)


def fisher_product(
    params: Params, batch: BatchLike, vector: Params, *, model: Model, loss: Loss
) -> Leaves:
    """Returns each task's Hessian of the KL to the policy at `params`, times `vector`; see
    `policy_products.fisher_product`. `loss` is the policy objective "kl"."""
    wanted = resolve("reference", loss)

    def of_itself(p: Leaves, rows: Side) -> Side:
        mean = forward(model, p, rows.x)
        log_std = p[LOG_STD].clamp(min=wanted.constants[1]).expand(mean.shape)
        return rows._replace(y=torch.cat((mean, mean, log_std, mean[:, :1]), 1))

    return _products(params, batch, vector, model, wanted, of_itself)


def _products(
    params: Params,
    batch: BatchLike,
    vector: Params,
    model: Model,
    wanted: Objective,
    rows_at: Callable[[Leaves, Side], Side],
) -> Leaves:
    """Returns each task's Hessian times `vector` on the rows that `rows_at` makes of its own at
    these parameters, as constants."""
    side, side_axes = _side(batch)
    names = _trainable(params)

    def task(p: Leaves, v: Leaves, given: Side, looped: bool) -> Leaves:
        rows = rows_at(p, given)

        def objective(leaves: Leaves) -> Tensor:
            return task_loss(model, wanted, {**p, **leaves}, rows)

        def slope(leaves: Leaves) -> Tensor:
            grad = value_and_grad(objective, leaves, looped)[1]
            return torch.stack([(grad[k] * v[k]).sum() for k in names]).sum()

        return value_and_grad(slope, {k: p[k] for k in names}, looped)[1]

    trees = (dict(params), dict(vector), side)
    axes = (_axes(model, params), _axes(model, vector), side_axes)
    result: Leaves = over_ragged_tasks(model, wanted, task, trees, axes, len(side.x))
    return result


def adapt(
    params: Params,
    support: BatchLike,
    *,
    model: Model,
    inner_lr: InnerLr,
    steps: int,
    loss: Loss = "mse",
    solver: Solver = GRADIENT_DESCENT,
    adapt_params: Sequence[str] | None = None,
    stepwise: bool = False,
) -> Leaves:
    """Returns the parameters after the inner loop, {name: [T, ...]}; see `functional.adapt`."""
    wanted = suited(resolve("reference", loss), support)
    side, side_axes = _side(support)
    adapted = _adapted(params, adapt_params)
    inner_lr = settle_rates(inner_lr, leaf_shapes(_shapes(model)), steps)

    def task(p: Leaves, rows: Side, looped: bool) -> Leaves:
        path = unroll(
            model,
            wanted,
            p,
            rows,
            inner_lr=inner_lr,
            steps=steps,
            adapted=adapted,
            solver=solver,
            order=2,
            looped=looped,
        )
        if stepwise:
            return {k: torch.stack([phi[k] for phi in path.params]) for k in p}
        return {k: v.clone() for k, v in path.params[-1].items()}

    trees, axes = (dict(params), side), (_axes(model, params), side_axes)
    result: Leaves = over_ragged_tasks(model, wanted, task, trees, axes, len(side.x))
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
    loss: Loss = "mse",
    query_loss: Loss | None = None,
    solver: Solver = GRADIENT_DESCENT,
    order: int = 2,
    adapt_params: Sequence[str] | None = None,
    stepwise: bool = False,
) -> TaskLosses:
    """Returns every loss of the inner loops, differentiable any number of times."""
    if query_loss is None:
        wanted = outer = suited(resolve("reference", loss), support, query)
    else:
        wanted = suited(resolve("reference", loss), support)
        outer = suited(resolve("reference", query_loss, "query_loss"), query)
    support_side, support_axes = _side(support)
    query_side, query_axes = _side(query)
    adapted = _adapted(params, adapt_params)
    inner_lr = settle_rates(inner_lr, leaf_shapes(_shapes(model)), steps)

    def task(p: Leaves, s: Side, q: Side, looped: bool) -> tuple[Tensor, Tensor, Tensor]:
        path = unroll(
            model,
            wanted,
            p,
            s,
            inner_lr=inner_lr,
            steps=steps,
            adapted=adapted,
            solver=solver,
            order=order,
            looped=looped,
        )
        values = []
        for updates in range(steps + 1) if stepwise else [steps]:
            with at_step(last_step(updates)):
                values.append(task_loss(model, outer, path.params[updates], q))
        after = torch.stack(values)
        before = torch.stack(path.support_loss) if steps else after[:0]
        return after[-1], before, after

    trees = (dict(params), support_side, query_side)
    axes = (_axes(model, params), support_axes, query_axes)
    foreign = wanted if wanted.rows is None else outer
    final, before, after = over_ragged_tasks(model, foreign, task, trees, axes, len(support_side.x))
    return TaskLosses(final, before, after if stepwise else None)


def meta_loss(
    params: Params, support: BatchLike, query: BatchLike, *, model: Model, **options: Any
) -> Tensor:
    """Returns each task's query loss after adaptation [T]; see `functional.meta_loss`."""
    return meta_losses(params, support, query, model=model, **options).loss


def mean_meta_loss(
    params: Params,
    support: BatchLike,
    query: BatchLike,
    *,
    model: Model,
    task_weight: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Returns sum_t task_weight_t loss_t (1/T if None); see `functional.mean_meta_loss`."""
    losses = meta_loss(params, support, query, model=model, **options)
    if task_weight is None:
        return losses.sum() / max(len(losses), 1)
    return (task_weight * losses).sum()


class ReferenceMetaGrad(NamedTuple):
    """The members of `functional.MetaGrad` that hold results."""

    loss: Tensor
    grad: Leaves
    inner_lr_grad: Tensor | Leaves
    support_loss: Tensor
    query_loss: Tensor | None


def _recordable(value: Tensor) -> Tensor:
    """Returns a tensor that autograd records, of one that may come from inference_mode."""
    return value.clone() if value.is_inference() else value


def _outer_grad(
    objective: Callable[[dict[Any, Tensor]], tuple[Tensor, tuple[Tensor, ...]]],
    variables: dict[Any, Tensor],
) -> tuple[dict[Any, Tensor], tuple[Tensor, ...]]:
    """Returns the gradient of a scalar and what comes with it. By autograd where that is possible:
    modules that run task by task may hold functions that torch.func refuses."""
    in_forward_mode = forward_ad._current_level >= 0
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or in_forward_mode
    ):
        grads, rest = torch.func.grad(objective, has_aux=True)(variables)
        return grads, rest
    with torch.enable_grad():
        inputs = {k: _recordable(v).detach().requires_grad_() for k, v in variables.items()}
        value, rest = objective(inputs)
        found: Sequence[Tensor | None] = [None] * len(inputs)
        if value.requires_grad:
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
        return (_recordable(task_weight) * losses.loss).sum(), present

    grads, (loss, support_loss, *query_loss) = _outer_grad(objective, variables)
    rate_grad = {k: grads["inner_lr", k] for k in rates}
    return ReferenceMetaGrad(
        loss,
        {k: grads["params", k] for k in names},
        rate_grad[""] if whole else rate_grad,
        support_loss,
        query_loss[0] if query_loss else None,
    )
