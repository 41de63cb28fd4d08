"""Derivatives beyond one backward pass: of meta-gradients where networks have norms, and forward
mode of learners on every back end.

Central differences of meta-gradients in float64 agree to 1e-6 with a step of 1e-5.
"""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, linearize

import innerloop as il

pytestmark = [
    pytest.mark.filterwarnings("ignore:innerloop:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning"),  # in jvp
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr:UserWarning"),  # linearize
]

NORMS = {
    "batch": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "batch without weight": lambda: nn.BatchNorm1d(4, affine=False, track_running_stats=False),
    "layer": lambda: nn.LayerNorm(4),
    "layer without bias": lambda: nn.LayerNorm(4, bias=False),
    "layer without weight": lambda: nn.LayerNorm(4, elementwise_affine=False),
    "group": lambda: nn.GroupNorm(1, 4),
    "rms": lambda: nn.RMSNorm(4, eps=1e-6),
    "instance": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.InstanceNorm1d(1, affine=True), nn.Flatten()
    ),
}


def network(norm):
    torch.manual_seed(0)
    layers = nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 2)
    return nn.Sequential(*layers).double()


def sides():
    generator = torch.Generator().manual_seed(1)
    sizes = (3, 6, 3), (3, 6, 2), (3, 6, 3), (3, 6, 2)
    x, y, xq, yq = (torch.randn(size, generator=generator).double() for size in sizes)
    return (x, y), (xq, yq)


@pytest.mark.parametrize("name", NORMS)
def test_derivative_of_the_meta_gradient(name):
    net, (support, query) = network(NORMS[name]()), sides()
    params = {k: p.detach().clone() for k, p in net.named_parameters()}
    along = {k: torch.randn_like(p) for k, p in params.items()}

    def loss(p):
        losses = il.meta_loss(
            p, support, query, model=net, inner_lr=0.1, steps=1, backend="torch", order=2
        )
        return losses.mean()

    def slope(p):
        return sum((g * along[k]).sum() for k, g in grad(loss)(p).items())

    def meta_gradient(step):
        moved = {k: p + step * along[k] for k, p in params.items()}
        return il.meta_grad(moved, support, query, model=net, inner_lr=0.1, steps=1).grad

    step = 1e-5
    ahead, behind = meta_gradient(step), meta_gradient(-step)
    found = grad(slope)(params)
    whole = sum(float(value.square().sum()) for value in found.values()) ** 0.5
    for key, value in found.items():
        expected = (ahead[key] - behind[key]) / (2 * step)
        assert float((value - expected).norm()) <= 1e-6 * whole


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("kind", [il.MAML, il.JointTraining])
def test_forward_mode_of_learners(activation, backend, kind):
    net, (support, query) = network(activation()), sides()
    options = {"inner_lr": 0.1, "steps": 2} if kind is il.MAML else {}
    learner = kind(net, backend=backend, **options)
    params = {k: p.detach() for k, p in learner.named_parameters()}
    along = {k: torch.randn_like(p) for k, p in params.items()}

    def loss(p):
        return functional_call(learner, p, (support, query))

    slopes = grad(loss)(params)
    expected = sum((slopes[k] * along[k]).sum() for k in params)
    torch.testing.assert_close(jvp(loss, (params,), (along,))[1], expected)
    torch.testing.assert_close(linearize(loss, params)[1](along), expected)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU])
def test_vectorised_forward_mode_of_meta_loss(activation):
    net, (support, query) = network(activation()), sides()
    params = {k: p.detach() for k, p in net.named_parameters()}

    def losses(*values):
        given = dict(zip(params, values, strict=True))
        return il.meta_loss(given, support, query, model=net, inner_lr=0.1, steps=2)

    ways = [{"strategy": "forward-mode", "vectorize": True}, {"strategy": "reverse-mode"}]
    found = [
        torch.autograd.functional.jacobian(losses, tuple(params.values()), **way) for way in ways
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
