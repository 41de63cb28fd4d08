"""Rows that networks without kernels cannot take are named, as the kernels name them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import innerloop as il

NETS = {
    "linear": lambda: nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(-1, (1, 4)), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(6, 3)
    ),
}


def calls(net, support, query, **options):
    """Returns the operations on rows of both sides, by the name of the side that comes first."""
    params = dict(net.named_parameters())
    loop = {**options, "inner_lr": 0.1, "steps": 1}
    learner = il.MAML(net, **loop)
    return {
        "support": (
            lambda: il.meta_grad(params, support, query, model=net, **loop),
            lambda: il.meta_loss(params, support, query, model=net, **loop),
            lambda: il.adapt(params, support, model=net, **loop),
            lambda: learner(support, query),
        ),
        "batch": (
            lambda: il.loss_and_grad(params, support, model=net, **options),
            lambda: il.hvp(params, support, params, model=net, **options),
        ),
    }


@pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning")
@pytest.mark.parametrize("kind", [torch.complex64, torch.bool])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("net", list(NETS))
def test_rows_of_another_kind_are_answered_with_the_dtype_of_the_parameters(net, backend, kind):
    x, y = torch.randn(2, 5, 4).to(kind), torch.randn(2, 5, 3)
    for side in calls(NETS[net](), (x, y), (x, y), backend=backend).values():
        for call in side:
            with pytest.raises(RuntimeError, match="x must have the dtype of params unless"):
                call()


def test_a_module_may_take_complex_rows():
    class Absolute(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x.abs())

    x, y = torch.randn(2, 5, 4, dtype=torch.complex64), torch.randn(2, 5, 3)
    net = Absolute()
    found = il.MAML(net, inner_lr=0.1, steps=1, backend="torch")((x, y), (x, y))
    plain = il.MAML(net.linear, inner_lr=0.1, steps=1)((x.abs(), y), (x.abs(), y))
    torch.testing.assert_close(found, plain)


LOSSES = ("cross_entropy", nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1))


@pytest.mark.parametrize("wrong", [3, -1])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("net", list(NETS))
def test_classes_out_of_range_are_named(net, loss, wrong):
    x, y = torch.randn(2, 5, 4), torch.randint(3, (2, 5))
    y[1, 2] = wrong
    for name, side in calls(NETS[net](), (x, y), (x, y), loss=loss, backend="batched").items():
        for call in side:
            text = rf"{name} y must hold classes in \[0, 3\) \(got {wrong}\)"
            with pytest.raises(ValueError, match=text):
                call()


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("left_out", ["count", "weight"])
def test_classes_of_rows_that_are_not_in_use_may_be_anything(left_out, loss):
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 4), torch.randint(3, (2, 5))
    weight = torch.ones(2, 5)
    weight[:, 4] = 0
    extra = (torch.tensor([4, 4]),) if left_out == "count" else (None, weight)
    spoilt = y.clone()
    spoilt[0, 4], spoilt[1, 4] = -7, 9
    net = NETS["linear"]()
    model = il.MLP([4, 6, 3])
    fused = model.init()
    for run in (
        lambda t: il.MAML(net, inner_lr=0.1, steps=1, loss=loss)((x, t, *extra), (x, t, *extra)),
        lambda t: il.meta_loss(
            fused,
            (x, t, *extra),
            (x, t, *extra),
            model=model,
            inner_lr=0.1,
            steps=1,
            loss=loss,
            backend="torch",
        ),
    ):
        torch.testing.assert_close(run(spoilt), run(y))
