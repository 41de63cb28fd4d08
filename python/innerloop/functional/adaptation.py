"""Solver: the operations with an inner loop: a solver meets a network and its objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from innerloop import _autograd
from innerloop._arguments import Arguments
from innerloop._calls import check_room, inner_loop, leaf_dict, meta_call
from innerloop._checks.objective import refuse_kl
from innerloop._checks.options import check_flag, check_number
from innerloop._checks.rows import check_batch
from innerloop._checks.solver import check_inner_lr, check_options, settle_rates
from innerloop._choice import Model
from innerloop._kernels import split
from innerloop._operation import operation
from innerloop._params import (
    BatchLike,
    InnerLr,
    Params,
    as_given,
    named_leaves,
    unflatten_rate_grad,
)
from innerloop._plan import Execution, Options, find_plan
from innerloop._policy_rows import policy_rows
from innerloop._preparation import adapted_names, data_of, prepare, prepare_batch
from innerloop._solver import solver_of
from innerloop._storage import check_memory
from innerloop.objectives import Loss, resolve, suited
from innerloop.objectives.policy import CLIP
from innerloop.policies import GaussianMLP


class MetaGrad(NamedTuple):
    """Everything that one meta-step needs.

    Members:
        loss: [T], query loss of each task after the inner loop (unweighted).
        grad: {name: tensor}, gradient of sum_t task_weight_t loss_t; [...] for a shared leaf,
            [T, ...] for a per-task one.
        inner_lr_grad: gradient of the same sum, in the structure of `inner_lr` (0-d for a number).
        support_loss: [T, S], support loss before each inner step.
        query_loss: [T, S + 1], query loss after 0..S steps, if `stepwise`; else None.
        backend: "fused", "batched" or "torch".
    """

    loss: Tensor
    grad: dict[str, Tensor]
    inner_lr_grad: Tensor | dict[str, Tensor]
    support_loss: Tensor
    query_loss: Tensor | None
    backend: str


def _anchor_options(
    op: str, model: Model, kl_coefficient: float, backend: str, allow_tf32: bool
) -> dict[str, Any] | None:
    """Returns the options of the operation whose value is the KL at the initial parameters, or None
    if it is not wanted."""
    if type(kl_coefficient) is float and kl_coefficient == 0:
        return None
    if check_number(op, "kl_coefficient", kl_coefficient) == 0:
        return None
    if not isinstance(model, GaussianMLP):
        refuse_kl(op, kl_coefficient)
    common = {"model": model, "backend": backend, "allow_tf32": allow_tf32}
    return {"inner_lr": 0.0, "steps": 0, "loss": "kl", **common}


@operation
def meta_grad(
    params: Params,
    support: BatchLike,
    query: BatchLike,
    *,
    model: Model,
    inner_lr: InnerLr,
    steps: int,
    loss: Loss = "mse",
    query_loss: Loss | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    order: int = 2,
    adapt_params: Sequence[str] | None = None,
    task_weight: Tensor | None = None,
    stepwise: bool = False,
    backend: str = "auto",
    allow_tf32: bool = False,
    clip: float = CLIP,
    kl_coefficient: float = 0.0,
) -> MetaGrad:
    """Returns the losses after the inner loop and their gradient in the initial parameters and
    rates.

    For each task t: phi_0 = params; phi_{s+1} = phi_s - rate_s * grad support_loss_t(phi_s) on the
    adapted leaves (with `momentum`, a heavy ball); loss_t = query_loss_t(phi_S).

    Args:
        params: {name: tensor}, float32 or float64; each leaf shared [...] or per task [T, ...].
        support: (x [T, N, D], y), optionally with count [T] and weight [T, N]: see `Batch`. y is
            [T, N, K] ([T, N] when K is 1), or int64 classes [T, N] for "cross_entropy"; for a
            callable loss anything [T, N, ...].
        query: the same with Q rows.
        model: an MLP, or any nn.Module: fused if it computes a chain of linear layers and
            activations, batched if it is made of other known layers, else run by the torch back
            end.
        inner_lr: a number, a 0-d tensor, a tensor [S], or {name: number, 0-d, [S], param-shaped or
            [S, *param-shaped]} for exactly the adapted leaves. Any sign. A rate [S] of a leaf [S]
            means what the rest of the dict means, per step or per element, and is per element
            where that does not decide; [S, S] is never mistaken.
        steps: S from 0 to 2^24.
        loss: "mse", "half_mse", "huber" (delta 1), "bce_with_logits" (each a mean over outputs) or
            "cross_entropy". A task's loss is the mean over its rows, or sum_i weight_i loss_i.
            Or one of torch's losses, as an instance or a function: fused if it means one of these
            names, or one with `delta`, `beta`, `label_smoothing`, `weight` or `pos_weight`, else
            batched. Or any callable (outputs [N, ...], targets [N, ...]) of one task, batched as
            well: it returns the task's loss, 0-d, or values of its rows [N], of which the loss is
            the mean or the weighted sum. It gets the rows in use alone.
            What it reads of the module is what the task's pass left there, its parameters and
            attributes; anything else is a constant.
            Of a `GaussianMLP`, on rows that are a `PolicyBatch`: "pg_loglik", "pg_ratio",
            "pg_clipped" or "kl" (docs/math.md, "Policy objectives").
        query_loss: what the query rows are measured by, if not by `loss`: any of the same.
        momentum: mu >= 0 of the inner loop, heavy ball as torch.optim.SGD has it:
            v_{s+1} = mu v_s + grad, phi_{s+1} = phi_s - rate_s v_{s+1}, v_0 = 0.
        nesterov: Nesterov's momentum, as there: phi_{s+1} = phi_s - rate_s (grad + mu v_{s+1}).
        weight_decay: w >= 0, as there: each step's gradient is grad + w phi_s on the adapted
            leaves. Order 1 keeps the derivative of w phi_s, which is no second derivative.
        order: 2 for the exact gradient; 1 treats inner gradients as constants (first-order MAML).
        adapt_params: names of the leaves that the inner loop changes; None for all. All have a
            meta-gradient.
        task_weight: [T]; None means 1/T.
        stepwise: also return the query loss after every step.
        backend: "auto"; "fused" or "batched" (raise rather than fall back); or "torch".
        allow_tf32: let the CUDA kernels round the operands of float32 products to tf32 (10 bits of
            mantissa), where tensor cores pay. No effect on the CPU, in float64, before compute
            capability 8.0, and on the torch back end, which has torch's own switch. Errors:
            docs/cuda.md.
        clip: the range c > 0 of "pg_clipped"; without effect on every other loss.
        kl_coefficient: of a `GaussianMLP`: this times the KL of the support rows at the initial
            parameters is added to `loss`, and its gradient to `grad`.

    Returns:
        MetaGrad. Its tensors are constants: no gradient flows through them (use `meta_loss` for
        that).

    Raises:
        ValueError: a shape, size, name or device does not fit.
        TypeError: a dtype or kind of object does not fit.
        NotImplementedError: `backend="fused"` cannot take the model or device.
        MemoryError: what the steps leave behind is more than this machine's memory.

    Differentiability: none.

    Cost: time O(T S (N + Q) P); memory O(S P) per task in flight, no graph (fused).

    Source: Finn, Abbeel, Levine 2017, algorithm 1; Li et al. 2017 (Meta-SGD) for rates per
        parameter.

    Example:
        >>> import torch
        >>> import innerloop as il
        >>> model, x = il.MLP([1, 8, 1]), torch.ones(4, 5, 1)
        >>> options = {"model": model, "inner_lr": 0.1, "steps": 1}
        >>> il.meta_grad(model.init(), (x, x), (x, x), **options).loss.shape
        torch.Size([4])
    """
    anchor = _anchor_options("meta_grad", model, kl_coefficient, backend, allow_tf32)
    if anchor is not None:
        found = meta_grad(
            params, support, query, model=model, inner_lr=inner_lr, steps=steps, loss=loss,
            query_loss=query_loss, momentum=momentum, nesterov=nesterov,
            weight_decay=weight_decay, order=order, adapt_params=adapt_params,
            task_weight=task_weight, stepwise=stepwise, backend=backend, allow_tf32=allow_tf32,
            clip=clip,
        )  # fmt: skip
        kl = meta_grad(params, support, support, task_weight=task_weight, **anchor)
        grad = {name: g + kl_coefficient * kl.grad[name] for name, g in found.grad.items()}
        return found._replace(loss=found.loss + kl_coefficient * kl.loss, grad=grad)
    call = meta_call(
        "meta_grad",
        params,
        support,
        query,
        model=model,
        inner_lr=inner_lr,
        steps=steps,
        loss=loss,
        query_loss=query_loss,
        solver=solver_of(
            "meta_grad", momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        ),
        order=order,
        adapt_params=adapt_params,
        backend=backend,
        task_weight=task_weight,
        stepwise=stepwise,
        allow_tf32=allow_tf32,
        clip=clip,
    )
    plan = call.plan
    if plan is None:
        result = call.operations.meta_grad(
            params,
            call.arguments.support,
            call.arguments.query,
            task_weight=task_weight,
            stepwise=stepwise,
            **call.options,
        )
        result = result._replace(inner_lr_grad=as_given(result.inner_lr_grad, inner_lr))
        ran = getattr(call.operations, "ran", call.backend)
        return MetaGrad(**result._asdict(), backend=ran)
    if call.is_direct:
        out = _autograd.meta_grad_by_leaf(plan, call.arguments)
        leaves = out[3]
    else:
        out = _autograd.run("meta_grad", plan, call.arguments, constant=True)
        leaves = split(out[3], call.arguments.params)
    rate_grad: Any = out[4]
    form = plan.options.inner.rates
    if form.unit != "model":
        assert isinstance(call.inner_lr, Mapping)
        shapes = named_leaves(call.names, plan.leaves)
        rate_grad = unflatten_rate_grad(rate_grad, call.inner_lr, form, shapes)
        rate_grad = as_given(rate_grad, inner_lr)
    return MetaGrad(
        out[0],
        dict(zip(call.names, leaves, strict=True)),
        rate_grad,
        out[1],
        out[2] if stepwise else None,
        "fused",
    )


@operation
def meta_loss(
    params: Params,
    support: BatchLike,
    query: BatchLike,
    *,
    model: Model,
    inner_lr: InnerLr,
    steps: int,
    loss: Loss = "mse",
    query_loss: Loss | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    order: int = 2,
    adapt_params: Sequence[str] | None = None,
    backend: str = "auto",
    allow_tf32: bool = False,
    clip: float = CLIP,
    kl_coefficient: float = 0.0,
) -> Tensor:
    """Returns each task's query loss after the inner loop, [T], for use with torch's autograd.

    Args, Raises: see `meta_grad`.

    Differentiability: once in params and inner_lr, in reverse and forward mode. A second derivative
    raises RuntimeError. One in x, y or weight is taken by the torch back end: "auto" goes there
    with a warning, "fused" raises NotImplementedError. The torch back end has no limit.

    Cost: forward, the inner loop alone; backward, as `meta_grad`. Nothing is kept but the inputs.

    Source: Finn, Abbeel, Levine 2017, equation 1.

    Example:
        >>> import torch
        >>> import innerloop as il
        >>> model, x = il.MLP([1, 8, 1]), torch.ones(4, 5, 1)
        >>> params = {k: v.requires_grad_() for k, v in model.init().items()}
        >>> loss = il.meta_loss(params, (x, x), (x, x), model=model, inner_lr=0.1, steps=1)
        >>> loss.mean().backward()
    """
    anchor = _anchor_options("meta_loss", model, kl_coefficient, backend, allow_tf32)
    call = meta_call(
        "meta_loss",
        params,
        support,
        query,
        model=model,
        inner_lr=inner_lr,
        steps=steps,
        loss=loss,
        query_loss=query_loss,
        solver=solver_of(
            "meta_loss", momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        ),
        order=order,
        adapt_params=adapt_params,
        backend=backend,
        allow_tf32=allow_tf32,
        clip=clip,
    )
    if call.plan is None:
        losses: Tensor = call.operations.meta_loss(
            params, call.arguments.support, call.arguments.query, **call.options
        )
    else:
        losses = _autograd.meta_loss(call.plan, call.arguments)
    if anchor is None:
        return losses
    return losses + kl_coefficient * meta_loss(params, support, support, **anchor)


@operation
def mean_meta_loss(
    params: Params,
    support: BatchLike,
    query: BatchLike,
    *,
    model: Model,
    inner_lr: InnerLr,
    steps: int,
    loss: Loss = "mse",
    query_loss: Loss | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    order: int = 2,
    adapt_params: Sequence[str] | None = None,
    task_weight: Tensor | None = None,
    backend: str = "auto",
    allow_tf32: bool = False,
    clip: float = CLIP,
    kl_coefficient: float = 0.0,
) -> Tensor:
    """Returns sum_t task_weight_t loss_t, 0-d, with its gradient computed in the same pass as its
    value.

    What learners call in training: one fused pass where `meta_loss` makes two.

    Args, Raises: see `meta_grad`.

    Differentiability: as `meta_loss`, and in task_weight.

    Cost: forward as `meta_grad` if a gradient is wanted, else the inner loop alone; backward O(P).

    Example:
        >>> import torch
        >>> import innerloop as il
        >>> model, x = il.MLP([1, 8, 1]), torch.ones(4, 5, 1)
        >>> mean_meta_loss(model.init(), (x, x), (x, x), model=model, inner_lr=0.1, steps=1).shape
        torch.Size([])
    """
    anchor = _anchor_options("meta_loss", model, kl_coefficient, backend, allow_tf32)
    if anchor is not None:
        total = mean_meta_loss(
            params, support, query, model=model, inner_lr=inner_lr, steps=steps, loss=loss,
            query_loss=query_loss, momentum=momentum, nesterov=nesterov,
            weight_decay=weight_decay, order=order, adapt_params=adapt_params,
            task_weight=task_weight, backend=backend, allow_tf32=allow_tf32, clip=clip,
        )  # fmt: skip
        kl = mean_meta_loss(params, support, support, task_weight=task_weight, **anchor)
        return total + kl_coefficient * kl
    call = meta_call(
        "meta_loss",
        params,
        support,
        query,
        model=model,
        inner_lr=inner_lr,
        steps=steps,
        loss=loss,
        query_loss=query_loss,
        solver=solver_of(
            "meta_loss", momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        ),
        order=order,
        adapt_params=adapt_params,
        backend=backend,
        task_weight=task_weight,
        allow_tf32=allow_tf32,
        clip=clip,
    )
    if call.plan is not None:
        if task_weight is not None:
            check_memory("meta_loss", task_weight=task_weight)
        return _autograd.mean_meta_loss(call.plan, call.arguments)
    found: Tensor = call.operations.mean_meta_loss(
        params,
        call.arguments.support,
        call.arguments.query,
        task_weight=task_weight,
        **call.options,
    )
    return found


@operation
def adapt(
    params: Params,
    support: BatchLike,
    *,
    model: Model,
    inner_lr: InnerLr,
    steps: int,
    loss: Loss = "mse",
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    adapt_params: Sequence[str] | None = None,
    stepwise: bool = False,
    backend: str = "auto",
    allow_tf32: bool = False,
    clip: float = CLIP,
) -> dict[str, Tensor]:
    """Returns the parameters after the inner loop, {name: [T, ...]}.

    Args:
        stepwise: return the parameters after 0..S steps, {name: [T, S + 1, ...]}.
        others: see `meta_grad`. Leaves that are not adapted come back expanded to [T, ...].

    Raises: see `meta_grad`.

    Differentiability: none on the fused back end (a backward through the result raises
    RuntimeError); any number of times on the torch back end.

    Cost: time O(T S N P); memory O(T P), or O(T S P) if stepwise.

    Example:
        >>> import torch
        >>> import innerloop as il
        >>> model, x = il.MLP([1, 8, 1]), torch.ones(4, 5, 1)
        >>> il.adapt(model.init(), (x, x), model=model, inner_lr=0.1, steps=1)["0.weight"].shape
        torch.Size([4, 8, 1])
    """
    op = "adapt"
    check_flag(op, "stepwise", stepwise)
    check_flag(op, "allow_tf32", allow_tf32)
    steps = check_options(op, steps, 2, backend)
    solver = solver_of(op, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    support, objective = policy_rows(op, "support", support, model, resolve(op, loss), clip)
    parts = check_batch(op, "support", support)
    objective = suited(objective, parts)
    data = data_of("support", parts)
    ready = prepare(op, model, backend, params, parts[0].shape[0], data, (objective,), steps)
    adapted = adapted_names(op, adapt_params, ready.leaves)
    check_inner_lr(op, inner_lr, ready.leaves, adapted, steps, ready.like)
    inner_lr = settle_rates(inner_lr, ready.leaves, steps)
    side = prepare_batch(op, "support", parts, objective, ready)
    check_room(op, ready, adapted, steps, side[0].shape[1], order=2, stepwise=stepwise)
    if ready.mlp is not None:
        inner, rates = inner_loop(op, ready, adapted, inner_lr, steps, 2, solver)
        execution = Execution(allow_tf32)
        fixed = Options(objective.fused, objective.fused, inner, stepwise, execution)
        given = Arguments(ready.params, rates, side)
        flat = _autograd.run("adapt", find_plan(ready.mlp, fixed), given)[0]
        return leaf_dict(ready, flat)
    check_memory(op, inner_lr=inner_lr)
    adapted_leaves: dict[str, Tensor] = ready.operations.adapt(
        params,
        side,
        model=model,
        inner_lr=inner_lr,
        steps=steps,
        loss=objective,
        solver=solver,
        adapt_params=adapted,
        stepwise=stepwise,
    )
    return adapted_leaves
