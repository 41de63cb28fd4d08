"""Callables as losses in every operation, against autograd on one task after another (float64,
tolerance 1e-10), and what they may return."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from helpers import assert_close, needs_compile_of_modules, sweep
from innerloop import functional, reference
from innerloop._tasks import loop_reason
from innerloop.objectives import resolve
from loss_cases import F64, Case, label, loop_gradient, loop_losses, ragged, value, weighted

PLAIN = Case("MSELoss", "values")
TOLERANCE = 1e-10


def quartic(z, y):
    """One number for a task."""
    return (z - y).pow(4).mean()


def quartic_rows(z, y):
    """A value for each row."""
    return (z - y).pow(4).mean(1)


def ranking(z, y):
    """One number that no mean over rows gives."""
    return (z.cumsum(0) - y).square().sum().sqrt()


def branching(z, y):
    """What torch.vmap cannot take."""
    return quartic(z, y) if z.sum().item() > 0 else 2 * quartic(z, y)


LOSSES = {f.__name__: f for f in (quartic, quartic_rows, ranking, branching)}
MLP = il.MLP([2, 5, 3], "tanh")


def mlp_params():
    """Parameters of the description, with the names of the module."""
    return MLP.init(torch.Generator().manual_seed(2), dtype=F64)


def as_module(params):
    """Returns the description as a module with these parameters."""
    net = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 3)).to(F64)
    net.load_state_dict(params)
    with_tanh = nn.Sequential()
    with_tanh.add_module("0", net[0])
    with_tanh.add_module("tanh", nn.Tanh())
    with_tanh.add_module("1", net[1])
    return with_tanh


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize("form", ["equal", "ragged", "weighted"])
@pytest.mark.parametrize("kind", ["module", "description"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_operation(name, kind, form):
    loss, params = LOSSES[name], mlp_params()
    net = as_module(params)
    model = net if kind == "module" else MLP
    sides = PLAIN.sides()
    if form == "ragged":
        sides = [ragged(side) for side in sides]
    elif form == "weighted":
        if name != "quartic_rows":
            with pytest.raises(ValueError, match=r"loss_and_grad: the loss .* one value per row"):
                il.loss_and_grad(params, weighted(sides[0]), model=model, loss=loss)
            return
        sides = [weighted(side) for side in sides]
    support, query = sides
    losses, grads = loop_gradient(net, loss, support, query)
    options = {"model": model, "loss": loss}
    loop = {"inner_lr": 0.2, "steps": 2, **options}
    found = il.meta_grad(params, support, query, **loop, stepwise=True)
    assert found.backend == "batched"
    assert_close(found.loss, losses, TOLERANCE)
    assert_close(found.grad, grads, TOLERANCE)
    before = torch.stack([loop_losses(net, loss, support, query, steps=s) for s in range(3)], 1)
    assert_close(found.query_loss, before, TOLERANCE)
    assert_close(
        functional.mean_meta_loss(params, support, query, **loop), losses.mean(), TOLERANCE
    )
    # the rest has no query: one task after another by hand
    adapted = il.adapt(params, support, **loop)
    first = il.meta_loss(adapted, query, query, **{**loop, "steps": 0})
    assert_close(first, losses, TOLERANCE)
    direction = {k: torch.cos(v) for k, v in params.items()}
    value_found, grad_found = il.loss_and_grad(params, support, **options)
    product = il.hvp(params, support, direction, **options)
    leaves = list(net.parameters())
    for t in range(4):
        single = [None if v is None else v[t : t + 1] for v in support]
        now = loop_losses(net, loss, single, single, steps=0)[0]
        grad = torch.autograd.grad(now, leaves, create_graph=True)
        slope = sum((g * v).sum() for g, v in zip(grad, direction.values(), strict=True))
        second = torch.autograd.grad(slope, leaves, materialize_grads=True)
        assert_close(value_found[t], now.detach(), TOLERANCE)
        for got, expected in ((grad_found, grad), (product, second)):
            named = dict(zip(params, expected, strict=True))
            assert_close({k: v[t] for k, v in got.items()}, named, TOLERANCE)


def test_a_loss_that_vmap_refuses_does_not_blame_the_module():
    class Unseen(nn.Sequential):
        """A class that has not warned yet."""

    net = Unseen(nn.Linear(2, 3)).to(F64)
    (support, query), params = PLAIN.sides(), dict(net.named_parameters())
    options = {"model": net, "inner_lr": 0.1, "steps": 1, "backend": "torch"}
    text = "Unseen with the loss branching runs task by task, since torch.vmap cannot take it"
    with pytest.warns(il.FallbackWarning, match=text):
        il.meta_loss(params, support, query, **options, loss=branching)
    assert loop_reason(net, resolve("", branching)) is not None
    assert loop_reason(net) is None
    assert loop_reason(net, resolve("", quartic)) is None
    learner = il.MAML(net, inner_lr=0.1, steps=1, loss=branching, backend="torch")
    assert "torch.vmap refused the module or the loss" in learner.explain()


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_callables_are_not_kept_alive():
    (support, query), params = PLAIN.sides(), mlp_params()

    class Odd:
        """A loss without hash or weak references."""

        __slots__ = ()
        __hash__ = None

        def __call__(self, z, y):
            return branching(z, y)

    options = {"model": MLP, "inner_lr": 0.1, "steps": 1}
    expected = il.meta_loss(params, support, query, **options, loss=branching)
    for make in (lambda: Odd(), lambda: lambda z, y: branching(z, y)):
        loss = make()
        found = il.meta_loss(params, support, query, **options, loss=loss)
        assert torch.equal(found, expected)
    gone = weakref.ref(loss)
    del loss, found
    gc.collect()
    assert gone() is None


def test_what_the_loss_sees():
    """Outputs and targets of one task as they are, whatever their shape and kind."""
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Unflatten(1, (2, 2))).to(F64)
    seen = []

    def loss(z, y):
        seen.append((list(z.shape), list(y.shape), y.dtype))
        return (z.sum(2) * y).square().mean()

    x = PLAIN.sides()[0][0]
    for y in (torch.ones(4, 6, 2).int(), torch.ones(4, 6, 2), torch.ones(4, 6, 2).bool()):
        found = il.meta_loss(
            dict(net.named_parameters()),
            (x, y),
            (x, y),
            model=net,
            inner_lr=0.1,
            steps=1,
            loss=loss,
            backend="torch",
        )
        assert_close(found, loop_losses(net, loss, (x, y), (x, y), steps=1, rate=0.1), TOLERANCE)
        assert seen[0] == ([6, 2, 2], [6, 2], y.dtype)
        seen.clear()
    flat = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).to(F64)  # outputs [N]
    y = x[..., 0]
    for loss in ("mse", nn.MSELoss(), quartic, lambda z, y: (z - y).pow(4)):
        found = il.loss_and_grad(
            dict(flat.named_parameters()), (x, y), model=flat, loss=loss, backend="torch"
        )[0]
        plain = F.mse_loss if isinstance(loss, (str, nn.Module)) else quartic
        expected = torch.stack([plain(flat(x[t]), y[t]) for t in range(4)])
        assert_close(found, expected, TOLERANCE)
    for y in (x[:3, :, 0], x[:, :5, 0], x[:, 0, 0]):
        with pytest.raises(ValueError, match=r"batch y must have shape \[4, 6, ...\]"):
            il.loss_and_grad(
                dict(flat.named_parameters()), (x, y), model=flat, loss=quartic, backend="torch"
            )


WRONG = {
    "number": (lambda z, y: 3.0, TypeError, r"must return a tensor \(got float\)"),
    "nothing": (lambda z, y: None, TypeError, r"must return a tensor \(got NoneType\)"),
    "integer": (lambda z, y: z.argmax(), TypeError, r"a floating-point tensor \(got torch.int64\)"),
    "constant": (lambda z, y: y.mean(), ValueError, r"depends differentiably on the outputs"),
    "detached": (lambda z, y: (z.detach() - y).mean(), ValueError, r"\(got a constant\); keep"),
    "numpy": (lambda z, y: torch.as_tensor(z.detach().numpy().mean()), ValueError, r"constant"),
    "elements": (lambda z, y: (z - y) ** 2, ValueError, r"per row \[6\] \(got shape \[6, 3\]\)"),
    "outputs": (lambda z, y: ((z - y) ** 2).mean(0), ValueError, r"\(got shape \[3\]\); take"),
    "one in a list": (lambda z, y: quartic(z, y)[None], ValueError, r"\(got shape \[1\]\)"),
}


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize("operation", ["meta_grad", "loss_and_grad", "adapt", "MAML"])
@pytest.mark.parametrize("name", WRONG)
def test_what_a_loss_must_return(name, operation):
    loss, kind, text = WRONG[name]
    (support, query), params, net = PLAIN.sides(), mlp_params(), as_module(mlp_params())
    loop = {"inner_lr": 0.1, "steps": 1, "loss": loss}
    calls = {
        "meta_grad": lambda: il.meta_grad(params, support, query, model=MLP, **loop),
        "loss_and_grad": lambda: il.loss_and_grad(params, support, model=MLP, loss=loss),
        "adapt": lambda: il.adapt(params, support, model=MLP, **loop),
        "MAML": lambda: il.MAML(net, **loop)(support, query),
    }
    with pytest.raises(kind, match=text) as error:
        calls[operation]()
    assert str(error.value).startswith(f"{operation}: the loss <lambda> must return")


REFUSED = {
    "l1": (
        ValueError,
        r"one of mse, .*, huber \(got 'l1'\); did you mean nn\.L1Loss\(\)\? torch's",
    ),
    "l7": (ValueError, r"one of mse, .*, huber \(got 'l7'\); torch's losses and callables"),
    "mse_loss": (ValueError, r"\(got 'mse_loss'\); did you mean 'mse'\?"),
    "MSELoss": (ValueError, r"did you mean 'mse'\?"),
    "Cross-Entropy": (ValueError, r"did you mean 'cross_entropy'\?"),
    "crossentropy": (ValueError, r"did you mean 'cross_entropy'\?"),
    "bce": (ValueError, r"did you mean 'bce_with_logits'\?"),
    "BCEWithLogitsLoss": (ValueError, r"did you mean 'bce_with_logits'\?"),
    "mae": (ValueError, r"did you mean nn\.L1Loss\(\)\?"),
    "nll_loss": (ValueError, r"did you mean 'cross_entropy'\?"),
    "halfmse": (ValueError, r"did you mean 'half_mse'\?"),
    "": (ValueError, r"\(got ''\); torch's losses"),
    nn.MSELoss: (TypeError, r"\(got the class MSELoss\); pass an instance, MSELoss\(...\)"),
    3: (TypeError, r"or a callable loss\(outputs, targets\) \(got 3\)"),
    None: (TypeError, r"\(got None\)"),
    F.triplet_margin_loss: (TypeError, r"\(got triplet_margin_loss\(anchor, positive, negative, "),
}


@pytest.mark.parametrize("loss", REFUSED, ids=label)
def test_what_is_no_loss(loss):
    kind, text = REFUSED[loss]
    net, x = as_module(mlp_params()), PLAIN.sides()[0]
    params = dict(net.named_parameters())
    loop = {"inner_lr": 0.1, "steps": 1, "loss": loss}
    calls = {
        "meta_grad": lambda: il.meta_grad(params, x, x, model=net, **loop),
        "meta_loss": lambda: il.meta_loss(params, x, x, model=net, **loop),
        "adapt": lambda: il.adapt(params, x, model=net, **loop),
        "hvp": lambda: il.hvp(params, x, params, model=net, loss=loss),
        "loss_and_grad": lambda: il.loss_and_grad(params, x, model=net, loss=loss),
        "backend_for": lambda: il.backend_for(net, loss=loss),
        "reference": lambda: reference.meta_grad(params, x, x, model=net, **loop),
        "MAML": lambda: il.MAML(net, **loop),
        "JointTraining": lambda: il.JointTraining(net, loss=loss),
    }
    for name, call in calls.items():
        with pytest.raises(kind, match=text) as error:
            call()
        assert str(error.value).startswith(f"{name}: loss must ")


# ---------------------------------------------------------------- surroundings


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_what_a_loss_closes_over_gets_its_gradient():
    (support, query), params = PLAIN.sides(), mlp_params()
    scale = torch.tensor(1.5, dtype=F64, requires_grad=True)

    def loss(z, y):
        return quartic(scale * z, y)

    net = as_module(params)
    (expected,) = torch.autograd.grad(loop_losses(net, loss, support, query).mean(), scale)
    found = il.meta_loss(params, support, query, model=MLP, inner_lr=0.2, steps=2, loss=loss)
    (actual,) = torch.autograd.grad(found.mean(), scale)
    assert_close(actual, expected, TOLERANCE)


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize("loss", [quartic, quartic_rows])
def test_transforms(loss):
    (support, query), params = PLAIN.sides(), mlp_params()
    options = {"model": MLP, "inner_lr": 0.2, "steps": 2, "loss": loss}

    def mean(params, scale=1.0):
        moved = {k: scale * v for k, v in params.items()}
        return il.meta_loss(moved, support, query, **options).mean()

    expected = il.meta_grad(params, support, query, **options).grad
    assert_close(torch.func.grad(mean)(params), expected, TOLERANCE)
    scales = torch.tensor([0.5, 1.0], dtype=F64)
    found = torch.vmap(lambda s: mean(params, s))(scales)
    assert_close(found, torch.stack([mean(params, s) for s in scales]), TOLERANCE)
    counted = (*support, torch.tensor([1, 2, 3, 4]))
    whole = torch.vmap(
        lambda s: il.meta_loss({k: s * v for k, v in params.items()}, counted, query, **options)
    )(scales)
    assert_close(whole[1], il.meta_loss(params, counted, query, **options), TOLERANCE)
    counts = torch.tensor([[1, 2, 3, 4], [2, 2, 2, 2]])
    with pytest.raises(NotImplementedError, match="meta_loss: count and weight must be known"):
        torch.vmap(lambda c: il.meta_loss(params, (*support, c), query, **options))(counts)


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_no_tasks_and_no_rows():
    params, options = mlp_params(), {"model": MLP, "inner_lr": 0.2, "steps": 2}
    (x, y), _ = PLAIN.sides()
    for loss in (quartic, quartic_rows, nn.HuberLoss(delta=0.5)):
        none = (x[:0], y[:0])
        for extra in ((), (torch.zeros(0).long(),)):
            found = il.meta_grad(params, (*none, *extra), none, **options, loss=loss)
            assert found.loss.shape == (0,)
            assert all(not g.any() for g in found.grad.values())
        empty = (x[:, :0], y[:, :0])
        found = il.meta_grad(params, empty, (x, y), **options, loss=loss)
        expected = il.meta_grad(params, (x, y), (x, y), **{**options, "steps": 0}, loss=loss)
        assert_close(found.loss, expected.loss, TOLERANCE)
        assert torch.equal(il.loss_and_grad(params, empty, model=MLP, loss=loss)[0], torch.zeros(4))


@needs_compile_of_modules
@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "loss",
    sweep(["mse", nn.MSELoss(), F.huber_loss, nn.HuberLoss(delta=0.3), quartic], ["mse", quartic]),
    ids=["mse", "MSELoss", "huber_loss", "HuberLoss", "quartic"],
)
def test_compiled(loss):
    net, (support, query) = PLAIN.net(), PLAIN.sides()
    learner = il.MAML(net, inner_lr=0.2, steps=2, loss=loss)
    learner(support, query).backward()
    expected = {k: p.grad.clone() for k, p in net.named_parameters()}
    net.zero_grad()
    torch._dynamo.reset()
    torch.compile(learner, backend="aot_eager", fullgraph=True)(support, query).backward()
    assert_close({k: p.grad for k, p in net.named_parameters()}, expected, TOLERANCE)


@needs_compile_of_modules
@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_with_counts_is_refused():
    net, (support, query) = PLAIN.net(), PLAIN.sides()
    learner = il.MAML(net, inner_lr=0.2, steps=2, loss=quartic, backend="torch")
    torch._dynamo.reset()
    compiled = torch.compile(learner, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="count and weight must be known numbers"):
        compiled(ragged(support), ragged(query))


def test_names_mean_what_they_meant():
    """`value` of the plain loop is the twin's for names as well."""
    (x, y), _ = PLAIN.sides()
    for name, plain in {"mse": F.mse_loss, "huber": F.huber_loss}.items():
        rows = resolve("", name).rows
        assert_close(rows(x[0], x[1]).mean(), value(plain, x[0], x[1]), TOLERANCE)
        assert y is not None
