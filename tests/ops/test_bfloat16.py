"""bfloat16 storage on the batched back end, against float64 at the same numbers.

A number that is stored is rounded by at most u = 2^-9 of it. A meta-gradient of S steps goes
through 4 S + 2 passes of L layers, so roundings that are independent leave an error of about
u sqrt((4 S + 2) L) of the whole gradient, and roundings that all add up one of u (4 S + 2) L.
Smooth networks are held to twice the first, those with kinks and pools, which may take other
branches, to the second. Losses and what is compared one pass deep are held to the same.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from batched_networks import FAMILIES, build

ROUNDOFF = 2.0**-9
STEPS = 2
KINKED = ("kinked", "pools", "ceiled pools", "conv4", "strided", "batch norm")
# a group norm over two values gives signs, whose derivative is what is left of rounding, and a hard
# shrink jumps
NAMES = [name for name in FAMILIES if name not in ("row norms", "shrinking")]


def networks(name):
    """A network in bfloat16, the same numbers in float64, and the number of its layers."""
    net, shape = build(name)
    net = net.bfloat16()
    layers = sum(not list(part.children()) for part in net.modules())
    return net, copy.deepcopy(net).double(), shape, 2 * layers


def sides(shape, tasks=3):
    """Support and query in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(tasks, rows, *shape, generator=generator).bfloat16(),
            torch.randn(tasks, rows, 3, generator=generator).bfloat16(),
        )
        for rows in (4, 5)
    ]


def wide(value):
    """The same numbers in float64."""
    if isinstance(value, dict):
        return {k: wide(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [wide(v) for v in value]
    return value.double() if torch.is_floating_point(value) else value


def params_of(net):
    """The parameters as constants."""
    return {k: v.detach() for k, v in net.named_parameters()}


def error(found, wanted):
    """The distance of all leaves together, relative to their size."""
    found, wanted = (
        torch.cat([v.double().flatten() for v in each.values()]) for each in (found, wanted)
    )
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", NAMES)
def test_meta_gradients_are_those_of_float64_but_for_rounding(name):
    net, exact, shape, layers = networks(name)
    data = sides(shape)
    solver = {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}
    options = {"inner_lr": 0.05, "steps": STEPS, "backend": "batched", **solver}
    found = il.meta_grad(params_of(net), *data, model=net, **options)
    wanted = il.meta_grad(params_of(exact), *wide(data), model=exact, **options)
    passes = (4 * STEPS + 2) * layers
    bound = ROUNDOFF * (passes if name in KINKED else 2 * math.sqrt(passes))
    assert error(found.grad, wanted.grad) < bound
    assert error({"": found.loss}, {"": wanted.loss}) < bound
    assert found.loss.dtype is found.support_loss.dtype is torch.float32
    assert all(g.dtype is torch.bfloat16 for g in found.grad.values())


@pytest.mark.parametrize("name", ["smooth", "convolution", "rms norm", "written"])
def test_other_operations(name):
    net, exact, shape, layers = networks(name)
    support, _ = sides(shape)
    params = params_of(net)
    adapt = {"inner_lr": torch.tensor(0.05).bfloat16(), "steps": 1}
    own = {"inner_lr": adapt["inner_lr"].double(), "steps": 1}
    for operation, arguments, narrow, full in (
        (il.loss_and_grad, (params, support), {}, {}),
        (il.hvp, (params, support, params), {}, {}),
        (il.adapt, (params, support), adapt, own),
        (il.predict, (params, support[0]), {}, {}),
    ):
        found = operation(*arguments, model=net, backend="batched", **narrow)
        wanted = operation(*wide(arguments), model=exact, backend="batched", **full)
        if operation is il.loss_and_grad:
            assert found[0].dtype is torch.float32
            found, wanted = found[1], wanted[1]
        if operation is il.predict:
            found, wanted = {"": found}, {"": wanted}
        assert all(value.dtype is torch.bfloat16 for value in found.values())
        bound = 4 * layers if operation is il.hvp else 2 * math.sqrt(2 * layers)
        assert error(found, wanted) < ROUNDOFF * bound, operation.__name__


def test_small_steps_add_up():
    """500 updates that are each below what a bfloat16 weight can be changed by."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Identity()).bfloat16()
    nn.init.ones_(net[0].weight)
    x = torch.randn(1, 20, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = torch.zeros(1, 20, 1).bfloat16()
    options = {"inner_lr": 1e-4, "steps": 500}
    exact = copy.deepcopy(net).double()
    found = il.meta_grad(params_of(net), (x, y), (x, y), model=net, **options)
    wanted = il.meta_grad(params_of(exact), *wide([(x, y), (x, y)]), model=exact, **options)
    moved, expected = (float(each.support_loss[0, 0] - each.loss[0]) for each in (found, wanted))
    assert expected > 0.05
    assert moved == pytest.approx(expected, rel=0.1)
    assert error(found.grad, wanted.grad) < 10 * ROUNDOFF


def test_many_tasks_add_up():
    """A sum of equal gradients in bfloat16 would end at the 256th. With 2^11 of them each is
    scaled without rounding."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ELU()).bfloat16()
    (x, y), _ = sides((2,), tasks=1)
    tasks = (x.expand(2048, -1, -1).contiguous(), y.expand(2048, -1, -1).contiguous())
    options = {"model": net, "inner_lr": 0.1, "steps": 1}
    one = il.meta_grad(params_of(net), (x, y), (x, y), **options)
    all_of_them = il.meta_grad(params_of(net), tasks, tasks, **options)
    assert error(all_of_them.grad, one.grad) < 2 * ROUNDOFF


@pytest.mark.parametrize(
    "loss", ["cross_entropy", F.mse_loss, nn.L1Loss()], ids=["named", "function", "object"]
)
def test_losses_are_in_float32(loss):
    net, exact, shape, layers = networks("convolution")
    support, query = sides(shape)
    seen = []
    if loss == "cross_entropy":
        support, query = ((x, y.argmax(2)) for x, y in (support, query))
    elif loss is F.mse_loss:

        def loss(z, y):
            seen.append((z.dtype, y.dtype))
            return F.mse_loss(z, y)

    options = {"inner_lr": 0.05, "steps": 1, "loss": loss, "backend": "batched"}
    found = il.meta_grad(params_of(net), support, query, model=net, **options)
    assert set(seen) <= {(torch.float32, torch.float32)}
    wanted = il.meta_grad(params_of(exact), *wide([support, query]), model=exact, **options)
    assert error({"": found.loss}, {"": wanted.loss}) < 2 * ROUNDOFF * math.sqrt(6 * layers)


@pytest.mark.parametrize("learn", [False, "per_tensor"])
def test_learners_train(learn):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)).bfloat16()
    learner = il.MAML(net, inner_lr=0.1, steps=STEPS, learn_inner_lr=learn)
    assert learner.backend == il.backend_for(net).backend == "batched"
    assert "there are no kernels for torch.bfloat16" in learner.explain()
    support, query = sides((2,))
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = learner(support, query)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    adapted = learner.adapt(support)
    assert adapted.backend == "batched"
    assert adapted(query[0]).dtype is torch.bfloat16
    assert learner.evaluate(support, query).loss.dtype is torch.float32


def test_what_is_not_there_is_refused():
    net, _, shape, _ = networks("smooth")
    support, query = sides(shape)
    params = params_of(net)
    options = {"model": net, "inner_lr": 0.1, "steps": 1}
    with pytest.raises(TypeError, match=r"the batched back end alone takes: backend=.torch. was"):
        il.meta_loss(params, support, query, backend="torch", **options)
    with pytest.raises(NotImplementedError, match='backend "fused" must be available'):
        il.meta_loss(params, support, query, backend="fused", **options)
    with pytest.raises(TypeError, match=r"transforms of torch\.func and forward mode"):
        torch.func.grad(lambda p: il.meta_loss(p, support, query, **options).sum())(params)
    unread = nn.Sequential(nn.Linear(4, 3), nn.Softmax(0)).bfloat16()
    with pytest.raises(TypeError, match=r"layer '1' \(Softmax\)"):
        il.MAML(unread, inner_lr=0.1, steps=1)(support, query)
    with pytest.raises(TypeError, match="have the dtype of params"):
        il.meta_loss(params, wide(support), query, **options)
    with pytest.raises(NotImplementedError, match='backend "fused" must be available'):
        il.MAML(nn.Linear(4, 3).bfloat16(), inner_lr=0.1, steps=1, backend="fused")
