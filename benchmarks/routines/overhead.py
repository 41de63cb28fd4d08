"""Call overhead: the smallest possible problem, where nothing but the call itself is left.

One linear weight, one task, one support and one query row, one step. Beside the rivals' calls: the
differentiable loss with its backward, and one tiny torch op as the yardstick of the machine.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import baselines
from cases.nine import Case, Problem, make_problem
from cases.reference import TOLERANCE, disagreement, numbers, reference
from measure import timing
from measure.tune import NothingRan, tune
from measure.worker import Request

SMALLEST = Case(
    name="smallest",
    widths=(1, 1),
    loss="half_mse",
    tasks=1,
    support=1,
    query=1,
    steps=1,
    data="linear",
    activation="identity",
    bias=False,
    inner_lr=0.1,
)
COMPARED = ("innerloop", "torch_func", "torch_compile", "jax_jit")


def run(request: Request) -> dict[str, Any]:
    """Microseconds per call of the smallest problem."""
    dtype = getattr(torch, request.dtype)
    problem = make_problem(SMALLEST, dtype, request.seed)
    expected = reference(problem)
    calls: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in COMPARED:
        module = baselines.load(name)
        if name not in request.baselines or module.missing() is not None:
            continue
        label = "innerloop.meta_grad" if name == "innerloop" else module.TITLE
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                calls[label] = tune(module, problem, request.quick).call
        except NothingRan as error:
            rows[label] = {"failed": str(error)}
            continue
        if name == "innerloop":
            calls["innerloop.meta_loss"] = _loss_only(problem)
            calls["innerloop.meta_loss, then backward"] = _loss_and_backward(problem)
    leaf = torch.zeros(1, dtype=dtype)
    calls["one tiny torch op (neg)"] = lambda: torch.neg(leaf)

    def agreement(outcome: Any) -> float:
        if isinstance(outcome, torch.Tensor):  # the loss alone, or the yardstick's zero
            if outcome.numel() == 1 and float(outcome.detach()) == 0.0:
                return 0.0
            return disagreement([np.asarray(outcome.detach())], expected[:1])
        return disagreement(numbers(outcome), expected)

    effort = timing.QUICK if request.quick else timing.FULL
    for name, result in timing.time_rivals(calls, agreement, TOLERANCE[dtype], effort).items():
        failed = isinstance(result, timing.Disagreement)
        rows[name] = {"failed": str(result)} if failed else result.summary()
    return {"kind": "overhead", "rows": [{"call": name, **row} for name, row in rows.items()]}


def _arguments(problem: Problem) -> dict[str, Any]:
    from baselines.innerloop_baseline import model_of

    case = problem.case
    return {
        "model": model_of(case),
        "inner_lr": case.inner_lr,
        "steps": case.steps,
        "loss": case.loss,
    }


def _loss_only(problem: Problem) -> Callable[[], Any]:
    import innerloop as il

    arguments = _arguments(problem)
    return lambda: il.meta_loss(problem.params, problem.support, problem.query, **arguments)


def _loss_and_backward(problem: Problem) -> Callable[[], Any]:
    import innerloop as il

    arguments = _arguments(problem)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in problem.params.items()}

    def call() -> Any:
        for leaf in leaves.values():
            leaf.grad = None
        losses = il.meta_loss(leaves, problem.support, problem.query, **arguments)
        losses.mean().backward()
        return losses.detach(), [leaf.grad for leaf in leaves.values()]

    return call
