"""What a module keeps outside of itself, or a copy of it keeps of the module: constants in caches,
functions that hold parts."""

import functools

import pytest
import torch
from torch import nn

import innerloop as il

ROWS = 5
# what is kept is no buffer, so that later passes cannot be read, and hooks are not fused
pytestmark = pytest.mark.filterwarnings("ignore:innerloop:UserWarning")


def constants(kind):
    """A 4 by 4 matrix that a pass computes with, or an order of columns."""
    if kind == "ones":
        return torch.ones(4, 4).triu()
    if kind == "filled":
        return torch.full((4, 4), 0.5) + torch.eye(4)
    if kind == "numbers":
        return torch.tensor([[1.0, 2, 3, 4]]) / torch.arange(1, 5)[:, None]
    if kind == "order":
        return torch.arange(3, -1, -1)
    if kind == "positions":
        return torch.linspace(0, 1, 4).expand(4, 4).cumsum(0)
    if kind == "rows changed":
        made = torch.ones(ROWS, 4)
        made.mul_(3)
        made[:, 1:].add_(1)
        return made
    if kind == "rows computed":
        return torch.ones(ROWS, 4) * 2 - torch.arange(4)
    if kind == "rows masked":
        return torch.zeros(ROWS, 4).masked_fill(torch.arange(4) > 1, -2.0)
    if kind == "rows in pieces":
        left, right = torch.ones(ROWS, 4).mul(2).chunk(2, -1)
        return torch.cat([right, left + 1], -1)
    return torch.zeros(ROWS, 4)


KINDS = [
    *("ones", "filled", "numbers", "order", "positions"),
    *("rows", "rows changed", "rows computed", "rows masked", "rows in pieces"),
]


class Slots:
    __slots__ = ("kept",)


def cached(place, kind):
    """Returns a network that makes a constant in its first pass and keeps it."""

    @functools.lru_cache
    def by_function():
        return constants(kind)

    class Net(nn.Module):
        shared = None

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
            self.state, self.helper = {"cache": {}}, Slots()

        @functools.cache  # noqa: B019
        def by_method(self):
            return constants(kind)

        def constant(self, kept=[]):  # noqa: B006
            if place == "function":
                return by_function()
            if place == "method":
                return self.by_method()
            if place == "class":
                if Net.shared is None:
                    Net.shared = constants(kind)
                return Net.shared
            if place == "default":
                if not kept:
                    kept.append(constants(kind))
                return kept[0]
            if place == "slots":
                if not hasattr(self.helper, "kept"):
                    self.helper.kept = constants(kind)
                return self.helper.kept
            return self.state["cache"].setdefault(kind, constants(kind))

        def forward(self, x):
            h = self.first(x).tanh()
            if kind == "order":
                return self.last(h[:, self.constant()])
            if kind.startswith("rows"):
                return self.last(h + self.constant())
            return self.last(h @ self.constant())

    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("place", ["function", "method", "class", "default", "slots", "nested"])
@pytest.mark.parametrize("kind", KINDS)
def test_constants_in_caches_have_numbers(place, kind):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(3, ROWS, 3, generator=generator), torch.randn(3, ROWS, 2)
    plain = cached(place, kind)
    expected = [plain(rows).detach() for rows in x]
    whole = il.MAML(plain, inner_lr=0.1, steps=2)((x, y), (x, y))
    whole.backward()

    net = cached(place, kind)
    il.backend_for(net)
    for rows, want in zip(x, expected, strict=True):
        torch.testing.assert_close(net(rows), want)

    net = cached(place, kind)
    learner = il.MAML(net, inner_lr=0.1, steps=2)
    loss = learner((x, y), (x, y))
    loss.backward()
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(net.first.weight.grad, plain.first.weight.grad)
    for rows, want in zip(x, expected, strict=True):
        torch.testing.assert_close(net(rows), want)


def test_a_constant_is_not_changed_in_place_unseen():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            mask = torch.ones(3, 3)
            mask[0] = 0
            mask.mul_(2)
            return self.layer(x) @ mask

    torch.manual_seed(0)
    net = Net()
    x, y = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    results = [
        il.meta_grad(
            dict(net.named_parameters()), (x, y), (x, y), model=net, inner_lr=0.1, steps=1,
            backend=backend,
        )
        for backend in ("auto", "torch")
    ]  # fmt: skip
    torch.testing.assert_close(results[0].grad, results[1].grad)


def test_a_constant_to_which_rows_are_added_is_read():
    """What has numbers loses them with what has none, and stays readable."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = torch.zeros(len(x), 4)
            h += self.a(x)
            h = h + torch.tanh(h)
            return self.b(h)

    torch.manual_seed(0)
    net = Net()
    x, y = torch.randn(2, 4, 3), torch.randn(2, 4, 2)
    options = {"model": net, "inner_lr": 0.1, "steps": 2}
    params = dict(net.named_parameters())
    results = [
        il.meta_grad(params, (x, y), (x, y), backend=backend, **options)
        for backend in ("batched", "torch")
    ]
    torch.testing.assert_close(results[0].grad, results[1].grad)


# ---------------------------------------------------------------- copies


def wrapped():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    old = net.forward

    @functools.wraps(old)
    def forward(x):
        return old(x) * 2

    net.forward = forward
    return net


def with_lambda():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    last = net[2]
    net[1].forward = lambda h: torch.tanh(h) + 0 * last.bias.sum()
    return net


def hooked():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net[1].register_forward_hook(lambda module, inputs, output: output + net[0].bias)
    return net


def with_default():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(x, layers=(net[0], net[1], net[2])):
        for layer in layers:
            x = layer(x)
        return x

    net.forward = forward
    return net


GLOBAL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def through_globals():
    GLOBAL.forward = lambda x: GLOBAL[2](GLOBAL[1](GLOBAL[0](x)))
    return GLOBAL


def through_another_function():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def inner(x):
        return net[0](x)

    net.forward = lambda x: net[2](torch.tanh(inner(x)))
    return net


class Keeper(nn.Module):
    """Two layers, of which the first is called through what `keep` made."""

    def __init__(self, keep):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.kept = keep(self)

    def forward(self, x):
        kept = self.kept
        if isinstance(kept, dict):
            kept = kept["a"]
        elif isinstance(kept, list):
            kept = kept[0]
        elif isinstance(kept, Helper):
            kept = kept.call
        return self.b(torch.tanh(kept(x)))


class Helper:
    def __init__(self, call):
        self.call = call


def nested(net):
    class Inner(nn.Module):
        def forward(self, x):
            return net.a(x)

    return Inner()


WAYS = {
    "dict": lambda net: {"a": lambda x: net.a(x)},
    "list": lambda net: [lambda x: net.a(x)],
    "partial": lambda net: functools.partial(lambda scale, x: net.a(x) * scale, 1.0),
    "helper": lambda net: Helper(lambda x: net.a(x)),
    "class": nested,
}
HOLDERS = [
    *(wrapped, with_lambda, hooked, with_default, through_globals, through_another_function),
    *(functools.partial(Keeper, keep) for keep in WAYS.values()),
]


class Log:
    def __init__(self):
        self.GLOBAL = []  # the name of a network that is global here


LOG = Log()


def test_a_hook_that_logs_is_copied():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net[0].register_forward_hook(lambda module, inputs, output: LOG.GLOBAL.append(output.shape))
    x, y = torch.randn(3, 5, 3), torch.randn(3, 5, 2)
    adapted = il.MAML(net, inner_lr=0.5, steps=2).adapt((x, y))
    torch.testing.assert_close(adapted.module(1)(x[1]), adapted(x)[1])


@pytest.mark.parametrize("make", HOLDERS)
def test_a_copy_that_would_use_the_original_is_refused(make):
    net = make()
    x, y = torch.randn(3, 5, 3), torch.randn(3, 5, 2)
    adapted = il.MAML(net, inner_lr=0.5, steps=2).adapt((x, y))
    with pytest.raises(ValueError, match=r"Adapted\.module: the module cannot be copied: .* holds"):
        adapted.module(1)


class Method(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.act = torch.tanh
        self.half = lambda h: h / 2
        self.partly = functools.partial(self.turn, scale=2)

    def turn(self, h, scale):
        return self.b(h) * scale

    def forward(self, x):
        return self.partly(self.half(self.act(self.a(x))))


def test_other_functions_are_copied():
    torch.manual_seed(0)
    net = Method()
    x, y = torch.randn(3, 5, 3), torch.randn(3, 5, 2)
    adapted = il.MAML(net, inner_lr=0.5, steps=2).adapt((x, y))
    torch.testing.assert_close(adapted.module(1)(x[1]), adapted(x)[1])


# ---------------------------------------------------------------- replaced norms


class Gain(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)


def norms(kind):
    """A network with a batch norm that does more than torch's."""
    norm = Gain(4) if kind == "subclass" else nn.BatchNorm1d(4)
    if kind == "hook":
        norm.register_forward_hook(lambda module, inputs, output: output + 1)
    if kind == "pre-hook":
        norm.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    if kind == "forward":
        norm.forward = lambda x: x
    if kind == "parametrisation":
        nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus(), unsafe=True)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), norm, nn.Linear(4, 2))


@pytest.mark.parametrize("kind", ["subclass", "hook", "pre-hook", "forward", "parametrisation"])
def test_norms_that_do_more_are_not_replaced(kind):
    net = norms(kind)
    before = list(net)
    with pytest.raises(ValueError, match=r"per_step_norms: 2 \("):
        il.nn.per_step_norms(net, steps=2)
    assert list(net) == before
    assert il.nn.per_step_norms(norms("none"), steps=2) == ("1", "2")
