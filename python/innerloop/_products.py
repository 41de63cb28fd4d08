"""Products of each task's Hessian, or Fisher matrix, with one vector after another: what `hvp`,
`fisher_product` and `meta_fisher` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from innerloop import _autograd
from innerloop._arguments import Arguments
from innerloop._calls import leaf_dict
from innerloop._checks.engine import check_device, check_float
from innerloop._checks.network import check_params
from innerloop._checks.options import check_flag
from innerloop._checks.rows import check_batch
from innerloop._checks.solver import check_options
from innerloop._choice import Model
from innerloop._params import Params
from innerloop._plan import find_plan, options_of_one
from innerloop._policy_rows import policy_rows
from innerloop._preparation import data_of, prepare, prepare_batch
from innerloop._storage import check_memory
from innerloop.objectives import Loss, resolve, suited

Product = Callable[[Params], dict[str, Tensor]]


def matrix_product(
    name: str,
    params: Params,
    batch: Any,
    *,
    op: str,
    model: Model,
    loss: Loss,
    backend: str,
    clip: float,
    allow_tf32: bool = False,
    keeps: bool = False,
) -> Product:
    """Returns the function {name: [...] or [T, ...]} -> {name: [T, ...]} that multiplies with the
    matrix of "hvp" or "fisher_product" at checked parameters and rows. `keeps`: several vectors
    are to come, which then must find both as they are now."""
    check_options(op, 0, 2, backend)
    check_flag(op, "allow_tf32", allow_tf32)
    batch, objective = policy_rows(op, "batch", batch, model, resolve(op, loss), clip)
    parts = check_batch(op, "batch", batch)
    objective = suited(objective, parts)
    data = data_of("batch", parts)
    ready = prepare(op, model, backend, params, parts[0].shape[0], data, (objective,))
    side = prepare_batch(op, "batch", parts, objective, ready)
    multiply: Callable[[list[Tensor]], Tensor] | None = None
    if ready.mlp is not None:
        plan = find_plan(ready.mlp, options_of_one(objective.fused, allow_tf32))
        given = Arguments(ready.params, support=side)
        multiply = _autograd.vector_product(name, plan, given, keeps=keeps)

    def product(vector: Params) -> dict[str, Tensor]:
        direction, like = check_params(op, "vector", vector, ready.leaves, ready.tasks)
        check_float(op, "vector", like, ready.like.dtype, "params")
        check_device(op, "vector", like, ready.like.device, "params")
        if multiply is not None:
            return leaf_dict(ready, multiply(direction))
        check_memory(op, vector=vector)
        other = getattr(ready.operations, name)
        found: dict[str, Tensor] = other(params, side, vector, model=model, loss=objective)
        return found

    return product
