"""Objective: whether a loss fits the targets, the outputs and the model that it measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from innerloop._checks.engine import check_device, check_float, check_tensor
from innerloop._checks.messages import kind, sizes, type_error, value_error
from innerloop._checks.rows import check_rows

if TYPE_CHECKING:
    from innerloop.objectives import Objective


def check_targets(
    op: str, argument: str, y: Tensor, x: Tensor, objective: Objective, outputs: int
) -> None:
    """Checks y against x, the loss and the model's number of outputs (0: not known beforehand)."""
    rows = x.shape[:2]
    if objective.strict and outputs == 1 and y.shape == rows:
        wanted = f"have shape {[*rows, 1]} for torch's loss, which would broadcast it"
        value_error(op, f"{argument} y", wanted, sizes(y), "pass y[..., None]")
    if objective.rows is None:
        if y.shape[:2] != rows:
            value_error(op, f"{argument} y", f"have shape [{rows[0]}, {rows[1]}, ...]", sizes(y))
    elif objective.classes:
        if y.dtype is not torch.int64:
            type_error(op, f"{argument} y", "be int64 classes for cross_entropy", y.dtype)
        if y.ndim != 2 or y.shape != rows:
            remedy = "for more of them a row pass a function that calls F.cross_entropy"
            value_error(
                op,
                f"{argument} y",
                f"have shape {list(rows)} (classes)",
                sizes(y),
                remedy if y.ndim > 2 and not outputs else "",
            )
    else:
        if not y.is_floating_point():
            remedy = 'loss="cross_entropy" is for classes'
            wanted = f"be floating point for {objective.name}"
            type_error(op, f"{argument} y", wanted, y.dtype, remedy)
        shape = y.shape
        if outputs == 0:
            if shape[:2] != rows:
                value_error(
                    op, f"{argument} y", f"have shape [{rows[0]}, {rows[1]}, ...]", sizes(y)
                )
        elif objective.is_policy:
            pass  # made of a PolicyBatch, which was checked
        elif shape != (*rows, outputs) and not (outputs == 1 and shape == rows):
            value_error(
                op, f"{argument} y", f"have shape {[*rows, outputs]} to fit the model", sizes(y)
            )
    check_device(op, f"{argument} y", y, x.device, "x")


def check_loss(op: str, objective: Objective, outputs: int, like: Tensor) -> None:
    """Checks the tensors that a loss holds against the model's outputs (0: not known beforehand)
    and the dtype and device of the parameters."""
    if objective.outputs and outputs not in (0, objective.outputs):
        wanted = f"hold weights for the {outputs} outputs of the model"
        value_error(op, f"the loss {objective.name}", wanted, f"{objective.outputs}")
    if objective.dtype is None:
        return
    if objective.dtype is not like.dtype:
        wanted, remedy = f"hold weights of the dtype of params, {like.dtype}", ".to() converts it"
        type_error(op, f"the loss {objective.name}", wanted, objective.dtype, remedy)
    if like.device.type != "cpu":
        wanted = f"hold weights on the device of params, {like.device}"
        value_error(op, f"the loss {objective.name}", wanted, "cpu", ".to() moves it")


def check_indices(
    op: str,
    argument: str,
    y: Tensor,
    count: Tensor | None,
    classes: int,
    ignored: int | None,
    weight: Tensor | None = None,
) -> None:
    """Reads data: checks counts, and the classes of rows in use unless `classes` is 0, for the back
    ends without kernels (these check their own)."""
    if count is not None and bool(((count < 0) | (count > y.shape[1])).any()):
        value_error(op, f"{argument} count", f"lie in [0, {y.shape[1]}]", count.tolist())
    if classes:
        used = torch.ones_like(y, dtype=torch.bool)
        if count is not None:
            used = torch.arange(y.shape[1], device=y.device) < count[:, None]
        if weight is not None:
            used = used & (weight != 0)
        if ignored is not None:
            used = used & (y != ignored)
        wrong = y[used & ((y < 0) | (y >= classes))]
        if len(wrong):
            value_error(op, f"{argument} y", f"hold classes in [0, {classes})", wrong[0].item())


def check_policy(op: str, argument: str, batch: object, model: Any, objective: Objective) -> bool:
    """Checks that a policy objective meets a policy and its rows, and nothing else does. Returns
    whether it is one."""
    is_policy = getattr(model, "min_log_std", None) is not None
    if objective.is_policy and not is_policy:
        type_error(op, "model", f"be an innerloop.GaussianMLP for {objective.name}", kind(model))
    if is_policy and not objective.is_policy:
        names = "pg_loglik, pg_ratio, pg_clipped or kl"
        value_error(op, "loss", f"be {names} for a GaussianMLP", repr(objective.name))
    if not is_policy:
        return False
    if type(batch).__name__ not in ("PolicyBatch", "PolicyRows"):
        wanted = f"be an innerloop.PolicyBatch for {objective.name}"
        type_error(op, argument, wanted, kind(batch))
    return True


def check_policy_batch(op: str, argument: str, batch: Any, outputs: int) -> None:
    """Checks the members of a PolicyBatch that are a policy's targets; reads shapes only."""
    check_rows(op, f"{argument} x", batch.x)
    tasks, rows = batch.x.shape[:2]
    shapes = {
        "action": [tasks, rows, outputs],
        "advantage": [tasks, rows],
        "mean": [tasks, rows, outputs],
        "log_std": [tasks, outputs],
    }
    for name, wanted in shapes.items():
        value = getattr(batch, name)
        check_tensor(op, f"{argument} {name}", value)
        shape = list(value.shape)
        if shape != wanted and not (name == "log_std" and shape == [outputs]):
            value_error(op, f"{argument} {name}", f"have shape {wanted}", shape)
        check_float(op, f"{argument} {name}", value, batch.x.dtype, "x")
        check_device(op, f"{argument} {name}", value, batch.x.device, "x")


def refuse_kl(op: str, coefficient: object) -> NoReturn:
    """Raises for a KL of what is no policy."""
    value_error(op, "kl_coefficient", "be 0 unless the model is a GaussianMLP", repr(coefficient))
