"""How the CUDA kernels cut an operation into blocks: ask with `plan`, decide with `fixed_plan`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from innerloop import _native
from innerloop._checks.engine import refuse_backend
from innerloop._checks.options import check_choice
from innerloop._kernels import native_plan
from innerloop._params import RateForm, Side
from innerloop._plan import Execution, InnerLoop, Options, find_plan
from innerloop._solver import GRADIENT_DESCENT
from innerloop.models import MLP
from innerloop.objectives import Loss, resolve

OPERATIONS = ("meta_grad", "meta_loss", "adapt", "hvp", "loss_and_grad", "predict")


class DeviceFacts(NamedTuple):
    """What the model of cost knows of a GPU: multiprocessors and bytes of shared memory."""

    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int


H100 = DeviceFacts(132, 232448, 233472)


class Schedule(NamedTuple):
    """One operation's blocks, each of which works on `tasks_per_block` tasks at a time.
    `workspace_bytes` are of one block, in shared memory; `scratch_bytes` are torch's, in global
    memory, for the whole call. `cycles` is an estimate that is good for comparing schedules and
    nothing else."""

    tasks_per_block: int
    threads: int
    blocks: int
    workspace_bytes: int
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
        NotImplementedError also: one task does not fit the shared memory of a block, so that the
            kernels refuse the call.
        RuntimeError: this installation has no CUDA kernels, or what `fixed_plan` demands does not
            fit.

    Cost:
        About 10 microseconds for a call seen before; up to milliseconds for others, more with more
        steps. No work on a GPU.

    Example:
        >>> from innerloop import schedule
        >>> schedule.H100.multiprocessors
        132
    """
    check_choice("plan", "operation", operation, OPERATIONS)
    objective = resolve("plan", loss)
    if objective.reason:
        refuse_backend("plan", objective.reason)
    module = _native.cuda()
    if facts is None:
        index = torch.cuda.current_device() if device is None else device
        facts = DeviceFacts(*module.device_facts(index))
    form = RateForm(False, False, "model")
    inner = InnerLoop(steps, order, GRADIENT_DESCENT, (True,) * len(model.leaves), form)
    options = Options(objective.fused, objective.fused, inner, False, Execution())
    native = native_plan(find_plan(model, options), module)
    # no address is used: one number stands for every tensor, with the axes of what it stands for
    one = torch.empty((), dtype=dtype)
    params = [one.reshape((1,) * (len(leaf.shape) + per_task)) for leaf in model.leaves]
    support = Side(one.expand(tasks, support_rows, model.inputs), one)
    query = Side(one.expand(tasks, query_rows, model.inputs), one)
    place = (0, 0, None, tuple(facts), False)
    if operation == "predict":
        result = module.predict(native, params, query.x, one, place)
    elif operation == "loss_and_grad":
        result = module.loss_and_grad(native, params, support, one, one, place)
    elif operation == "hvp":
        result = module.hvp(native, params, params, support, one, place)
    elif operation == "adapt":
        result = module.adapt(native, params, one, support, one, one, place)
    else:
        grad, support_loss = (one, one) if operation == "meta_grad" else (None, None)
        outputs = (one, support_loss, None, grad, grad)
        result = module.meta_grad(native, params, one, support, query, None, *outputs, place)
    return Schedule(**result)


@contextmanager
def fixed_plan(*, tasks_per_block: int = 0, threads: int = 0) -> Iterator[None]:
    """Fixes parts of every schedule while the context lasts, in the whole process; what is left at
    0 is chosen as ever. A call that no such schedule fits raises RuntimeError.

    Args:
        tasks_per_block: 1 to 32.
        threads: of a block, 1 to 256.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: this installation has no CUDA kernels.

    Example:
        >>> from innerloop.schedule import fixed_plan
        >>> with fixed_plan(threads=128):  # doctest: +SKIP
        ...     il.meta_grad(...)
    """
    module = _native.cuda()
    before = module.fix_schedule(tasks_per_block, threads)
    try:
        yield
    finally:
        module.fix_schedule(*before)
