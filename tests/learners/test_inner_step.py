"""Layers that differ from inner step to inner step: batch norms with a scale and a shift for each,
as in How to train your MAML, and whatever else asks for the step. Losses, meta-gradients and
predictions are those of a plain loop that hands the step on, on both back ends: 1e-10 in float64,
relative to each leaf or, for what is left of cancelled terms, to a thousandth of the largest."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from helpers import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning")

STEPS, CLASSES, CHANNELS = 3, 3, 4


class Stages(nn.Module):
    """Convolution, norm, leaky relu and pool, twice, and a head. The step is handed in, as in the
    published code, or asked for."""

    def __init__(self, norms):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, CHANNELS, 3), nn.Conv2d(CHANNELS, CHANNELS, 3)])
        self.norms = nn.ModuleList([norms(), norms()])
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x, step=None):
        """Returns the logits."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = conv(x)
            h = norm(h) if step is None else norm.at(h, step)
            x = F.max_pool2d(F.leaky_relu(h), 2)
        return self.head(x.flatten(1))


class Handed(nn.Module):
    """A norm with parameters for each step, which is handed in."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(STEPS, CHANNELS))
        self.bias = nn.Parameter(torch.zeros(STEPS, CHANNELS))

    def at(self, x, step):
        """Returns the outputs in a step."""
        return F.batch_norm(x, None, None, self.weight[step], self.bias[step], training=True)


class Statistics(nn.Module):
    """A norm with constants in place of statistics, for each step."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("mean", torch.randn(STEPS, CHANNELS, generator=generator))
        self.register_buffer("var", torch.rand(STEPS, CHANNELS, generator=generator) + 0.5)
        self.weight = nn.Parameter(torch.ones(STEPS, CHANNELS))
        self.bias = nn.Parameter(torch.zeros(STEPS, CHANNELS))

    def forward(self, x):
        """Returns the outputs."""
        return self.at(x, il.nn.inner_step())

    def at(self, x, step):
        """Returns the outputs in a step."""
        parts = self.mean[step], self.var[step], self.weight[step], self.bias[step]
        return F.batch_norm(x, *parts)


class Filled(Statistics):
    """A norm by the statistics of each pass, which fills others that nothing reads."""

    def at(self, x, step):
        """Returns the outputs in a step."""
        parts = self.mean[step], self.var[step], self.weight[step], self.bias[step]
        return F.batch_norm(x, *parts, training=True)


def per_step():
    """The norm of innerloop."""
    return il.nn.PerStepBatchNorm(CHANNELS, STEPS)


def build(norms, seed=0):
    """A network in float64 whose norms differ from step to step."""
    torch.manual_seed(seed)
    net = Stages(norms).double()
    with torch.no_grad():
        for norm in net.norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    return net


def sides():
    """Support and query of three tasks."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(3, rows, 1, 10, 10, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (3, rows), generator=generator),
        )
        for rows in (6, 5)
    ]


def loop(net, support, query, *, adapted, order, momentum=0.0):
    """Query losses of each task after 0..S steps by a plain loop that hands the step on."""
    initial = dict(net.named_parameters())
    names = [name for name in initial if name in adapted]
    found = []
    for xs, ys, xq, yq in zip(*support, *query, strict=True):
        phi, velocity, after = dict(initial), {}, []

        def loss(x, y, step, phi):
            return F.cross_entropy(torch.func.functional_call(net, phi, (x, step)), y)

        after.append(loss(xq, yq, 0, phi))
        for step in range(STEPS):
            grads = torch.autograd.grad(
                loss(xs, ys, step, phi),
                [phi[k] for k in names],
                create_graph=order == 2,
                allow_unused=True,
            )
            for k, g in zip(names, grads, strict=True):
                velocity[k] = momentum * velocity.get(k, 0) + (0 if g is None else g)
                phi[k] = phi[k] - 0.05 * velocity[k]
            after.append(loss(xq, yq, step, phi))
        found.append(torch.stack(after))
    return torch.stack(found)


NORMS = {"innerloop's": per_step, "constants": Statistics, "filled": Filled}


@pytest.mark.parametrize("backend", ["batched", "torch"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("which", ["all", "body", "norms"])
@pytest.mark.parametrize("name", NORMS)
def test_meta_gradients_are_those_of_a_loop_that_hands_the_step_on(name, which, order, backend):
    net = build(NORMS[name])
    handed = net
    if name == "innerloop's":
        handed = Stages(Handed).double()
        handed.load_state_dict(net.state_dict())
    names = [k for k, _ in net.named_parameters()]
    adapted = {
        "all": names,
        "body": [k for k in names if "norms" not in k],  # as the published code
        "norms": [k for k in names if "norms" in k],
    }[which]
    params = {k: v.detach() for k, v in net.named_parameters()}
    expected = loop(handed, *sides(), adapted=adapted, order=order, momentum=0.5)
    grads = torch.autograd.grad(
        expected[:, -1].mean(), list(handed.parameters()), allow_unused=True
    )
    wanted = {
        k: torch.zeros_like(params[k]) if g is None else g
        for (k, _), g in zip(handed.named_parameters(), grads, strict=True)
    }
    found = il.meta_grad(
        params, *sides(), model=net, inner_lr=0.05, steps=STEPS, loss="cross_entropy",
        momentum=0.5, order=order, adapt_params=adapted, stepwise=True, backend=backend,
    )  # fmt: skip
    assert found.backend == backend
    assert_close(found.query_loss, expected, 1e-10)
    assert_close(found.grad, {k: wanted[k] for k in found.grad}, 1e-10, floor=1e-3)


def test_the_published_network_is_converted_and_trained():
    torch.manual_seed(0)
    net = nn.Sequential()
    for n in (1, CHANNELS):
        net.extend([nn.Conv2d(n, CHANNELS, 3), nn.BatchNorm2d(CHANNELS), nn.LeakyReLU(0.01)])
        net.append(nn.MaxPool2d(2))
    net.extend([nn.Flatten(), nn.Linear(CHANNELS, CLASSES)]).double()
    plain = {k: v.clone() for k, v in net.named_parameters()}
    assert il.nn.per_step_norms(net, STEPS) == ("1", "5")
    assert repr(net[1]) == "PerStepBatchNorm(4, steps=3, eps=1e-05)"
    assert torch.equal(net[1].weight, plain["1.weight"].expand(STEPS, -1))
    learner = il.MAML(net, inner_lr=0.05, steps=STEPS, loss="cross_entropy")
    support, query = sides()
    learner(support, query).backward()
    assert learner.backend == "batched", learner.explain()
    assert net[1].bias.grad.abs().sum(1).gt(0).all()


def test_equal_parameters_in_every_step_are_one_norm():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, CHANNELS, 3), nn.BatchNorm2d(CHANNELS, track_running_stats=False)]
    plain = nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(256, CLASSES)).double()
    net = copy.deepcopy(plain)
    il.nn.per_step_norms(net, STEPS)
    support, query = sides()
    losses = []
    for module in (net, plain):
        names = [k for k, _ in module.named_parameters() if not k.startswith("1.")]
        learner = il.MAML(
            module, inner_lr=0.05, steps=STEPS, loss="cross_entropy", adapt_params=names
        )
        losses.append(learner(support, query))
        losses[-1].backward()
    assert_close(losses[0], losses[1], 1e-12)
    assert_close(net[1].weight.grad.sum(0), plain[1].weight.grad, 1e-10)


@pytest.mark.parametrize("backend", ["batched", "torch"])
def test_learners_predict_and_evaluate_in_the_last_step(backend):
    net = build(per_step)
    support, query = sides()
    learner = il.MAML(net, inner_lr=0.05, steps=STEPS, loss="cross_entropy", backend=backend)
    evaluation = learner.evaluate(support, query)
    adapted = learner.adapt(support)
    outputs = adapted(query[0])
    losses = torch.stack([F.cross_entropy(z, y) for z, y in zip(outputs, query[1], strict=True)])
    assert_close(learner(support, query, reduction="none"), losses, 1e-12)
    assert_close(evaluation.loss[:, -1], losses, 1e-12)
    stepwise = il.meta_grad(
        dict(net.named_parameters()), support, query, model=net, inner_lr=0.05, steps=STEPS,
        loss="cross_entropy", stepwise=True, backend=backend,
    )  # fmt: skip
    assert_close(evaluation.loss, stepwise.query_loss, 1e-12)
    single = adapted.module(1)
    with il.nn.at_step(STEPS - 1):
        assert_close(single(query[0][1]), outputs[1], 1e-12)
    longer = learner.evaluate(support, query, steps=STEPS + 2)  # with the last step's parameters
    assert_close(longer.loss[:, : STEPS + 1], evaluation.loss, 1e-12)


@pytest.mark.parametrize("backend", ["batched", "torch"])
def test_operations_on_one_batch_are_in_the_step_that_is_said(backend):
    net = build(per_step)
    support, _ = sides()
    params = {k: v.detach() for k, v in net.named_parameters()}
    options = {"model": net, "backend": backend, "loss": "cross_entropy"}
    for step in (0, 2):
        with il.nn.at_step(step):
            assert il.nn.inner_step() == step
            _, grads = il.loss_and_grad(params, support, **options)
            product = il.hvp(params, support, params, **options)
            outputs = il.predict(params, support[0], model=net, backend=backend)
            assert_close(outputs[0], net(support[0][0]), 1e-12)
        for found in (grads, product):
            used = found["norms.0.bias"].abs().sum((0, 2)) > 0
            assert used.tolist() == [s == step for s in range(STEPS)]
    assert il.nn.inner_step() == 0


def test_a_forward_that_branches_on_the_step():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 1)

        def forward(self, x):
            h = self.first(x)
            return self.last(torch.tanh(h) if il.nn.inner_step() == 0 else torch.sigmoid(h))

    torch.manual_seed(0)
    net = Branching().double()
    x, y = torch.randn(2, 5, 2).double(), torch.randn(2, 5, 1).double()
    found = {}
    for backend in ("auto", "torch"):
        learner = il.MAML(net, inner_lr=0.3, steps=2, backend=backend)
        learner((x, y), (x, y)).backward()
        found[backend] = {k: p.grad.clone() for k, p in net.named_parameters()}
        net.zero_grad()
        one = il.MAML(net, inner_lr=0.3, steps=1, backend=backend)
        one((x, y), (x, y))
        assert one.backend == ("fused" if backend == "auto" else "torch")
    assert_close(found["auto"], found["torch"], 1e-10)


def test_steps_are_of_one_thread_and_end_with_an_error():
    seen = []

    def fail():
        with il.nn.at_step(2):
            thread = threading.Thread(target=lambda: seen.append(il.nn.inner_step()))
            thread.start()
            thread.join()
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert seen == [0]
    assert il.nn.inner_step() == 0


def test_shared_bare_and_frozen_norms():
    norm = nn.BatchNorm1d(3, affine=False)
    net = nn.Sequential(nn.Linear(3, 3), norm, nn.Linear(3, 3), norm).double()
    assert il.nn.per_step_norms(net, 2) == ("1", "3")
    assert net[1] is net[3]
    assert net[1].weight.dtype is torch.float64
    assert not net[1].weight.requires_grad
    with pytest.raises(ValueError, match="hold its batch norms as parts"):
        il.nn.per_step_norms(nn.BatchNorm1d(3), 2)
    with pytest.raises(ValueError, match="steps must be an int of at least 1"):
        il.nn.per_step_norms(net, 0)
    with pytest.raises(ValueError, match="channels must be an int"):
        il.nn.PerStepBatchNorm(0, 2)
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module"):
        il.nn.per_step_norms(None, 2)
