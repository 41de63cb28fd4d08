"""Hand-written batched MAML: matrix products over all tasks, inner gradient by hand, compiled.

The inner gradient is written out with `bmm` and `baddbmm`, so the outer gradient is one ordinary
reverse pass over batched code; Hessian-vector products are written out by hand as well (Pearlmutter
1994). Everything is under torch.compile, at the same settings as the torch.func rival; on a GPU
also as it is, in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from baselines import compiled
from baselines.cuda_graph import captured
from baselines.torch_func_baseline import ACTIVATIONS
from cases.nine import Case, Problem

TITLE = "hand-written batched bmm"
LIBRARY = False
# The derivative of each activation, from its value.
SLOPES: dict[str, Callable[[Tensor], Any]] = {
    "relu": lambda h: h > 0,
    "tanh": lambda h: 1 - h * h,
}


def missing() -> str | None:
    """torch is always there."""
    return None


def unfit(case: Case, device: str) -> str | None:
    """Written for the losses of the table and relu; meta-gradients for tanh as well."""
    known = ("relu",) if case.quantity == "hvp" else tuple(SLOPES)
    if case.layers > 1 and case.activation not in known:
        return f"written for {' and '.join(known)} (the case has {case.activation})"
    return None


def settings(device: str) -> dict[str, dict[str, Any]]:
    """Compiler modes, the default first; on a GPU no compiler and a CUDA graph before them."""
    graph: dict[str, dict[str, Any]] = {"CUDA graph": {"graph": True}}
    return {**(graph if device == "cuda" else {}), **compiled.SETTINGS[device]}


def _linear(weight: Tensor, bias: Tensor | None, h: Tensor) -> Tensor:
    """Pre-activations [T, N, out]; the weight is shared [out, in] or per task [T, out, in]."""
    if weight.ndim == 2:
        return F.linear(h, weight, bias)
    if bias is None:
        return torch.bmm(h, weight.mT)
    return torch.baddbmm(bias.unsqueeze(1), h, weight.mT)


def _forward(case: Case, params: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Inputs of every layer and the outputs, [T, N, *] each."""
    values = [x]
    for layer in range(case.layers):
        z = _linear(params[f"{layer}.weight"], params.get(f"{layer}.bias"), values[-1])
        values.append(ACTIVATIONS[case.activation](z) if layer < case.layers - 1 else z)
    return values


def _task_losses(case: Case, z: Tensor, y: Tensor) -> Tensor:
    """Mean loss of each task, [T]."""
    if case.loss == "cross_entropy":
        return -torch.log_softmax(z, -1).gather(-1, y.unsqueeze(-1)).mean((1, 2))
    return ((z - y) ** 2).mean((1, 2)) * (0.5 if case.loss == "half_mse" else 1.0)


def _output_gradient(case: Case, z: Tensor, y: Tensor) -> Tensor:
    """Derivative of each task's mean loss with respect to its outputs, [T, N, K]."""
    if case.loss == "cross_entropy":
        return (torch.softmax(z, -1) - F.one_hot(y, case.classes).to(z.dtype)) / z.shape[1]
    scale = (1.0 if case.loss == "half_mse" else 2.0) / (z.shape[1] * z.shape[2])
    return scale * (z - y)


def _inner_step(case: Case, params: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Parameters [T, ...] after one gradient step on the support rows."""
    values = _forward(case, params, x)
    delta = _output_gradient(case, values[-1], y)
    moved: dict[str, Tensor] = {}
    for layer in reversed(range(case.layers)):
        weight = params[f"{layer}.weight"]
        start = weight.expand(x.shape[0], *weight.shape) if weight.ndim == 2 else weight
        moved[f"{layer}.weight"] = torch.baddbmm(
            start, delta.mT, values[layer], alpha=-case.inner_lr
        )
        if case.bias:
            moved[f"{layer}.bias"] = params[f"{layer}.bias"] - case.inner_lr * delta.sum(1)
        if layer > 0:
            delta = (delta @ weight) * SLOPES[case.activation](values[layer])
    return moved


def _meta_gradient(case: Case) -> Callable[..., Any]:
    def compute(params: dict[str, Tensor], xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Any:
        def mean_loss(leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            for _ in range(case.steps):
                leaves = _inner_step(case, leaves, xs, ys)
            losses = _task_losses(case, _forward(case, leaves, xq)[-1], yq)
            return losses.mean(), losses

        gradient, losses = grad(mean_loss, has_aux=True)(params)
        return losses, gradient

    return compute


def _hessian_products(case: Case) -> Callable[..., Any]:
    def compute(params: dict[str, Tensor], vector: dict[str, Tensor], x: Tensor, y: Tensor) -> Any:
        values = _forward(case, params, x)
        tangent: Tensor | None = None  # the inputs have none
        tangents: list[Tensor | None] = [None]
        for layer in range(case.layers):
            z_tangent = _linear(
                vector[f"{layer}.weight"], vector.get(f"{layer}.bias"), values[layer]
            )
            if tangent is not None:
                z_tangent = torch.baddbmm(z_tangent, tangent, params[f"{layer}.weight"].mT)
            tangent = z_tangent * (values[layer + 1] > 0) if layer < case.layers - 1 else z_tangent
            tangents.append(tangent)
        assert tangent is not None
        delta = _output_gradient(case, values[-1], y)
        if case.loss == "cross_entropy":
            p = torch.softmax(values[-1], -1)
            delta_tangent = p * (tangent - (p * tangent).sum(-1, keepdim=True)) / x.shape[1]
        else:
            scale = (1.0 if case.loss == "half_mse" else 2.0) / (x.shape[1] * case.classes)
            delta_tangent = scale * tangent
        products: dict[str, Tensor] = {}
        for layer in reversed(range(case.layers)):
            weight_product = torch.bmm(delta_tangent.mT, values[layer])
            input_tangent = tangents[layer]
            if input_tangent is not None:
                weight_product = torch.baddbmm(weight_product, delta.mT, input_tangent)
            products[f"{layer}.weight"] = weight_product
            if case.bias:
                products[f"{layer}.bias"] = delta_tangent.sum(1)
            if layer > 0:
                active = values[layer] > 0
                weight, moved = params[f"{layer}.weight"], vector[f"{layer}.weight"]
                delta_tangent = active * torch.baddbmm(delta_tangent @ weight, delta, moved)
                delta = active * (delta @ weight)
        return None, products

    return compute


def formulations(problem: Problem) -> dict[str, Any]:
    """One formulation, compiled."""
    case = problem.case
    names = list(case.shapes())
    if case.quantity == "hvp":
        arguments: tuple[Any, ...] = (problem.params, problem.vector, *problem.support)
        function = _hessian_products(case)
    else:
        arguments = (problem.params, *problem.support, *problem.query)
        function = _meta_gradient(case)

    def build(graph: bool = False, **options: Any) -> Callable[[], Any]:
        if graph:
            return captured(lambda: _result(function(*arguments), names))
        return compiled.compiled_call(function, arguments, names, **options)

    return {"batched": build}


def _result(outcome: Any, names: list[str]) -> Any:
    losses, leaves = outcome
    return losses, [leaves[name] for name in names]
