"""The networks of public code that `run.py networks` times: which back end takes them, that the
gradient is the plain loop's in float64, and how operations are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import innerloop as il

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)

# by the beginning of a case's name: the back end, and whether it takes seconds
NETWORKS = {
    "sine": ("fused", False),
    "OmniglotFC, batch norm": ("batched", False),
    "OmniglotFC, no norm": ("fused", False),
    "OmniglotCNN": ("batched", False),
    "CNN4": ("batched", True),
}


def small(prefix: str):
    """The first case of a network, for one task, in float64."""
    from cases.networks import CASES

    case = next(case for name, case in CASES.items() if name.startswith(prefix))
    return replace(case, tasks=1, query=5), replace(case, tasks=1, query=5).problem(
        torch.float64, 0
    )


@pytest.mark.parametrize(
    "prefix",
    [pytest.param(k, marks=pytest.mark.slow if slow else ()) for k, (_, slow) in NETWORKS.items()],
)
def test_networks_have_the_gradient_of_the_plain_loop(prefix: str) -> None:
    from cases.networks import RATE, plain_loop, vmapped

    case, (net, support, query) = small(prefix)
    expected_loss = plain_loop(net, support, query, case.steps, case.loss)
    expected = torch.cat([p.grad.flatten() for p in net.parameters()])
    rival = torch.cat([g.flatten() for g in vmapped(net, support, query, case.steps, case.loss)])
    # vmap rules of norms lose a term of the second order: docs/what-we-test-for.md
    known = 1e-10 if prefix in ("sine", "OmniglotFC, no norm") else 5e-3
    assert (rival - expected).norm() <= known * expected.norm()
    net.zero_grad()
    learner = il.MAML(net, inner_lr=RATE, steps=case.steps, loss=case.loss)
    loss = learner(support, query)
    loss.backward()
    assert learner.backend == NETWORKS[prefix][0], learner.explain()
    found = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert (found - expected).norm() <= 1e-10 * expected.norm()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)


def test_tracked_statistics_need_one_line_more() -> None:
    case, (net, support, query) = small("OmniglotCNN")
    for block in net.base:
        block.norm = nn.BatchNorm2d(64).double()
    learner = il.MAML(net, inner_lr=0.1, steps=1, loss=case.loss)
    with pytest.raises(NotImplementedError, match="per_pass_statistics"):
        learner(support, query)
    assert il.nn.per_pass_statistics(net) == tuple(f"base.{i}.norm" for i in range(4))
    learner(support, query).backward()
    assert learner.backend == "batched"


def test_counted_operations_of_the_sine_network() -> None:
    from cases.networks import CASES
    from routines.networks import flops

    case = CASES["sine, as a class"]
    first, rest = 2 * 40, 2 * (1600 + 40)
    each = 10 * (4 * first + 9 * rest) + 10 * (2 * first + 3 * rest)
    assert flops(case.make(), case) == 100 * each


def test_counted_memory_of_a_convolutional_network() -> None:
    from cases.networks import CASES
    from routines.networks import formula_bytes

    case = CASES["OmniglotCNN, 64 channels, T = 4"]
    net = case.make()
    outputs = 64 * (14**2 + 7**2 + 4**2 + 2**2)  # of the convolutions, and of their norms
    row = 2 * outputs + 2 * outputs + 2 * 64 + 2 * 5  # and of the mean and the linear layer
    parameters = sum(p.numel() for p in net.parameters())
    assert formula_bytes(net, case) == 4 * 4 * (3 * parameters + 20 * row)


def test_table_of_networks() -> None:
    from tables.routines import networks

    row = {
        "case": "a network",
        "backend": "batched",
        "flops": 2 * 10**9,
        "formula_bytes": 30 * 10**6,
        "peak_bytes": {"innerloop": 40 * 10**6, "torch back end": None, "plain loop": 9 * 10**6},
        "rivals": {
            "innerloop": {"median_s": 0.04},
            "plain loop": {"times": {"median": 2.5}},
            "torch back end": {"failed": "no"},
            "torch.func": {"times": {"median": 1.25}},
        },
    }
    broken = {**row, "rivals": {**row["rivals"], "innerloop": {"failed": "wrong"}}}
    here = {"threads": 1, "gemm_gflops": 100.0}
    table = networks([{"kind": "networks", "environment": here, "rows": [row, broken]}])
    _, _, first, second = table.splitlines()
    assert first == (
        "| a network, 1 thread(s) | batched | 2 GFLOP | 40 ms | 50% | 2.5× | - | 1.2× | - | 40 MB "
        "| 30 MB | 9 MB |"
    )
    assert (
        second
        == "| a network, 1 thread(s) | batched | 2 GFLOP | wrong | - | - | - | - | - | - | - | - |"
    )
