"""Losses and modules that look at more than they are handed: at what the forward pass left on the
module, at its parameters, at what autograd records; and meta-losses whose inputs change before
backward. Losses and meta-gradients are those of a plain loop, or there is an error."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import random
import sys
import types
import weakref

import numpy as np
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


KEPT_NET = None  # for losses that find the module among globals
VARIABLE = contextvars.ContextVar("net")


def reaches(how, net):
    """A function without arguments that gets at the module in some way."""
    global KEPT_NET
    KEPT_NET = net
    if how == "weak reference":
        return weakref.ref(net)
    if how == "class attribute":
        held_by = type("Holder", (), {"net": net})
        return lambda: held_by.net
    if how == "context variable":
        VARIABLE.set(net)
        return lambda: VARIABLE.get()
    if how == "slots":
        holder = type("Slotted", (), {"__slots__": ("net",)})()
        holder.net = net
        return lambda: holder.net
    if how == "property":
        owner = type("Owner", (), {"net": property(lambda self: net)})()
        return lambda: owner.net
    if how == "imported":
        sys.modules["kept_net_of_this_test"] = types.SimpleNamespace(net=net)
        return lambda: __import__("kept_net_of_this_test").net
    if how == "generator":

        def forever():
            while True:
                yield net

        made = forever()
        return lambda: next(made)
    assert how == "globals"
    return lambda: globals()["KEPT_NET"]


WAYS = (
    "weak reference",
    "class attribute",
    "context variable",
    "slots",
    "property",
    "imported",
    "generator",
    "globals",
)


@pytest.mark.parametrize("left", ["attribute", "replaced", "list"])
@pytest.mark.parametrize("how", WAYS)
def test_a_loss_may_get_at_its_module_in_any_way(how, left):
    between, term = LEFT[left]
    net = Net(between)
    net.extra, net.terms, net.kl = 0.0, [], torch.zeros(())
    reach = reaches(how, net)
    learner = compare(net, lambda z, y: F.mse_loss(z, y) + term(reach()), steps=2)
    assert learner.backend == "torch"
    sys.modules.pop("kept_net_of_this_test", None)


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


def keeps_a_name(net, h):
    """A text besides."""
    net.kl, net.kind = h.pow(2).mean(1), "tanh"
    return h


PEEKS = {
    "isinstance": lambda net: net.kl.mean() if isinstance(net.kl, torch.Tensor) else 0,
    "vars": lambda net: sum(v.mean() for k, v in vars(net).items() if torch.is_tensor(v)),
    "is None": lambda net: 0 if net.kl is None else net.kl.mean(),
    "hasattr": lambda net: net.kl.mean() if hasattr(net, "kl") and net.kl is not None else 0,
    "collector": lambda net: sum(
        m.kl.mean() for m in net.modules() if isinstance(getattr(m, "kl", None), torch.Tensor)
    ),
    "text": lambda net: net.a.weight.new_tensor(float(len(f"{net.kind}"))),
    "key": lambda net: net.a.weight.new_tensor({"tanh": 2.0}.get(net.kind, 1.0)),
    "identity": lambda net: net.a.weight.new_tensor(1.0 if net.kind is None else 3.0),
}


@pytest.mark.parametrize("caught", [False, True])
@pytest.mark.parametrize("peek", PEEKS)
def test_a_loss_cannot_peek_at_what_forward_writes(peek, caught):
    net = Net(keeps_a_name)
    net.kl = net.kind = None

    def loss(z, y):
        total = F.mse_loss(z, y)
        if not caught:
            return total + PEEKS[peek](net)
        with contextlib.suppress(Exception):
            total = total + PEEKS[peek](net)
        return total

    learner = compare(net, loss, steps=2)
    assert learner.backend == "torch"
    assert type(net) is Net
    assert net.kl is None or isinstance(net.kl, torch.Tensor)


def test_a_registry_of_classes_hears_of_no_others():
    known = []

    class Registered(Net):
        def __init_subclass__(cls, **options):
            super().__init_subclass__(**options)
            known.append(cls)

    class Own(Registered):
        pass

    net = Own(keeps_a_name)
    net.kl = net.kind = None
    learner = compare(net, lambda z, y: F.mse_loss(z, y) + net.kl.mean(), steps=1)
    assert learner.backend == "torch"
    assert known == [Own]
    assert type(net) is Own


@pytest.mark.parametrize("what", ["own parameters", "variables", "requires_grad"])
def test_a_loss_that_catches_its_refusal(what):
    net = Net()
    variable = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def term(weight, z):
        if what == "own parameters":
            return weight.square().mean()
        if what == "variables":
            return variable * z.square().mean()
        return z.square().mean() if z.requires_grad else 0

    def loss(z, y, phi=None):
        total = F.mse_loss(z, y)
        with contextlib.suppress(Exception):
            total = total + term(net.a.weight if phi is None else phi["a.weight"], z)
        return total

    def truth(z, y, phi):
        return loss(z, y, phi)

    truth.wants_parameters = True
    compare(net, loss, steps=2, truth=truth)


class Terms:
    """A helper with a list."""

    def __init__(self):
        self.terms = []


def refills(net, h):
    """Lists of a helper and of the module, changed in place."""
    for terms in (net.reg.terms, net.terms):
        terms.clear()
        terms.append(h)
    return h


@pytest.mark.parametrize("how", ["helper", "closed list", "closed helper"])
def test_lists_that_forward_refills(how):
    net = Net(refills)
    net.reg, net.terms = Terms(), []
    kept, helper = net.terms, net.reg
    lists = {
        "helper": lambda: net.reg.terms,
        "closed list": lambda: kept,
        "closed helper": lambda: helper.terms,
    }

    def loss(z, y):
        return F.mse_loss(z, y) + sum(t.square().mean() for t in lists[how]())

    compare(net, loss, steps=2)


def test_a_penalty_on_what_requires_gradients_is_there_in_evaluate():
    net = Net()
    net.b.weight.requires_grad_(False)

    def loss(z, y):
        learned = (p for p in net.parameters() if p.requires_grad)
        return F.mse_loss(z, y) + 0.1 * sum(p.square().sum() for p in learned)

    learner = il.MAML(net, inner_lr=RATE, steps=2, loss=loss)
    support, query = batches()
    trained = learner(support, query, reduction="none")
    assert_close(learner.evaluate(support, query).loss[:, -1], trained, 1e-12)


def test_joint_training_sees_the_same_of_a_loss():
    net = Net(sets_an_attribute)
    net.kl = torch.zeros(())
    support, query = batches()

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.t = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, z, y):
            return F.mse_loss(z * self.t, y)

    scaled = Scaled()
    losses = {
        "penalty": lambda z, y: F.mse_loss(z, y) + sum(p.square().sum() for p in net.parameters()),
        "attribute": lambda z, y: F.mse_loss(z, y) + net.kl.mean(),
        "variables": scaled,
    }
    for loss in losses.values():
        learner = il.JointTraining(net, inner_lr=RATE, loss=loss)
        for reduction in ("mean", "none"):
            value = learner(support, query, reduction=reduction).mean()
            own = [*net.parameters(), *scaled.parameters()]
            # joint training is on all rows of a task, which are as many as these
            expected = []
            for sx, sy, qx, qy in zip(*support, *query, strict=True):
                x, y = torch.cat((sx, qx)), torch.cat((sy, qy))
                expected.append(loss(net(x), y))
            total = torch.stack(expected).mean()
            assert_close(value, total, 1e-12)
            got = torch.autograd.grad(value, own, allow_unused=True, materialize_grads=True)
            want = torch.autograd.grad(total, own, allow_unused=True, materialize_grads=True)
            for g, w in zip(got, want, strict=True):
                assert_close(g, w, 1e-10)


# ---------------------------------------------------------------- only for some outputs


def late(net, temperature):
    """Losses that look elsewhere only where outputs are not those that they were asked with."""

    def branch(z, y):
        loss = F.mse_loss(z, y)
        if z.abs().max() > 1e-3:
            loss = loss + 0.1 * net.a.weight.square().sum() + temperature * z.square().mean()
        return loss

    def other_task(z, y):
        loss = F.mse_loss(z, y)
        if y[0, 0] != batches()[0][1][0, 0, 0] and y[0, 0] != batches()[1][1][0, 0, 0]:
            loss = loss + 0.1 * net.b.bias.square().sum()
        return loss

    def fails_on_zeros(z, y):
        return F.mse_loss(z, y) * math.log(float(z.detach().abs().sum())) + net.b.bias.norm()

    def hook(z, y):
        w = z * 1
        if float(z.detach().norm()) > 0:
            w.register_hook(doubled)
        return F.mse_loss(w, y)

    return {"branch": branch, "task": other_task, "zeros": fails_on_zeros, "hook": hook}


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("which", ["branch", "task", "zeros", "hook"])
def test_a_loss_that_looks_elsewhere_for_some_outputs(which, steps):
    net = Net()
    temperature = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    loss = late(net, temperature)[which]

    def truth(z, y, phi):
        weight, bias = phi["a.weight"], phi["b.bias"]
        held = types.SimpleNamespace(a=types.SimpleNamespace(weight=weight))
        held.b = types.SimpleNamespace(bias=bias)
        return late(held, temperature)[which](z, y)

    truth.wants_parameters = True
    learner = compare(net, loss, steps=steps, truth=truth)
    assert learner.backend == "torch"
    if which == "branch":
        (got,) = torch.autograd.grad(learner(*batches()), temperature)
        (want,) = torch.autograd.grad(plain_loop(net, truth, steps).mean(), temperature)
        assert_close(got, want, 1e-10)
        with pytest.raises(NotImplementedError, match="computes with parameters of the module"):
            il.MAML(net, inner_lr=RATE, steps=1, loss=loss, backend="batched")(*batches())


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


# ---------------------------------------------------------------- TorchScript


def swish(x):
    """An activation as many write it."""
    return x * torch.sigmoid(x)


def steep(z, y):
    """A loss with curvature of its own."""
    return (z - y).exp().mean() + (z - y).pow(4).mean()


def scaled(z, y, scale):
    """A loss with a variable."""
    return (z - y).square().mean() * torch.exp(-scale) + scale


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("made", ["script", "trace"])
@pytest.mark.parametrize("where", ["module", "loss"])
def test_functions_of_torchscript(where, made, backend, order):
    plain = swish if where == "module" else steep
    z = torch.ones(4, 6 if where == "module" else 2, dtype=torch.float64)
    if made == "script":
        function = torch.jit.script(plain)
    else:
        function = torch.jit.trace(plain, (z,) if where == "module" else (z, z))
    net = Net((lambda net, h: function(h)) if where == "module" else None)
    same = Net((lambda net, h: plain(h)) if where == "module" else None)
    loss, eager = (F.mse_loss, F.mse_loss) if where == "module" else (function, plain)
    learner = il.MAML(net, inner_lr=RATE, steps=2, order=order, loss=loss, backend=backend)
    expected = plain_loop(same, eager, 2, order)
    for reduction in ("mean", "none"):
        losses = learner(*batches(), reduction=reduction)
        assert_close(losses.mean(), expected.mean(), 1e-12)
        for got, want in zip(grads_of(losses, net), grads_of(expected, same), strict=True):
            assert_close(got, want, 1e-10)
        expected = plain_loop(same, eager, 2, order)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_torchscript_with_variables_and_parameters(backend):
    net = Net()
    scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    function = torch.jit.script(scaled)
    call = type(function).__call__

    def loss(z, y, phi=None, run=function):
        weight = net.a.weight if phi is None else phi["a.weight"]
        return run(z, y, scale) + run(weight, torch.zeros_like(weight), scale)

    def truth(z, y, phi):
        return loss(z, y, phi, scaled)

    truth.wants_parameters = True
    learner = compare(net, loss, steps=2, backend=backend, truth=truth)
    (got,) = torch.autograd.grad(learner(*batches()), scale)
    (want,) = torch.autograd.grad(plain_loop(net, truth, 2).mean(), scale)
    assert_close(got, want, 1e-10)
    assert type(function).__call__ is call


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
    losses = learner(*batches(), reduction="none").sum()  # on the torch back end, in one pass
    (grad,) = torch.autograd.grad(losses, net.b)
    assert_close(losses.detach(), grad.sum(), 1e-12)
    assert learner.backend == "torch"


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


@pytest.mark.parametrize("what", ["parameters", "x", "y"])
def test_changes_that_no_version_counts(what):
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    support, query = batches()
    learner = il.MAML(net, inner_lr=RATE, steps=2)
    assert learner.backend == "fused"
    losses = learner(support, query, reduction="none")
    if what == "parameters":
        vector = nn.utils.parameters_to_vector(net.parameters()).detach()
        nn.utils.vector_to_parameters(vector * 1.3, net.parameters())
    else:
        changed = support["xy".index(what)]
        changed.data = changed * 2
    with pytest.raises(RuntimeError, match="had other values"):
        losses.sum().backward()


# ---------------------------------------------------------------- numbers that change by themselves


DRAWS = {
    "random": random.random,
    "numpy": lambda: float(np.random.rand()),  # noqa: NPY002 (the global generator is meant)
    "own random": random.Random(0).random,
    "own numpy": np.random.default_rng(0).random,
}


def alike(tasks=6):
    """The same task many times."""
    (sx, sy), (qx, qy) = batches()
    return tuple(
        tuple(v[:1].expand(tasks, *v.shape[1:]).clone() for v in side)
        for side in ((sx, sy), (qx, qy))
    )


@pytest.mark.parametrize("draw", DRAWS)
def test_random_modules_draw_for_each_task(draw):
    net = Net(lambda net, h: h * DRAWS[draw]())
    losses = il.MAML(net, inner_lr=RATE, steps=1)(*alike(), reduction="none")
    if draw.startswith("own"):  # whose state is nobody's business: vmap calls forward once
        assert il.MAML(net, inner_lr=RATE, steps=1).backend == "torch"
    else:
        assert len(set(losses.tolist())) == len(losses)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("draw", ["random", "numpy"])
def test_random_losses_draw_for_each_task(draw, backend):
    def loss(z, y):
        return F.mse_loss(z, y) * (1 + DRAWS[draw]())

    learner = il.MAML(Net(), inner_lr=RATE, steps=0, loss=loss, backend=backend)
    losses = learner(*alike(), reduction="none")
    assert len(set(losses.tolist())) == len(losses)


def test_what_a_helper_keeps_is_put_back():
    class Rope:
        cos = None

        def __init__(self):
            self.seen = []

        def __call__(self, h):
            if self.cos is None or self.cos.shape != h.shape:
                self.cos = torch.cos(h.detach() * 0 + 1)
            self.seen.append(h)
            return h * self.cos

    net = Net()
    rope = net.rope = Rope()
    net.between = lambda net, h: net.rope(h)
    (sx, _), _ = batches()
    for backend in ("auto", "torch"):
        compare(net, F.mse_loss, steps=1, backend=backend)
        rope.__dict__.pop("cos", None)
        rope.seen.clear()
        il.MAML(net, inner_lr=RATE, steps=1, backend=backend)(*batches()).backward()
        assert rope.cos is None
        assert rope.seen == []
        net(sx[0])
