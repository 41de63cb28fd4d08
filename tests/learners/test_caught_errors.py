"""Code that handles errors, seeds numbers or meets replaced functions gets what it gets in a loop
over tasks: torch.vmap raises errors of its own, those of one task for all, and draws other numbers.
Against the loop in float64, or refused."""

import contextlib
import copy
import pickle

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import innerloop as il
from helpers import assert_close, sweep

pytestmark = pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning")

RATE, STEPS = 0.1, 2


class Net(nn.Module):
    """Two linear layers around what a test makes of the hidden values."""

    def __init__(self, how):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.how = how

    def forward(self, x):
        """Returns two outputs."""
        return self.last(self.how(torch.tanh(self.first(x))))


def sides():
    """Support and query of four tasks."""
    generator = torch.Generator().manual_seed(0)
    return [
        tuple(torch.randn(4, n, k, generator=generator, dtype=torch.float64) for k in (3, 2))
        for n in (5, 6)
    ]


def plain(net, loss, order, support, query):
    """The mean query loss of the loop, and its gradient."""
    total = 0.0
    for xs, ys, xq, yq in zip(*support, *query, strict=True):
        phi = {k: p * 1 for k, p in net.named_parameters()}
        for _ in range(STEPS):
            value = loss(torch.func.functional_call(net, phi, (xs,)), ys)
            grads = torch.autograd.grad(value, list(phi.values()), create_graph=order == 2)
            phi = {k: p - RATE * g for (k, p), g in zip(phi.items(), grads, strict=True)}
        total = total + loss(torch.func.functional_call(net, phi, (xq,)), yq) / len(support[0])
    return total.detach(), torch.autograd.grad(total, list(net.parameters()))


def check(net, loss=F.mse_loss, order=2, backend="auto"):
    """Compares a learner with the loop."""
    net = net.double()
    support, query = sides()
    wanted, gradient = plain(net, loss, order, support, query)
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS, loss=loss, order=order, backend=backend)
    for reduction in ("mean", "none"):
        found = learner(support, query, reduction=reduction).mean()
        assert_close(found.detach(), wanted, 1e-10)
        assert_close(torch.autograd.grad(found, list(net.parameters())), gradient, 1e-9)
    assert_close(learner.evaluate(support, query).mean[-1], wanted, 1e-10)


def seeded_rows(h):
    """Factors of a generator that is seeded in the pass."""
    return torch.rand(h.shape[1], generator=torch.Generator().manual_seed(3), dtype=h.dtype)


def forked_rows(h):
    """Factors of torch's own generator, seeded for a moment."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.rand(h.shape[1], dtype=h.dtype)


def cholesky(matrix):
    """A factor, with jitter where a task needs it."""
    try:
        return torch.linalg.cholesky(matrix)
    except torch.linalg.LinAlgError:
        return torch.linalg.cholesky(matrix + 10 * torch.eye(len(matrix), dtype=matrix.dtype))


# factors that code computes of values [N, K], if torch lets it
FACTORS = {
    "float": lambda h: float(h.detach().abs().max()),
    "item": lambda h: h.sum().item(),
    "int": lambda h: int(10 * h.detach().abs().sum()) / 10,
    "truth": lambda h: 2.0 if h.sum() > 0 else 3.0,
    "tolist": lambda h: h[0].tolist()[0],
    "numpy": lambda h: float(h.detach().numpy().max()),
    "asarray": lambda h: float(np.asarray(h.detach()).max()),
    "equal": lambda h: 2.0 if torch.equal(h, h) else 3.0,
    "allclose": lambda h: 2.0 if torch.allclose(h, h) else 3.0,
    "nonzero": lambda h: len((h > 0).nonzero()),
    "unique": lambda h: len(h.round().unique()),
    "boolean index": lambda h: h[h > 0].sum(),
    "pickle": lambda h: pickle.loads(pickle.dumps(h.detach())).max(),
    "deepcopy": lambda h: copy.deepcopy(h.detach()).sum().tolist(),
    "copy_": lambda h: torch.zeros_like(h[0]).copy_(h[0]).sum(),
    "filled": lambda h: torch.zeros(h.shape, dtype=h.dtype).copy_(h).sum(),
}


def excepting(factor):
    """Goes on without the factor."""

    def how(h):
        try:
            return h * factor(h)
        except Exception:
            return h * 5

    return how


def suppressing(factor):
    """Leaves the factor out."""

    def how(h):
        with contextlib.suppress(RuntimeError):
            h = h * factor(h)
        return h

    return how


def returning(factor):
    """Drops the error on its way out."""

    def how(h):
        scaled = h
        try:
            scaled = h * factor(h)
        finally:
            return scaled  # noqa: B012 (as people write it)

    return how


HANDLERS = {"except": excepting, "suppress": suppressing, "finally": returning}
CASES = [(factor, handler) for factor in FACTORS for handler in HANDLERS]
QUICK = [(factor, [*HANDLERS][at % 3]) for at, factor in enumerate(FACTORS)]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("factor", "handler"), sweep(CASES, QUICK))
def test_forward_passes_that_handle_errors(factor, handler, order):
    check(Net(HANDLERS[handler](FACTORS[factor])), order=order)


@pytest.mark.parametrize("network", ["fused", "batched", "torch"])
@pytest.mark.parametrize(("factor", "handler"), sweep(CASES, QUICK))
def test_losses_that_handle_errors(factor, handler, network):
    how = HANDLERS[handler](FACTORS[factor])

    def loss(z, y):
        return F.mse_loss(z, how(y))

    makes = {
        "fused": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        "batched": lambda: nn.Sequential(nn.Linear(3, 4), nn.Mish(), nn.Linear(4, 2)),
        "torch": lambda: Net(lambda h: torch.fft.fft(h).real),
    }
    check(makes[network](), loss)


def test_an_error_of_one_task_is_of_that_task():
    def ridge(h):
        return h @ cholesky(h.T @ h - 0.03 * torch.eye(4, dtype=h.dtype))

    def log_volume(z, y):
        part = (z - y).T @ (z - y) / len(z) - 0.4 * torch.eye(2, dtype=z.dtype)
        return 2 * cholesky(part).diagonal().log().sum()

    check(Net(ridge))
    check(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), log_volume)


class Bad(Exception):
    """An error of somebody's own."""


def renamed(h):
    """Turns an error of torch into another one."""
    try:
        return h / float(h.detach().abs().max())
    except RuntimeError as error:
        raise Bad from error


def test_errors_under_other_names_are_handled_alike():
    check(Net(renamed))
    check(Net(lambda h: h), lambda z, y: F.mse_loss(z, renamed(y)))


def test_errors_that_nobody_handles_are_raised():
    def wrong(h):
        try:
            return h @ torch.ones(7, 7, dtype=h.dtype)
        except ValueError:
            return h

    net = Net(wrong).double()
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|size mismatch|expected size"):
        il.MAML(net, inner_lr=RATE, steps=STEPS)(*sides())


def reseeded_rows(h):
    """Factors of torch's own generator, seeded for good."""
    torch.manual_seed(1)
    return torch.rand(h.shape[1], dtype=h.dtype)


def restored_rows(h):
    """Factors of torch's own generator, whose state is put back."""
    state = torch.get_rng_state()
    try:
        return reseeded_rows(h)
    finally:
        torch.set_rng_state(state)


SEEDED = [seeded_rows, forked_rows, reseeded_rows, restored_rows]


@pytest.mark.parametrize("seed", [1, 5])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("rows", SEEDED)
def test_one_pass_that_seeds_numbers(rows, backend, seed):
    torch.manual_seed(0)
    net = Net(lambda h: h * rows(h)).double()
    (x, y), _ = sides()
    params = {k: p.detach() for k, p in net.named_parameters()}
    wanted = torch.stack([F.mse_loss(net(a), b) for a, b in zip(x, y, strict=True)]).detach()
    torch.manual_seed(seed)
    losses, _ = il.loss_and_grad(params, (x, y), model=net, backend=backend)
    assert_close(losses.detach(), wanted, 1e-12)
    torch.manual_seed(seed)
    adapted = il.MAML(net, inner_lr=RATE, steps=1, backend=backend).adapt((x, y))
    alone = torch.stack([adapted.module(t)(x[t]) for t in range(len(x))])
    assert_close(adapted(x).detach(), alone.detach(), 1e-12)


def test_passes_without_random_numbers_leave_the_generator_alone():
    net = Net(lambda h: torch.fft.fft(h).real).double()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    il.MAML(net, inner_lr=RATE, steps=STEPS)(*sides()).backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rows", SEEDED)
def test_seeded_numbers_are_those_of_the_loop(rows):
    check(Net(lambda h: h * rows(h)))
    check(Net(lambda h: h), lambda z, y: F.mse_loss(z, y * rows(y)))
    check(nn.Sequential(nn.Linear(3, 2)), lambda z, y: F.mse_loss(z, y * rows(y)))


# ---------------------------------------------------------------- replaced functions


def larger(function):
    """A function of somebody's own in place of one of torch's."""
    return lambda *args, **kwargs: function(*args, **kwargs) * 1.3


class Flat(Net):
    """Calls a method of tensors."""

    def forward(self, x):
        """Returns two outputs."""
        return self.last(self.first(x).flatten(1).tanh())


def between(part):
    """Makes a network with a part between linear layers."""
    return lambda: nn.Sequential(nn.Linear(3, 4), part(), nn.Linear(4, 2))


REPLACED = {
    "torch.relu": (torch, "relu", between(nn.ReLU)),
    "F.relu": (F, "relu", between(nn.ReLU)),
    "torch.relu, read": (torch, "relu", lambda: Net(F.relu)),
    "torch.batch_norm": (
        torch,
        "batch_norm",
        between(lambda: nn.BatchNorm1d(4, track_running_stats=False)),
    ),
    "torch.layer_norm": (torch, "layer_norm", between(lambda: nn.LayerNorm(4))),
    "Tensor.flatten": (torch.Tensor, "flatten", lambda: Flat(None)),
    "Tensor.tanh": (torch.Tensor, "tanh", lambda: Flat(None)),
    "torch._C._nn.gelu": (torch._C._nn, "gelu", lambda: Net(F.gelu)),
    "torch._C._nn.mish": (torch._C._nn, "mish", lambda: Net(F.mish)),
}


@pytest.mark.parametrize("name", REPLACED)
def test_replaced_functions_act_as_in_the_loop_or_are_refused(name, monkeypatch):
    space, attribute, make = REPLACED[name]
    monkeypatch.setattr(space, attribute, larger(getattr(space, attribute)))
    torch.manual_seed(0)
    try:
        check(make())
    except NotImplementedError as refusal:
        assert "call torch's own functions" in str(refusal)  # noqa: PT017


class Louder(TorchDispatchMode):
    """A dispatch mode that changes values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Computes, and changes what relu gives."""
        found = func(*args, **(kwargs or {}))
        return found * 1.3 if func is torch.ops.aten.relu.default else found


@pytest.mark.parametrize("learn", [False, True])
def test_dispatch_modes_see_the_operations(learn):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    support, query = sides()
    with Louder():
        learner = il.MAML(net, inner_lr=RATE, steps=STEPS, learn_inner_lr=learn)
        found = learner(support, query)
        gradient = torch.autograd.grad(found, list(net.parameters()))
        wanted, right = plain(net, F.mse_loss, 2, support, query)
    assert_close(found.detach(), wanted, 1e-10)
    assert_close(gradient, right, 1e-9)
    assert learner(support, query).item() != pytest.approx(float(wanted))


# ---------------------------------------------------------------- derivatives of one's own


class Clipped(torch.autograd.Function):
    """A gradient of bounded norm, in a loss."""

    @staticmethod
    def forward(ctx, z):
        """Returns z."""
        return z.clone()

    @staticmethod
    def backward(ctx, g):
        """Returns g, shortened."""
        return g * torch.clamp(0.1 / g.norm(), max=1)


class Unit(torch.autograd.Function):
    """A gradient of norm 0.1, which torch.vmap takes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w):
        """Returns w."""
        return w.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keeps nothing."""

    @staticmethod
    def backward(ctx, g):
        """Returns a gradient along g."""
        return 0.1 * g / (1e-3 + g.norm())


@pytest.mark.parametrize("function", [Clipped, Unit])
@pytest.mark.parametrize("part", [nn.ReLU, nn.Mish], ids=["fused", "batched"])
def test_losses_with_derivatives_that_are_not_linear(part, function):
    def loss(z, y):
        return F.mse_loss(function.apply(z), y)

    check(nn.Sequential(nn.Linear(3, 4), part(), nn.Linear(4, 2)), loss)


@pytest.mark.parametrize("of", ["values", "weights"])
def test_modules_with_derivatives_that_are_not_linear(of):
    class Own(nn.Linear):
        def forward(self, x):
            """Returns two outputs."""
            weight = Unit.apply(self.weight) if of == "weights" else self.weight
            z = F.linear(x, weight, self.bias)
            return Unit.apply(z) if of == "values" else z

    check(Own(3, 2))


@pytest.mark.parametrize("part", [nn.ReLU, nn.Mish], ids=["fused", "batched"])
def test_losses_that_differentiate_in_the_outputs(part):
    def penalised(z, y):
        (slope,) = torch.autograd.grad((z**3).sum(), z, create_graph=True)
        return F.mse_loss(z, y) + slope.square().mean()

    for backend in ("auto", "torch"):
        check(nn.Sequential(nn.Linear(3, 4), part(), nn.Linear(4, 2)), penalised, backend=backend)


# ---------------------------------------------------------------- others


@pytest.mark.parametrize("backend", ["auto", "torch", "batched"])
def test_losses_do_not_change_their_targets(backend):
    net = nn.Linear(3, 2).double()
    learner = il.MAML(
        net, inner_lr=RATE, steps=2, loss=lambda z, y: F.mse_loss(z, y.mul_(1.1)), backend=backend
    )
    with pytest.raises(ValueError, match="must not change its targets in place"):
        learner(*sides())


@pytest.mark.parametrize("part", [nn.ReLU, nn.Mish], ids=["fused", "batched"])
def test_an_operation_may_be_checkpointed(part):
    net = nn.Sequential(nn.Linear(3, 4), part(), nn.Linear(4, 2)).double()
    names = [name for name, _ in net.named_parameters()]

    def losses(*values):
        params = dict(zip(names, values, strict=True))
        return il.meta_loss(params, *sides(), model=net, inner_lr=RATE, steps=STEPS).sum()

    found = []
    for again in (False, True):
        leaves = [p.detach().requires_grad_() for p in net.parameters()]
        value = (
            torch.utils.checkpoint.checkpoint(losses, *leaves, use_reentrant=False)
            if again
            else losses(*leaves)
        )
        found.append(torch.autograd.grad(value, leaves))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)


@pytest.mark.parametrize("activation", [nn.ELU, nn.Hardswish, nn.SELU, nn.GELU, nn.Softplus])
@pytest.mark.parametrize("form", ["number", "tensor"])
def test_tiny_rates_keep_products_in_range(activation, form):
    net = nn.Sequential(nn.Linear(1, 1, bias=False), activation(), nn.Linear(1, 1))
    x, y = torch.ones(1, 2, 1), torch.zeros(1, 2, 1)
    with torch.no_grad():
        net[0].weight.fill_(1e15)
        net[2].weight.fill_(5e-16)
        net[2].bias.fill_(0.1)
    rate = 1e-33 if form == "number" else torch.tensor(1e-33)
    found = []
    for backend in ("batched", "torch"):
        learner = il.MAML(net, inner_lr=rate, steps=2, backend=backend)
        found.append(torch.autograd.grad(learner((x, y), (x, y)), list(net.parameters())))
    assert_close(found[0], found[1], 1e-5)
