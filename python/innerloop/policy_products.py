"""What trust-region methods need of a Gaussian policy besides its objectives: the KL of its rows,
and products with the Fisher matrix, before and through an inner step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from innerloop import _autograd, _checks, reference
from innerloop._arguments import Arguments
from innerloop._calls import leaf_dict
from innerloop._dispatch import data_of, operation, prepare, prepare_batch
from innerloop._params import InnerLr, Params
from innerloop._plan import find_plan, options_of_one
from innerloop._policy_objectives import CLIP
from innerloop._policy_rows import policy_rows
from innerloop._storage import check_memory
from innerloop.functional import adapt, hvp, meta_loss
from innerloop.objectives import resolve
from innerloop.policies import GaussianMLP, PolicyBatch

__all__ = ["fisher_product", "kl", "meta_fisher_product"]


@operation
def kl(params: Params, batch: PolicyBatch, *, model: GaussianMLP, backend: str = "auto") -> Tensor:
    """Returns each task's mean KL(recorded || policy) [T].

    Args, Raises: see `meta_grad`; `batch` is a `PolicyBatch`.

    Differentiability: as `meta_loss`, in params.

    Cost: time O(T N P).

    Example:
        >>> import torch
        >>> import innerloop as il
        >>> model, row = il.GaussianMLP([2, 3]), torch.zeros(4, 5, 3)
        >>> x, advantage = torch.zeros(4, 5, 2), torch.zeros(4, 5)
        >>> batch = il.PolicyBatch(x, row, advantage, row, torch.zeros(3))
        >>> il.kl(model.init(), batch, model=model)
        tensor([0., 0., 0., 0.])
    """
    options = {"model": model, "inner_lr": 0.0, "steps": 0, "loss": "kl", "backend": backend}
    return meta_loss(params, batch, batch, **options)  # type: ignore[arg-type]


@operation
def fisher_product(
    params: Params,
    batch: PolicyBatch,
    vector: Params,
    *,
    model: GaussianMLP,
    backend: str = "auto",
) -> dict[str, Tensor]:
    """Returns each task's Fisher matrix of the policy at `params` times a vector, {name: [T, ...]}:
    the Hessian of the KL where recorded and present policy agree.

    Args:
        batch: a `PolicyBatch`, of which x, count and weight are used.
        vector: {name: tensor} with the names of `params`; each shared [...] or per task [T, ...].
        others: see `meta_grad`.

    Raises: see `meta_grad`.

    Differentiability: none on the fused back end (a backward raises RuntimeError); any number of
        times on the torch back end.

    Cost: time O(T N P), less than two gradients; memory O(T P).

    Source: Amari 1998; Schulman et al. 2015, appendix C; docs/math.md.

    Example:
        >>> import torch
        >>> import innerloop as il
        >>> model, row = il.GaussianMLP([2, 3]), torch.zeros(4, 5, 3)
        >>> x, advantage = torch.zeros(4, 5, 2), torch.zeros(4, 5)
        >>> batch = il.PolicyBatch(x, row, advantage, row, torch.zeros(3))
        >>> vector = {name: leaf + 1 for name, leaf in model.init().items()}
        >>> il.fisher_product(model.init(), batch, vector, model=model)["log_std"][0]
        tensor([2., 2., 2.])
    """
    op = "fisher_product"
    _checks.check_options(op, 0, 2, backend)
    rows, objective = policy_rows(op, "batch", batch, model, resolve(op, "kl"), CLIP)
    parts = _checks.check_batch(op, "batch", rows)
    data = data_of("batch", parts)
    ready = prepare(op, model, backend, params, parts[0].shape[0], data, (objective,))
    direction, like = _checks.check_params(op, "vector", vector, ready.leaves, ready.tasks)
    _checks.check_float(op, "vector", like, ready.like.dtype, "params")
    _checks.check_device(op, "vector", like, ready.like.device, "params")
    side = prepare_batch(op, "batch", parts, objective, ready)
    if ready.mlp is not None:
        plan = find_plan(ready.mlp, options_of_one(objective.fused, False))
        given = Arguments(ready.params, support=side, vector=direction)
        return leaf_dict(ready, _autograd.run("fisher_product", plan, given))
    check_memory(op, vector=vector)
    return reference.fisher_product(params, side, vector, model=model, loss=objective)


@operation
def meta_fisher_product(
    params: Params,
    support: PolicyBatch,
    query: PolicyBatch,
    vector: Params,
    *,
    model: GaussianMLP,
    inner_lr: InnerLr,
    loss: str = "pg_loglik",
    order: int = 2,
    clip: float = CLIP,
    backend: str = "auto",
) -> dict[str, Tensor]:
    """Returns the mean over tasks of J' F J vector, {name: [...]}: F the Fisher matrix of the
    adapted policy on the query rows, J = I - H diag(inner_lr) the derivative of one inner step,
    H the Hessian of the inner objective on the support rows.

    Where the rows were sampled at these parameters, this is the Hessian, in them, of the mean KL
    between recorded and adapted policy: the product that TRPO-MAML solves with.

    Args:
        support, query: `PolicyBatch`es, before and after the inner step.
        vector: {name: [...]}, shared by the tasks, with the names of `params`.
        inner_lr: a number, a 0-d tensor, or {name: number, 0-d or param-shaped} for every leaf.
        loss: the inner objective.
        order: 2 is exact; 1 drops H.
        others: see `meta_grad`.

    Raises: see `meta_grad`.

    Differentiability: none.

    Cost: time O(T N P): an inner step, two Hessian-vector products and one Fisher product.

    Source: Rothfuss et al. 2019; docs/math.md.

    Example:
        >>> import torch
        >>> import innerloop as il
        >>> model, row = il.GaussianMLP([2, 3]), torch.zeros(4, 5, 3)
        >>> x, advantage = torch.zeros(4, 5, 2), torch.zeros(4, 5)
        >>> batch = il.PolicyBatch(x, row, advantage, row, torch.zeros(3))
        >>> sides, options = (batch, batch), {"model": model, "inner_lr": 0.1}
        >>> il.meta_fisher_product(model.init(), *sides, model.init(), **options)["0.weight"].shape
        torch.Size([3, 2])
    """
    op = "meta_fisher_product"
    _checks.check_options(op, 1, order, backend)
    objective = resolve(op, loss)
    before, _ = policy_rows(op, "support", support, model, objective, clip)
    after, _ = policy_rows(op, "query", query, model, objective, clip)
    shared = {"model": model, "backend": backend}
    inner = {"loss": loss, "clip": clip, **shared}

    def curved(v: Params) -> Params:
        return {} if order == 1 else hvp(params, before, v, **inner)  # type: ignore[arg-type]

    def rate(name: str) -> float | Tensor:
        value = inner_lr[name] if isinstance(inner_lr, Mapping) else inner_lr
        return value

    # J v = v - H (inner_lr v), J' u = u - inner_lr (H u): H is symmetric
    scaled = curved({name: rate(name) * v for name, v in vector.items()})
    moved = {name: v - scaled[name] if scaled else v for name, v in vector.items()}
    adapted = adapt(params, before, inner_lr=inner_lr, steps=1, **inner)  # type: ignore[arg-type]
    product = fisher_product(adapted, after, moved, **shared)  # type: ignore[arg-type]
    back = curved(product)
    return {
        name: (u - rate(name) * back[name] if back else u).mean(0) for name, u in product.items()
    }
