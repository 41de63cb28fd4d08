"""Modules whose reading, or whose gradients by shared memory, may go wrong without a sign: losses
and meta-gradients are those of a plain loop, on every back end that takes them. Tolerance 1e-10."""

from __future__ import annotations

import pytest
import torch
from learner_cases import loop_losses
from torch import nn
from torch.nn import functional as F

import innerloop as il
from helpers import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning")

RATE, STEPS = 0.1, 2


class Net(nn.Module):
    """Parameters of some shapes, a linear layer, and what is computed with them."""

    def __init__(self, how, *, last=2, inputs=4, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.last = nn.Linear(inputs, last)
        self.how = how

    def forward(self, x):
        """Returns it."""
        return self.how(self, x)


def relu_of_a_copy(net, x):
    """In place on what `contiguous` gives, which may be a copy or not."""
    t = F.linear(x, net.w).unflatten(1, (2, 2)).transpose(1, 2)
    y = F.relu(t.contiguous(), inplace=True)
    return net.last((t + y).flatten(1))


def attention_over_rows(net, x):
    """Rows that look at one another."""
    h = F.linear(x, net.w).unsqueeze(0)
    return net.last(F.softmax(h @ h.mT, -1) @ h).flatten(0, 1)


def other_entries_for_many_rows(net, x):
    """A branch on the number of rows."""
    g = net.g[[1, 0]] if x.size(0) > 4 else net.g
    return net.last((x.unflatten(1, (2, 2)) * g).flatten(1))


# name: (what is computed, shapes of parameters)
MODULES = {
    "a sum of weights": (lambda n, x: n.last(x @ (n.a + n.b)), {"a": (4, 4), "b": (4, 4)}),
    "three summands": (
        lambda n, x: n.last(x @ (n.a + n.b + n.c)),
        {"a": (4, 4), "b": (4, 4), "c": (4, 4)},
    ),
    "a transposed summand": (lambda n, x: n.last(x @ (n.a + n.b.T)), {"a": (4, 4), "b": (4, 4)}),
    "two biases": (lambda n, x: n.last(x + (n.a + n.b)), {"a": (4,), "b": (4,)}),
    "two expanded": (
        lambda n, x: n.last(x + n.a.expand(x.size(0), -1) + n.b.expand(x.size(0), -1)),
        {"a": (4,), "b": (4,)},
    ),
    "a sum over an axis": (lambda n, x: n.last(x @ n.w.sum(0)), {"w": (3, 4, 4)}),
    "a sum of all": (lambda n, x: n.last(x) * n.b.sum(), {"b": (5,)}),
    "entries by a list": (
        lambda n, x: n.last((x.unflatten(1, (2, 2)) * n.g[[1, 0]]).flatten(1)),
        {"g": (2, 2)},
    ),
    "entries by a tuple": (lambda n, x: n.last(x * n.g[1, 0]), {"g": (2, 2)}),
    "in place on a copy": (relu_of_a_copy, {"w": (4, 4)}),
    "rows that see rows": (attention_over_rows, {"w": (4, 4)}),
    "a branch on the number of rows": (other_entries_for_many_rows, {"g": (2, 2)}),
    "data of a weight": (lambda n, x: n.last(x @ (n.w / n.w.data.norm())), {"w": (4, 4)}),
    "a softmax written out": (
        lambda n, x: n.last(x.exp() / x.exp().sum(1, keepdim=True) * (2 / n.a)),
        {"a": (4,)},
    ),
    "the largest": (lambda n, x: n.last(x * n.w.max(0).values), {"w": (3, 4)}),
}


def truth(net, support, query):
    """Losses, their mean and its gradient, by a plain loop."""
    losses = torch.stack(loop_losses(net, support, query, inner_lr=lambda k, s: RATE, steps=STEPS))
    grads = torch.autograd.grad(losses.mean(), list(net.parameters()))
    return losses.detach(), dict(zip(dict(net.named_parameters()), grads, strict=True))


def check(net, support, query, backend, tolerance=1e-10, **options):
    """Compares a learner with the plain loop."""
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS, backend=backend, **options)
    losses = learner(support, query, reduction="none")
    losses.mean().backward()
    found = {k: p.grad.clone() for k, p in net.named_parameters()}
    net.zero_grad()
    wanted, grads = truth(net, support, query)
    assert_close(losses.detach(), wanted, tolerance)
    assert_close(found, grads, tolerance, floor=1e-3)


def sides(rows, shape=(4,), outputs=2, tasks=2):
    """Support and query of so many rows."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(tasks, n, *shape, generator=generator, dtype=torch.float64),
            torch.randn(tasks, n, outputs, generator=generator, dtype=torch.float64),
        )
        for n in rows
    ]


@pytest.mark.parametrize("rows", [(4, 5), (1, 5), (4, 1)], ids=str)
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", MODULES)
def test_losses_and_gradients_are_those_of_a_plain_loop(name, backend, rows):
    how, shapes = MODULES[name]
    torch.manual_seed(0)
    check(Net(how, **shapes).double(), *sides(rows), backend)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_in_one_memory_with_decay_and_learned_rates(momentum):
    how, shapes = MODULES["a sum of weights"]
    torch.manual_seed(0)
    net = Net(how, **shapes).double()
    found = []
    for backend in ("batched", "torch"):
        learner = il.MAML(
            net, inner_lr=RATE, steps=3, order=1, weight_decay=0.1, momentum=momentum,
            learn_inner_lr=True, backend=backend,
        )  # fmt: skip
        learner(*sides((4, 5))).backward()
        found.append({k: p.grad.clone() for k, p in learner.named_parameters()})
        learner.zero_grad()
    assert_close(found[0], found[1], 1e-10)


def test_equal_numbers_of_other_kinds_are_other_programs():
    net = Net(lambda n, x: n.last(x * n.w.var(n.k)), w=(4, 4)).double()
    for k in (0, False):
        net.k = k
        check(net, *sides((4, 5)), "auto")


@pytest.mark.parametrize("activation", [nn.ELU(0.7), nn.CELU(0.5), nn.SELU(), nn.Softplus(1, 0)])
def test_second_derivatives_at_zero_are_those_of_torch(activation):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 2)).double()
    nn.init.zeros_(net[0].bias)
    support, query = sides((4, 5))
    support[0][:, :2] = 0
    check(net, support, query, "auto")


@pytest.mark.parametrize("how", ["inputs", "computed"])
def test_the_padding_of_an_embedding_is_a_constant(how):
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.last = nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 2)
            self.register_buffer("which", torch.tensor([0, 2, 1, 0]))

        def forward(self, x):
            if how == "computed":
                return self.last(x @ self.e(self.which))
            return self.last(self.e(x).mean(1))

    torch.manual_seed(0)
    net = Embedded().double()
    support, query = sides((4, 5))
    if how == "inputs":
        generator = torch.Generator().manual_seed(1)
        support, query = (
            (torch.randint(5, (*y.shape[:2], 3), generator=generator), y)
            for _, y in (support, query)
        )
    for backend in ("auto", "torch"):
        check(net, support, query, backend)


@pytest.mark.parametrize(
    "how",
    [
        lambda h: h.exp() / h.exp().sum(1, keepdim=True),
        lambda h: h.square() / h.square().sum(1, keepdim=True),
        lambda h: 1e-13 * h / (1e-13 * h.norm(dim=1, keepdim=True) + 1e-16),
        lambda h: F.normalize(1e-10 * h),
    ],
    ids=["softmax", "squares", "small", "normalised"],
)
def test_quotients_keep_the_range_of_float32(how):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    with torch.no_grad():
        net[0].weight.mul_(30)
    module = Net(lambda n, x: n.last(how(n.first(x))), inputs=5)
    module.first = net[0]
    support, query = ((x.float(), y.float()) for x, y in sides((6, 5)))
    check(module, support, query, "auto", tolerance=1e-3)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (lambda n, x: n.last(x - x.mean(0)), "what they hold"),
        (lambda n, x: n.last(x) / x.shape[0], "how many there are"),
    ],
)
@pytest.mark.parametrize("selection", ["count", "weight"])
def test_rows_that_are_left_out_must_not_matter(how, what, selection):
    net = Net(how).double()
    support, query = sides((4, 5))
    selected = torch.tensor([4, 2]) if selection == "count" else torch.ones(2, 4).double()
    if selection == "weight":
        selected[1, 0] = 0
    chosen = il.Batch(*support, **{selection: selected})
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS)
    for _ in range(2):
        with pytest.raises(NotImplementedError, match=f"each row alone .*{what}"):
            learner(chosen, query)
    learner(support, query).backward()


def test_random_modules_may_leave_rows_out():
    net = Net(lambda n, x: n.last(F.dropout(x, 0.5, training=True))).double()
    support, query = sides((4, 5))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    il.MAML(net, inner_lr=RATE, steps=STEPS)(
        il.Batch(*support, count=torch.tensor([4, 2])), query
    ).backward()
    torch.set_rng_state(state)


def test_a_buffer_that_requires_gradients_has_one():
    net = Net(lambda n, x: n.last(x) * n.gate).double()
    net.register_buffer("gate", torch.ones(2, dtype=torch.float64))
    found = []
    for backend in ("auto", "torch"):
        source = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        net.gate = torch.ones(2, dtype=torch.float64) * source
        learner = il.MAML(net, inner_lr=RATE, steps=STEPS, backend=backend)
        learner(*sides((4, 5))).backward()
        found.append(source.grad)
    torch.testing.assert_close(found[0], found[1])
    assert "requires gradients" in il.MAML(net, inner_lr=RATE, steps=STEPS).explain()


@pytest.mark.parametrize("backend", ["fused", "batched", "torch"])
@pytest.mark.parametrize("make", [il.MAML, il.JointTraining])
def test_a_second_derivative_through_task_weights_is_right_or_raises(make, backend):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    options = {"inner_lr": RATE, "steps": STEPS} if make is il.MAML else {}
    learner = make(net, backend=backend, **options)
    weight = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    loss = learner(*sides((4, 5)), task_weight=weight)
    grads = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    penalty = sum(g.square().sum() for g in grads) + weight.square().sum()
    if backend != "torch":
        with pytest.raises(RuntimeError, match="only first derivatives"):
            torch.autograd.grad(penalty, weight)
        return
    (found,) = torch.autograd.grad(penalty, weight)
    assert not torch.allclose(found, 2 * weight)


class Named(nn.Module):
    """Root parameters with the names of attributes that rates have, a number among them."""

    def __init__(self):
        super().__init__()
        self.current, self.learn = nn.Parameter(torch.ones(2)), nn.Parameter(torch.tensor(0.5))
        self.value, self.for_steps = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2))
        self._numbers = nn.Parameter(torch.ones(2))
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        """Uses them all."""
        h = self.last(x * self.value) * self.learn
        return h * self.current + self.for_steps * self._numbers


@pytest.mark.parametrize("learn", ["per_tensor", "per_parameter"])
def test_rates_are_held_for_parameters_of_any_name_and_shape(learn):
    torch.manual_seed(0)
    net = Named().double()
    check(net, *sides((4, 5)), "auto", learn_inner_lr=learn)
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS, learn_inner_lr=learn)
    other = il.MAML(Named().double(), inner_lr=0.5, steps=STEPS, learn_inner_lr=learn)
    other.load_state_dict(learner.state_dict())
    assert {k: float(v.detach().mean()) for k, v in other.rates.current().items()} == dict.fromkeys(
        dict(net.named_parameters()), RATE
    )


def test_explain_names_what_stopped_the_reading_of_the_rows_that_came():
    net = Net(lambda n, x: n.last(torch.cumsum(x, 1) @ n.w), w=(4, 4)).double()
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS)
    learner(*sides((4, 5)))
    assert "cumsum, is not one" in learner.explain()
    assert "first batch decides" not in learner.explain()


def test_accuracy_is_that_of_tasks_with_rows():
    torch.manual_seed(0)
    net = nn.Linear(4, 3).double()
    x, y = torch.randn(3, 5, 4, dtype=torch.float64), torch.randint(3, (3, 5))
    learner = il.MAML(net, inner_lr=RATE, steps=1, loss="cross_entropy")
    query = il.Batch(x, y, count=torch.tensor([5, 0, 3]))
    found, wanted = learner.evaluate((x, y), query), learner.evaluate((x, y), (x, y, query.count))
    assert found.accuracy[1].isnan().all()
    assert torch.equal(found.accuracy_mean, found.accuracy[[0, 2]].mean(0))
    assert torch.equal(found.accuracy_mean, wanted.accuracy_mean)
    assert found.accuracy_confidence.isfinite().all()


class Paired(nn.Module):
    """Rows and a norm with a bias alone."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.b, self.norm = nn.Parameter(torch.randn(4)), norm

    def forward(self, x):
        """Returns it."""
        return self.last(torch.sin(self.norm(self.first(x), self.b)))


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("kind", ["layer", "group"])
def test_norms_with_a_bias_alone(kind, written):
    torch.manual_seed(0)
    norm = {
        "layer": lambda h, b: F.layer_norm(h, (4,), None, b),
        "group": lambda h, b: F.group_norm(h, 2, None, b),
    }[kind]
    wanted = {
        "layer": lambda h, b: F.layer_norm(h, (4,)) + b,
        "group": lambda h, b: F.group_norm(h, 2) + b,
    }[kind]
    net = Paired(wanted if written else norm).double()
    found = []
    for backend in ("auto", "torch"):
        net.norm = wanted if written else norm
        learner = il.MAML(net, inner_lr=RATE, steps=STEPS, backend=backend)
        learner(*sides((4, 5))).backward()
        found.append({k: p.grad.clone() for k, p in net.named_parameters()})
        net.zero_grad()
    net.norm = wanted
    for each in found:
        assert_close(each, truth(net, *sides((4, 5)))[1], 1e-10, floor=1e-3)


class OneStepEach(nn.Module):
    """A layer for even steps and one for odd ones."""

    def __init__(self):
        super().__init__()
        self.even, self.odd, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        """Chooses by the step."""
        layer = self.odd if il.nn.inner_step() % 2 else self.even
        return self.last(torch.sin(layer(x)))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("nesterov", [False, True])
def test_velocities_go_on_in_steps_that_do_not_use_a_layer(order, nesterov):
    torch.manual_seed(0)
    net = OneStepEach().double()
    found = []
    for backend in ("batched", "torch"):
        learner = il.MAML(
            net, inner_lr=RATE, steps=4, order=order, momentum=0.5, nesterov=nesterov,
            learn_inner_lr="per_step", backend=backend,
        )  # fmt: skip
        loss = learner(*sides((4, 5)))
        loss.backward()
        found.append({k: p.grad.clone() for k, p in learner.named_parameters()})
        found[-1]["loss"] = loss.detach()
        learner.zero_grad()
    assert_close(found[0], found[1], 1e-10)


MORE = {
    "log-sum-exps of a weight": (lambda n, x: n.last(x * n.w.logcumsumexp(0)), {"w": (4,)}),
    "a result that is not used": (
        lambda n, x: (F.batch_norm(x * n.w, None, None, training=True), n.last(x * n.w))[1],
        {"w": (4,)},
    ),
    "a bias for all outputs": (
        lambda n, x: n.last(torch.sin(torch.addmm(n.b, x, n.w))),
        {"w": (4, 4), "b": (1,)},
    ),
    "a pad without entries": (
        lambda n, x: n.last(F.pad((x * n.w)[:, :1], (5, -1)))[:, :2],
        {"w": (4,)},
    ),
    "a sum of nothing": (lambda n, x: n.last(x) + x[:, :0].sum(1, keepdim=True), {}),
}


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", MORE)
def test_odd_calls_are_right_or_left_to_torch(name, backend):
    how, shapes = MORE[name]
    torch.manual_seed(0)
    inputs = 5 if "pad" in name else 4
    net = Net(how, inputs=inputs, **shapes).double()
    check(net, *sides((4, 5)), backend)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(
    ("how", "written"),
    [
        (
            lambda n, x: n.last(x @ torch.cdist(n.w, 2 * n.w)),
            lambda n, x: n.last(x @ (n.w[:, None] - 2 * n.w).norm(dim=-1)),
        ),
        (
            lambda n, x: n.last(torch.cdist(x, n.w)),
            lambda n, x: n.last((x[:, None] - n.w).norm(dim=-1)),
        ),
    ],
)
def test_distances_have_second_derivatives(how, written, backend):
    """A plain loop raises at torch's own."""
    torch.manual_seed(0)
    net = Net(how, w=(4, 4)).double()
    il.MAML(net, inner_lr=RATE, steps=STEPS, backend=backend)(*sides((4, 5))).backward()
    found = {k: p.grad.clone() for k, p in net.named_parameters()}
    net.how = written
    assert_close(found, truth(net, *sides((4, 5)))[1], 1e-10)


def test_a_wide_weight_may_be_used_otherwise_on_the_query():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.k, self.last = nn.Linear(4, 96), nn.Linear(96, 96), nn.Linear(96, 2)

        def forward(self, x):
            h = self.k(torch.sin(self.a(x)))
            return self.last(torch.sin(self.k(torch.sin(h)) if len(x) == 2 else h))

    torch.manual_seed(0)
    check(Branching().double(), *sides((2, 3)), "auto")
    check(Branching().double(), *sides((3, 2)), "auto")


def test_small_numbers_under_a_root():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Identity(), nn.Linear(5, 2))
    module = Net(lambda n, x: n.last((h := 1e-8 * n.first(x)) * (h * h + 1e-16).rsqrt()), inputs=5)
    module.first = net[0]
    support, query = ((x.float(), y.float()) for x, y in sides((4, 5)))
    check(module, support, query, "auto", tolerance=1e-3)


def test_rows_behind_a_gate_that_is_closed_at_first_are_found():
    net = Net(lambda n, x: n.last(x + n.gate * x.mean(0)), gate=(1,)).double()
    nn.init.zeros_(net.gate)
    support, query = sides((4, 5))
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS)
    with pytest.raises(NotImplementedError, match="each row alone"):
        learner(il.Batch(*support, count=torch.tensor([4, 2])), query)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_rows_that_are_not_in_use_are_nothing_new_to_a_module(backend):
    net = Net(lambda n, x: n.last((h := x * n.w.exp()) / h.sum(1, keepdim=True)), w=(4,)).double()
    support, query = (((x.abs() + 0.5), y) for x, y in sides((4, 5)))

    def padded(x, y):
        hold = torch.full((2, 2), torch.nan, dtype=torch.float64)
        x, y = (torch.cat([v, hold[..., None].expand(2, 2, v.shape[2])], 1) for v in (x, y))
        return il.Batch(x, y, count=torch.full((2,), x.shape[1] - 2))

    losses, grads = truth(net, support, query)
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS, backend=backend)
    found = learner(padded(*support), padded(*query), reduction="none")
    found.mean().backward()
    assert_close(found.detach(), losses, 1e-10)
    assert_close({k: p.grad for k, p in net.named_parameters()}, grads, 1e-10)


def test_the_epsilon_of_rms_norm_in_bfloat16_is_that_of_float32():
    net = nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4, elementwise_affine=False)).bfloat16()
    x = (0.1 * torch.randn(1, 64, 4)).bfloat16()
    params = {k: v.detach() for k, v in net.named_parameters()}
    found = il.predict(params, x, model=net)
    assert il.backend_for(net).backend == "batched"
    assert (found[0] - net(x[0])).norm() <= 0.02 * net(x[0]).norm()


class Mixing(nn.Module):
    """Rows that are mixed under some condition."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.last, self.kind = nn.Linear(4, 4), nn.Linear(4, 2), kind

    def forward(self, x):
        """Returns it."""
        if self.kind == "log":
            h = x.log()
            h = self.first(h - h.mean(0))
        elif self.kind == "view":
            h = self.first(x).view(2, 2, 4)
            h = (h - h.mean(1, keepdim=True)).reshape(4, 4)
        else:
            h = self.first(x)
            later = self.kind == "step" and il.nn.inner_step() > 0
            if later or (self.kind == "training" and self.training):
                h = h - h.mean(0)
        return self.last(torch.tanh(h))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("kind", ["log", "view", "step", "training"])
def test_rows_that_are_mixed_under_a_condition_are_found(kind, backend):
    net = Mixing(kind).double().eval()
    support, _ = (((x.abs() + 0.5), y) for x, y in sides((4, 5)))
    ragged = il.Batch(*support, count=torch.tensor([3, 2]))
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS, backend=backend)
    if kind == "training":
        learner(ragged, ragged)
        net.train()
    with pytest.raises(NotImplementedError, match="each row alone"):
        learner(ragged, ragged)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_tasks_without_rows_have_no_gradient(backend):
    net = Net(lambda n, x: n.last(torch.tanh((x * n.w).abs().log())), w=(4,)).double()
    support, query = sides((4, 4))
    some = [il.Batch(*side, count=torch.tensor([4, 0])) for side in (support, query)]
    il.MAML(net, inner_lr=RATE, steps=STEPS, backend=backend)(*some).backward()
    found = {k: p.grad.clone() for k, p in net.named_parameters()}
    alone = [(x[:1], y[:1]) for x, y in (support, query)]
    wanted = {k: v / 2 for k, v in truth(net, *alone)[1].items()}
    assert_close(found, wanted, 1e-10)


class Cholesky(nn.Module):
    """A factor of a parameter that is hardly positive definite."""

    def __init__(self):
        super().__init__()
        self.c = nn.Parameter(0.9 * torch.ones(4, 4) + 0.1 * torch.eye(4))
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        """Returns it."""
        return self.last(x @ torch.linalg.cholesky(self.c))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_parameters_may_have_to_stay_where_they_are(backend):
    torch.manual_seed(0)
    net = Cholesky().double()
    losses = []
    for each in (backend, "torch"):
        learner = il.MAML(net, inner_lr=0.002, steps=STEPS, backend=each)
        losses.append(learner(*sides((4, 5))).detach())
    torch.testing.assert_close(*losses, rtol=1e-10, atol=0)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_distances_of_points_to_themselves_have_no_curvature(backend):
    first, second = torch.triu_indices(4, 4, 1)
    torch.manual_seed(0)
    net = Net(lambda n, x: n.last(x * torch.exp(-torch.cdist(n.w, n.w)).mean()), w=(4, 4)).double()
    il.MAML(net, inner_lr=RATE, steps=STEPS, backend=backend)(*sides((4, 5))).backward()
    found = {k: p.grad.clone() for k, p in net.named_parameters()}

    def written(n, x):
        pairs = torch.exp(-(n.w[first] - n.w[second]).norm(dim=1)).sum()
        return n.last(x * ((2 * pairs + 4) / 16))

    net.how = written
    assert_close(found, truth(net, *sides((4, 5)))[1], 1e-10)


@pytest.mark.parametrize("order", [1, 2])
def test_embeddings_scaled_by_frequency(order):
    """A plain loop by torch's function has another second derivative."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.last = nn.Parameter(torch.randn(5, 4)), nn.Linear(4, 2)
            self.written = False

        def forward(self, x):
            if not self.written:
                return self.last(F.embedding(x, self.e, scale_grad_by_freq=True).sin())
            z = F.one_hot(x, 5).to(self.e.dtype) @ self.e
            share = z / (x[:, None] == x).sum(1)[:, None]
            return self.last((share + (z - share).detach()).sin())

    torch.manual_seed(0)
    net = Scaled().double()
    generator = torch.Generator().manual_seed(1)
    support, query = (
        (torch.randint(5, y.shape[:2], generator=generator), y) for _, y in sides((4, 5))
    )
    found = []
    for written in (False, True):
        net.written = written
        learner = il.MAML(net, inner_lr=0.3, steps=STEPS, order=order)
        learner(support, query).backward()
        found.append({k: p.grad.clone() for k, p in net.named_parameters()})
        net.zero_grad()
    assert_close(found[0], found[1], 1e-10)
