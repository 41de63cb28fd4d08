"""Objective: the rows of tasks that it is the mean of: inputs, counts and weights."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import torch
from torch import Tensor

from innerloop._checks.engine import PLAIN, check_device, check_float, check_tensor, is_dense
from innerloop._checks.messages import kind, sizes, type_error, value_error


def check_tasks(op: str, tasks: object) -> list[tuple[Tensor, Tensor]]:
    """Returns tasks (x [N, ...], y [N, ...]) of any numbers of rows after checking that they can be
    stacked."""
    if not isinstance(tasks, Sequence) or isinstance(tasks, (str, Tensor)):
        type_error(op, "tasks", "be a sequence of (x, y)", kind(tasks))
    found = list(tasks)
    if not found:
        value_error(op, "tasks", "hold at least one task", "none")
    for t, task in enumerate(found):
        if not isinstance(task, (tuple, list)) or len(task) != 2:
            got = kind(task)
            got += f" of length {len(task)}" if isinstance(task, (tuple, list)) else ""
            type_error(op, f"tasks[{t}]", "be a tuple (x, y)", got)
        for name, value, first in zip(("x", "y"), task, found[0], strict=True):
            argument = f"tasks[{t}] {name}"
            check_tensor(op, argument, value)
            if value.ndim == 0 or value.shape[0] != task[0].shape[0]:
                value_error(op, argument, "have one row for each row of x", sizes(value))
            if value.shape[1:] != first.shape[1:]:
                wanted = f"have rows of shape {sizes(first)[1:]} as those of the first task"
                value_error(op, argument, wanted, sizes(value)[1:])
            check_device(op, argument, value, first.device, "the first task")
            if value.dtype is not first.dtype:
                type_error(op, argument, f"be {first.dtype} as the first task's", value.dtype)
    return found


_TASKS = "innerloop.batch(tasks) makes one of a list of (x, y)"


def check_batch(op: str, argument: str, batch: object) -> tuple[Any, Any, Any, Any]:
    """Returns (x, y, count, weight) after checking that there are tensors where they must be."""
    if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 4:
        got, remedy = kind(batch), ""
        if isinstance(batch, Tensor) and batch.ndim == 0:
            remedy = "the loss is computed inside: say which by loss="
        elif isinstance(batch, Sized):
            got += f" of length {len(batch)}"
        if isinstance(batch, list):
            remedy = _TASKS
        type_error(op, argument, "be a tuple (x, y[, count[, weight]])", got, remedy)
    x, y = batch[0], batch[1]
    if all(isinstance(part, (tuple, list)) for part in batch):
        type_error(op, argument, "be a tuple (x, y[, count[, weight]])", "tasks", _TASKS)
    count = batch[2] if len(batch) > 2 else None
    weight = batch[3] if len(batch) > 3 else None
    check_rows(op, f"{argument} x", x)
    if type(y) not in PLAIN or not is_dense(y):
        check_tensor(op, f"{argument} y", y)
    if count is not None:
        check_count(op, f"{argument} count", count, x)
    if weight is not None:
        check_weight(op, f"{argument} weight", weight, x)
    return x, y, count, weight


def check_rows(op: str, argument: str, x: Any) -> None:
    """Checks that x is a tensor with a task and a row axis."""
    if type(x) not in PLAIN or not is_dense(x):
        check_tensor(op, argument, x)
    if x.ndim < 2:
        value_error(op, argument, "have shape [T, N, ...]", sizes(x))


def check_count(op: str, argument: str, count: object, x: Tensor) -> None:
    """Checks the row counts [T] of a batch."""
    check_tensor(op, argument, count)
    assert isinstance(count, Tensor)
    if count.dtype is not torch.int64:
        type_error(op, argument, "be int64", count.dtype)
    if count.ndim != 1 or count.shape[0] != x.shape[0]:
        value_error(op, argument, f"have shape [{x.shape[0]}], one per task", sizes(count))
    check_device(op, argument, count, x.device, "x")


def check_weight(op: str, argument: str, weight: object, x: Tensor) -> None:
    """Checks the sample weights [T, N] of a batch."""
    check_tensor(op, argument, weight)
    assert isinstance(weight, Tensor)
    if weight.ndim != 2 or weight.shape != x.shape[:2]:
        value_error(op, argument, f"have shape {list(x.shape[:2])}", sizes(weight))
    if not weight.is_floating_point():
        type_error(op, argument, "be floating point", weight.dtype)
    check_device(op, argument, weight, x.device, "x")


def check_inputs(
    op: str, argument: str, x: Tensor, tasks: int, features: int, flattens: bool
) -> None:
    """Checks x [T, N, D] (or [T, N, *any] with D values a row) against the task count and the
    model; D is 0 where the model does not say it."""
    if not features:
        if x.shape[0] != tasks:
            value_error(op, argument, f"have {tasks} tasks as the other rows do", sizes(x))
        return
    if flattens and x.ndim > 2:
        size = 1
        for n in x.shape[2:]:
            size *= n
        if x.shape[0] == tasks and size == features:
            return
        wanted = f"[{tasks}, N, ...] with {features} values a row"
    else:
        if x.ndim == 3 and x.shape[0] == tasks and x.shape[2] == features:
            return
        wanted = f"[{tasks}, N, {features}]"
    remedy = "" if flattens or x.ndim < 4 else "nn.Flatten() as first layer takes any shape"
    if x.ndim == 2 and x.shape[1] == features:
        remedy = "tasks are the first axis: x[None] for a single one"
    value_error(op, argument, f"have shape {wanted} to fit the model", sizes(x), remedy)


def check_task_weight(op: str, weight: object, tasks: int, like: Tensor) -> None:
    """Checks the weights [T] of the tasks."""
    check_tensor(op, "task_weight", weight)
    assert isinstance(weight, Tensor)
    if weight.ndim != 1 or weight.shape[0] != tasks:
        value_error(op, "task_weight", f"have shape [{tasks}], one per task", sizes(weight))
    check_float(op, "task_weight", weight, like.dtype, "params")
    check_device(op, "task_weight", weight, like.device, "params")
