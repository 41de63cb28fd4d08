"""Network: the model, its parameters, and norms whose statistics no inner loop can keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from innerloop._checks.engine import PLAIN, check_device, check_float, check_tensor, is_dense
from innerloop._checks.messages import kind, sizes, type_error, value_error
from innerloop._params import LeafShape


def check_model(op: str, model: object) -> None:
    """Checks that the model is one of the two kinds."""
    if not isinstance(model, nn.Module) and not hasattr(model, "layers"):
        type_error(op, "model", "be an innerloop.MLP or a torch.nn.Module", kind(model))


def check_network(op: str, module: object) -> None:
    """Checks that a module is one."""
    if not isinstance(module, nn.Module):
        type_error(op, "module", "be a torch.nn.Module", kind(module))


def check_initialised(op: str, module: nn.Module) -> None:
    """Checks that a module knows its own sizes, which lazy layers learn from their first input."""
    for name, part in module.named_modules():
        if any(map(is_lazy, (*part._parameters.values(), *part._buffers.values()))):
            got = f"{kind(part)} at {name!r}" if name else kind(part)
            remedy = "call it once on an input of the right size"
            value_error(op, "module", "have its parameters", f"{got}, not initialised yet", remedy)


def check_params(
    op: str, argument: str, params: object, leaves: Sequence[LeafShape], tasks: int
) -> tuple[list[Tensor], Tensor]:
    """Returns the leaves in model order after checking names, shapes, dtype and device; and one
    that stands for the dtype and device of all."""
    if type(params) is not dict and not isinstance(params, Mapping):
        type_error(op, argument, "be a dict of tensors", kind(params))
    assert isinstance(params, Mapping)
    found: list[Tensor] = []
    dtype: torch.dtype | None = None
    first: Tensor | None = None
    for leaf in leaves:
        value = params.get(leaf.name)
        if value is None:
            value_error(op, argument, f"hold {leaf.name!r}", f"{list(params)}")
        if type(value) not in PLAIN or not is_dense(value):
            check_tensor(op, f"{argument}[{leaf.name!r}]", value)
        shape = value.shape
        if shape != leaf.shape and (
            len(shape) != len(leaf.shape) + 1 or shape != (tasks, *leaf.shape)
        ):
            value_error(
                op,
                f"{argument}[{leaf.name!r}]",
                f"have shape {list(leaf.shape)} or, per task, {[tasks, *leaf.shape]}",
                sizes(value),
            )
        if not leaf.is_floating:
            pass
        elif first is None or dtype is None:
            check_float(op, f"{argument}[{leaf.name!r}]", value, value.dtype, argument)
            first, dtype = value, value.dtype
        elif value.dtype is not dtype or value.device != first.device:
            check_float(
                op, f"{argument}[{leaf.name!r}]", value, dtype, f"{argument}[{leaves[0].name!r}]"
            )
            check_device(
                op,
                f"{argument}[{leaf.name!r}]",
                value,
                first.device,
                f"{argument}[{leaves[0].name!r}]",
            )
        found.append(value)
    if first is None:
        value_error(op, argument, "hold at least one floating-point parameter", list(params))
    if len(params) != len(leaves):
        known = {leaf.name for leaf in leaves}
        extra = [name for name in params if name not in known]
        value_error(op, argument, "hold the model's parameters only", f"also {extra}")
    return found, first


def refuse_bare_norm(op: str, module: nn.Module) -> NoReturn:
    """Raises because a module that is a norm itself cannot be replaced in place."""
    remedy = "make an innerloop.nn.PerStepBatchNorm"
    value_error(op, "module", "hold its batch norms as parts", kind(module), remedy)


def check_plain_norms(op: str, module: nn.Module) -> None:
    """Refuses batch norms that do more than torch's own, which what replaces them would not do."""
    for name, part in module.named_modules():
        if not isinstance(part, _BatchNorm):
            continue
        is_torchs = type(part).__module__.startswith("torch.nn.modules.")
        hooks = part._forward_hooks or part._forward_pre_hooks
        if not is_torchs or hooks or "forward" in vars(part):
            raise ValueError(
                f"{op}: {name} ({type(part).__name__}) has a forward, a hook or a parametrisation "
                "of its own, which a PerStepBatchNorm in its place would not have; write a module "
                "that reads il.nn.inner_step() for it"
            )


def check_statistics(op: str, module: nn.Module, *, selects_rows: bool) -> None:
    """Refuses normalisation whose statistics would be updated by an inner loop, or would not be
    those of the rows in use."""
    for name, part in module.named_modules():
        if not isinstance(part, _NormBase):
            continue
        tracked = part.running_mean is not None
        if tracked and part.training:
            raise NotImplementedError(
                f"{op}: layer {name!r} ({kind(part)}) must not update running statistics, which "
                "an inner loop would fill with every task's steps (got track_running_stats=True "
                "in training mode); innerloop.nn.per_pass_statistics(module) gives it the "
                "statistics of each forward pass, as in the original MAML, and .eval() its "
                "running statistics as constants"
            )
        if selects_rows and not tracked and not isinstance(part, _InstanceNorm):
            refuse_statistics(op, f"layer {name!r} ({kind(part)})")


def refuse_statistics(op: str, what: str) -> NoReturn:
    """Raises because statistics would be taken over rows that are left out."""
    raise NotImplementedError(
        f"{op}: {what} must not take statistics over rows that are left out (got count or weight); "
        "give tasks of equal size, or use nn.GroupNorm or nn.LayerNorm"
    )
