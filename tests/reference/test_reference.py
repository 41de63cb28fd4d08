"""The reference back end against answers that do not come from it: finite differences, textbook
loops, closed forms.

Tolerances: finite differences have errors near 1e-9 relative (see helpers.directional_difference);
the others are float64 rounding, 1e-12.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from helpers import assert_close, directional_difference, inner_product, randn_like
from innerloop import reference
from problems import (
    LOSSES,
    SMOOTH,
    kink_margin,
    linear_meta_answer,
    linear_tasks,
    make_batch,
    random_problem,
)

TORCH_LOSSES = {
    "mse": F.mse_loss,
    "half_mse": lambda z, y: 0.5 * F.mse_loss(z, y),
    "cross_entropy": F.cross_entropy,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "huber": F.huber_loss,
}


def textbook(module, support, query, *, inner_lr, steps, loss, order):
    """Returns (losses, meta-gradient) of the loop that everyone writes: one task at a time,
    torch.autograd, modules of torch alone."""
    function = TORCH_LOSSES[loss]
    params = dict(module.named_parameters())
    losses = []
    for t in range(len(support[0])):
        phi = params
        for _ in range(steps):
            inner = function(
                torch.func.functional_call(module, phi, (support[0][t],)), support[1][t]
            )
            grads = torch.autograd.grad(inner, list(phi.values()), create_graph=order == 2)
            phi = {k: v - inner_lr * g for (k, v), g in zip(phi.items(), grads, strict=True)}
        losses.append(
            function(torch.func.functional_call(module, phi, (query[0][t],)), query[1][t])
        )
    stacked = torch.stack(losses)
    grads = torch.autograd.grad(stacked.mean(), list(params.values()))
    return stacked.detach(), dict(zip(params, grads, strict=True))


def module_like(seed, loss):
    """Returns a float64 module and two batches for it."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 2))
    module = module.double()
    generator = torch.Generator().manual_seed(seed)
    description = il.MLP.from_module(module)
    return module, [make_batch(generator, description, loss, 5, n)[:2] for n in (4, 6)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("order", [1, 2])
def test_textbook_loop(loss, steps, order):
    module, (support, query) = module_like(1, loss)
    losses, grads = textbook(
        module, support, query, inner_lr=0.2, steps=steps, loss=loss, order=order
    )
    params = {k: v.detach() for k, v in module.named_parameters()}
    for model in (module, il.MLP.from_module(module)):
        result = reference.meta_grad(
            params, support, query, model=model, inner_lr=0.2, steps=steps, loss=loss, order=order
        )
        assert_close(result.loss, losses, 1e-12)
        assert_close(result.grad, grads, 1e-12)


def options_of(problem, **changes):
    """Returns the options that meta_loss takes."""
    kept = {k: v for k, v in problem.options.items() if k not in ("task_weight", "stepwise")}
    return {**kept, "model": problem.model, **changes}


def kink_free_problem(seed, **fixed):
    """Returns a random problem whose finite differences cross no kink."""
    for attempt in range(50):
        problem = random_problem(seed + 10_000 * attempt, **fixed)
        if kink_margin(problem) > 1e-3:
            return problem
    raise AssertionError("no problem away from kinks")


@pytest.mark.parametrize("seed", range(25))
def test_meta_gradient_by_finite_differences(seed):
    problem = kink_free_problem(
        seed,
        order=2,
        tasks=3,
        rows=3,
        query_rows=2,
        rates="mixed",
        task_weight=None,
        stepwise=False,
    )
    result = problem.call(reference.meta_grad)
    rates = {
        k: torch.as_tensor(v, dtype=torch.float64) for k, v in problem.options["inner_lr"].items()
    }

    def mean_loss(params, inner_lr):
        return reference.meta_loss(
            params, problem.support, problem.query, **options_of(problem, inner_lr=inner_lr)
        ).mean()

    direction = randn_like(problem.params, seed)
    slope = directional_difference(lambda p: mean_loss(p, rates), problem.params, direction)
    scale = sum(float(g.norm()) for g in result.grad.values()) + 1e-3
    assert abs(slope - inner_product(result.grad, direction)) <= 1e-7 * scale
    direction = randn_like(rates, seed)
    slope = directional_difference(lambda r: mean_loss(problem.params, r), rates, direction)
    scale = sum(float(g.norm()) for g in result.inner_lr_grad.values()) + 1e-3
    assert abs(slope - inner_product(result.inner_lr_grad, direction)) <= 1e-7 * scale


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "bce_with_logits"])
def test_gradient_and_hessian_product_by_finite_differences(activation, loss):
    problem = random_problem(
        3, activation=activation, loss=loss, tasks=1, rows=4, per_task=0.0, depth=3, ragged=False
    )
    batch, model = problem.support, problem.model
    direction = randn_like(problem.params, 1)

    def value(params):
        return reference.loss_and_grad(params, batch, model=model, loss=loss)[0]

    grads = reference.loss_and_grad(problem.params, batch, model=model, loss=loss)[1]
    grads = {k: g[0] for k, g in grads.items()}
    slope = directional_difference(value, problem.params, direction)
    assert abs(slope - inner_product(grads, direction)) <= 1e-8 * (1 + abs(slope))
    other = randn_like(problem.params, 2)

    def along(params):
        moved = reference.loss_and_grad(params, batch, model=model, loss=loss)[1]
        return inner_product({k: g[0] for k, g in moved.items()}, other)

    product = reference.hvp(problem.params, batch, direction, model=model, loss=loss)
    slope = directional_difference(along, problem.params, direction)
    assert abs(slope - inner_product({k: v[0] for k, v in product.items()}, other)) <= 1e-7 * (
        1 + abs(slope)
    )


@pytest.mark.parametrize("order", [1, 2])
def test_first_order_rate_gradient_is_minus_the_inner_product(order):
    problem = random_problem(
        5,
        activation="tanh",
        tasks=1,
        steps=1,
        rates="scalar",
        order=order,
        per_task=0.0,
        adapt_params=None,
        task_weight=None,
        ragged=False,
    )
    result = problem.call(reference.meta_grad)
    _, inner = reference.loss_and_grad(
        problem.params, problem.support, model=problem.model, loss=problem.options["loss"]
    )
    rate = problem.options["inner_lr"]
    adapted = {k: v - rate * inner[k][0] for k, v in problem.params.items()}
    _, outer = reference.loss_and_grad(
        adapted, problem.query, model=problem.model, loss=problem.options["loss"]
    )
    product = inner_product(
        {k: v[0] for k, v in outer.items()}, {k: v[0] for k, v in inner.items()}
    )
    assert abs(float(result.inner_lr_grad) + product) <= 1e-12 * (1 + abs(product))
    if order == 1:
        assert_close(result.grad, {k: v[0] for k, v in outer.items()}, 1e-12)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("rate", [0.3, -0.2])
def test_linear_closed_form(steps, rate):
    """theory.md Result 6 with any number of steps."""
    problem = linear_tasks(7, tasks=9, rows=6, features=3)
    theta = torch.tensor([0.25, 0.5, -1.0], dtype=torch.float64)
    loss, grad, rate_grad = linear_meta_answer(problem, theta, rate, steps)
    result = reference.meta_grad(
        {"0.weight": theta[None]},
        problem.support,
        problem.query,
        model=problem.model,
        inner_lr=rate,
        steps=steps,
        loss="half_mse",
    )
    assert_close(result.loss, loss, 1e-12)
    assert_close(result.grad["0.weight"][0], grad, 1e-12)
    assert_close(result.inner_lr_grad, rate_grad, 1e-12)


def gaussian_tasks(seed, tasks, rows):
    """Returns support, query (one row each) of theory.md's example W1."""
    generator = torch.Generator().manual_seed(seed)
    moments = torch.tensor([[[2, 0.5], [0.5, 1]], [[0.5, -0.2], [-0.2, 1.5]]]).double()
    centres = torch.tensor([[1.0, -1.0], [0.5, 2.0]]).double()
    noise = torch.tensor([0.5, 1.0]).double().sqrt()
    kind = torch.arange(tasks) % 2
    root = torch.linalg.cholesky(moments)[kind]
    sides = []
    for n in (rows, 1):
        x = torch.randn((tasks, n, 2), generator=generator, dtype=torch.float64) @ root.mT
        e = torch.randn((tasks, n), generator=generator, dtype=torch.float64)
        y = (x @ centres[kind][:, :, None])[:, :, 0] + noise[kind][:, None] * e
        sides.append((x, y))
    return sides


def test_expected_risk_after_one_step():
    """theory.md Result 2, example W1: R_maml((.25, .5); .3, 5) = 1.106584625, R_drs = 1.7515625;
    the mean over simulated tasks lies within four standard errors."""
    support, query = gaussian_tasks(11, 200_000, 5)
    model = il.MLP([2, 1], bias=False)
    theta = {"0.weight": torch.tensor([[0.25, 0.5]]).double()}
    for rate, answer in ((0.3, 1.106584625), (0.0, 1.7515625)):
        loss = reference.meta_loss(
            theta, support, query, model=model, inner_lr=rate, steps=1, loss="half_mse"
        )
        error = float(loss.std()) / len(loss) ** 0.5
        assert abs(float(loss.mean()) - answer) < 4 * error
        assert error < 0.01


def test_quadratic_loss_of_the_last_bias():
    """mse in the output bias alone is |b - c|^2 / K + const, so phi_S = c + (1 - 2 rate / K)^S (b -
    c) per output."""
    model = il.MLP([2, 4, 3], "tanh")
    params = model.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = make_batch(torch.Generator().manual_seed(1), model, "mse", 4, 5)
    out = reference.predict(params, batch.x, model=model)
    target = params["1.bias"] + (batch.y - out).mean(1)  # [T, K]
    adapted = reference.adapt(
        params, batch, model=model, inner_lr=0.4, steps=6, adapt_params=["1.bias"]
    )
    expected = target + (1 - 2 * 0.4 / 3) ** 6 * (params["1.bias"] - target)
    assert_close(adapted["1.bias"], expected, 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_unused_rows_leak_nothing(loss):
    problem = random_problem(
        13, loss=loss, ragged=True, weighted=True, tasks=6, steps=2, activation="silu", per_task=0.5
    )
    result = problem.call(reference.meta_grad)
    leaves = [result.loss, *result.grad.values()]
    assert all(torch.isfinite(v).all() for v in leaves)
    clean = []
    for batch in (problem.support, problem.query):
        y = batch.y.nan_to_num() if batch.y.is_floating_point() else batch.y.clamp(min=0)
        clean.append(il.Batch(batch.x.nan_to_num(), y, batch.count, batch.weight))
    again = reference.meta_grad(problem.params, *clean, model=problem.model, **problem.options)
    torch.testing.assert_close(again.grad, result.grad, rtol=0, atol=0)


def test_weights_are_used_as_given():
    problem = random_problem(
        17, loss="mse", weighted=True, ragged=False, steps=1, activation="tanh"
    )
    z = reference.predict(problem.params, problem.query.x, model=problem.model)
    rows = (z - problem.query.y).square().mean(2)
    losses, _ = reference.loss_and_grad(problem.params, problem.query, model=problem.model)
    assert_close(losses, (rows * problem.query.weight).sum(1), 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_torch(loss):
    problem = random_problem(19, loss=loss, weighted=False, ragged=False, tasks=3)
    z = reference.predict(problem.params, problem.query.x, model=problem.model)
    losses, _ = reference.loss_and_grad(
        problem.params, problem.query, model=problem.model, loss=loss
    )
    expected = [TORCH_LOSSES[loss](z[t], problem.query.y[t]) for t in range(3)]
    assert_close(losses, torch.stack(expected), 1e-12)


def test_higher_derivatives_are_those_of_the_textbook():
    module, (support, query) = module_like(23, "mse")
    params = {k: v.detach().requires_grad_() for k, v in module.named_parameters()}
    loss = reference.meta_loss(params, support, query, model=module, inner_lr=0.1, steps=2).mean()
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    direction = randn_like({k: v.detach() for k, v in params.items()}, 4)
    slope = sum((g * direction[k]).sum() for k, g in zip(params, grads, strict=True))
    second = torch.autograd.grad(slope, list(params.values()))

    def along(values):
        result = reference.meta_grad(values, support, query, model=module, inner_lr=0.1, steps=2)
        return inner_product(result.grad, direction)

    other = randn_like(direction, 5)
    difference = directional_difference(along, {k: v.detach() for k, v in params.items()}, other)
    found = inner_product(dict(zip(params, second, strict=True)), other)
    assert abs(difference - found) <= 1e-7 * (1 + abs(found))
