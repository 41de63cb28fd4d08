"""Training with optimisers, mixed precision, torch.func, torch.compile, and memory over many
steps."""

from __future__ import annotations

import math
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from learner_cases import assert_close, gradients, regression, sine_net
from torch import nn

import innerloop as il
from helpers import needs_compile_of_modules


def sinusoids(tasks, rows, generator, dtype=torch.float32):
    """Rows of sines with random amplitude and phase, and a function that draws more of the same
    tasks."""
    amplitude = 0.1 + 4.9 * torch.rand(tasks, 1, 1, generator=generator, dtype=dtype)
    phase = math.pi * torch.rand(tasks, 1, 1, generator=generator, dtype=dtype)

    def draw():
        x = 10 * torch.rand(tasks, rows, 1, generator=generator, dtype=dtype) - 5
        return x, amplitude * torch.sin(x - phase)

    return draw(), draw()


@pytest.mark.parametrize(("make", "steps"), [(il.MAML, 3), (il.FOMAML, 3), (il.MetaSGD, 1)])
def test_sinusoid_loss_falls_far_below_the_loss_without_adaptation(make, steps):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    learner = make(net, inner_lr=0.01, steps=steps)
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(600):
        optimizer.zero_grad()
        learner(*sinusoids(25, 10, generator)).backward()
        optimizer.step()
    result = learner.evaluate(*sinusoids(200, 10, generator))
    assert result.mean[steps] < 0.6 * result.mean[0]
    assert result.mean[steps] < 2.2  # a network that ignores the task reaches about 3.6


def test_memory_is_flat_over_a_thousand_steps():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    learner = il.MAML(net, inner_lr=0.01, steps=2, learn_inner_lr="per_tensor")
    optimizer = torch.optim.SGD(learner.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    data = sinusoids(8, 10, generator)

    def train(count):
        for _ in range(count):
            optimizer.zero_grad()
            learner(*data).backward()
            optimizer.step()
            learner.adapt(data[0])

    train(50)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train(1000)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    # one step's gradients are 4.6 kB and its adapted parameters 37 kB: keeping either would show
    assert grown < 1 << 20


def test_autocast_changes_nothing():
    net = sine_net(torch.float32)
    support, query = (
        regression(dtype=torch.float32, seed=1),
        regression(dtype=torch.float32, seed=2),
    )
    for learner in (
        il.MAML(net, inner_lr=0.2, steps=2),
        il.MAML(net, inner_lr=0.2, steps=2, backend="torch"),
        il.JointTraining(net, inner_lr=0.2),
    ):
        plain = learner(support, query)
        plain.backward()
        expected = gradients(net)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = learner(support, query)
            result = learner.evaluate(support, query)
            outputs = learner.adapt(support)(query[0])
        assert loss.dtype is result.loss.dtype is outputs.dtype is torch.float32
        assert torch.equal(loss, plain)
        assert torch.equal(result.loss, learner.evaluate(support, query).loss)
        loss.backward()
        assert_close(gradients(net), expected, 0)


def test_lower_precision_inputs_are_widened_under_autocast():
    net = sine_net(torch.float32)
    learner = il.MAML(net, inner_lr=0.2, steps=2)
    narrow = tuple(v.bfloat16() for v in regression())
    wide = tuple(v.float() for v in narrow)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = learner(narrow, narrow)
        joint = il.JointTraining(net)(narrow, narrow)
    assert torch.equal(loss, learner(wide, wide))
    assert torch.equal(joint, il.JointTraining(net)(wide, wide))


def test_grad_scaler_scales_the_returned_loss_alone():
    support, query = (
        regression(dtype=torch.float32, seed=1),
        regression(dtype=torch.float32, seed=2),
    )
    nets = []
    for scaled in (False, True):
        net = sine_net(torch.float32)
        learner = il.MAML(net, inner_lr=0.2, steps=2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(learner(support, query)).backward()
            scaler.step(optimizer)
            scaler.update()
        nets.append(net)
    for a, b in zip(*(n.parameters() for n in nets), strict=True):
        assert torch.equal(a, b)  # a power of two changes no digit


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_vmap_over_seeds(backend):
    learners = [
        il.MAML(sine_net(seed=s), inner_lr=0.2, steps=2, learn_inner_lr=True, backend=backend)
        for s in range(3)
    ]
    support, query = regression(seed=1), regression(rows=3, seed=2)
    stacked, buffers = torch.func.stack_module_state(learners)

    def loss(params):
        return torch.func.functional_call(learners[0], (params, buffers), (support, query))

    losses = torch.vmap(loss)(stacked)
    grads = torch.vmap(torch.func.grad(loss))(stacked)
    for i, learner in enumerate(learners):
        expected = learner(support, query)
        expected.backward()
        torch.testing.assert_close(losses[i], expected.detach(), rtol=1e-12, atol=0)
        assert_close(
            {k: v[i] for k, v in grads.items()},
            {k: p.grad for k, p in learner.named_parameters()},
            1e-11,
        )


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
@needs_compile_of_modules
def test_compiled_learner_has_the_second_order_gradient():
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=2)
    learner(support, query).backward()
    expected = gradients(net)
    compiled = torch.compile(learner, backend="aot_eager", fullgraph=True)
    compiled(support, query).backward()
    assert_close(gradients(net), expected, 1e-12)


@pytest.mark.parametrize("kind", ["fused", "torch", "functional"])
def test_python_threads_do_not_disturb_each_other(kind):
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
    net = sine_net() if kind == "fused" else norm
    support, query = regression(seed=1), regression(rows=3, seed=2)
    backend = "torch" if kind == "functional" else kind
    learner = il.MAML(net, inner_lr=0.2, steps=2, backend=backend)
    params = dict(net.named_parameters())

    def call(_):
        if kind == "functional":
            options = {"model": net, "inner_lr": 0.2, "steps": 2, "backend": "torch"}
            return il.meta_loss(params, support, query, **options).mean()
        return learner(support, query)

    expected = call(0)
    with ThreadPoolExecutor(4) as pool:
        losses = list(pool.map(call, range(40)))
    assert all(torch.equal(loss, expected) for loss in losses)
    grads = [torch.autograd.grad(loss, list(params.values())) for loss in losses[:4]]
    for grad in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grad, grads[0], strict=True))


def test_second_derivatives_of_the_fused_loss_are_refused():
    net = sine_net()
    loss = il.MAML(net, inner_lr=0.2, steps=2)(regression(seed=1), regression(seed=2))
    (grad,) = torch.autograd.grad(loss, net[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r'MAML.*: only first.*backend="torch"'):
        grad.sum().backward()
