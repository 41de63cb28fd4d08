"""Learners without kernels under torch.compile, which traces their inner loops: compiled again and
again, they give what they give eagerly, whatever came first."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import innerloop as il
from helpers import IN_CI, needs_compile_of_unfused_modules
from innerloop.nn import at_step, inner_step

pytestmark = [
    *IN_CI,
    needs_compile_of_unfused_modules,
    pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

# nothing but compiled calls, in a process of their own
FRESH = """
import threading, warnings
import torch
from torch import nn
import innerloop as il
import innerloop.nn

warnings.simplefilter("ignore", il.FallbackWarning)
torch.manual_seed(0)

def rows(tasks):
    return torch.randn(tasks, 4, 4), torch.randn(tasks, 4, 3)

def learner(loss):
    net = nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 3))
    return il.MAML(net, inner_lr=0.1, steps=2, loss=loss, BACKEND)

def run(found):
    first, second = learner("mse"), learner("half_mse")
    fast, other = (torch.compile(each, backend="eager") for each in (first, second))
    three, five = rows(3), rows(5)
    calls = [(fast, first, three, {}), (fast, first, five, {}), (fast, first, five, {"steps": 3}),
             (other, second, five, {}), (other, second, five, {"steps": 0})]
    found += [(call(side, side, **more).item(), eager, side, more)
              for call, eager, side, more in calls]

found = []
if THREADED:
    other = threading.Thread(target=run, args=(found,))
    other.start()
    other.join()
run(found)
for value, eager, side, more in found:
    expected = eager(side, side, **more).item()
    assert abs(value - expected) < 1e-5, (value, expected, more)
print(len(found), "calls")
"""


@pytest.mark.parametrize(("backend", "threaded"), [("auto", False), ("torch", True)])
def test_a_process_may_begin_with_compiled_calls(backend, threaded):
    script = FRESH.replace("BACKEND", f"backend={backend!r}").replace("THREADED", str(threaded))
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == f"{10 if threaded else 5} calls"


class Stepped(nn.Module):
    """A module whose forward pass depends on the inner step, an option and a part."""

    def __init__(self):
        super().__init__()
        self.first, self.part, self.last = nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 3)
        self.scale = 1.0

    def forward(self, x):
        return self.last(self.part(self.first(x))) * (self.scale + 0.5 * inner_step())


def changes(learner):
    """Yields what is changed between calls, one thing at a time."""
    net = learner.module
    yield "nothing", lambda: None
    yield "steps", lambda: setattr(learner, "steps", 3)
    yield "constant of the loss", lambda: setattr(learner.loss, "delta", 0.9)
    yield "loss", lambda: setattr(learner, "loss", nn.MSELoss())
    yield "constant of a part", lambda: setattr(net.part, "alpha", 0.3)
    yield "part", lambda: setattr(net, "part", nn.Hardtanh(-0.2, 0.2))
    yield "attribute", lambda: setattr(net, "scale", 2.0)
    yield "dropout of everything", lambda: setattr(net, "part", nn.Dropout(1.0))
    yield "mode", learner.eval
    yield "parameter", lambda: setattr(net.last, "bias", nn.Parameter(torch.ones(3)))


@pytest.fixture
def many_recompilations():
    """Lets a function be compiled as often as it changes, where torch would go on eagerly."""
    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    with config.patch({name: 64}):
        yield


@pytest.mark.usefixtures("many_recompilations")
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_recompiled_learners_see_every_change(backend):
    torch.compiler.reset()
    torch.manual_seed(0)
    learner = il.MAML(
        Stepped(), inner_lr=0.05, steps=2, loss=nn.HuberLoss(delta=0.3), backend=backend
    )
    fast = torch.compile(learner, backend="eager")
    side = torch.randn(3, 4, 4), torch.randn(3, 4, 3)

    def assert_same(**more):
        results = []
        for call in (fast, learner):
            loss = call(side, side, **more)
            results.append((loss, *torch.autograd.grad(loss, list(learner.parameters()))))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
        return results[0][0].item()

    values = {}
    for name, change in changes(learner):
        change()
        values[name] = assert_same()
    assert len(set(values.values())) == len(values)
    at_zero = assert_same(steps=0)
    with at_step(2):
        assert assert_same(steps=0) != at_zero
    assert assert_same(steps=0) == at_zero

    def in_thread():
        found = [assert_same(steps=0)]
        with at_step(2):
            return [*found, assert_same(steps=0)]

    with ThreadPoolExecutor(1) as pool:
        first, second = pool.submit(in_thread).result()
    assert first == at_zero != second
    assert assert_same(steps=0) == at_zero
