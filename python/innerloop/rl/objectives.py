"""The policy objectives and their products, by definition: plain torch, one batched forward for all
tasks, derivatives by autograd. Algorithms call nothing else.

    log pi = -sum_d (s + z^2 / 2) - (k / 2) log 2 pi,   z = (action - mean) e^-s,
    ratio = pi / recorded pi,   s = max(log_std, min_log_std)

    pg_loglik   -sum_i w_i A_i log pi_i
    pg_ratio    -sum_i w_i A_i ratio_i
    pg_clipped  -sum_i w_i min(ratio_i A_i, clip(ratio_i, 1 - c, 1 + c) A_i)
    kl          sum_i w_i KL(recorded_i || policy_i)

Shapes: T tasks, N rows, d observations, k actions, P parameters. Params are {name: tensor}, each
leaf shared [...] or per task [T, ...].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from innerloop.policies import LOG_STD, GaussianMLP, PolicyBatch
from innerloop.rl import _checks
from innerloop.rl._policy_checks import check_params
from innerloop.rl._policy_losses import (
    Leaves,
    Params,
    check_batch,
    clean_rows,
    constants,
    floored,
    gradient,
    means,
    per_task,
    stepped,
    task_losses,
)

LOSSES = ("pg_loglik", "pg_ratio", "pg_clipped", "kl")
CLIP = 0.3


class MetaGradient(NamedTuple):
    """loss [T] of each task after its inner step; grad {name: tensor} of their mean."""

    loss: Tensor
    grad: Leaves


def predict(params: Params, x: Tensor, *, model: GaussianMLP) -> Tensor:
    """Returns the policy's means [T, N, k] for observations [T, N, d].

    Raises: ValueError, TypeError: params or x do not fit the model.

    Differentiability: any number of times, in params and x.

    Cost: time O(T N P).

    Example:
        >>> model = GaussianMLP([2, 8, 3])
        >>> predict(model.init(), torch.zeros(4, 5, 2), model=model).shape
        torch.Size([4, 5, 3])
    """
    if x.ndim != 3 or x.shape[2] != model.inputs:
        _checks.refuse("predict", "x", f"have shape [T, N, {model.inputs}]", list(x.shape))
    check_params("predict", params, model, len(x))
    return means(per_task(params, model, len(x)), x, model)


def losses(
    params: Params,
    batch: PolicyBatch,
    *,
    model: GaussianMLP,
    loss: str = "pg_loglik",
    clip: float = CLIP,
) -> Tensor:
    """Returns each task's objective [T].

    Args:
        params: see above.
        batch: see `PolicyBatch`.
        model: the policy.
        loss: "pg_loglik", "pg_ratio", "pg_clipped" or "kl".
        clip: c of "pg_clipped"; the others ignore it.

    Raises:
        ValueError: a shape or name does not fit.
        TypeError: a dtype does not fit.

    Differentiability: any number of times, in params.

    Cost: time O(T N P), memory O(T N (widths of all layers)).

    Source: Schulman et al. 2017, equation 7 (clipped); Rothfuss et al. 2019, equation 5 (ratio).

    Example:
        >>> model, row = GaussianMLP([2, 3]), torch.zeros(4, 5, 3)
        >>> batch = PolicyBatch(torch.ones(4, 5, 2), row, torch.ones(4, 5), row, torch.zeros(3))
        >>> losses(model.init(), batch, model=model, loss="kl").shape
        torch.Size([4])
    """
    _checks.choice("losses", "loss", loss, LOSSES)
    check_batch("losses", params, batch, model)
    return task_losses(per_task(params, model, len(batch.x)), batch, model, loss, clip)


def loss_and_grad(
    params: Params,
    batch: PolicyBatch,
    *,
    model: GaussianMLP,
    loss: str = "pg_loglik",
    clip: float = CLIP,
) -> tuple[Tensor, Leaves]:
    """Returns each task's objective [T] and its gradient {name: [T, ...]}.

    Args, Raises: see `losses`.

    Differentiability: none.

    Cost: time O(T N P).
    """
    _checks.choice("loss_and_grad", "loss", loss, LOSSES)
    check_batch("loss_and_grad", params, batch, model)
    leaves = constants(per_task(params, model, len(batch.x)))
    value = task_losses(leaves, batch, model, loss, clip)
    return value.detach(), gradient(value.sum(), leaves)


def hvp(
    params: Params,
    batch: PolicyBatch,
    vector: Params,
    *,
    model: GaussianMLP,
    loss: str = "pg_loglik",
    clip: float = CLIP,
) -> Leaves:
    """Returns each task's Hessian times `vector`, {name: [T, ...]}.

    Args:
        vector: like params; shared [...] or per task [T, ...].
        params, batch, model, loss, clip: see `losses`.

    Raises: see `losses`.

    Differentiability: none.

    Cost: time O(T N P).

    Source: Pearlmutter 1994.
    """
    _checks.choice("hvp", "loss", loss, LOSSES)
    check_batch("hvp", params, batch, model)
    tasks = len(batch.x)
    leaves = constants(per_task(params, model, tasks))
    direction = per_task(vector, model, tasks)
    value = task_losses(leaves, batch, model, loss, clip)
    slopes = gradient(value.sum(), leaves, create_graph=True)
    slope = torch.stack([(slopes[name] * direction[name]).sum() for name in model.names]).sum()
    return gradient(slope, leaves)


def adapt(
    params: Params,
    batch: PolicyBatch,
    *,
    model: GaussianMLP,
    inner_lr: float,
    steps: int = 1,
    loss: str = "pg_loglik",
    clip: float = CLIP,
) -> Leaves:
    """Returns the parameters {name: [T, ...]} after `steps` gradient steps on each task's rows.

    Args:
        inner_lr: a number of either sign.
        steps: at least 0, all on the same rows.
        params, batch, model, loss, clip: see `losses`.

    Raises: see `losses`.

    Differentiability: none.

    Cost: time O(T N P steps).
    """
    _checks.choice("adapt", "loss", loss, LOSSES)
    check_batch("adapt", params, batch, model)
    phi = constants(per_task(params, model, len(batch.x)))
    for _ in range(_checks.integer("adapt", "steps", steps, 0)):
        phi = constants(stepped(phi, batch, model, inner_lr, loss, clip, order=1))
    return {name: leaf.detach() for name, leaf in phi.items()}


def meta_loss(
    params: Params,
    support: PolicyBatch,
    query: PolicyBatch,
    *,
    model: GaussianMLP,
    inner_lr: float,
    loss: str = "pg_loglik",
    query_loss: str = "pg_ratio",
    clip: float = CLIP,
    kl_coefficient: float = 0.0,
    order: int = 2,
) -> Tensor:
    """Returns each task's query objective [T] after one inner step on its support rows, plus
    `kl_coefficient` times the KL on the support rows at the initial parameters.

    Args:
        support, query: before and after adaptation.
        inner_lr: size of the inner step.
        loss, query_loss: objectives of the inner step and of what follows it.
        order: 2 for the exact gradient; 1 treats the inner gradient as a constant.
        params, model, clip: see `losses`.

    Raises: see `losses`.

    Differentiability: any number of times, in params.

    Cost: time O(T N P).

    Source: Rothfuss et al. 2019, equation 13 (ProMP); Finn, Abbeel, Levine 2017, algorithm 3.
    """
    op = "meta_loss"
    _checks.choice(op, "loss", loss, LOSSES)
    _checks.choice(op, "query_loss", query_loss, LOSSES)
    _checks.integer(op, "order", order, 1, 2)
    check_batch(op, params, support, model)
    check_batch(op, params, query, model)
    theta = {
        name: leaf if leaf.requires_grad else leaf.detach().requires_grad_()
        for name, leaf in per_task(params, model, len(support.x)).items()
    }
    phi = stepped(theta, support, model, inner_lr, loss, clip, order)
    value = task_losses(phi, query, model, query_loss, clip)
    if kl_coefficient:
        value = value + kl_coefficient * task_losses(theta, support, model, "kl", clip)
    return value


def meta_grad(
    params: Params,
    support: PolicyBatch,
    query: PolicyBatch,
    *,
    model: GaussianMLP,
    inner_lr: float,
    loss: str = "pg_loglik",
    query_loss: str = "pg_ratio",
    clip: float = CLIP,
    kl_coefficient: float = 0.0,
    order: int = 2,
) -> MetaGradient:
    """Returns `meta_loss` [T] and the gradient of its mean over tasks.

    Args, Raises, Source: see `meta_loss`. A gradient has the shape of its leaf.

    Differentiability: none.

    Cost: time O(T N P).
    """
    leaves = constants(params)
    value = meta_loss(
        leaves,
        support,
        query,
        model=model,
        inner_lr=inner_lr,
        loss=loss,
        query_loss=query_loss,
        clip=clip,
        kl_coefficient=kl_coefficient,
        order=order,
    )
    return MetaGradient(value.detach(), gradient(value.mean(), leaves))


def kl(params: Params, batch: PolicyBatch, *, model: GaussianMLP) -> Tensor:
    """Returns each task's mean KL(recorded || policy) [T].

    Args, Raises, Differentiability, Cost: see `losses`.
    """
    return losses(params, batch, model=model, loss="kl")


def fisher_product(
    params: Params, batch: PolicyBatch, vector: Params, *, model: GaussianMLP
) -> Leaves:
    """Returns each task's Fisher matrix of the policy at params times `vector`, {name: [T, ...]}:
    the Hessian of the KL where recorded and present policy agree.

    F v = J' M J v with J the Jacobian of the means and M = w e^-2s. The block of log_std is
    2 sum_i w_i where it lies above its floor.

    Args:
        vector: like params; shared [...] or per task [T, ...].
        params, batch, model: see `losses`. Only x, count and weight of the batch are used.

    Raises: see `losses`.

    Differentiability: none.

    Cost: time O(T N P).

    Source: Amari 1998; Schulman et al. 2015, appendix C.
    """
    check_batch("fisher_product", params, batch, model)
    tasks = len(batch.x)
    leaves = constants(per_task(params, model, tasks))
    direction = per_task(vector, model, tasks)
    x, _, weight = clean_rows(batch)

    network = {name: leaf for name, leaf in leaves.items() if name != LOG_STD}
    mean = means(network, x, model)
    # J v as the derivative of J' u in u: torch's forward mode warns of its own parts
    u = torch.zeros_like(mean, requires_grad=True)
    back = torch.autograd.grad(mean, list(network.values()), u, create_graph=True)
    slope = [(g * direction[name]).sum() for name, g in zip(network, back, strict=True)]
    (moved,) = torch.autograd.grad(torch.stack(slope).sum(), u, retain_graph=True)  # [T, N, k]
    scale = torch.exp(-2 * floored(leaves, model))[:, None].detach()  # [T, 1, k]
    grads = torch.autograd.grad(mean, list(network.values()), weight[..., None] * scale * moved)
    free = (leaves[LOG_STD] >= model.min_log_std).detach()
    total = weight.sum(1, keepdim=True)  # [T, 1]
    result = dict(zip(network, grads, strict=True))
    result[LOG_STD] = 2 * total * torch.where(free, direction[LOG_STD], 0)
    return {name: result[name].detach() for name in model.names}


def meta_fisher_product(
    params: Params,
    support: PolicyBatch,
    query: PolicyBatch,
    vector: Params,
    *,
    model: GaussianMLP,
    inner_lr: float,
    loss: str = "pg_loglik",
    order: int = 2,
) -> Leaves:
    """Returns the mean over tasks of J' F J vector, shaped like `vector`: F the Fisher matrix of
    the adapted policy on the query rows, J = I - inner_lr H, H the Hessian of the inner objective.

    At the parameters that sampled the rows this is the Hessian, in the initial parameters, of the
    mean KL between recorded and adapted policy.

    Args:
        vector: {name: [...]}, shared by the tasks.
        order: 2 is exact; 1 drops H.
        params, support, query, model, inner_lr, loss: see `meta_loss`.

    Raises: see `losses`.

    Differentiability: none.

    Cost: time O(T N P): two Hessian-vector products, one Fisher product and one inner step.
    """

    def jacobian(v: Params) -> Leaves:  # symmetric
        if order == 1:
            return per_task(v, model, len(support.x))
        curved = hvp(params, support, v, model=model, loss=loss)
        return {name: v[name] - inner_lr * curved[name] for name in model.names}

    _checks.integer("meta_fisher_product", "order", order, 1, 2)
    adapted = adapt(params, support, model=model, inner_lr=inner_lr, loss=loss)
    product = jacobian(fisher_product(adapted, query, jacobian(vector), model=model))
    return {name: value.mean(0) for name, value in product.items()}


def entropy(params: Params, *, model: GaussianMLP) -> Tensor:
    """Returns the entropy of the policy's actions, in nats: [] for shared parameters, [T] for
    parameters of T tasks.

    Example:
        >>> model = GaussianMLP([2, 1])
        >>> round(entropy(model.init(), model=model).item(), 4)  # log(2 pi e) / 2
        1.4189
    """
    s = floored(params, model)
    return (s + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
