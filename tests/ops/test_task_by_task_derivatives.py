"""Modules that torch.vmap cannot run (their tasks run one by one): derivatives of operations."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import innerloop as il

pytestmark = [
    pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated.*:DeprecationWarning"),
]
F64 = torch.float64


class Branching(nn.Module):
    """Looks at its numbers, so that its tasks run one by one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1, dtype=F64)

    def forward(self, x):
        """A tanh layer, whatever the numbers are."""
        return torch.tanh(self.layer(x)) if float(x.detach().abs().max()) < 1e9 else x


def drawn(seed, *shape):
    """Returns standard normal float64 numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


NET = Branching()
BATCH = drawn(1, 2, 3, 2), drawn(2, 2, 3, 1)
QUERY = drawn(3, 2, 4, 2), drawn(4, 2, 4, 1)
SHAPES = {k: v.shape for k, v in NET.named_parameters()}
PARAMS = {k: drawn(10 + i, *s) for i, (k, s) in enumerate(SHAPES.items())}
TANGENT = {k: drawn(20 + i, *s) for i, (k, s) in enumerate(SHAPES.items())}
INNER = {"inner_lr": 0.1, "steps": 2}


def total(tensors):
    """Returns the sum of squares of several tensors."""
    return torch.stack([t.square().sum() for t in tensors]).sum()


OPERATIONS = {
    "meta_loss": lambda p, **how: total([il.meta_loss(p, BATCH, QUERY, **INNER, **how)]),
    "adapt": lambda p, **how: total(il.adapt(p, BATCH, **INNER, **how).values()),
    "loss_and_grad": lambda p, **how: total(il.loss_and_grad(p, BATCH, **how)[1].values()),
    "hvp": lambda p, **how: total(il.hvp(p, BATCH, TANGENT, **how).values()),
    "predict": lambda p, **how: total([il.predict(p, BATCH[0], **how)]),
}


def value(name, params):
    """Returns an operation on the module as one number."""
    return OPERATIONS[name](params, model=NET, backend="torch")


def slope(name):
    """Returns the derivative of an operation along TANGENT, by central differences."""
    h = 1e-5
    moved = [{k: v + s * h * TANGENT[k] for k, v in PARAMS.items()} for s in (1, -1)]
    up, down = (value(name, p).detach() for p in moved)
    return float(up - down) / (2 * h)


@pytest.mark.parametrize("name", OPERATIONS, ids=str)
def test_reverse_and_forward_mode_agree_with_differences(name):
    tracked = {k: v.clone().requires_grad_() for k, v in PARAMS.items()}
    grads = torch.autograd.grad(value(name, tracked), list(tracked.values()))
    along = sum(float((g * t).detach().sum()) for g, t in zip(grads, TANGENT.values(), strict=True))
    assert along == pytest.approx(slope(name), rel=1e-7)
    with forward_ad.dual_level():
        dual = {k: forward_ad.make_dual(v, TANGENT[k]) for k, v in PARAMS.items()}
        tangent = forward_ad.unpack_dual(value(name, dual)).tangent
    assert float(tangent.detach()) == pytest.approx(along, rel=1e-12)


@pytest.mark.parametrize("name", OPERATIONS, ids=str)
@pytest.mark.parametrize("way", ["jvp", "linearize", "grad"])
def test_transforms_are_right_or_raise(name, way):
    take = {
        "jvp": lambda f: torch.func.jvp(f, (PARAMS,), (TANGENT,))[1],
        "linearize": lambda f: torch.func.linearize(f, PARAMS)[1](TANGENT),
        "grad": lambda f: sum(
            (g * t).sum()
            for g, t in zip(torch.func.grad(f)(PARAMS).values(), TANGENT.values(), strict=True)
        ),
    }[way]
    try:
        found = float(take(lambda p: value(name, p)).detach())
    except RuntimeError:
        return
    assert found == pytest.approx(slope(name), rel=1e-7)
