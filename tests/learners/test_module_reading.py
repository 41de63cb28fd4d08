"""Modules with a forward pass of their own are read by what they compute: chains of known calls are
fused, with the results of the torch back end; whatever cannot be read runs there, and `explain()`
names the first call that stopped the reading. Tolerance 1e-11 relative to each leaf: float64, a few
hundred operations."""

from __future__ import annotations

import importlib
import random
import sys
import warnings

import pytest
import torch
from learner_cases import assert_close, gradients
from torch import nn
from torch.nn import functional as F
from torch.utils import checkpoint

import innerloop as il
from helpers import needs_safe_attention

pytestmark = pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning")

SHAPE = (2, 3)  # of a row


class Net(nn.Module):
    """Two linear layers around whatever a test makes of them."""

    def __init__(self, how):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 2)
        self.drop = nn.Dropout(0.5)
        self.inner = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.inner.requires_grad_(True)
        self.how = how
        self.flag = True

    def forward(self, x):
        """Returns what is asked for."""
        return self.how(self, x)


def build(how, *, inner=False):
    """A seeded network in float64 that computes `how`."""
    torch.manual_seed(0)
    net = Net(how).double()
    if not inner:
        del net.inner
    return net.eval()


def sides():
    """Support and query of three tasks."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(3, n, *SHAPE, generator=generator, dtype=torch.float64),
            torch.randn(3, n, 2, generator=generator, dtype=torch.float64),
        )
        for n in (4, 5)
    ]


SUPPORT, QUERY = sides()
ONES = torch.ones(2, 5, dtype=torch.float64)
OPTIONS = {"inner_lr": 0.2, "steps": 2}


def results(learner, net):
    """Loss, gradients, adapted parameters and predictions."""
    loss = learner(SUPPORT, QUERY)
    loss.backward()
    found = {f"gradient {k}": v for k, v in gradients(net).items()}
    adapted = learner.adapt(SUPPORT)
    found |= {f"adapted {k}": v for k, v in adapted.params.items()}
    return found | {"loss": loss.detach(), "outputs": adapted(QUERY[0])}


def through_attribute(net, x):
    """Writes to itself on the way."""
    net.seen = net.first(x.flatten(1))
    return net.last(torch.tanh(net.seen))


def method_chain(net, x):
    """Calls methods alone."""
    return net.last(net.first(x.reshape(x.size(0), -1)).tanh())


READABLE = {
    "functional": lambda n, x: n.last(F.relu(n.first(x.view(x.shape[0], -1)))),
    "methods": method_chain,
    "flatten": lambda n, x: n.last(torch.sigmoid(n.first(torch.flatten(x, 1)))),
    "view(-1, D)": lambda n, x: n.last(F.softplus(n.first(x.view(-1, 6)))),
    "own weights": lambda n, x: F.linear(
        F.gelu(F.linear(x.flatten(1), n.first.weight, n.first.bias)), n.last.weight, n.last.bias
    ),
    "in place": lambda n, x: n.last(F.relu(n.first(x.flatten(1)), inplace=True)),
    "dropout that is off": lambda n, x: n.last(n.drop(F.silu(n.first(x.flatten(1))))),
    "slopes that are not drawn": lambda n, x: n.last(F.rrelu(n.first(x.flatten(1)))),
    "pads of nothing": lambda n, x: n.last(F.relu(n.first(F.pad(x.flatten(1), (0, 0))))),
    "a copy": lambda n, x: n.last(F.relu(n.first(x.flatten(1).clone()))),
    "writes to itself": through_attribute,
    "branch on an attribute": lambda n, x: n.last(
        (F.relu if n.flag else torch.tanh)(n.first(x.flatten(1)))
    ),
    "branch on a shape": lambda n, x: n.last(
        (F.relu if x.ndim == 3 else torch.tanh)(n.first(x.flatten(1)))
    ),
}


@pytest.mark.parametrize("name", READABLE)
def test_chains_of_known_calls_are_fused(name):
    net = build(READABLE[name])
    learner = il.MAML(net, **OPTIONS)
    found = results(learner, net)
    assert learner.backend == "fused", learner.explain()
    assert_close(found, results(il.MAML(net, **OPTIONS, backend="torch"), net), 1e-11)
    assert "seen" not in vars(net)
    il.MAML(net, **OPTIONS, backend="fused")(SUPPORT, QUERY)


class Straight(torch.autograd.Function):
    """relu with a derivative of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        """Returns the positive part."""
        return x.clamp(min=0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keeps nothing."""

    @staticmethod
    def backward(ctx, g):
        """Passes everything on."""
        return g


class Passing(torch.autograd.Function):
    """A known call with a derivative of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        """Returns relu."""
        return torch.relu(x)

    setup_context, backward = Straight.setup_context, Straight.backward


def without_gradients(net, x):
    """Turns gradients off for the first layer."""
    with torch.no_grad():
        h = net.first(x.flatten(1))
    return net.last(h)


def in_autocast(net, x):
    """Turns autocast on for the last layer."""
    with torch.autocast("cpu", enabled=True):
        return net.last(net.first(x.flatten(1))).double()


def swallowing(net, x):
    """Catches whatever its reader raises."""
    h = net.first(x.flatten(1))
    try:
        h = h.cumsum(1)
    except Exception:
        h = torch.relu(h)
    return net.last(h)


def in_place_unseen(net, x):
    """Changes a tensor by a way around torch's functions."""
    h = net.first(x.flatten(1))
    torch.ops.aten.mul_.Scalar(h, 2.0)
    return net.last(h)


def changed_view(net, x):
    """Uses a tensor that was changed through a view of it."""
    h = net.first(x.flatten(1))
    h.view(-1, 5).relu_()
    return net.last(h)


def by_chance(net, x):
    """Draws Python's random numbers."""
    return net.last((torch.relu if random.random() < 2 else torch.tanh)(net.first(x.flatten(1))))


UNREADABLE = {
    "a running sum": (
        lambda n, x: n.last(n.first(x.flatten(1)).cumsum(1)),
        r"call 3 .*, cumsum, is not one of those",
    ),
    "a rounded quotient": (
        lambda n, x: n.last(n.first(torch.div(x.flatten(1), 2, rounding_mode="floor"))),
        "or one that is rounded",
    ),
    "a power of a number": (lambda n, x: n.last(n.first(2 ** x.flatten(1))), "__rpow__|only a pow"),
    "limits that are results": (
        lambda n, x: n.last(n.first(x.flatten(1).clamp(x.flatten(1)))),
        "only limits that are numbers",
    ),
    "a product over rows": (
        lambda n, x: n.last(n.first(x.flatten(1)) @ n.first(x.flatten(1)).T),
        "rows would change places",
    ),
    "a product of other shapes": (
        lambda n, x: n.last(n.first((x @ x).flatten(1))),
        r"a product of rows of \[2, 3\] with rows of \[2, 3\]",
    ),
    "attention of groups": (
        lambda n, x: n.last(
            n.first(F.scaled_dot_product_attention(x, x, x, enable_gqa=True).flatten(1))
        ),
        "grouped heads",
    ),
    "three factors": (
        lambda n, x: n.last(n.first(torch.einsum("nij,nij,nij->nij", x, x, x).flatten(1))),
        "only an equation of two factors",
    ),
    "a contraction over rows": (
        lambda n, x: n.last(torch.einsum("nj,nk->jk", *[n.first(x.flatten(1))] * 2)[: len(x)]),
        "rows do not stay rows",
    ),
    "rows that meet other rows": (
        lambda n, x: n.last(torch.einsum("nj,mj->nj", *[n.first(x.flatten(1))] * 2)),
        "rows do not stay rows",
    ),
    "a sum in a contraction": (
        lambda n, x: n.last(n.first(torch.einsum("nij,nk->nk", x, x.flatten(1)))),
        "a sum over an axis of one factor",
    ),
    "a diagonal": (
        lambda n, x: n.last(torch.einsum("njj,nj->nj", x @ x.mT, x[:, :, 0]).repeat(1, 2)),
        "a diagonal cannot be read",
    ),
    "a contraction that does not fit": (
        lambda n, x: n.last(torch.einsum("nij,ni->nj", x, x[:, 0])),
        "does not fit its factors",
    ),
    "a mask by results": (
        lambda n, x: n.last(n.first(x.masked_fill(x > 0, 0.0).flatten(1))),
        "gt, is not one|__gt__, is not one",
    ),
    "a choice by results": (
        lambda n, x: n.last(n.first(torch.where(x.flatten(1), 1.0, x.flatten(1)))),
        "where a buffer says so",
    ),
    "a parameter by a mask": (
        lambda n, x: n.last(
            n.first(torch.where(torch.eye(6)[0] > 0, x.flatten(1), n.first.weight[0]))
        ),
        "where a buffer says so",
    ),
    "numbers of another dtype": (
        lambda n, x: n.last(n.first(x.flatten(1) * torch.arange(6))),
        "which is torch.int64",
    ),
    "numbers with gradients": (
        lambda n, x: n.last(n.first(x.flatten(1) + torch.zeros(6, requires_grad=True))),
        "in a way that cannot be read",
    ),
    "random numbers": (
        lambda n, x: n.last(n.first(x.flatten(1) + torch.rand(6))),
        "rand, is not one of those",
    ),
    "random attention": (
        lambda n, x: n.last(
            n.first(F.scaled_dot_product_attention(x, x, x, dropout_p=0.5).flatten(1))
        ),
        "dropout is random",
    ),
    "an infinite norm": (
        lambda n, x: n.last(n.first(F.normalize(x.flatten(1), p=torch.inf))),
        "only norms of the orders 1 and 2",
    ),
    "padded rows": (
        lambda n, x: n.last(n.first(F.pad(x, (0, 0, 0, 0, 1, 1)).flatten(1))),
        "padding",
    ),
    "pads wider than the image": (
        lambda n, x: n.last(n.first(F.pad(x, (3, 0), mode="reflect")[:, :, :3].flatten(1))),
        "padding .* does not fit",
    ),
    "between entries": (
        lambda n, x: n.last(n.first(F.interpolate(x, 3, mode="linear").flatten(1))),
        "only the nearest of entries",
    ),
    "rows the other way around": (
        lambda n, x: n.last(n.first(x.flip(0).flatten(1))),
        "rows that change places",
    ),
    "rows repeated": (
        lambda n, x: n.last(n.first(x.repeat(2, 1, 1)[: len(x)].flatten(1))),
        "only entries along axes of the rows",
    ),
    "all in line": (lambda n, x: n.last(n.first(x.roll(1).flatten(1))), "only shifts along axes"),
    "halves of an odd row": (
        lambda n, x: n.last(F.glu(n.first(x.flatten(1)))),
        "have no halves",
    ),
    "a random slope": (
        lambda n, x: n.last(F.rrelu(n.first(x.flatten(1)), training=True)),
        "random in training mode",
    ),
    "entries by a list": (
        lambda n, x: n.last(n.first(x[:, [0, 1]].flatten(1))),
        "only integers, slices and None",
    ),
    "some of the rows": (lambda n, x: n.last(n.first(x[1:].flatten(1))), "rows that are left out"),
    "rows in pieces": (lambda n, x: n.last(n.first(x.chunk(2)[0].flatten(1))), "left out"),
    "rows among channels": (lambda n, x: n.last(n.first(x.transpose(0, 1).flatten(1))), "axes"),
    "rows one after another": (
        lambda n, x: n.last(n.first(torch.cat([x, x]).flatten(1))),
        "do not join at axis 0",
    ),
    "rows of other shapes": (
        lambda n, x: n.last(n.first((x + x.mean((1, 2))).flatten(1))),
        r"rows of \[2, 3\] and \[\]",
    ),
    "a parameter that does not fit": (
        lambda n, x: n.last(n.first(x.flatten(1)) + n.first.weight.t()),
        "does not fit rows",
    ),
    "detach": (lambda n, x: n.last(n.first(x.flatten(1)).detach()), "detach, is not one"),
    "a function of its own": (
        lambda n, x: n.last(Straight.apply(n.first(x.flatten(1)))),
        "clamp, is not one|gradients off|derivative of its own",
    ),
    "a derivative of its own": (
        lambda n, x: n.last(Passing.apply(n.first(x.flatten(1)))),
        "gradients off|derivative of its own",
    ),
    "no_grad": (without_gradients, "_set_grad_enabled, is not one"),
    "autocast": (in_autocast, "autocast on"),
    "a reader's error caught": (swallowing, "call 3 .*, cumsum, is not one"),
    "in place, unseen": (in_place_unseen, "mul_.*, is not one|leaves no trace"),
    "in place through a view": (changed_view, "changed in place through another"),
    "random": (by_chance, "draws random numbers"),
    "a sum over rows": (lambda n, x: n.last(n.first(x.flatten(1) - x.flatten(1).mean(0))), "mean"),
    "rows that move": (lambda n, x: n.last(n.first(x.reshape(3, -1).T.reshape(-1, 6))), "rows"),
    "a branch on data": (
        lambda n, x: n.last(n.first(x.flatten(1))) if x.sum() > 0 else n.last(n.first(x[:, 0])),
        "mean or sum over axes",
    ),
    "another's weight": (
        lambda n, x: F.linear(n.first(x.flatten(1)), ONES),
        "not a parameter or buffer of its own",
    ),
    "a weight computed with another's": (
        lambda n, x: F.linear(n.first(x.flatten(1)), n.last.weight * ONES),
        "not made of the input",
    ),
    "a random weight": (
        lambda n, x: F.linear(n.first(x.flatten(1)), F.dropout(n.last.weight, training=True)),
        "dropout, it is random",
    ),
    "a weight changed in place": (
        lambda n, x: F.linear(n.first(x.flatten(1)), n.last.weight.data.mul_(2)),
        "mul_, it (changes a parameter|raised)",
    ),
    "a branch on a weight": (
        lambda n, x: n.last(n.first(x.flatten(1))) if n.last.weight.sum() > 0 else x,
        "__bool__, it raised|__bool__, it gives a bool",
    ),
    "a number of a weight": (
        lambda n, x: n.last(n.first(x.flatten(1)) * n.last.weight[0, 0].item()),
        "item, it raised|item, it gives a float",
    ),
    "a weight with a derivative of its own": (
        lambda n, x: F.linear(n.first(x.flatten(1)), Passing.apply(n.last.weight)),
        "gradients off|derivative of its own",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_falls_back_with_the_call_that_stopped_it(name):
    how, text = UNREADABLE[name]
    net = build(how)
    learner = il.MAML(net, **OPTIONS)
    with pytest.raises(NotImplementedError, match=text):
        il.predict(
            {k: v.detach() for k, v in net.named_parameters()},
            QUERY[0],
            model=net,
            backend="fused",
        )
    assert learner.backend == "torch"
    assert "cannot be fused: " in learner.explain()


def test_active_dropout_is_not_read():
    net = build(READABLE["dropout that is off"]).train()
    learner = il.MAML(net, **OPTIONS)
    assert learner.backend == "torch"
    assert "random in training mode" in learner.explain()
    net.eval()
    assert learner.backend == "fused"


def test_tuples_are_refused_by_the_torch_back_end():
    net = build(lambda n, x: (n.last(n.first(x.flatten(1))), x))
    assert "returns a tuple" in il.MAML(net, **OPTIONS).explain()
    with pytest.raises(TypeError, match="must return one tensor"):
        il.MAML(net, **OPTIONS)(SUPPORT, QUERY)


def test_checkpointed_layers_are_read():
    net = build(
        lambda n, x: n.last(checkpoint.checkpoint(n.first, x.flatten(1), use_reentrant=False))
    )
    if hasattr(checkpoint, "_NoopSaveInputs"):  # of torch 2.11: checkpoints call it on the data
        with pytest.raises(RuntimeError, match="must not use activation checkpointing"):
            results(il.MAML(net, **OPTIONS), net)
        return
    plain = build(lambda n, x: n.last(n.first(x.flatten(1))))
    assert_close(
        results(il.MAML(net, **OPTIONS), net), results(il.MAML(plain, **OPTIONS), plain), 1e-11
    )


def test_what_a_pass_imports_is_no_part_of_it(tmp_path, monkeypatch):
    name = f"imported_by_{tmp_path.name}"  # torch._dynamo does the like in older torch
    code = "import torch\ninverse = torch.linalg.inv(torch.eye(2))\nassert inverse[0, 0] == 1\n"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    net = build(lambda n, x: (importlib.import_module(name), n.last(n.first(x.flatten(1))))[1])
    plain = build(lambda n, x: n.last(n.first(x.flatten(1))))
    learner = il.MAML(net, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner(SUPPORT, QUERY)
    assert name in sys.modules
    assert_close(results(learner, net), results(il.MAML(plain, **OPTIONS), plain), 1e-11)


def changes():
    """What may change of a module that was read: the change, and where it runs afterwards."""

    def instance(net):
        net.first.forward = lambda x: torch.tanh(nn.Linear.forward(net.first, x))

    def hook(net):
        net.first.register_forward_hook(lambda m, given, result: 2 * result)

    def pre_hook(net):
        net.register_forward_pre_hook(lambda m, given: (2 * given[0],))

    def swap(net):
        net.first = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid()).double()

    def dropout(net):
        net.train()

    def flag(net):
        net.flag = False

    def own(net):
        net.how = lambda n, x: n.last(n.first(x.flatten(1)))

    def product(net):
        net.how = lambda n, x: n.last(2 * n.first(x.flatten(1)))

    def unread(net):
        net.how = lambda n, x: n.last(n.first(x.flatten(1)).cumsum(1))

    def weight(net):
        net.last.weight = nn.Parameter(2 * net.last.weight.detach())

    return {
        "instance forward": (instance, None),
        "hook": (hook, "torch"),
        "pre-hook": (pre_hook, "torch"),
        "submodule": (swap, None),
        "training flag": (dropout, "torch"),
        "attribute": (flag, "fused"),
        "closure": (own, "fused"),
        "closure without kernels": (product, "batched"),
        "closure that cannot be read": (unread, "torch"),
        "parameter": (weight, "fused"),
    }


@pytest.mark.parametrize("name", changes())
def test_a_read_module_that_changes_is_read_anew(name):
    def how(net, x):
        h = net.first(x.flatten(1))
        return net.last(F.silu(net.drop(h) if net.training else h) if net.flag else torch.sin(h))

    if name == "attribute":

        def how(net, x):
            h = net.first(x.flatten(1))
            return net.last(F.silu(h) if net.flag else torch.sigmoid(h))

    net = build(how)
    learner = il.MAML(net, **OPTIONS)
    results(learner, net)
    assert learner.backend == "fused"
    change, after = changes()[name]
    change(net)
    if name == "submodule":  # other parameters: a learner is made anew
        learner = il.MAML(net, **OPTIONS)
    if name != "training flag":  # which is random now
        expected = results(il.MAML(net, **OPTIONS, backend="torch"), net)
        assert_close(results(learner, net), expected, 1e-11)
    if after is not None:
        assert learner.backend == after, learner.explain()


def test_outputs_are_compared_once_with_the_modules_own(monkeypatch):
    net = build(READABLE["functional"])
    real = nn.Linear.forward

    def lying(self, x):
        """Differs from what it shows to whoever reads it."""
        return real(self, x) if x.is_meta else 2 * real(self, x)

    from innerloop._reading import recorder

    asks = torch.Tensor.is_meta.__get__
    monkeypatch.setitem(recorder.HANDLERS, asks, lambda notes, x: True)
    monkeypatch.setattr(net.first, "forward", lying.__get__(net.first), raising=False)
    learner = il.MAML(net, **OPTIONS)
    found = results(learner, net)
    assert learner.backend == "torch"
    assert "its outputs are not those" in learner.explain()
    assert_close(found, results(il.MAML(net, **OPTIONS, backend="torch"), net), 1e-11)


ROW_DEPENDENT = {
    "len": lambda n, x, h: torch.tanh(h) if len(x) == 4 else h,
    "shape": lambda n, x, h: torch.tanh(h) if h.shape[0] == 4 else h,
    "size": lambda n, x, h: torch.tanh(h) if x.size(0) == 4 else h,
    "numel": lambda n, x, h: torch.tanh(h) if torch.numel(h) == 20 else h,
    "a factor": lambda n, x, h: h * x.size()[0],
    "slice": lambda n, x, h: h[:4] if n.flag else h,
    "view of so many rows": lambda n, x, h: h.view(4, 5),
    "pieces": lambda n, x, h: torch.split(h, 4)[0],
    "statistics of a count": lambda n, x, h: F.batch_norm(h, None, None, training=True) / len(h),
}


@pytest.mark.parametrize("name", ROW_DEPENDENT)
def test_what_depends_on_the_number_of_rows_is_read_for_each(name):
    how = ROW_DEPENDENT[name]
    net = build(lambda n, x: n.last(how(n, x, F.relu(n.first(x.flatten(1))))))
    found, want = [], []
    for backend, list_of in (("auto", found), ("torch", want)):
        try:
            list_of.append(results(il.MAML(net, **OPTIONS, backend=backend), net))
        except (RuntimeError, ValueError) as error:  # rows that are left out fit no targets
            list_of.append(type(error))
    if isinstance(want[0], dict):
        assert_close(found[0], want[0], 1e-11)
    else:
        assert found == want


def test_what_does_not_is_read_once_for_both_sides(monkeypatch):
    from innerloop import _reading

    real, numbers = _reading.read, []

    def counted(module, rows):
        """Notes what is read."""
        numbers.append(rows.number)
        return real(module, rows)

    monkeypatch.setattr(_reading, "read", counted)
    for name, expected in (("flatten", [4]), ("functional", [4, 5])):  # of these one asks for rows
        numbers.clear()
        learner = il.MAML(build(READABLE[name]), **OPTIONS)
        learner(SUPPORT, QUERY)
        assert numbers == [n for n in expected for _ in range(2)]  # twice what was not seen before
        numbers.clear()
        learner(SUPPORT, QUERY)
        assert numbers == expected


def test_one_parameter_used_twice_is_not_fused():
    net = build(lambda n, x: F.linear(n.last(n.first(x.flatten(1))), n.last.weight.T))
    assert "cannot be fused" in il.MAML(net, **OPTIONS).explain()


def test_explain_expects_likely_rows_before_there_are_any():
    net = build(READABLE["view(-1, D)"])
    assert il.MAML(net, **OPTIONS).backend == "fused"
    assert il.backend_for(net).backend == "fused"


# ---------------------------------------------------------------- what changes later


class Changing(nn.Module):
    """Computes with a buffer, or with a number, that a test changes later."""

    def __init__(self, how, **buffers):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.rnn = nn.GRU(4, 4, num_layers=4, batch_first=True)
        self.slopes = nn.PReLU()
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.how, self.k = how, 0.0

    def forward(self, x):
        """Returns two outputs."""
        return self.last(self.how(self, self.first(x)).mean(1))


def attended(n, h):
    return F.scaled_dot_product_attention(h, h, h, attn_mask=n.mask)


def started(n, h):
    state = torch.zeros(4, len(h), 4, dtype=h.dtype)
    state[:].add_(n.start)
    return n.rnn(h, state)[0]


def close_row(net):
    net.mask[1] = False


def forbid_row(net):
    net.mask[1] = -torch.inf


def begin(net):
    net.start.fill_(0.7)


NUMBERS = {
    "full": lambda n, h: torch.full((len(h), 1, 1), n.k, dtype=h.dtype),
    "masked": lambda n, h: (h * 0).masked_fill(n.some, n.k),
    "chosen": lambda n, h: torch.where(n.some, n.k, h * 0),
    "padded": lambda n, h: F.pad(h, (1, -1), value=n.k),
    "clamped": lambda n, h: (h * h).clamp(max=n.k),
    "scaled": lambda n, h: h.exp() * n.k,
}
CHANGES = {
    "a row that may look at nothing": (
        attended, {"mask": torch.ones(3, 3, dtype=torch.bool)}, close_row,
    ),
    "a row of minus infinity": (
        attended, {"mask": torch.zeros(3, 3, dtype=torch.float64)}, forbid_row,
    ),
    "zeros that a view changes": (started, {"start": torch.zeros(4, dtype=torch.float64)}, begin),
}  # fmt: skip


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_safe_attention if how is attended else ())
        for name, (how, _, _) in CHANGES.items()
    ],
)
def test_what_changes_after_the_first_batch_counts(name, order):
    how, buffers, change = CHANGES[name]
    torch.manual_seed(0)
    net = Changing(how, **{key: value.clone() for key, value in buffers.items()}).double().eval()
    generator = torch.Generator().manual_seed(1)
    rows = [
        (
            torch.randn(3, 4, 3, 3, generator=generator, dtype=torch.float64),
            torch.randn(3, 4, 2, generator=generator, dtype=torch.float64),
        )
        for _ in "sq"
    ]
    learner = il.MAML(net, inner_lr=0.1, steps=2, order=order)
    for _ in range(2):
        reference = il.MAML(net, inner_lr=0.1, steps=2, order=order, backend="torch")
        found, wanted = learner(*rows), reference(*rows)
        assert found.isfinite()
        assert_close({"loss": found.detach()}, {"loss": wanted.detach()}, 1e-11)
        own = [p for p in net.parameters() if p.requires_grad]
        gradients = (
            torch.autograd.grad(value, own, allow_unused=True, materialize_grads=True)
            for value in (found, wanted)
        )
        assert_close(*(dict(enumerate(gradient)) for gradient in gradients), 1e-9)
        with torch.no_grad():
            change(net)


@pytest.mark.parametrize("name", NUMBERS)
def test_zeros_of_both_signs_are_told_apart(name):
    def how(n, h):
        return h + torch.atan(1 / NUMBERS[name](n, h))

    torch.manual_seed(0)
    net = Changing(how, some=torch.eye(3, 4) > 0).double().eval()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    params = {k: p.detach() for k, p in net.named_parameters()}
    found = []
    for net.k in (0.0, -0.0, 0.0):
        found.append(il.predict(params, x, model=net))
        torch.testing.assert_close(found[-1], torch.stack([net(rows) for rows in x]).detach())
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("slope", [nn.PReLU, lambda: nn.PReLU(4)], ids=["one", "channels"])
def test_slopes_at_zero_are_those_of_torch(slope):
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), slope(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        net[0].weight[:3] = 0
    x, y = torch.rand(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
    found = []
    for backend in ("batched", "torch"):
        loss = il.MAML(net, inner_lr=0.1, steps=2, backend=backend)((x, y), (x, y))
        found.append(torch.autograd.grad(loss, list(net.parameters())))
    assert_close(*(dict(enumerate(gradient)) for gradient in found), 1e-10)


@pytest.mark.parametrize("how", ["clone", "times", "unbind"])
def test_tensors_detached_in_place_have_no_gradient(how):
    makes = {
        "clone": lambda w: w.clone().detach_(),
        "times": lambda w: (w * 1).detach_(),
        "unbind": lambda w: torch.stack([part.clone().detach_() for part in w.unbind()]),
    }

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))
            self.last = nn.Linear(5, 1)

        def forward(self, x):
            return self.last(torch.tanh(x * makes[how](self.w) * self.v))

    torch.manual_seed(0)
    net = Net().double()
    x, y = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 1, dtype=torch.float64)
    il.MAML(net, inner_lr=0.1, steps=2)((x, y), (x, y)).backward()
    assert net.w.grad is None or not net.w.grad.any()
    assert net.v.grad.any()
