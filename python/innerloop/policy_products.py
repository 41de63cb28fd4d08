"""What trust-region methods need of a Gaussian policy besides its objectives: the KL of its rows,
and products with the Fisher matrix, before and through an inner step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from innerloop._checks.solver import check_options
from innerloop._operation import operation
from innerloop._params import InnerLr, Params
from innerloop._policy_rows import policy_rows
from innerloop._products import Product, matrix_product
from innerloop.functional import adapt, meta_loss
from innerloop.objectives import resolve
from innerloop.objectives.policy import CLIP
from innerloop.policies import GaussianMLP, PolicyBatch

__all__ = ["fisher_product", "kl", "meta_fisher", "meta_fisher_product"]


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
    shared: dict[str, Any] = {"model": model, "loss": "kl", "backend": backend, "clip": CLIP}
    return matrix_product("fisher_product", params, batch, op="fisher_product", **shared)(vector)


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
    inner: dict[str, Any] = {"inner_lr": inner_lr, "loss": loss, "clip": clip}
    common: dict[str, Any] = {"model": model, "order": order, "backend": backend}
    op = "meta_fisher_product"
    return _meta_fisher(op, params, support, query, keeps=False, **inner, **common)(vector)


@operation
def meta_fisher(
    params: Params,
    support: PolicyBatch,
    query: PolicyBatch,
    *,
    model: GaussianMLP,
    inner_lr: InnerLr,
    loss: str = "pg_loglik",
    order: int = 2,
    clip: float = CLIP,
    backend: str = "auto",
) -> Product:
    """Returns the function vector -> `meta_fisher_product(params, support, query, vector, ...)`,
    for several vectors at the same parameters and rows, as conjugate gradients ask for.

    The inner step is made once, and the fused kernels of the CPU keep the activations of both
    sides from the first product on. Parameters, rows and rates must stay as they are until the
    last.

    Args, Raises: see `meta_fisher_product`. What is wrong with a vector is said by its product,
        which also raises a RuntimeError where one of those tensors was changed in place.

    Differentiability: none.

    Cost: of each product after the first time O(T N P), two thirds of `meta_fisher_product`;
        memory O(T (N + Q) H), with H the sum of the widths, which goes back to the workspaces
        (`innerloop.workspace`) when the function is gone.

    Source: as `meta_fisher_product`.

    Example:
        >>> import torch
        >>> import innerloop as il
        >>> model, row = il.GaussianMLP([2, 3]), torch.zeros(4, 5, 3)
        >>> x, advantage = torch.zeros(4, 5, 2), torch.zeros(4, 5)
        >>> batch = il.PolicyBatch(x, row, advantage, row, torch.zeros(3))
        >>> product = il.meta_fisher(model.init(), batch, batch, model=model, inner_lr=0.1)
        >>> product(model.init())["0.weight"].shape
        torch.Size([3, 2])
    """
    inner: dict[str, Any] = {"inner_lr": inner_lr, "loss": loss, "clip": clip}
    common: dict[str, Any] = {"model": model, "order": order, "backend": backend}
    if isinstance(inner_lr, Mapping):
        inner["inner_lr"] = dict(inner_lr)
    found = _meta_fisher("meta_fisher", params, support, query, keeps=True, **inner, **common)
    versions = _versions(params.values(), support, query, _rates_of(inner_lr))

    @operation
    def meta_fisher_product(vector: Params) -> dict[str, Tensor]:
        if any(tensor._version != version for tensor, version in versions):
            raise RuntimeError(
                "meta_fisher_product: parameters, rows and rates must stay as they are until the "
                "last product (one was changed in place); call il.meta_fisher again"
            )
        return found(vector)

    return meta_fisher_product


def _rates_of(inner_lr: InnerLr) -> list[Any]:
    """Returns the rates, of whatever form."""
    return list(inner_lr.values()) if isinstance(inner_lr, Mapping) else [inner_lr]


def _versions(*parts: Iterable[Any]) -> list[tuple[Tensor, int]]:
    """Returns the tensors among arguments with how often each was changed in place."""
    tensors = [value for part in parts for value in part if isinstance(value, Tensor)]
    return [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]


def _meta_fisher(
    op: str,
    params: Params,
    support: PolicyBatch,
    query: PolicyBatch,
    *,
    model: GaussianMLP,
    inner_lr: InnerLr,
    loss: str,
    order: int,
    clip: float,
    backend: str,
    keeps: bool,
) -> Product:
    """Returns vector -> mean over tasks of J' F J vector."""
    check_options(op, 1, order, backend)
    objective = resolve(op, loss)
    before, _ = policy_rows(op, "support", support, model, objective, clip)
    after, _ = policy_rows(op, "query", query, model, objective, clip)
    shared: dict[str, Any] = {"model": model, "backend": backend, "clip": clip}
    inner = {"loss": loss, **shared}
    adapted = adapt(params, before, inner_lr=inner_lr, steps=1, **inner)
    kept: dict[str, Any] = {"op": op, "keeps": keeps, **shared}
    fisher = matrix_product("fisher_product", adapted, after, loss="kl", **kept)
    hessian = None
    if order == 2:
        hessian = matrix_product("hvp", params, before, loss=loss, **kept)

    def rate(name: str) -> float | Tensor:
        return inner_lr[name] if isinstance(inner_lr, Mapping) else inner_lr

    def product(vector: Params) -> dict[str, Tensor]:
        if hessian is None:
            return {name: u.mean(0) for name, u in fisher(vector).items()}
        # J v = v - H (inner_lr v), J' u = u - inner_lr (H u): H is symmetric
        curved = hessian({name: rate(name) * v for name, v in vector.items()})
        moved = fisher({name: v - curved[name] for name, v in vector.items()})
        back = hessian(moved)
        return {name: (u - rate(name) * back[name]).mean(0) for name, u in moved.items()}

    return product
