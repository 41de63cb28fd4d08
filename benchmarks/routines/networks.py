"""Networks as public MAML code has them: innerloop as it chooses by itself, its torch back end, the
plain loop, torch.func and, where it can be had, learn2learn, in one process and run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import innerloop as il
import torch
from innerloop import MAML, _reading
from torch import Tensor, nn

from baselines import learn2learn_baseline
from cases.networks import CASES, RATE, Batch, NetworkCase, cloned, plain_loop, vmapped
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
        "formula_bytes": formula_bytes(net, case),
        "peak_bytes": {name: _peak_bytes(call) for name, call in calls.items()},
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

    def functional() -> Tensor:
        return _flat(vmapped(net, support, query, case.steps, case.loss))

    calls |= {"plain loop": loop, "torch.func": functional}
    if learn2learn_baseline.missing() is None:
        maml = learn2learn_baseline.maml_class()(net, lr=RATE, first_order=False)

        def cloning() -> Tensor:
            net.zero_grad()
            cloned(maml, support, query, case.steps, case.loss)
            return _gradient(net)

        calls["learn2learn"] = cloning
    return calls, learners["innerloop"]


def _peak_bytes(call: Callable[[], Tensor]) -> int | None:
    """How far resident memory grows during calls, kept workspace included."""
    il.release_workspace()
    return timing.peak_growth_bytes(call)


def _gradient(net: nn.Module) -> Tensor:
    """The gradient that was left in a network, as `_flat` gives it."""
    return _flat([p.grad for p in net.parameters() if p.grad is not None])


def _flat(gradient: Iterable[Tensor]) -> Tensor:
    """A whole gradient, flat and in float64."""
    return torch.cat([leaf.double().reshape(-1) for leaf in gradient])


def flops(net: nn.Module, case: NetworkCase) -> int:
    """Operations of products and convolutions in one meta-step: of a layer with weights one each
    for the forward pass, gradients in input and weight, two for the derivative of the first and
    four for those of the others; the first layer needs none in its input."""
    total, first = 0, True
    sizes = {k: p.shape for k, p in net.named_parameters()}
    for node in _program(net, case).nodes:
        if node.kind not in ("linear", "convolution"):
            continue
        assert node.leaves[0] is not None
        places = torch.Size(node.shape[1:]).numel()
        each = 2 * sizes[node.leaves[0]].numel() * places
        inner, outer = (4, 2) if first else (9, 3)
        total += each * (case.steps * case.support * inner + case.query * outer)
        first = False
    return total * case.tasks


def formula_bytes(net: nn.Module, case: NetworkCase) -> int:
    """Memory of the batched back end at the end of the query rows' backward pass, in float32
    (docs/memory.md): of the tasks at hand, parameters and gradients of each step and the gradient
    in the last parameters; of all rows the values that layers keep, and the gradients in them."""
    nodes = _program(net, case).nodes
    parameters = sum(p.numel() for p in net.parameters())
    kept = 0
    for at, node in enumerate(nodes):
        following = nodes[at + 1].kind if at + 1 < len(nodes) else ""
        size = torch.Size(node.shape).numel()
        # a batch norm is one layer with its relu and pool, and a pool keeps its choices
        if node.kind in ("reshape", "batch_norm") or (node.kind, following) == ("relu", "max_pool"):
            continue
        kept += (3 if node.kind == "max_pool" else 2) * size
    rows = case.steps * case.support + case.query
    row = sum(torch.Size(node.shape).numel() for node in nodes) + torch.Size(case.shape).numel()
    at_once = max(1, (128 << 20) // (4 * (row * max(case.support, case.query) + parameters)))
    tasks = min(case.tasks, at_once)
    return 4 * tasks * ((2 * case.steps + 1) * parameters + rows * kept)


def _program(net: nn.Module, case: NetworkCase) -> Any:
    """What a network computes of a case's rows."""
    kind = _reading.Rows(case.support, case.shape, torch.float32, torch.device("cpu"))
    return _reading.read(deepcopy(net).float(), kind).program
