"""Networks of the batched back end under torch.compile, within transforms of torch.func, and in
forward mode: "auto" takes the torch back end there, with the same results, and "batched" raises one
error. Tolerance 1e-10 in float64 (other orders of the same sums)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import innerloop as il
from helpers import assert_close, needs_compile_of_modules, needs_compile_of_unfused_modules, sweep

pytestmark = [
    pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning"),
    # torch's own, of its decompositions for forward mode and of autograd functions under compile
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


class PerStep(nn.Module):
    """A convolution and a norm that differs from step to step."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), il.nn.PerStepBatchNorm(2, steps=2)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        """Returns the logits."""
        return self.head(torch.tanh(self.norm(self.conv(x))).flatten(1))


def sequence(norm):
    """A convolution, a norm, and a head."""
    layers = [nn.Conv2d(1, 2, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(32, 3), nn.LogSoftmax(1)]
    return nn.Sequential(*layers)


NETWORKS = {
    "batch norm": lambda: sequence(nn.BatchNorm2d(2, track_running_stats=False)),
    "group norm": lambda: sequence(nn.GroupNorm(1, 2)),
    "layer norm": lambda: sequence(nn.LayerNorm([2, 4, 4])),
    "per step": PerStep,
}


def problem(name):
    """A network in float64, its parameters, and data of two tasks."""
    torch.manual_seed(0)
    net = NETWORKS[name]().double()
    if name == "per step":
        nn.init.normal_(net.norm.bias)
    generator = torch.Generator().manual_seed(1)
    sides = [
        (
            torch.randn(2, rows, 1, 6, 6, generator=generator, dtype=torch.float64),
            torch.randint(3, (2, rows), generator=generator),
        )
        for rows in (4, 3)
    ]
    return net, {k: v.detach() for k, v in net.named_parameters()}, sides


def loss_of(net, sides, backend):
    """The sum of meta-losses as a function of the parameters."""

    def function(params):
        return il.meta_loss(
            params, *sides, model=net, inner_lr=0.1, steps=2, loss="cross_entropy", backend=backend
        ).sum()

    return function


def known(net, params, sides):
    """Value and gradient by the batched back end in the open."""
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    value = loss_of(net, sides, "batched")(leaves)
    grads = torch.autograd.grad(value, list(leaves.values()))
    return value.detach(), dict(zip(leaves, grads, strict=True))


@needs_compile_of_unfused_modules
@pytest.mark.parametrize(
    ("name", "fullgraph"),
    sweep(
        [("batch norm", False), *((name, True) for name in NETWORKS)],
        [("batch norm", False), ("per step", True)],
    ),
)
def test_compiled_auto_takes_the_torch_back_end(name, fullgraph):
    net, params, sides = problem(name)
    value, grads = known(net, params, sides)
    torch._dynamo.reset()
    compiled = torch.compile(loss_of(net, sides, "auto"), backend="aot_eager", fullgraph=fullgraph)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    found = compiled(leaves)
    found.backward()
    assert_close(found, value, 1e-10)
    assert_close({k: v.grad for k, v in leaves.items()}, grads, 1e-10, floor=1e-3)


@needs_compile_of_unfused_modules
def test_compiled_learners():
    net, params, sides = problem("batch norm")
    value, grads = known(net, params, sides)
    torch._dynamo.reset()
    learner = il.MAML(net, inner_lr=0.1, steps=2, loss="cross_entropy")
    compiled = torch.compile(learner, backend="aot_eager", fullgraph=True)
    loss = compiled(*sides)
    loss.backward()
    assert_close(2 * loss, value, 1e-10)
    assert_close({k: 2 * p.grad for k, p in net.named_parameters()}, grads, 1e-10, floor=1e-3)


@needs_compile_of_modules
def test_compiled_batched_raises():
    net, params, sides = problem("batch norm")
    torch._dynamo.reset()
    compiled = torch.compile(loss_of(net, sides, "batched"), backend="aot_eager")
    with pytest.raises(NotImplementedError, match=r"torch\.compile is tracing"):
        compiled(params)
    torch._dynamo.reset()
    whole = torch.compile(loss_of(net, sides, "batched"), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=r"torch\.compile is tracing"):  # in torch's own words
        whole(params)


@pytest.mark.parametrize("name", NETWORKS)
def test_transforms_and_forward_mode_take_the_torch_back_end(name):
    net, params, sides = problem(name)
    value, grads = known(net, params, sides)
    function = loss_of(net, sides, "auto")
    found, there = torch.func.grad_and_value(function)(params)
    assert_close(there, value, 1e-10)
    assert_close(found, grads, 1e-10, floor=1e-3)
    scales = torch.tensor([1.0, 2.0], dtype=torch.float64)
    mapped = torch.vmap(lambda s: function({k: s * v for k, v in params.items()}))(scales)
    assert_close(mapped[0], value, 1e-10)
    assert_close(mapped[1], function({k: 2 * v for k, v in params.items()}), 1e-10)
    _, slope = torch.func.jvp(function, (params,), (params,))
    assert_close(slope, sum((grads[k] * params[k]).sum() for k in params), 1e-9)


def test_batched_raises_within_transforms():
    net, params, sides = problem("batch norm")
    function = loss_of(net, sides, "batched")
    text = "transforms of torch.func and forward mode do not go through batched operations"
    for run in (
        lambda: torch.func.grad(function)(params),
        lambda: torch.vmap(lambda s: function({k: s * v for k, v in params.items()}))(
            torch.ones(2)
        ),
        lambda: torch.func.jvp(function, (params,), (params,)),
    ):
        with pytest.raises(NotImplementedError, match=text):
            run()
