"""Inner loops by other steps than gradient descent: against the reference, torch.optim.SGD and
autograd.

Tolerances, relative to each leaf's norm: float64 1e-11, float32 1e-5 (tests/ops/test_meta_grad.py).
"""

import pytest
import torch

import innerloop as il
from helpers import assert_close, needs_compile_of_modules, sweep
from innerloop import _native
from problems import RATES, SOLVERS, random_problem, random_problem_away_from_kinks

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


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("solver", SOLVERS)
def test_sweep(strategy, solver, seed):
    compare(random_problem(seed), **SOLVERS[solver])


@pytest.mark.parametrize("seed", range(3))
def test_momentum_that_grows(strategy, seed):
    compare(random_problem(seed, steps=3), momentum=1.2)


def of_each_form(rates, order):
    """Returns a problem with inner rates of one form."""
    return random_problem(
        11, rates=rates, steps=3, order=order, activation="tanh", depth=2, tasks=4, stepwise=True
    )


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("solver", SOLVERS)
def test_each_form_of_rates(strategy, solver, rates, order):
    compare(of_each_form(rates, order), **SOLVERS[solver])


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("solver", SOLVERS)
def test_each_form_of_rates_in_batched_operations(solver, rates, order):
    compare(of_each_form(rates, order), backend="batched", **SOLVERS[solver])


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("solver", SOLVERS)
def test_weights_that_batched_operations_do_not_write_out(solver, rows):
    """Wide layers with few rows; without rows there are no gradients, and decays all the same."""
    problem = random_problem(
        8, widths=[40, 30, 2], rows=2, query_rows=2, tasks=3, steps=3, rates="leaf", per_task=0.0,
        adapt_params=None, ragged=False, weighted=False, loss="mse",
    )  # fmt: skip
    problem.support = il.Batch(*(v if v is None else v[:, :rows] for v in problem.support))
    compare(problem, backend="batched", **SOLVERS[solver])
    compare(problem, backend="fused", **SOLVERS[solver])


@pytest.mark.parametrize("seed", range(100, 104))
@pytest.mark.parametrize("solver", SOLVERS)
def test_float32(strategy, solver, seed):
    problem = random_problem_away_from_kinks(seed, steps=2)
    compare(problem, 1e-5, torch.float32, **SOLVERS[solver])


def test_no_momentum_is_gradient_descent():
    problem = random_problem(3, steps=3)
    plain = problem.call(il.meta_grad)
    zero = problem.call(il.meta_grad, momentum=0, nesterov=False, weight_decay=0)
    for name, value in plain.grad.items():
        assert torch.equal(value, zero.grad[name])


@pytest.mark.parametrize("backend", ["fused", "batched", "torch"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_are_those_of_torchs_sgd(solver, backend):
    model = il.MLP([2, 5, 1], "tanh")
    params = model.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(3, 6, k, generator=generator).double() for k in (2, 1))
    options = {"model": model, "inner_lr": 0.1, "steps": 4, "backend": backend}
    found = il.adapt(params, (x, y), **options, **SOLVERS[solver])
    for task in range(3):
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        optimiser = torch.optim.SGD(leaves.values(), lr=0.1, **SOLVERS[solver])
        for _ in range(4):
            optimiser.zero_grad()
            h = torch.tanh(x[task] @ leaves["0.weight"].mT + leaves["0.bias"])
            out = h @ leaves["1.weight"].mT + leaves["1.bias"]
            (out - y[task]).square().mean().backward()
            optimiser.step()
        for name, leaf in leaves.items():
            torch.testing.assert_close(found[name][task], leaf.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("solver", SOLVERS)
def test_derivatives_in_parameters_and_rates(solver):
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
            steps=3, backend="fused", **SOLVERS[solver],
        )  # fmt: skip

    leaves = [v.clone().requires_grad_() for v in tensors]
    assert torch.autograd.gradcheck(loss, leaves, atol=1e-7)


BAD = {
    "negative": ({"momentum": -0.1}, ValueError, "momentum must be finite and not negative"),
    "nan": ({"momentum": float("nan")}, ValueError, "momentum must be finite and not negative"),
    "text": ({"momentum": "0.9"}, TypeError, "momentum must be a number"),
    "flag": ({"momentum": True}, TypeError, "momentum must be a number"),
    "number": ({"momentum": 0.5, "nesterov": 1}, TypeError, "nesterov must be True or False"),
    "none": ({"nesterov": None}, TypeError, "nesterov must be True or False"),
    "alone": ({"nesterov": True}, ValueError, r"momentum must be above 0 with nesterov=True"),
    "growth": ({"weight_decay": -0.1}, ValueError, "weight_decay must be finite and not negative"),
    "tensor": ({"weight_decay": torch.ones(())}, TypeError, "weight_decay must be a number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_raise(name):
    options, error, text = BAD[name]
    problem = random_problem(3)
    with pytest.raises(error, match=f"meta_grad: {text}"):
        problem.call(il.meta_grad, **options)
    with pytest.raises(error, match=f"adapt: {text}"):
        il.adapt(
            problem.params, problem.support, model=problem.model, inner_lr=0.1, steps=1,
            loss=problem.options["loss"], adapt_params=None, **options,
        )  # fmt: skip
    with pytest.raises(error, match=f"MAML: {text}"):
        il.MAML(torch.nn.Linear(2, 1), inner_lr=0.1, steps=1, **options)


def test_first_order_keeps_the_derivative_of_the_decay():
    """Nothing is left of the loss's own second derivatives: with a rate r and a decay w a step
    multiplies the gradient by 1 - r w."""
    problem = random_problem(
        4, order=1, steps=3, rates="number", task_weight=None, adapt_params=None, per_task=0.0
    )
    rate, decay = problem.options["inner_lr"], 0.3
    found = problem.call(il.meta_grad, weight_decay=decay)
    adapted = il.adapt(
        problem.params, problem.support, model=problem.model, inner_lr=rate, steps=3,
        loss=problem.options["loss"], weight_decay=decay,
    )  # fmt: skip
    _, grads = il.loss_and_grad(
        adapted, problem.query, model=problem.model, loss=problem.options["loss"]
    )
    expected = {k: (1 - rate * decay) ** 3 * g.mean(0) for k, g in grads.items()}
    assert_close(found.grad, expected, 1e-11)


def test_options_may_change_between_calls():
    """What is remembered of a call knows them."""
    problem = random_problem(6, steps=3)
    plain = problem.call(il.meta_grad).loss
    for options in SOLVERS.values():
        found = problem.call(il.meta_grad, **options).loss
        assert (found - plain).abs().max() > 0
        assert torch.equal(found, problem.call(il.meta_grad, **options).loss)
    assert torch.equal(problem.call(il.meta_grad).loss, plain)


@needs_compile_of_modules
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("solver", sweep(SOLVERS, [*SOLVERS][-2:]))
def test_learners(solver):
    """Training, adaptation, evaluation and torch.compile take the options of the learner."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    x, y = torch.randn(3, 5, 2), torch.randn(3, 5, 1)
    options, params = SOLVERS[solver], dict(net.named_parameters())
    loop = {"model": net, "inner_lr": 0.1, "steps": 2, **options}
    learner = il.MAML(net, inner_lr=0.1, steps=2, **options)
    expected = il.meta_loss(params, (x, y), (x, y), **loop)
    torch.testing.assert_close(learner((x, y), (x, y), reduction="none"), expected)
    torch.testing.assert_close(learner.evaluate((x, y), (x, y)).loss[:, 2], expected.detach())
    adapted = il.adapt(params, (x, y), **loop)
    torch.testing.assert_close(learner.adapt((x, y)).params, adapted)
    tuned = il.JointTraining(net, inner_lr=0.1, steps=2, **options)
    torch.testing.assert_close(tuned.adapt((x, y)).params, adapted)
    for word in options:
        assert word.replace("_", " ") in learner.explain().lower()
        assert word.replace("_", " ") in tuned.explain().lower()
    torch._dynamo.reset()
    compiled = torch.compile(learner, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled((x, y), (x, y)), expected.mean())
