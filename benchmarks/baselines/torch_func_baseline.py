"""torch.func as its MAML tutorials write it: vmap over tasks, grad inside and out, eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vmap

from baselines.cuda_graph import captured
from cases.nine import Case, Problem

TITLE = "torch.func vmap(grad), eager"
LIBRARY = False
LIBRARY_ON_CUDA = True  # captured in a CUDA graph it needs no compiler to be fast

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "half_mse": lambda z, y: 0.5 * F.mse_loss(z, y),
    "cross_entropy": F.cross_entropy,
}
# In torch 2.13 jvp over grad refuses F.mse_loss ("ZeroTensors are immutable"), but not this form.
HVP_LOSSES = {**LOSSES, "mse": lambda z, y: (z - y).square().mean()}


def missing() -> str | None:
    """torch is always there."""
    return None


def unfit(case: Case, device: str) -> str | None:
    """torch.func covers every case."""
    return None


def settings(device: str) -> dict[str, dict[str, Any]]:
    """Eager execution has no settings; on a GPU its kernels may be captured in a CUDA graph."""
    plain: dict[str, dict[str, Any]] = {"eager": {}}
    return plain if device == "cpu" else {**plain, "CUDA graph": {"graph": True}}


def forward(case: Case, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """Outputs [N, K] of the network of a case."""
    for layer in range(case.layers):
        x = F.linear(x, params[f"{layer}.weight"], params.get(f"{layer}.bias"))
        if layer < case.layers - 1:
            x = ACTIVATIONS[case.activation](x)
    return x


def task_loss(case: Case) -> Callable[..., Tensor]:
    """The query loss of one task after its inner steps, a function of the initial parameters."""

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return LOSSES[case.loss](forward(case, params, x), y)

    def adapted_loss(
        params: dict[str, Tensor], xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor
    ) -> Tensor:
        for _ in range(case.steps):
            gradient = grad(loss)(params, xs, ys)
            params = {name: leaf - case.inner_lr * gradient[name] for name, leaf in params.items()}
        return loss(params, xq, yq)

    return adapted_loss


def functions(case: Case) -> dict[str, Callable[..., tuple[Any, dict[str, Tensor]]]]:
    """Ways to write the case's quantity; each takes the tensors of `arguments`."""
    if case.quantity == "hvp":
        return _hvp_functions(case)
    adapted_loss = task_loss(case)

    def grad_of_mean(params: dict[str, Tensor], *batch: Tensor) -> tuple[Any, dict[str, Tensor]]:
        def mean_loss(params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            losses = vmap(adapted_loss, in_dims=(None, 0, 0, 0, 0))(params, *batch)
            return losses.mean(), losses

        gradient, losses = grad(mean_loss, has_aux=True)(params)
        return losses, gradient

    def mean_of_grads(params: dict[str, Tensor], *batch: Tensor) -> tuple[Any, dict[str, Tensor]]:
        each = vmap(grad_and_value(adapted_loss), in_dims=(None, 0, 0, 0, 0))
        gradient, losses = each(params, *batch)
        return losses, {name: leaf.mean(0) for name, leaf in gradient.items()}

    return {"grad(mean(vmap))": grad_of_mean, "mean(vmap(grad))": mean_of_grads}


def _hvp_functions(case: Case) -> dict[str, Callable[..., tuple[Any, dict[str, Tensor]]]]:
    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return HVP_LOSSES[case.loss](forward(case, params, x), y)

    def forward_over_reverse(
        params: dict[str, Tensor], vector: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> dict[str, Tensor]:
        # The inputs' tangent is zero and given all the same: without it torch.compile fails in 2.13
        # ("device mismatch" between cpu and meta).
        def gradient(p: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
            return grad(loss)(p, x, y)

        return jvp(gradient, (params, x), (vector, torch.zeros_like(x)))[1]

    def reverse_over_reverse(
        params: dict[str, Tensor], vector: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> dict[str, Tensor]:
        def directional(p: dict[str, Tensor]) -> Tensor:
            gradient = grad(loss)(p, x, y)
            return torch.stack([(gradient[name] * vector[name]).sum() for name in p]).sum()

        return grad(directional)(params)

    return {
        "vmap(jvp(grad))": lambda *a: (None, vmap(forward_over_reverse)(*a)),
        "vmap(grad(<grad, v>))": lambda *a: (None, vmap(reverse_over_reverse)(*a)),
    }


def arguments(problem: Problem) -> tuple[Any, ...]:
    """What the functions of `functions` are called with."""
    if problem.case.quantity == "hvp":
        return (problem.params, problem.vector, *problem.support)
    return (problem.params, *problem.support, *problem.query)


def formulations(problem: Problem) -> dict[str, Any]:
    """Eager calls of each way to write the case."""

    def build(function: Callable[..., Any], graph: bool = False) -> Callable[[], Any]:
        call_arguments = arguments(problem)
        names = list(problem.case.shapes())

        def call() -> Any:
            losses, leaves = function(*call_arguments)
            return losses, [leaves[name] for name in names]

        return captured(call) if graph else call

    return {
        name: lambda function=function, **options: build(function, **options)
        for name, function in functions(problem.case).items()
    }
