"""Networks as public MAML code has them: innerloop as it chooses by itself, its torch back end, and
the plain loop, in one process and run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from innerloop import MAML, _reading
from torch import Tensor, nn

from cases.networks import CASES, RATE, Batch, NetworkCase, plain_loop
from measure import timing
from measure.worker import Request

# of the whole gradient; a relu or pool that float32 rounds to the other side moves it further
TOLERANCE = {torch.float32: 5e-3, torch.float64: 1e-9}
RIVALS = {"innerloop": "auto", "torch back end": "torch"}
DRAWS = 3


def run(request: Request) -> dict[str, Any]:
    """One row per case: seconds, agreement and the share of the GEMM rate."""
    names = list(CASES)[:2] if request.quick else list(CASES)
    return {"kind": "networks", "rows": [_row(request, name, CASES[name]) for name in names]}


def _row(request: Request, name: str, case: NetworkCase) -> dict[str, Any]:
    dtype = getattr(torch, request.dtype)
    for draw in range(DRAWS):  # a relu that rounding flips: see speed.measure_case
        net, support, query = case.problem(dtype, request.seed + draw)
        calls, learner = _calls(net, support, query, case)
        wide, *sides = case.problem(torch.float64, request.seed + draw)
        plain_loop(wide, *sides, case.steps, case.loss)
        expected = _gradient(wide)
        results = timing.time_rivals(
            calls,
            lambda found, expected=expected: float((found - expected).norm() / expected.norm()),
            TOLERANCE[dtype],
            timing.QUICK if request.quick else timing.FULL,
        )
        if not any(isinstance(each, timing.Disagreement) for each in results.values()):
            break
    row: dict[str, Any] = {
        "case": name,
        "backend": learner.backend,
        "flops": flops(net, case),
        "rivals": {
            rival: {**each.summary(), "error": each.disagreement}
            if isinstance(each, timing.Timing)
            else {"failed": str(each)}
            for rival, each in results.items()
        },
    }
    ours = results["innerloop"]
    for rival, other in results.items():
        if isinstance(ours, timing.Timing) and isinstance(other, timing.Timing):
            row["rivals"][rival]["times"] = timing.paired_ratio(other.samples_s, ours.samples_s)
    return row


def _calls(
    net: nn.Module, support: Batch, query: Batch, case: NetworkCase
) -> tuple[dict[str, Callable[[], Tensor]], MAML]:
    """Meta-steps up to the gradient, and the learner that chooses by itself."""
    learners = {
        name: MAML(net, inner_lr=RATE, steps=case.steps, loss=case.loss, backend=backend)
        for name, backend in RIVALS.items()
    }

    def ours(learner: MAML) -> Callable[[], Tensor]:
        def call() -> Tensor:
            net.zero_grad()
            learner(support, query).backward()
            return _gradient(net)

        return call

    def loop() -> Tensor:
        net.zero_grad()
        plain_loop(net, support, query, case.steps, case.loss)
        return _gradient(net)

    calls = {name: ours(learner) for name, learner in learners.items()}
    return {**calls, "plain loop": loop}, learners["innerloop"]


def _gradient(net: nn.Module) -> Tensor:
    """The whole gradient, flat and in float64."""
    return torch.cat([p.grad.double().reshape(-1) for p in net.parameters() if p.grad is not None])


def flops(net: nn.Module, case: NetworkCase) -> int:
    """Operations of products and convolutions in one meta-step: of a layer with weights one each
    for the forward pass, gradients in input and weight, two for the derivative of the first and
    four for those of the others; the first layer needs none in its input."""
    kind = _reading.Rows(case.support, case.shape, torch.float32, torch.device("cpu"))
    net = net.float()
    total, first = 0, True
    sizes = {k: p.shape for k, p in net.named_parameters()}
    for node in _reading.read(net, kind).nodes:
        if node.kind not in ("linear", "convolution"):
            continue
        assert node.leaves[0] is not None
        places = torch.Size(node.shape[1:]).numel()
        each = 2 * sizes[node.leaves[0]].numel() * places
        inner, outer = (4, 2) if first else (9, 3)
        total += each * (case.steps * case.support * inner + case.query * outer)
        first = False
    return total * case.tasks
