"""Layer norms in the fused operations: every operation against the reference, torch and closed
forms. The sweeps of the other files draw them as well.

Tolerances, relative to each leaf's norm: float64 1e-11 (test_meta_grad.py). float32 1e-4: a norm
magnifies the rounding of its rows by their mean over their spread, some hundreds in these problems
(torch in float32 is as far off).
"""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from helpers import assert_close, randn_like
from innerloop._chain import Layer
from problems import RATES, normal, random_problem, random_problem_away_from_kinks

MEMBERS = ("loss", "grad", "inner_lr_grad", "support_loss", "query_loss")


@pytest.fixture(params=["lanes", "rows"], autouse=True)
def strategy(request, cpu_settings):
    """Both engines of the CPU."""
    cpu_settings.set_strategy(request.param)
    return request.param


def compare(problem, tolerance=1e-11, dtype=torch.float64, **changes):
    """Asserts that the fused meta_grad equals the float64 reference."""
    expected = problem.call(il.meta_grad, backend="torch", **changes)
    actual = problem.to(dtype).call(il.meta_grad, backend="fused", **changes)
    for name in MEMBERS:
        want, got = getattr(expected, name), getattr(actual, name)
        if want is None:
            assert got is None
            continue
        if dtype is torch.float64:
            assert_close(got, want, tolerance, name)
        elif (
            name == "inner_lr_grad"
        ):  # inner products cancel: the largest shows the size of what did
            assert_close(got, want, 20 * tolerance, name, floor=1.0)
        else:  # behind a norm all cancels that only scales or shifts its rows
            assert_close(got, want, tolerance, name, floor=0.1)


@pytest.mark.parametrize("seed", range(40))
def test_meta_grad(seed):
    compare(random_problem(seed, norms=True))


@pytest.mark.parametrize("seed", range(40, 60))
def test_meta_grad_with_momentum(seed):
    compare(random_problem(seed, norms=True), momentum=0.7)


@pytest.mark.parametrize("seed", range(60, 80))
def test_meta_grad_in_float32(seed):
    compare(random_problem_away_from_kinks(seed, norms=True), 1e-4, torch.float32)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("order", [1, 2])
def test_each_form_of_rates(rates, order):
    problem = random_problem(
        83, norms=True, rates=rates, order=order, steps=3, tasks=4, activation="tanh"
    )
    compare(problem)


@pytest.mark.parametrize("seed", range(80, 100))
def test_operations_without_an_inner_loop(seed):
    problem = random_problem(seed, norms=True)
    vector = randn_like(problem.params, seed)
    x = torch.nan_to_num(problem.support.x)
    results = []
    for backend in ("torch", "fused"):
        shared = {"model": problem.model, "backend": backend}
        options = {"loss": problem.options["loss"], **shared}
        results.append(
            {
                "predict": il.predict(problem.params, x, **shared),
                "loss_and_grad": il.loss_and_grad(problem.params, problem.support, **options),
                "hvp": il.hvp(problem.params, problem.support, vector, **options),
            }
        )
    for name, want in results[0].items():
        assert_close(results[1][name], want, 1e-11, name)


def with_norm(n, eps=1e-5, weight=True):
    """Returns the description of Linear, LayerNorm, tanh, Linear."""
    leaves = ("n.weight", "n.bias") if weight else (None, None)
    return il.MLP.from_layers(
        [
            Layer("a.weight", "a.bias", 3, n, "identity", 0.0),
            Layer(*leaves, n, n, "tanh", 0.0, "layer_norm", eps),
            Layer("b.weight", "b.bias", n, 2, "identity", 0.0),
        ]
    )


@pytest.mark.parametrize("n", [1, 2, 3, 8, 16, 17, 40])
def test_finite_differences(n):
    model = with_norm(n, eps=0.1)
    generator = torch.Generator().manual_seed(n)
    params = {k: v.requires_grad_() for k, v in model.init(generator, torch.float64).items()}
    sides = [
        il.Batch(normal(generator, 2, rows, 3), normal(generator, 2, rows, 2)) for rows in (4, 3)
    ]

    def loss(rate, *leaves):
        values = dict(zip(params, leaves, strict=True))
        return il.meta_loss(values, *sides, model=model, inner_lr=rate, steps=2, backend="fused")

    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (rate, *params.values()))


# ---------------------------------------------------------------- numbers


def first_norm(rows, eps, dtype):
    """Returns what a norm of the rows themselves gives, in front of a layer that passes it on."""
    n = rows.shape[-1]
    model = il.MLP.from_layers(
        [
            Layer(None, None, n, n, "identity", 0.0, "layer_norm", eps),
            Layer("weight", None, n, n, "identity", 0.0),
        ]
    )
    params = {"weight": torch.eye(n, dtype=dtype)}
    return il.predict(params, rows.to(dtype), model=model, backend="fused")


@pytest.mark.parametrize("n", [2, 5, 16, 33, 1000])
@pytest.mark.parametrize(
    ("mean", "spread"),
    [(0.0, 1.0), (1000.0, 1.0), (-3e4, 0.1), (0.0, 1e-12), (0.0, 1e12)],
    ids=["plain", "large mean", "larger mean", "tiny variance", "large variance"],
)
def test_rows_keep_their_digits_in_float32(n, mean, spread):
    generator = torch.Generator().manual_seed(n)
    rows = (mean + spread * torch.randn(3, 4, n, generator=generator)).float()
    exact = F.layer_norm(rows.double(), (n,), eps=1e-5)
    assert_close(first_norm(rows, 1e-5, torch.float32), exact, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_constant_rows_are_zero_and_have_finite_derivatives(dtype, value):
    rows = torch.full((2, 3, 5), value, dtype=dtype)
    assert first_norm(rows, 1e-5, dtype).abs().max() < 1e-6
    model = with_norm(5)
    params = {k: v.to(dtype) for k, v in model.init().items()}
    params["a.weight"] = torch.zeros_like(params["a.weight"])  # and its bias is alike everywhere
    params["a.bias"] = torch.full_like(params["a.bias"], value)
    batch = torch.ones(2, 3, 3, dtype=dtype), torch.ones(2, 3, 2, dtype=dtype)

    def derivatives(params, batch, backend):
        options = {"model": model, "backend": backend}
        vector = {k: torch.ones_like(v) for k, v in params.items()}
        _, grads = il.loss_and_grad(params, batch, **options)
        return {"gradient": grads, "hvp": il.hvp(params, batch, vector, **options)}

    got = derivatives(params, batch, "fused")
    wide = {k: v.double() for k, v in params.items()}, [v.double() for v in batch]
    assert_close(got, derivatives(*wide, "torch"), 1e-5 if dtype is torch.float32 else 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_rows_out_of_use_may_hold_anything(seed):
    problem = random_problem(seed, norms=True, ragged=True, weighted=True, rows=5, tasks=9)
    compare(problem)


def test_bits_do_not_depend_on_threads():
    problem = random_problem(5, norms=True, tasks=19, steps=2, per_task=0.0).to(torch.float32)
    one = problem.call(il.meta_grad, backend="fused")
    for threads in (2, 3):
        torch.set_num_threads(threads)
        other = problem.call(il.meta_grad, backend="fused")
        for name, leaf in one.grad.items():
            assert torch.equal(other.grad[name], leaf), name


# ---------------------------------------------------------------- modules


class Functional(nn.Module):
    """The same network, written with torch's function."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.scale, self.shift = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return self.last(torch.tanh(F.layer_norm(self.first(x), (6,), self.scale, self.shift)))


def between(norm, width=6):
    """Returns a network with a norm inside."""
    return nn.Sequential(nn.Linear(3, width), norm, nn.Tanh(), nn.Linear(width, 2))


FUSED = {
    "affine": lambda: between(nn.LayerNorm(6)),
    "without bias": lambda: between(nn.LayerNorm(6, bias=False)),
    "without weight and bias": lambda: between(nn.LayerNorm(6, elementwise_affine=False)),
    "other eps": lambda: between(nn.LayerNorm(6, eps=0.5)),
    "first": lambda: nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)),
    "last": lambda: nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2, eps=0.1)),
    "twice": lambda: between(nn.Sequential(nn.LayerNorm(6, eps=0.1), nn.LayerNorm(6))),
    "written with the function": Functional,
}


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
def test_modules_are_fused_and_give_what_torch_gives(make):
    torch.manual_seed(0)
    module = make().double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    generator = torch.Generator().manual_seed(1)
    x, y = normal(generator, 4, 5, 3), normal(generator, 4, 5, 2)
    learner = il.MAML(module, inner_lr=0.2, steps=2)
    assert_close(il.predict(dict(module.named_parameters()), x, model=module), module(x), 1e-12)
    loss = learner(il.Batch(x, y), il.Batch(x, y))
    assert learner.backend == "fused"
    loss.backward()
    got = {k: p.grad.clone() for k, p in module.named_parameters()}
    module.zero_grad()
    total = 0
    for t in range(4):
        leaves = dict(module.named_parameters())
        for _ in range(2):
            out = torch.func.functional_call(module, leaves, (x[t],))
            grads = torch.autograd.grad(
                (out - y[t]).square().mean(), list(leaves.values()), create_graph=True
            )
            leaves = {k: v - 0.2 * g for (k, v), g in zip(leaves.items(), grads, strict=True)}
        out = torch.func.functional_call(module, leaves, (x[t],))
        total = total + (out - y[t]).square().mean() / 4
    total.backward()
    assert_close(got, {k: p.grad for k, p in module.named_parameters()}, 1e-10)


class Own(nn.LayerNorm):
    """A subclass."""


REFUSED = {
    "eps of zero": (lambda: between(nn.LayerNorm(6, eps=0.0)), "eps from 1e-30 on"),
    "two axes": (lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm([5, 6])), "last axis"),
    "a subclass": (lambda: between(Own(6)), "not its subclasses"),
    "another width": (lambda: between(nn.LayerNorm(3)), "gives 6 values"),
    "nothing else": (lambda: nn.LayerNorm(3), "no Linear layer"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_described_is_refused_with_the_reason(make, reason):
    with pytest.raises(NotImplementedError, match=reason):
        il.MLP.from_module(make())


def test_hooks_of_a_norm_run_on_the_torch_back_end():
    module = between(nn.LayerNorm(6))
    assert il.backend_for(module).backend == "fused"
    module[1].register_forward_hook(lambda *_: None)
    assert il.backend_for(module).backend == "torch"


def test_description_survives_its_canonical_text():
    model = with_norm(6, eps=0.3, weight=False)
    assert il.models.from_key(model.key).key == model.key
    assert [layer.eps for layer in il.models.from_key(model.key).layers] == [0.0, 0.3, 0.0]
    assert "layer_norm" in model.key


def test_fresh_parameters_are_those_of_torch():
    params = with_norm(6).init()
    assert (params["n.weight"] == 1).all()
    assert (params["n.bias"] == 0).all()


def test_frozen_norms_keep_their_meta_gradient():
    problem = random_problem(7, norms=True, steps=3, order=2, rates="number", adapt_params=None)
    norms = [leaf for leaf in problem.model.names if leaf.startswith("norm")]
    others = [leaf for leaf in problem.model.names if leaf not in norms]
    for adapted in (norms, others):
        options = {**problem.options, "adapt_params": adapted}
        compare(dataclasses.replace(problem, options=options))
