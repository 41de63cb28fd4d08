"""Shows what torch.compile makes of the textbook MAML loop, and that innerloop is not affected.

The textbook loop differentiates the inner loss with `torch.autograd.grad(..., create_graph=True)`.
The script computes its meta-gradient in several ways on a problem small enough for finite
differences, and says of each which gradient it is: the full one (MAML) or the first-order one.
It exits with status 1 if innerloop returns anything but the full gradient.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

INNER_LR = 0.1
STEPS = 2
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # finite differences reach 1e-9
Params = tuple[Tensor, Tensor]


def problem(dtype: torch.dtype) -> tuple[Params, tuple[Tensor, ...]]:
    """Parameters of a linear model with three inputs, and one task's support and query rows."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(1, generator=generator, dtype=torch.float64)
    batch = [torch.randn(8, columns, generator=generator) for columns in (3, 1, 3, 1)]
    return (weight.to(dtype), bias.to(dtype)), tuple(each.to(dtype) for each in batch)


def loss_of(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of the linear model."""
    return torch.nn.functional.mse_loss(torch.nn.functional.linear(x, *params), y)


def textbook_loss(params: Params, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
    """The query loss after the inner steps, as most MAML code computes it."""
    for _ in range(STEPS):
        gradient = torch.autograd.grad(loss_of(params, xs, ys), params, create_graph=True)
        params = (params[0] - INNER_LR * gradient[0], params[1] - INNER_LR * gradient[1])
    return loss_of(params, xq, yq)


def functional_loss(params: Params, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
    """The same with `torch.func.grad`."""
    for _ in range(STEPS):
        gradient = torch.func.grad(loss_of)(params, xs, ys)
        params = (params[0] - INNER_LR * gradient[0], params[1] - INNER_LR * gradient[1])
    return loss_of(params, xq, yq)


def innerloop_loss(params: Params, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
    """The same with `innerloop.meta_loss`, one task."""
    import innerloop as il

    return il.meta_loss(
        {"0.weight": params[0], "0.bias": params[1]},
        (xs[None], ys[None]),
        (xq[None], yq[None]),
        model=il.MLP([3, 1]),
        inner_lr=INNER_LR,
        steps=STEPS,
    ).sum()


def outer_gradient(loss: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
    """The meta-gradient by one ordinary backward through a (compiled) loss, flattened."""
    params, batch = problem(dtype)
    leaves = (params[0].requires_grad_(), params[1].requires_grad_())
    gradient = torch.autograd.grad(loss(leaves, *batch), leaves)
    return torch.cat([part.flatten() for part in gradient])


def first_order_gradient() -> Tensor:
    """The first-order meta-gradient in float64: inner gradients taken as constants."""
    params, (xs, ys, xq, yq) = problem(torch.float64)
    for _ in range(STEPS):
        gradient = torch.func.grad(loss_of)(params, xs, ys)
        params = (params[0] - INNER_LR * gradient[0], params[1] - INNER_LR * gradient[1])
    final = torch.func.grad(loss_of)(params, xq, yq)
    return torch.cat([part.flatten() for part in final])


def full_gradient(step: float = 1e-5) -> Tensor:
    """The true meta-gradient in float64 by central differences of the loss, which needs no
    second derivative from anybody."""
    params, batch = problem(torch.float64)
    flat = torch.cat([part.flatten() for part in params])

    def at(values: Tensor) -> float:
        return float(functional_loss((values[:3].reshape(1, 3), values[3:]), *batch))

    units = torch.eye(len(flat), dtype=torch.float64)
    slopes = [(at(flat + step * unit) - at(flat - step * unit)) / (2 * step) for unit in units]
    return torch.tensor(slopes, dtype=torch.float64)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Euclidean norm of the difference over that of the expected vector."""
    return float((found.double() - expected).norm() / expected.norm())


def verdict(found: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Distances to both gradients and which of them it is."""
    full, first = (
        relative_error(found, full_gradient()),
        relative_error(found, first_order_gradient()),
    )
    name = "neither"
    if full <= TOLERANCE[dtype]:
        name = "full (MAML)"
    elif first <= TOLERANCE[dtype]:
        name = "first-order (FOMAML)"
    return {"gradient": name, "error_to_full": full, "error_to_first_order": first}


def ways() -> dict[str, Callable[..., Tensor]]:
    """The losses compared, by the text of their row."""
    return {
        "textbook loop, eager": textbook_loss,
        'textbook loop, torch.compile(backend="eager")': torch.compile(
            textbook_loss, backend="eager"
        ),
        'textbook loop, torch.compile(backend="aot_eager")': torch.compile(
            textbook_loss, backend="aot_eager"
        ),
        "textbook loop, torch.compile()": torch.compile(textbook_loss),
        "textbook loop, torch.compile(fullgraph=True)": torch.compile(
            textbook_loss, fullgraph=True
        ),
        "torch.func.grad inside, torch.compile()": torch.compile(functional_loss),
        "innerloop.meta_loss, eager": innerloop_loss,
        "innerloop.meta_loss, torch.compile(fullgraph=True)": torch.compile(
            innerloop_loss, fullgraph=True
        ),
    }


def examine(dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row per way: the gradient it returns, or how it refuses, and whether it warns."""
    rows = []
    for name, loss in ways().items():
        torch._dynamo.reset()
        row: dict[str, Any] = {"way": name}
        rows.append(row)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                row.update(verdict(outer_gradient(loss, dtype), dtype))
            except Exception as error:  # a refusal is one of the outcomes shown
                row["gradient"] = f"raises {type(error).__name__}"
        row["warnings"] = sorted({str(warning.message)[:120] for warning in caught})
    return rows


def document() -> dict[str, Any]:
    """Both precisions as a result file that `tables` reads."""
    runs = [
        {
            "kind": "compile-first-order",
            "environment": {
                "threads": torch.get_num_threads(),
                "dtype": str(dtype).removeprefix("torch."),
                "versions": {"torch": torch.__version__, "python": platform.python_version()},
            },
            "parameters": 4,
            "steps": STEPS,
            "difference": relative_error(first_order_gradient(), full_gradient()),
            "rows": examine(dtype),
        }
        for dtype in (torch.float64, torch.float32)
    ]
    return {
        "format": 1,
        "command": "python benchmarks/run.py compile-first-order",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": False,
        "runs": runs,
    }


def main(arguments: list[str]) -> int:
    """Prints the table and optionally writes it as JSON; 1 if innerloop is ever not right."""
    parser = argparse.ArgumentParser("run.py compile-first-order", description=__doc__)
    parser.add_argument("--out", help="file to write as well")
    target = parser.parse_args(arguments).out
    result = document()
    difference = result["runs"][0]["difference"]
    print(f"torch {torch.__version__}, linear model with 4 parameters, {STEPS} inner steps")
    print(f"the first-order gradient differs from the full one by {difference:.2f} (relative)\n")
    right = True
    for run in result["runs"]:
        print(f"{run['environment']['dtype']:52s} {'returns':22s} {'error':>9s}  warnings")
        for row in run["rows"]:
            error = f"{row['error_to_full']:.1e}" if "error_to_full" in row else "-"
            warned = len(row["warnings"]) or "none"
            print(f"  {row['way']:50s} {row['gradient']:22s} {error:>9s}  {warned}")
            if row["way"].startswith("innerloop"):
                right = right and row["gradient"] == "full (MAML)"
        print()
    if target is not None:
        partial = target + ".partial"
        with open(partial, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
        os.replace(partial, target)
    return 0 if right else 1
