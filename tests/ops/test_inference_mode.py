"""Under torch.inference_mode operations give what they give outside of it, bit for bit, on every
back end, also for data and parameters that were made there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import innerloop as il
from batched_networks import build

FAMILIES = ("linear", "conv4", "computed weights")
LOSSES = {"mse": "mse", "callable": nn.L1Loss()}
OPTIONS = {"inner_lr": 0.05, "steps": 2}


def results(net, params, support, query, loss, backend):
    """What each operation gives."""
    options = {"model": net, "loss": loss, "backend": backend}
    vector = {k: torch.ones_like(v) for k, v in params.items()}
    return {
        "meta_grad": il.meta_grad(params, support, query, **OPTIONS, **options).grad,
        "meta_loss": {"": il.meta_loss(params, support, query, **OPTIONS, **options)},
        "adapt": il.adapt(params, support, **OPTIONS, **options),
        "hvp": il.hvp(params, support, vector, **options),
        "loss_and_grad": il.loss_and_grad(params, support, **options)[1],
        "predict": {"": il.predict(params, query[0], model=net, backend=backend)},
    }


def cases():
    """Networks with the back ends that take them, and losses."""
    for name in FAMILIES:
        for backend in ("fused", "batched", "torch"):
            if backend != "fused" or name == "linear":
                for loss in LOSSES if backend != "fused" else ("mse",):
                    yield name, backend, loss


@pytest.mark.parametrize(("name", "backend", "loss"), list(cases()))
def test_operations_are_what_they_are_outside(name, backend, loss):
    net, shape = build(name)
    generator = torch.Generator().manual_seed(1)

    def sides():
        generator.manual_seed(1)
        for rows in (4, 5):
            x = torch.randn(3, rows, *shape, generator=generator, dtype=torch.float64)
            yield x, torch.randn(3, rows, 3, generator=generator, dtype=torch.float64)

    params = {k: v.detach() for k, v in net.named_parameters()}
    wanted = results(net, params, *sides(), LOSSES[loss], backend)
    with torch.inference_mode():
        made_there = {k: v.clone() for k, v in params.items()}
        found = results(net, params, *sides(), LOSSES[loss], backend)
        again = results(net, made_there, *sides(), LOSSES[loss], backend)
    for operation, values in wanted.items():
        for key, value in values.items():
            for other in (found, again):
                assert torch.equal(other[operation][key], value), (operation, key)
                assert not other[operation][key].requires_grad


@pytest.mark.parametrize("name", FAMILIES)
def test_learners_evaluate_there(name):
    net, shape = build(name)
    x = torch.randn(3, 4, *shape, dtype=torch.float64)
    y = torch.randn(3, 4, 3, dtype=torch.float64)
    learner = il.MAML(net, **OPTIONS)
    wanted, outputs = learner.evaluate((x, y), (x, y)).loss, learner.adapt((x, y))(x)
    losses = learner((x, y), (x, y), reduction="none").detach()
    with torch.inference_mode():
        assert torch.equal(learner.evaluate((x, y), (x, y)).loss, wanted)
        assert torch.equal(learner.adapt((x, y))(x), outputs)
        assert torch.equal(learner((x, y), (x, y), reduction="none"), losses)
    learner((x, y), (x, y)).backward()


class Pair(tuple):
    """A tuple with a constructor of its own."""

    __slots__ = ()

    def __new__(cls, x, y):
        """Takes two."""
        return super().__new__(cls, (x, y))


def test_batches_of_any_class_are_taken_there():
    net, _ = build("linear")
    params = {k: v.detach() for k, v in net.named_parameters()}
    x, y = torch.randn(3, 4, 4, dtype=torch.float64), torch.randn(3, 4, 3, dtype=torch.float64)
    wanted = il.meta_loss(params, (x, y), (x, y), model=net, **OPTIONS)
    with torch.inference_mode():
        x, y = x.clone(), y.clone()
        for batch in (Pair(x, y), [x, y], (x, y), il.Batch(x, y)):
            assert torch.equal(il.meta_loss(params, batch, batch, model=net, **OPTIONS), wanted)
