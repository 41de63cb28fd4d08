"""From the arguments of one operation to a checked call: what meta_grad, meta_loss and
mean_meta_loss share."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop._arguments import Arguments
from innerloop._capacity import check_fits
from innerloop._checks.options import check_flag
from innerloop._checks.rows import check_batch, check_task_weight
from innerloop._checks.solver import check_inner_lr, check_options, settle_rates
from innerloop._choice import Model
from innerloop._memory import Known, recall, remember, signature, whole_side
from innerloop._params import (
    BatchLike,
    InnerLr,
    Params,
    flatten_rates,
    is_number,
    number_tensor,
)
from innerloop._plan import Execution, InnerLoop, Options, Plan, find_plan
from innerloop._policy_rows import policy_rows
from innerloop._preparation import Prepared, adapted_names, data_of, prepare, prepare_batch
from innerloop._solver import Solver
from innerloop._storage import check_memory
from innerloop.models import MLP
from innerloop.objectives import Loss, resolve, suited
from innerloop.objectives.policy import CLIP


class Call(NamedTuple):
    """One checked meta-step. `plan` is for the fused back end; without one the `operations` of
    another take the sides and options. `is_direct`: nothing stands between it and the kernel.
    `inner_lr`: the rates, settled."""

    names: tuple[str, ...]
    plan: Plan | None
    arguments: Arguments
    is_direct: bool = False
    options: Mapping[str, Any] = {}
    backend: str = "fused"
    operations: Any = None
    inner_lr: InnerLr = 0.0


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
    query_loss: Loss | None,
    solver: Solver,
    order: int,
    adapt_params: Sequence[str] | None,
    backend: str,
    task_weight: Tensor | None = None,
    stepwise: bool = False,
    allow_tf32: bool = False,
    clip: float = CLIP,
) -> Call:
    """Checks the arguments of one meta-step, unless the like of it was checked before, and chooses
    its back end."""
    if type(loss) is not str:
        loss = resolve(op, loss)
    if not (query_loss is None or type(query_loss) is str):
        query_loss = resolve(op, query_loss, "query_loss")
    options = (
        op,
        loss,
        query_loss,
        solver.text,
        steps,
        type(steps),
        order,
        adapt_params,
        stepwise,
        backend,
        allow_tf32,
        clip,
        type(clip),
    )
    key = None
    if adapt_params is None or type(adapt_params) is tuple:
        key = signature(params, support, query, model, inner_lr, task_weight, options)
    known = recall(key)
    if known is not None:
        assert isinstance(model, MLP)
        support_side = whole_side(op, "support", model, support)
        query_side = whole_side(op, "query", model, query)
        leaves = [params[name] for name in model.names]
        rates: Any = known.rates
        if rates is None:
            rates = inner_lr
            if type(rates) is float:  # as a tensor of this call's stream
                rates = number_tensor(rates, leaves[0].dtype, leaves[0].device)
        given = Arguments(leaves, rates, support_side, query_side, task_weight)
        return Call(model.names, known.plan, given, is_direct=True)
    objective = resolve(op, loss)
    outer = objective if query_loss is None else resolve(op, query_loss, "query_loss")
    support, objective = policy_rows(op, "support", support, model, objective, clip)
    query, outer = policy_rows(op, "query", query, model, outer, clip)
    steps = check_options(op, steps, order, backend)
    order = operator.index(order)  # under torch.compile it may be a symbol
    check_flag(op, "stepwise", stepwise)
    check_flag(op, "allow_tf32", allow_tf32)
    support_parts = check_batch(op, "support", support)
    query_parts = check_batch(op, "query", query)
    if query_loss is None:
        objective = outer = suited(objective, support_parts, query_parts)
    else:
        objective, outer = suited(objective, support_parts), suited(outer, query_parts)
    data = {**data_of("support", support_parts), **data_of("query", query_parts)}
    if op == "meta_grad":  # in the derivative of a weighted mean the weights are one themselves
        data["task_weight"] = task_weight
    tasks = support_parts[0].shape[0]
    ready = prepare(op, model, backend, params, tasks, data, (objective, outer), steps)
    adapted = adapted_names(op, adapt_params, ready.leaves)
    check_inner_lr(op, inner_lr, ready.leaves, adapted, steps, ready.like)
    inner_lr = settle_rates(inner_lr, ready.leaves, steps)
    support_side = prepare_batch(op, "support", support_parts, objective, ready)
    query_side = prepare_batch(op, "query", query_parts, outer, ready)
    if task_weight is not None:
        check_task_weight(op, task_weight, ready.tasks, ready.like)
    check_room(op, ready, adapted, steps, support_side[0].shape[1], order=order)
    names = tuple([leaf.name for leaf in ready.leaves])
    if ready.mlp is None:
        check_memory(op, inner_lr=inner_lr, task_weight=task_weight)
        torch_options = {
            "model": model,
            "inner_lr": inner_lr,
            "steps": steps,
            "loss": objective,
            "query_loss": outer,
            "solver": solver,
            "order": order,
            "adapt_params": adapted,
        }
        given = Arguments(ready.params, support=support_side, query=query_side)
        return Call(
            names, None, given, False, torch_options, ready.backend, ready.operations, inner_lr
        )
    inner, rates = inner_loop(op, ready, adapted, inner_lr, steps, order, solver)
    execution = Execution(allow_tf32)
    options_of_plan = Options(objective.fused, outer.fused, inner, stepwise, execution)
    plan = find_plan(ready.mlp, options_of_plan)
    if rates.device.type in ("cpu", "cuda"):  # where there are kernels
        lasting = is_number(inner_lr) and rates.device.type == "cpu"
        remember(key, Known(plan, rates if lasting else None))
    given = Arguments(ready.params, rates, support_side, query_side, task_weight)
    return Call(names, plan, given, inner_lr=inner_lr)


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
        max(ready.like.element_size(), 4) * numbers * steps,  # sums of bfloat16 are float32
        "take fewer steps or fewer tasks at a time",
    )


def inner_loop(
    op: str,
    ready: Prepared,
    adapted: tuple[str, ...],
    inner_lr: InnerLr,
    steps: int,
    order: int,
    solver: Solver,
) -> tuple[InnerLoop, Tensor]:
    """Returns a fused call's inner loop and its flat rates, of settled ones."""
    if not is_number(inner_lr):
        check_memory(op, inner_lr=inner_lr)  # before torch puts rates in a row
    rates, form = flatten_rates(inner_lr, ready.leaves, steps, ready.like.dtype, ready.like.device)
    adapt = tuple([leaf.name in adapted for leaf in ready.leaves])
    return InnerLoop(steps, order, solver, adapt, form), rates


def leaf_dict(ready: Prepared, flat: Tensor) -> dict[str, Tensor]:
    """Returns [T, ..., P] leaf by leaf as {name: [T, ..., *shape]}."""
    parts = flat.split([leaf.size for leaf in ready.leaves], dim=-1)
    front = flat.shape[:-1]
    return {
        leaf.name: part.reshape(*front, *leaf.shape)
        for leaf, part in zip(ready.leaves, parts, strict=True)
    }
