"""Sizes that no machine has: refused at once, in one message that says how much it would take."""

import os
import re
import subprocess
import sys
import time

import pytest
import torch

import innerloop as il
from innerloop import _calls, _capacity, _native

MODEL = il.MLP([3, 4, 1])
MODULE = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
X, Y = torch.ones(2, 5, 3), torch.ones(2, 5, 1)


def parameters():
    return MODEL.init(torch.Generator().manual_seed(0))


def call(op, model, params, **options):
    sides = ((X, Y),) if op == "adapt" else ((X, Y), (X, Y))
    return getattr(il, op)(params, *sides, model=model, inner_lr=0.1, **options)


CALLS = {
    "fused": lambda op, **options: call(op, MODEL, parameters(), **options),
    "torch": lambda op, **options: call(op, MODEL, parameters(), backend="torch", **options),
    "module": lambda op, **options: call(
        op, MODULE, dict(MODULE.named_parameters()), backend="torch", **options
    ),
    "learner": lambda op, **options: il.MAML(MODULE, inner_lr=0.1, **options)((X, Y), (X, Y)),
}


@pytest.mark.parametrize("steps", [2**24 + 1, 2**31 - 1, 2**31, 2**63, 2**64, 10**30])
@pytest.mark.parametrize("op", ["meta_grad", "meta_loss", "adapt"])
@pytest.mark.parametrize("way", CALLS)
def test_absurd_numbers_of_steps_are_refused_at_once(way, op, steps):
    if way == "learner" and op != "meta_grad":
        pytest.skip("a learner has one way to be called")
    started = time.process_time()
    with pytest.raises(ValueError, match=f"steps must be at most 16777216 .got {steps}."):
        CALLS[way](op, steps=steps)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    ("way", "op", "options", "least"),
    [
        ("fused", "meta_grad", {"order": 1}, 4 * (2 + 2 * 5 * 5)),
        ("fused", "meta_grad", {"order": 2}, 4 * (2 + 2 * 5 * 5)),
        ("fused", "adapt", {"stepwise": True}, 4 * (2 + 2 * 21)),
        ("torch", "meta_grad", {"order": 2}, 4 * (2 + 2 * 21)),
        ("learner", "MAML", {"order": 2}, 4 * (2 + 2 * 5 * 5)),
        ("module", "meta_grad", {"order": 2}, 4 * (2 + 2 * 21)),
        ("module", "adapt", {"stepwise": True}, 4 * (2 + 2 * 21)),
    ],
)
def test_steps_that_leave_more_than_memory_holds_are_refused(way, op, options, least, monkeypatch):
    """`least`: bytes that a step leaves, as docs and `check_room` count them."""
    steps = 2**24
    monkeypatch.setattr(_capacity, "capacity_bytes", lambda: least * steps - 1)
    if way in ("fused", "learner") and not _native.is_available():
        pytest.skip("needs the native extension")
    size = re.escape(_capacity.in_words(least * steps))
    message = f"{op}: an inner loop of 16777216 steps for 2 tasks takes at least {size}"
    started = time.process_time()
    with pytest.raises(MemoryError, match=message):
        CALLS[way](op, steps=steps, **options)
    assert time.process_time() - started < 1.0


def test_what_fits_is_not_refused(monkeypatch):
    """The least is a least: a call that needs less than memory has is never stopped."""
    seen = []
    monkeypatch.setattr(_calls, "check_fits", lambda what, size, remedy: seen.append(size))
    for way in ("fused", "torch"):
        CALLS[way]("meta_grad", steps=3)
        CALLS[way]("adapt", steps=3, stepwise=True)
        CALLS[way]("meta_loss", steps=3)
    assert all(0 < size < 10_000 for size in seen)
    assert len(seen) == 6


SCRATCH = """
import resource, sys
import torch
import innerloop as il
limit = {limit}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
model = il.MLP([3, 4, 1])
x, y = torch.ones(2, 5, 3), torch.ones(2, 5, 1)
try:
    il.meta_grad(model.init(), (x, y), (x, y), model=model, inner_lr=0.1, steps=2**24)
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(not _native.is_available(), reason="needs the native extension")
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space")
def test_scratch_memory_that_cannot_be_had_is_named():
    """Between the least and what the kernels take: they say how much that is."""
    done = subprocess.run(
        [sys.executable, "-c", SCRATCH.format(limit=2**33)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = re.fullmatch(
        r"meta_grad: scratch memory of (\d+) bytes cannot be allocated; fewer tasks, rows or steps "
        r"at a time take less\n",
        done.stdout,
    )
    assert found, done.stdout + done.stderr
    assert int(found[1]) > 2**33


@pytest.mark.parametrize("widths", [[2**24 + 1, 1], [1, 2**31], [2**63, 1], [1, 2**70, 1]])
def test_absurd_widths_are_refused(widths):
    with pytest.raises(ValueError, match="MLP: widths must be at most 16777216"):
        il.MLP(widths)


def test_networks_larger_than_memory_are_refused_when_made():
    model = il.MLP([10**7, 10**7])
    assert model.parameters == 10**14 + 10**7
    started = time.process_time()
    for dtype, size in ((torch.float32, "363.8 TiB"), (torch.float64, "727.6 TiB")):
        with pytest.raises(MemoryError, match=f"100000010000000 parameters .* {size}"):
            model.init(dtype=dtype)
    assert time.process_time() - started < 1.0
