"""From the arguments of one operation to a checked call: what meta_grad, meta_loss and
mean_meta_loss share."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop import _checks
from innerloop._capacity import check_fits
from innerloop._dispatch import Model, Prepared, adapted_names, data_of, prepare, prepare_batch
from innerloop._memory import Known, recall, remember, signature, whole_side
from innerloop._params import (
    BatchLike,
    InnerLr,
    Params,
    SideTensors,
    flatten_rates,
    is_number,
    number_tensor,
)
from innerloop._plan import Options, Plan, find_plan, options_without_rates
from innerloop._storage import check_memory
from innerloop.models import MLP
from innerloop.objectives import Loss, resolve, suited


class Call(NamedTuple):
    """One checked meta-step. `plan` and `tensors` (those of the raw meta_grad) are for the fused
    back end; without a plan the `operations` of another take the sides and options."""

    names: tuple[str, ...]
    tasks: int
    plan: Plan | None
    tensors: tuple[Tensor | None, ...]
    support: SideTensors
    query: SideTensors
    options: dict[str, Any]
    backend: str = "fused"
    operations: Any = None


def meta_call(
    op: str,
    params: Params,
    support: BatchLike,
    query: BatchLike,
    *,
    model: Model,
    inner_lr: InnerLr,
    steps: int,
    loss: Loss,
    order: int,
    adapt_params: Sequence[str] | None,
    backend: str,
    task_weight: Tensor | None = None,
    stepwise: bool = False,
    allow_tf32: bool = False,
) -> Call:
    """Checks the arguments of one meta-step, unless the like of it was checked before, and chooses
    its back end."""
    objective = resolve(op, loss)
    options = (
        op,
        objective,
        steps,
        type(steps),
        order,
        adapt_params,
        stepwise,
        backend,
        allow_tf32,
    )
    key = signature(params, support, query, model, inner_lr, task_weight, options)
    known = recall(key)
    if known is not None:
        assert isinstance(model, MLP)
        support_side = whole_side(op, "support", model, support)
        query_side = whole_side(op, "query", model, query)
        leaves = [params[name] for name in model.names]
        rates = known.rates if known.rates is not None else inner_lr
        if type(rates) is float:  # as a tensor of this call's stream
            rates = number_tensor(rates, leaves[0].dtype, leaves[0].device)
        return Call(
            model.names,
            support_side[0].shape[0],
            known.plan,
            (rates, *support_side, *query_side, task_weight, *leaves),  # type: ignore[arg-type]
            support_side,
            query_side,
            {},
        )
    steps = _checks.check_options(op, steps, order, backend)
    order = operator.index(order)  # under torch.compile it may be a symbol
    _checks.check_flag(op, "stepwise", stepwise)
    _checks.check_flag(op, "allow_tf32", allow_tf32)
    support_parts = _checks.check_batch(op, "support", support)
    query_parts = _checks.check_batch(op, "query", query)
    objective = suited(objective, support_parts, query_parts)
    data = {**data_of("support", support_parts), **data_of("query", query_parts)}
    if op == "meta_grad":  # in the derivative of a weighted mean the weights are one themselves
        data["task_weight"] = task_weight
    ready = prepare(op, model, backend, params, support_parts[0].shape[0], data, objective)
    adapted = adapted_names(op, adapt_params, ready.leaves)
    _checks.check_inner_lr(op, inner_lr, ready.leaves, adapted, steps, ready.like)
    support_side = prepare_batch(op, "support", support_parts, objective, ready)
    query_side = prepare_batch(op, "query", query_parts, objective, ready)
    if task_weight is not None:
        _checks.check_task_weight(op, task_weight, ready.tasks, ready.like)
    check_room(op, ready, adapted, steps, support_side[0].shape[1], order=order)
    names = tuple([leaf.name for leaf in ready.leaves])
    if ready.mlp is None:
        check_memory(op, inner_lr=inner_lr, task_weight=task_weight)
        torch_options = {
            "model": model,
            "inner_lr": inner_lr,
            "steps": steps,
            "loss": objective,
            "order": order,
            "adapt_params": adapted,
        }
        sides = support_side, query_side
        return Call(
            *(names, ready.tasks, None, (), *sides, torch_options, ready.backend, ready.operations)
        )
    fixed = options_without_rates(objective.name, steps, order, stepwise, allow_tf32)
    plan, rates = fused_plan(op, ready, adapted, inner_lr, fixed)
    lasting = is_number(inner_lr) and rates.device.type != "cuda"
    remember(key, Known(plan, rates if lasting else None))
    tensors = (rates, *support_side, *query_side, task_weight, *ready.params)
    return Call(names, ready.tasks, plan, tensors, support_side, query_side, {})


def check_room(
    op: str,
    ready: Prepared,
    adapted: tuple[str, ...],
    steps: int,
    rows: int,
    *,
    order: int,
    stepwise: bool = False,
) -> None:
    """Refuses an inner loop whose steps leave more behind than memory can hold, by what they
    leave at least: losses, parameters if they are wanted of every step, and for the way back the
    activations of one task's rows (fused), or the parameters of every task (torch)."""
    if ready.like.device.type != "cpu" or torch.compiler.is_compiling():
        return  # the allocator of a GPU says what does not fit
    wanted = torch.is_grad_enabled() and any(p.requires_grad for p in ready.params)
    back = op == "meta_grad" or (op == "meta_loss" and wanted)
    numbers = ready.tasks if back or op == "adapt" else 1
    size = sum(leaf.size for leaf in ready.leaves if leaf.name in adapted)
    if stepwise or (ready.mlp is None and back and order == 2):
        numbers += ready.tasks * size
    elif ready.mlp is not None and back and adapted:
        numbers += 2 * rows * sum(layer.outputs for layer in ready.mlp.layers)
    check_fits(
        f"{op}: an inner loop of {steps} steps for {ready.tasks} tasks",
        ready.like.element_size() * numbers * steps,
        "take fewer steps or fewer tasks at a time",
    )


def fused_plan(
    op: str, ready: Prepared, adapted: tuple[str, ...], inner_lr: InnerLr, options: Options
) -> tuple[Plan, Tensor]:
    """Returns the plan of a fused call and its flat rates."""
    assert ready.mlp is not None
    if not is_number(inner_lr):
        check_memory(op, inner_lr=inner_lr)  # before torch puts rates in a row
    rates, form = flatten_rates(
        inner_lr, ready.leaves, options.steps, ready.like.dtype, ready.like.device
    )
    adapt = tuple([leaf.name in adapted for leaf in ready.leaves])
    full = dataclasses.replace(options, adapt=adapt, rates=form)
    return find_plan(ready.mlp, full), rates


def leaf_dict(ready: Prepared, flat: Tensor) -> dict[str, Tensor]:
    """Returns [T, ..., P] leaf by leaf as {name: [T, ..., *shape]}."""
    parts = flat.split([leaf.size for leaf in ready.leaves], dim=-1)
    front = flat.shape[:-1]
    return {
        leaf.name: part.reshape(*front, *leaf.shape)
        for leaf, part in zip(ready.leaves, parts, strict=True)
    }
