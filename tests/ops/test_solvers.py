"""Inner loops with momentum: against the reference, torch.optim.SGD and autograd.

Tolerances, relative to each leaf's norm: float64 1e-11, float32 1e-5 (tests/ops/test_meta_grad.py).
"""

import pytest
import torch

import innerloop as il
from helpers import assert_close
from innerloop import _native
from problems import RATES, random_problem, random_problem_away_from_kinks

MEMBERS = ("loss", "grad", "inner_lr_grad", "support_loss", "query_loss")


@pytest.fixture(params=["lanes", "rows"])
def strategy(request):
    """Both engines of the CPU."""
    _native.native().set_strategy(request.param)
    yield request.param
    _native.native().set_strategy("auto")


def compare(problem, tolerance=1e-11, dtype=torch.float64, backend="fused", **changes):
    """Asserts that a back end's meta_grad equals the float64 reference."""
    expected = problem.call(il.meta_grad, backend="torch", **changes)
    actual = problem.to(dtype).call(il.meta_grad, backend=backend, **changes)
    for name in MEMBERS:
        want, got = getattr(expected, name), getattr(actual, name)
        if want is None:
            assert got is None
            continue
        single = name == "inner_lr_grad" and dtype is torch.float32
        assert_close(
            got, want, tolerance * (20 if single else 1), name, floor=1.0 if single else 1e-4
        )


@pytest.mark.parametrize("seed", range(40))
def test_sweep(strategy, seed):
    compare(random_problem(seed), momentum=(0.3, 0.9, 1.2)[seed % 3])


def of_each_form(rates, order):
    """Returns a problem with inner rates of one form."""
    return random_problem(
        11, rates=rates, steps=3, order=order, activation="tanh", depth=2, tasks=4, stepwise=True
    )


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("order", [1, 2])
def test_each_form_of_rates(strategy, rates, order):
    compare(of_each_form(rates, order), momentum=0.7)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("order", [1, 2])
def test_each_form_of_rates_in_batched_operations(rates, order):
    compare(of_each_form(rates, order), momentum=0.7, backend="batched")


@pytest.mark.parametrize("seed", range(100, 106))
def test_float32(strategy, seed):
    problem = random_problem_away_from_kinks(seed, steps=2)
    compare(problem, 1e-5, torch.float32, momentum=0.5)


def test_no_momentum_is_gradient_descent():
    problem = random_problem(3, steps=3)
    plain, zero = problem.call(il.meta_grad), problem.call(il.meta_grad, momentum=0.0)
    for name, value in plain.grad.items():
        assert torch.equal(value, zero.grad[name])


@pytest.mark.parametrize("backend", ["fused", "batched", "torch"])
def test_steps_are_those_of_torchs_sgd(backend):
    model = il.MLP([2, 5, 1], "tanh")
    params = model.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(3, 6, k, generator=generator).double() for k in (2, 1))
    options = {"model": model, "inner_lr": 0.1, "steps": 4, "momentum": 0.8, "backend": backend}
    found = il.adapt(params, (x, y), **options)
    for task in range(3):
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        optimiser = torch.optim.SGD(leaves.values(), lr=0.1, momentum=0.8)
        for _ in range(4):
            optimiser.zero_grad()
            h = torch.tanh(x[task] @ leaves["0.weight"].mT + leaves["0.bias"])
            out = h @ leaves["1.weight"].mT + leaves["1.bias"]
            (out - y[task]).square().mean().backward()
            optimiser.step()
        for name, leaf in leaves.items():
            torch.testing.assert_close(found[name][task], leaf.detach(), rtol=1e-12, atol=1e-13)


def test_derivatives_in_parameters_and_rates():
    problem = random_problem(
        5, widths=[2, 3, 1], tasks=2, steps=3, rates="leaf", loss="mse", activation="tanh",
        adapt_params=None, per_task=0.0, order=2, ragged=False, weighted=False,
    )  # fmt: skip
    names, rates = list(problem.params), problem.options["inner_lr"]
    tensors = [*problem.params.values(), *(torch.as_tensor(v).double() for v in rates.values())]

    def loss(*values):
        leaves = dict(zip(names, values[: len(names)], strict=True))
        inner_lr = dict(zip(rates, values[len(names) :], strict=True))
        return il.meta_loss(
            leaves, problem.support, problem.query, model=problem.model, inner_lr=inner_lr,
            steps=3, momentum=0.6, backend="fused",
        )  # fmt: skip

    leaves = [v.clone().requires_grad_() for v in tensors]
    assert torch.autograd.gradcheck(loss, leaves, atol=1e-7)


@pytest.mark.parametrize(
    ("momentum", "error", "text"),
    [
        (-0.1, ValueError, "momentum must be finite and not negative"),
        (float("nan"), ValueError, "momentum must be finite and not negative"),
        ("0.9", TypeError, "momentum must be a number"),
        (True, TypeError, "momentum must be a number"),
    ],
    ids=["negative", "nan", "text", "flag"],
)
def test_bad_momentum_raises(momentum, error, text):
    problem = random_problem(3)
    with pytest.raises(error, match=f"meta_grad: {text}"):
        problem.call(il.meta_grad, momentum=momentum)
    with pytest.raises(error, match=f"adapt: {text}"):
        il.adapt(
            problem.params, problem.support, model=problem.model, inner_lr=0.1, steps=1,
            loss=problem.options["loss"], adapt_params=None, momentum=momentum,
        )  # fmt: skip
