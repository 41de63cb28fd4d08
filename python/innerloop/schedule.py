"""How the CUDA kernels cut an operation into blocks: ask with `plan`, decide with `fixed_plan`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from innerloop import _checks, _native
from innerloop._params import RateForm
from innerloop._plan import Options, find_plan
from innerloop.models import MLP
from innerloop.objectives import Loss, resolve

OPERATIONS = ("meta_grad", "meta_loss", "adapt", "hvp", "loss_and_grad", "predict")
STRATEGIES = ("auto", "resident", "streamed", "low_rank", "cluster", "tiled")


class DeviceFacts(NamedTuple):
    """What the model of cost knows of a GPU: multiprocessors, bytes of shared memory, and the most
    blocks that may share theirs (1 before sm_90)."""

    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    most_in_cluster: int = 1


H100 = DeviceFacts(132, 232448, 233472, 8)


class Schedule(NamedTuple):
    """One operation's blocks. `workspace_bytes` are of one block, in shared memory if `in_shared`
    (always unless the strategy is "streamed", or "low_rank" and they do not fit), else in global
    memory. `cluster` blocks share a group of `tasks_per_block` tasks. `tile_rows` of a task pass at
    a time if the strategy is "tiled"; otherwise it is 0. The parameters after the first `far_steps`
    steps lie in global memory although the rest does not. `one_product`: the
    first layer's products with a weight that all tasks share are launches of their own, for all
    tasks at once. `shared_bytes` are a block's shared memory: the workspace if it lies there, and
    operands on their way. `scratch_bytes` are torch's, in global memory, for the whole call.
    `cycles` is an estimate that is good for comparing schedules and nothing else."""

    strategy: str
    tasks_per_block: int
    threads: int
    cluster: int
    blocks: int
    tile_rows: int
    far_steps: int
    in_shared: bool
    one_product: bool
    workspace_bytes: int
    shared_bytes: int
    scratch_bytes: int
    cycles: float


def plan(
    model: MLP,
    *,
    tasks: int,
    support_rows: int,
    query_rows: int = 0,
    steps: int = 1,
    order: int = 2,
    loss: Loss = "mse",
    operation: str = "meta_grad",
    dtype: torch.dtype = torch.float32,
    per_task: bool = False,
    facts: DeviceFacts | None = None,
    device: int | None = None,
) -> Schedule:
    """Returns how the CUDA kernels would run an operation.

    Args:
        model: the description of the network.
        tasks, support_rows, query_rows, steps, order, loss: as in the operation; `hvp` and
            `loss_and_grad` have support rows only, `predict` query rows only.
        operation: "meta_grad", "meta_loss", "adapt", "hvp", "loss_and_grad" or "predict".
        dtype: torch.float32 or torch.float64.
        per_task: whether every leaf is [T, ...], as with parameters of each task's own.
        facts: of the GPU to plan for; needs no GPU. Those of `device` if absent.
        device: index of the GPU whose facts are taken; the current one if None.

    Returns:
        The Schedule that `fixed_plan` and the model of cost (docs/cuda.md) give.

    Raises:
        ValueError: an option is unknown.
        NotImplementedError: the loss has no kernel.
        RuntimeError: this installation has no CUDA kernels, or no schedule fits.

    Cost:
        About 10 microseconds for a call seen before; up to milliseconds for others, more with more
        steps. No work on a GPU.

    Example:
        >>> from innerloop import schedule
        >>> schedule.H100.multiprocessors
        132
    """
    _checks.check_choice("plan", "operation", operation, OPERATIONS)
    objective = resolve("plan", loss)
    if objective.reason:
        _checks.refuse_backend("plan", objective.reason)
    module = _native.cuda()
    if facts is None:
        index = torch.cuda.current_device() if device is None else device
        facts = DeviceFacts(*module.device_facts(index))
    leaves = model.leaves
    form = RateForm(False, False, "model")
    adapt = (True,) * len(leaves)
    found = find_plan(model, Options(objective.name, steps, order, adapt, form, False))
    native = module.Model(*found.native_arguments())
    # no address is used: one number stands for every tensor, with the axes of a leaf
    one = torch.empty(1)
    params = [one.reshape((1,) * (len(leaf.shape) + per_task)) for leaf in leaves]
    support, query = (support_rows, one, one, None, None), (query_rows, one, one, None, None)
    place = (0, 0, None, tuple(facts), False)
    head = (native, dtype is torch.float64)
    losses = (*head, found.loss_code, found.loss_parameter, tasks)
    rates = (one, 0, 0, 0, False)
    if operation == "predict":
        result = module.predict(*head, tasks, query_rows, params, one, one, place)
    elif operation == "loss_and_grad":
        result = module.loss_and_grad(*losses, params, support, one, one, place)
    elif operation == "hvp":
        result = module.hvp(*losses, params, params, support, one, place)
    elif operation == "adapt":
        result = module.adapt(*losses, steps, params, adapt, rates, support, one, False, one, place)
    else:
        grad, support_loss = (one, one) if operation == "meta_grad" else (None, None)
        result = module.meta_grad(
            *losses, steps, order, params, adapt, rates, support, query, None, one, support_loss,
            None, grad, grad, place,
        )  # fmt: skip
    return Schedule(**result)


@contextmanager
def fixed_plan(
    strategy: str = "auto",
    *,
    tasks_per_block: int = 0,
    threads: int = 0,
    cluster: int = 0,
    one_product: bool | None = None,
) -> Iterator[None]:
    """Fixes parts of every schedule while the context lasts, in the whole process; what is left at
    "auto", 0 or None is chosen as ever. A call that no such schedule fits raises RuntimeError.

    Args:
        strategy: "auto", "resident" (a block's workspace in shared memory), "streamed" (in
            global memory), "low_rank" (per-task weights kept as factors; `meta_grad` and
            `meta_loss` without rates per element, where an adapted weight is shared by all tasks),
            "cluster" (parts of every layer in the shared memory of several blocks; sm_90 and later)
            or "tiled" (rows pass in tiles through blocks that keep all parameters); the latter two
            for `meta_grad`, `meta_loss` and `adapt` without rates per element.
        tasks_per_block: 1 to 32.
        threads: of a block, 1 to 256.
        cluster: blocks that share a group of tasks, 1 to 8. Of the strategy "cluster" a divisor,
            from 2 on, of the widths of all hidden layers (of the inputs, if there are none); of
            "tiled" any, more than 1 on sm_90 and later; otherwise it has no effect.
        one_product: whether the first layer's products with a weight that all tasks share are
            taken for all tasks at once, where its per-task weights are never built; elsewhere it
            has no effect.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: this installation has no CUDA kernels.

    Example:
        >>> from innerloop.schedule import fixed_plan
        >>> with fixed_plan("resident", threads=128):  # doctest: +SKIP
        ...     il.meta_grad(...)
    """
    module = _native.cuda()
    before = module.fix_schedule(strategy, tasks_per_block, threads, cluster, one_product)
    try:
        yield
    finally:
        module.fix_schedule(*before)
