"""Losses and modules that look at more than they are handed: at what the forward pass left on the
module, at its parameters, at what autograd records; and meta-losses whose inputs change before
backward. Losses and meta-gradients are those of a plain loop, or there is an error."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import innerloop as il
from helpers import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning")

RATE = 0.1


def batches(seed=3):
    """Support and query rows of three tasks."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    return (draw(3, 5, 4), draw(3, 5, 2)), (draw(3, 4, 4), draw(3, 4, 2))


def plain_loop(net, loss, steps, order=2):
    """The losses of the tasks, by functional_call and autograd. `loss` may be told the parameters
    that the outputs were made with."""
    found = []
    for sx, sy, qx, qy in zip(*sum(batches(), ()), strict=True):
        phi = dict(net.named_parameters())

        def value(phi, x, y):
            z = functional_call(net, phi, (x,))
            return loss(z, y, phi) if getattr(loss, "wants_parameters", False) else loss(z, y)

        for _ in range(steps):
            # distinct from the module's own, which a loss may compute with as well
            phi = {k: v.view_as(v) for k, v in phi.items()}
            grads = torch.autograd.grad(
                value(phi, sx, sy), list(phi.values()), create_graph=order == 2, allow_unused=True
            )
            phi = {
                k: v if g is None else v - RATE * (g if order == 2 else g.detach())
                for (k, v), g in zip(phi.items(), grads, strict=True)
            }
        found.append(value(phi, qx, qy))
    return torch.stack(found)


def grads_of(losses, net):
    """The gradient of the mean, zeros for what it does not depend on."""
    own = list(net.parameters())
    found = torch.autograd.grad(losses.mean(), own, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(own, found, strict=True)]


def compare(net, loss, *, steps, order=2, backend="auto", truth=None):
    """Compares a learner's losses and meta-gradient with the loop's."""
    expected = plain_loop(net, truth or loss, steps, order)
    wanted = grads_of(expected, net)
    learner = il.MAML(net, inner_lr=RATE, steps=steps, order=order, loss=loss, backend=backend)
    for reduction in ("mean", "none"):
        losses = learner(*batches(), reduction=reduction)
        assert_close(losses.mean(), expected.mean(), 1e-12)
        for got, want in zip(grads_of(losses, net), wanted, strict=True):
            assert_close(got, want, 1e-10)
    return learner


class Net(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 6).double(), nn.Linear(6, 2).double()
        self.between = between

    def forward(self, x):
        """Returns the outputs."""
        h = torch.tanh(self.a(x))
        return self.b(h if self.between is None else self.between(self, h))


# ---------------------------------------------------------------- what forward left behind


def sets_an_attribute(net, h):
    """A tensor that was never there."""
    net.kl = h.pow(2).mean(1)
    return h


def replaces_an_attribute(net, h):
    """A number before the first pass."""
    net.extra = h.abs().sum()
    return h


def fills_a_list(net, h):
    """Values of one pass in a list."""
    net.terms.append(h.square().mean())
    return h


def fills_a_buffer(net, h):
    """A buffer in place."""
    net.mean.copy_(h.detach().mean(0))
    return h


LEFT = {
    "attribute": (sets_an_attribute, lambda net: net.kl.mean()),
    "replaced": (replaces_an_attribute, lambda net: net.extra),
    "list": (fills_a_list, lambda net: net.terms[-1]),
    "buffer": (fills_a_buffer, lambda net: net.mean.square().sum()),
}


def with_term(how, term, net):
    """A loss with a term of what the forward pass left, that reaches the module in some way."""
    if how == "closure":
        return lambda z, y: F.mse_loss(z, y) + term(net)
    if how == "default":
        return lambda z, y, net=net: F.mse_loss(z, y) + term(net)
    if how == "partial":
        return functools.partial(lambda n, z, y: F.mse_loss(z, y) + term(n), net)
    if how == "method":

        class Trainer:
            def __init__(self):
                self.parts = {"net": [net]}

            def loss(self, z, y):
                return F.mse_loss(z, y) + term(self.parts["net"][0])

        return Trainer().loss

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = (net,)

        def forward(self, z, y):
            return F.mse_loss(z, y) + term(self.hidden[0])

    return Loss()


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("how", ["closure", "default", "partial", "method", "module"])
@pytest.mark.parametrize("left", LEFT)
def test_a_loss_sees_what_its_forward_pass_left(left, how, backend):
    between, term = LEFT[left]
    net = Net(between)
    net.extra, net.terms = 0.0, []
    net.register_buffer("mean", torch.zeros(6, dtype=torch.float64))
    loss = with_term(how, term, net)
    truth = plain_loop(net, loss, 2)
    net.terms.clear()
    before = dict(net.__dict__)
    learner = compare(net, loss, steps=2, backend=backend)
    assert learner.backend == "torch"
    net.terms.clear()
    assert plain_loop(net, loss, 2).equal(truth)
    assert before.keys() <= net.__dict__.keys()


def test_a_loss_that_cannot_reach_the_module_stays_batched():
    net = Net(sets_an_attribute)
    learner = compare(net, lambda z, y: (z - y).abs().pow(1.5).mean(), steps=1)
    assert learner.backend == "batched"


def test_a_loss_with_a_buffer_that_no_pass_writes_stays_batched():
    net = Net()
    net.register_buffer("scale", torch.tensor([1.0, 3.0], dtype=torch.float64))
    learner = compare(net, lambda z, y: (net.scale * (z - y).abs().pow(1.5)).mean(), steps=2)
    assert learner.backend == "batched"


# ---------------------------------------------------------------- the module's parameters


def penalised(net, names):
    """mse with a penalty on parameters as the module has them, and the same of given ones."""

    def loss(z, y):
        own = dict(net.named_parameters())
        return F.mse_loss(z, y) + 0.3 * sum(own[k].square().sum() for k in names(own))

    def of_given(z, y, phi):
        return F.mse_loss(z, y) + 0.3 * sum(phi[k].square().sum() for k in names(phi))

    of_given.wants_parameters = True
    return loss, of_given


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("net", [Net(), nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))])
def test_a_penalty_is_on_the_adapted_parameters(net, backend, order):
    net = net.double()
    loss, truth = penalised(net, lambda own: [k for k in own if k.endswith("weight")])
    learner = compare(net, loss, steps=2, order=order, backend=backend, truth=truth)
    assert learner.backend == "torch"


def test_adapt_and_evaluate_take_the_same_loss():
    net = Net()
    loss, _ = penalised(net, list)
    support, query = batches()
    own = il.MAML(net, inner_lr=RATE, steps=2, loss=loss)
    decayed = il.MAML(net, inner_lr=RATE, steps=2, weight_decay=0.6)
    for (name, got), want in zip(
        own.adapt(support).params.items(), decayed.adapt(support).params.values(), strict=True
    ):
        assert_close(got, want, 1e-12, name)
    assert_close(
        own.evaluate(support, query).loss[:, -1], own(support, query, reduction="none"), 1e-12
    )


def test_parameters_that_were_kept_before_are_constants():
    net = Net()
    start = [p.detach().clone() for p in net.parameters()]
    moved = [s + 0.1 for s in start]

    def near(z, y):
        pairs = zip(net.parameters(), moved, strict=True)
        return F.mse_loss(z, y) + sum((p - s).square().sum() for p, s in pairs)

    def truth(z, y, phi):
        pairs = zip(phi.values(), moved, strict=True)
        return F.mse_loss(z, y) + sum((p - s).square().sum() for p, s in pairs)

    truth.wants_parameters = True
    compare(net, near, steps=2, truth=truth)


# ---------------------------------------------------------------- what autograd records


def doubled(g):
    """A gradient hook."""
    return 2 * g


def hook_if_recorded(h):
    if h.requires_grad:
        h.register_hook(doubled)
    return h


def hook_on_a_result(h):
    w = h * 1
    w.register_hook(doubled)
    return w


LOOKS = {
    "hook if recorded": hook_if_recorded,
    "hook": hook_on_a_result,
    "requires_grad": lambda h: h * 2 if h.requires_grad else h,
    "grad_fn": lambda h: h if h.grad_fn is None else h * 2,
    "is_leaf": lambda h: h if (h * 1).is_leaf else h * 3,
    "data": lambda h: h * h.data.abs(),
}


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("look", LOOKS)
def test_a_module_that_looks_at_autograd(look, backend, steps):
    net = Net(lambda net, h: LOOKS[look](h))
    compare(net, F.mse_loss, steps=steps, backend=backend)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("look", [look for look in LOOKS if look != "is_leaf"])
def test_a_loss_that_looks_at_autograd(look, backend, steps):
    def loss(z, y):
        return F.mse_loss(LOOKS[look](z), y)

    compare(Net(), loss, steps=steps, backend=backend)


def test_weights_as_data_have_no_gradient():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6).double(), nn.Linear(6, 2).double()

        def forward(self, x):
            return F.linear(F.relu(self.a(x)), self.b.weight.data, self.b.bias)

    net = Frozen()
    learner = il.MAML(net, inner_lr=RATE, steps=1)
    learner(*batches()).backward()
    assert net.b.weight.grad.eq(0).all()
    compare(net, F.mse_loss, steps=1)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("whose", ["layer", "loss"])
def test_backward_hooks_of_modules(whose, backend, steps):
    net, loss = Net(), nn.MSELoss()
    hooked = net.b if whose == "layer" else loss
    hooked.register_full_backward_hook(lambda m, gi, go: (gi[0] * 2, *gi[1:]))
    compare(net, loss, steps=steps, backend=backend)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_loss_may_change_the_outputs_in_place(backend):
    def margin(z, y):
        z[:, 0] -= 0.3
        z.mul_(2)
        return F.mse_loss(z, y)

    compare(Net(), margin, steps=2, backend=backend)


def test_questions_of_torchs_own_code_are_no_reason_to_loop():
    torch.manual_seed(0)

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            h = x[None]
            return self.last(self.attend(h, h, h)[0][0])

    net = Attending().double().eval()
    learner = compare(net, F.mse_loss, steps=1)
    assert "one after another" not in learner.explain()


# ---------------------------------------------------------------- changes before backward


def smooth_net():
    """A network that is batched."""
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Mish(), nn.Linear(6, 2)
    return nn.Sequential(*layers).double().eval()


def changes():
    """Everything that the way back reads again: (what changes it, the loss)."""
    scale = torch.ones((), dtype=torch.float64)
    setting = {"k": 1.0}
    return {
        "support x": (lambda s, q, net: s[0].zero_(), F.mse_loss),
        "support y": (lambda s, q, net: s[1].add_(1), F.mse_loss),
        "query x": (lambda s, q, net: q[0].mul_(2), F.mse_loss),
        "query y": (lambda s, q, net: q[1].add_(1), F.mse_loss),
        "count": (lambda s, q, net: s[2].sub_(1), F.mse_loss),
        "weight": (lambda s, q, net: q[3].mul_(2), F.mse_loss),
        "buffer": (lambda s, q, net: net[1].running_mean.add_(1), F.mse_loss),
        "parameter": (lambda s, q, net: net[0].weight.data.copy_(net[0].weight * 2), F.mse_loss),
        "tensor of the loss": (
            lambda s, q, net: scale.add_(1),
            lambda z, y: (scale * (z - y).square()).mean(1),
        ),
        "state of the loss": (
            lambda s, q, net: setting.update(k=5.0),
            lambda z, y: (setting["k"] * (z - y).square()).mean(1),
        ),
    }


@pytest.mark.parametrize("what", changes())
def test_a_change_before_backward_is_an_error(what):
    change, loss = changes()[what]
    net = smooth_net()
    (sx, sy), (qx, qy) = batches()
    support = (sx, sy, torch.full((3,), 4))
    query = (qx, qy, None, torch.full((3, 4), 0.25, dtype=torch.float64))
    learner = il.MAML(net, inner_lr=RATE, steps=1, loss=loss)
    assert learner.backend == "batched"
    losses = learner(support, query, reduction="none")
    with torch.no_grad():
        change(support, query, net)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|had other values"):
        losses.sum().backward()


def test_random_losses_have_gradients_of_what_was_drawn():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x):
            return F.elu(x[:, :2] * 0) + self.b

    net = Constant()
    learner = il.MAML(
        net, inner_lr=RATE, steps=0, loss=lambda z, y: (z * torch.randn_like(z)).mean()
    )
    mean = learner(*batches())
    (grad,) = torch.autograd.grad(mean, net.b)
    assert_close(mean.detach(), grad.sum(), 1e-12)  # linear, at one
    with pytest.raises(RuntimeError, match="draws random"):
        learner(*batches(), reduction="none").sum().backward()


def test_many_cotangents_at_once():
    net = smooth_net()
    losses = il.MAML(net, inner_lr=RATE, steps=1)(*batches(), reduction="none")
    own = list(net.parameters())
    rows = torch.eye(3, dtype=torch.float64)
    together = torch.autograd.grad(losses, own, rows, is_grads_batched=True, retain_graph=True)
    for t in range(3):
        alone = torch.autograd.grad(losses[t], own, retain_graph=True)
        for many, one in zip(together, alone, strict=True):
            assert_close(many[t], one, 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_within_autocast(reduction):
    net = smooth_net().float()
    sides = [tuple(v.float() for v in side) for side in batches()]
    learner = il.MAML(net, inner_lr=RATE, steps=2)

    def grads():
        return torch.autograd.grad(learner(*sides, reduction=reduction).sum(), net[0].weight)[0]

    outside = grads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = grads()
    assert inside.equal(outside)
