"""Engine: which back end a network, its losses and a device get, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from innerloop import _calling, _kernels, _native, _torch_calls
from innerloop._callable_loss import known_reason
from innerloop._checks.network import check_initialised, check_model
from innerloop._derivatives import forward_mode, transforms_active
from innerloop._networks import Network, expected_network
from innerloop.models import MLP
from innerloop.objectives import Loss, Objective, resolve

Model = MLP | nn.Module

# a wrong gradient is worse than a slow one: "auto" waits until tests/cuda has passed on a GPU
CUDA_ON_DEMAND = (
    'the fused CUDA kernels have not been run on a GPU yet; backend="fused" takes them all the same'
)


class Choice(NamedTuple):
    """A back end ("fused", "batched" or "torch") and the reason for it in words."""

    backend: str
    reason: str


@_calling.named
def backend_for(model: Model, *, loss: Loss = "mse", device: torch.device | str = "cpu") -> Choice:
    """Returns the back end that `backend="auto"` takes for a model and a loss, and why.

    Args:
        model: an MLP or any nn.Module.
        loss: as `meta_grad` takes it.
        device: where the parameters live.

    Example:
        >>> from torch import nn
        >>> backend_for(nn.Conv2d(1, 1, 3)).backend
        'batched'
    """
    check_model("backend_for", model)
    if isinstance(model, nn.Module):
        check_initialised("backend_for", model)
    objective = resolve("backend_for", loss)
    named = () if isinstance(model, MLP) else model.parameters()
    dtype = next((p.dtype for p in named if p.is_floating_point()), torch.float32)
    return choice_for(model, torch.device(device), dtype, "auto", (objective,))


def choice_for(
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
    objectives: Sequence[Objective] = (),
    module: object = None,
) -> Choice:
    """Returns the back end that "auto", "fused" or "batched" comes to for a model with parameters
    of a dtype and losses; the last two raise instead of falling back. `module`: what losses are
    called with, if that is not `model`."""
    network = Network(model, (), "") if isinstance(model, MLP) else expected_network(model)
    choice = chosen(network, device, dtype, backend, objectives)
    if choice.backend == "batched":
        for objective in objectives:
            reason = known_reason(objective, module or model)
            if reason:
                return Choice("torch", reason)
    return choice


def refusal_for(
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
    objectives: Sequence[Objective],
) -> str:
    """Returns why a back end that is asked for cannot be had, if that is known before a batch is;
    else an empty text."""
    if isinstance(model, nn.Module) and expected_network(model).is_unsure:
        return ""
    choice = choice_for(model, device, dtype, backend, objectives)
    return "" if choice.backend == backend else choice.reason


def chosen(
    network: Network,
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
    objectives: Sequence[Objective],
    differentiated: str = "",
) -> Choice:
    """Returns the back end of a network: fused, else batched, else torch, as far as `backend` lets
    it be chosen."""
    if backend == "torch":
        return Choice("torch", 'backend="torch" was asked for')
    mlp = network.mlp
    reason = ""
    if backend != "batched":
        reason = network.reason or unavailable(device, dtype, backend, *objectives)
        if differentiated and not reason:
            reason = (
                f"{differentiated} is differentiated, in which the fused operations have no "
                "derivative"
            )
        if not reason:
            assert mlp is not None
            kind = "CUDA" if device.type == "cuda" else "CPU"
            return Choice("fused", f"{kind} kernels for the network {mlp.summary}")
        of_loss = next((each.reason for each in objectives if each.reason), "")
        if network.reason and of_loss:
            reason += f"; {of_loss}"
    if backend != "fused":
        other = _not_batched(network, objectives, differentiated)
        if not other:
            asked = "asked for" if backend == "batched" else f"since {reason}"
            return Choice("batched", f"batched operations over the tasks, {asked}")
        if backend == "batched" or network.mlp is not None or network.programs:
            reason = f"{reason}; {other}" if reason else other
    return Choice("torch", reason)


def _not_batched(network: Network, objectives: Sequence[Objective], differentiated: str) -> str:
    """Returns why a network has no batched operations for some losses; empty if it has."""
    if any(each.is_policy for each in objectives):
        return "batched operations have no policy objectives"
    if torch.compiler.is_compiling():
        return "torch.compile is tracing, which the batched operations are not for"
    if network.mlp is None and not network.programs:
        return network.reason
    if reason := _torch_calls.replaced():
        return f"{reason}, which batched operations would call as well"
    if transforms_active() or forward_mode():
        return "transforms of torch.func and forward mode do not go through batched operations"
    if differentiated:
        return f"{differentiated} is differentiated, in which batched operations have no derivative"
    return ""


def unavailable(
    device: torch.device, dtype: torch.dtype, backend: str, *objectives: Objective
) -> str:
    """Returns why there are no fused kernels on a device, for a dtype or for a loss, for "auto" or
    "fused"; empty if there are."""
    if dtype is torch.bfloat16:
        return "there are no kernels for torch.bfloat16"
    for objective in objectives:
        if objective.reason:
            return objective.reason
    if device.type == "cuda":
        reason = _cuda_reason(device.index)
        if reason:
            return f"the fused CUDA kernels cannot be used: {reason}"
        return CUDA_ON_DEMAND if backend == "auto" else ""
    if _kernels.UNAVAILABLE:
        return f"the native extension cannot be used: {_kernels.UNAVAILABLE}"
    if device.type not in ("cpu", "meta"):
        return f"there are no fused kernels for device type {device.type!r}"
    return ""


def _cuda_reason(index: int | None) -> str:
    """Returns why a CUDA device cannot be used; asked, not traced, under torch.compile."""
    return _native.cuda_reason(index)


# what torch.compiler.assume_constant_result does, less its import of all of torch._dynamo
_cuda_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]
