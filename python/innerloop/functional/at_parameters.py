"""Network and objective: the operations at given parameters, without an inner loop."""

from __future__ import annotations

from torch import Tensor

from innerloop import _autograd
from innerloop._arguments import Arguments
from innerloop._calls import leaf_dict
from innerloop._checks.options import check_flag
from innerloop._checks.rows import check_batch, check_rows
from innerloop._checks.solver import check_options
from innerloop._choice import Model
from innerloop._operation import operation
from innerloop._params import BatchLike, Params, Side
from innerloop._plan import find_plan, options_of_one
from innerloop._policy_rows import policy_rows
from innerloop._preparation import data_of, prepare, prepare_batch, prepare_inputs
from innerloop._products import matrix_product
from innerloop._storage import check_memory
from innerloop.objectives import FusedObjective, Loss, resolve, suited
from innerloop.objectives.policy import CLIP


@operation
def hvp(
    params: Params,
    batch: BatchLike,
    vector: Params,
    *,
    model: Model,
    loss: Loss = "mse",
    backend: str = "auto",
    allow_tf32: bool = False,
    clip: float = CLIP,
) -> dict[str, Tensor]:
    """Returns the Hessian of each task's loss times a vector, {name: [T, ...]}.

    Args:
        vector: {name: tensor} with the names of `params`; each shared [...] or per task [T, ...].
        others: see `meta_grad`; `batch` is like its `support`.

    Raises: see `meta_grad`.

    Differentiability: none on the fused back end (a backward raises RuntimeError); any number of
        times on the torch back end.

    Cost: time O(T N P), about two gradients; memory O(T P).

    Source: Pearlmutter 1994.

    Example:
        >>> import torch
        >>> import innerloop as il
        >>> model, x = il.MLP([1, 8, 1]), torch.ones(4, 5, 1)
        >>> il.hvp(model.init(), (x, x), model.init(), model=model)["1.bias"].shape
        torch.Size([4, 1])
    """
    product = matrix_product(
        *("hvp", params, batch),
        op="hvp",
        model=model,
        loss=loss,
        backend=backend,
        clip=clip,
        allow_tf32=allow_tf32,
    )
    return product(vector)


@operation
def loss_and_grad(
    params: Params,
    batch: BatchLike,
    *,
    model: Model,
    loss: Loss = "mse",
    backend: str = "auto",
    allow_tf32: bool = False,
    clip: float = CLIP,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns each task's loss [T] and its gradient {name: [T, ...]}.

    Args, Raises: see `meta_grad`; `batch` is like its `support`.

    Differentiability: none on the fused back end (a backward raises RuntimeError); any number of
        times on the torch back end.

    Cost: time O(T N P); memory O(T P).

    Example:
        >>> import torch
        >>> import innerloop as il
        >>> model, x = il.MLP([1, 8, 1]), torch.ones(4, 5, 1)
        >>> il.loss_and_grad(model.init(), (x, x), model=model)[0].shape
        torch.Size([4])
    """
    op = "loss_and_grad"
    check_options(op, 0, 2, backend)
    check_flag(op, "allow_tf32", allow_tf32)
    batch, objective = policy_rows(op, "batch", batch, model, resolve(op, loss), clip)
    parts = check_batch(op, "batch", batch)
    objective = suited(objective, parts)
    data = data_of("batch", parts)
    ready = prepare(op, model, backend, params, parts[0].shape[0], data, (objective,))
    side = prepare_batch(op, "batch", parts, objective, ready)
    if ready.mlp is not None:
        plan = find_plan(ready.mlp, options_of_one(objective.fused, allow_tf32))
        given = Arguments(ready.params, support=side)
        losses, flat = _autograd.run("loss_and_grad", plan, given)
        return losses, leaf_dict(ready, flat)
    found: tuple[Tensor, dict[str, Tensor]] = ready.operations.loss_and_grad(
        params, side, model=model, loss=objective
    )
    return found


@operation
def predict(
    params: Params,
    x: Tensor,
    *,
    model: Model,
    backend: str = "auto",
    allow_tf32: bool = False,
) -> Tensor:
    """Returns the model's outputs [T, N, K] for x [T, N, D], each task with its own parameters if
    it has them.

    Args, Raises: see `meta_grad`.

    Differentiability: none on the fused back end (a backward raises RuntimeError); any number of
        times on the torch back end.

    Cost: time O(T N P); memory O(T N K).

    Example:
        >>> import torch
        >>> import innerloop as il
        >>> model = il.MLP([1, 8, 2])
        >>> il.predict(model.init(), torch.ones(4, 5, 1), model=model).shape
        torch.Size([4, 5, 2])
    """
    op = "predict"
    check_options(op, 0, 2, backend)
    check_flag(op, "allow_tf32", allow_tf32)
    check_rows(op, "x", x)
    ready = prepare(op, model, backend, params, x.shape[0], {"x": x})
    x = prepare_inputs(op, "", x, ready)
    if ready.mlp is not None:
        unused = FusedObjective("kl" if ready.mlp.free else "mse")
        plan = find_plan(ready.mlp, options_of_one(unused, allow_tf32))
        given = Arguments(ready.params, support=Side(x, None))  # type: ignore[arg-type]
        result: Tensor = _autograd.run("predict", plan, given)
        return result
    check_memory(op, x=x)
    outputs: Tensor = ready.operations.predict(params, x, model=model)
    return outputs
