"""Modules that torch.compile or TorchScript has made run on the torch back end with the
right results, or raise; and learners under torch.compile see what changes in their module later."""

from __future__ import annotations

import pytest
import torch
from changed_forwards import WAYS
from test_real_forward import OPTIONS, QUERY, SUPPORT, assert_same, build, results

import innerloop as il
from helpers import needs_compile, needs_compile_of_unfused_modules

pytestmark = [
    pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


def in_place(net):
    """Compiles a module in place."""
    net.compile(backend="aot_eager")
    return net


def first_part(make):
    """Replaces the first part of a network."""

    def way(net):
        net[0] = make(net[0])
        return net

    return way


def compiled(module):
    """A module that torch.compile has made."""
    return torch.compile(module, backend="aot_eager")


def traced(module):
    """A module that torch.jit.trace has made of one with two inputs."""
    return torch.jit.trace(module, torch.ones(1, 2, dtype=torch.float64))


MADE = {
    "compiled": (compiled, "it is compiled"),
    "compiled in place": (in_place, "compiled in place"),
    "compiled part": (first_part(compiled), r"layer '0' \(OptimizedModule\).*it is compiled"),
}
SCRIPTS = {"traced": traced, "traced part": first_part(traced), "script": torch.jit.script}


@needs_compile
@pytest.mark.parametrize("name", MADE)
def test_modules_made_by_torch_are_not_fused_and_right(name):
    torch.compiler.reset()
    net, _, _ = build("Tanh")
    wanted = results(il.MAML(net, **OPTIONS, backend="torch"), net)
    make, text = MADE[name]
    made = make(net)
    with pytest.raises(NotImplementedError, match=text):
        il.MLP.from_module(made)
    learner = il.MAML(made, **OPTIONS)
    assert learner.backend == "torch"
    found = {}
    for label, value in results(learner, made).items():
        kind, _, path = label.partition(" ")
        found[f"{kind} {path.replace('_orig_mod.', '')}".strip()] = value
    assert_same(found, wanted)


def test_modules_made_by_fx_are_read_like_any_other():
    net, _, _ = build("Tanh")
    wanted = results(il.MAML(net, **OPTIONS, backend="torch"), net)
    made = torch.fx.symbolic_trace(net)
    learner = il.MAML(made, **OPTIONS)
    assert learner.backend == "fused"
    assert_same(results(learner, made), wanted)


@pytest.mark.parametrize("name", SCRIPTS)
def test_torchscript_is_refused(name):
    made = SCRIPTS[name](build("Tanh")[0])
    with pytest.raises(NotImplementedError, match="TorchScript made of its forward"):
        il.MLP.from_module(made)
    learner = il.MAML(made, **OPTIONS)
    with pytest.raises(NotImplementedError, match=r"must not be TorchScript.*Python module"):
        learner(SUPPORT, QUERY)


LATER = ["instance, forward", "subclass, forward", "hook", "global hook", "class, forward"]


@pytest.mark.slow
@needs_compile_of_unfused_modules
@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")
@pytest.mark.parametrize("way", LATER)
def test_a_compiled_learner_sees_what_changes_later(way):
    torch.compiler.reset()
    net, part, place = build("Tanh")
    learner = il.MAML(net, **OPTIONS)
    fast = torch.compile(learner, backend="aot_eager")
    assert fast(SUPPORT, QUERY).item() == pytest.approx(learner(SUPPORT, QUERY).item(), rel=1e-12)
    with WAYS[way][0](part, place):
        wanted = il.MAML(net, **OPTIONS, backend="torch")
        loss = wanted(SUPPORT, QUERY)
        loss.backward()
        expected = [p.grad for p in net.parameters()]
        net.zero_grad()
        found = fast(SUPPORT, QUERY)
        found.backward()
        torch.testing.assert_close(found, loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            [p.grad for p in net.parameters()], expected, rtol=1e-10, atol=1e-13
        )
