"""Layers with one output and many inputs, whose rows the lane engine multiplies where the caller
has them: every operation against the reference, for widths and rows around a vector's length.

Tolerances, relative to each leaf's norm: float64 1e-11, float32 2e-6 (sums of a hundred terms).
"""

import pytest
import torch

import innerloop as il
from helpers import assert_close, randn_like, sweep
from problems import RATES, random_problem

MEMBERS = ("loss", "grad", "inner_lr_grad", "support_loss", "query_loss")
LOSSES = ("mse", "half_mse", "huber", "bce_with_logits")
INPUTS = (4, 5, 8, 15, 16, 17, 31, 32, 64, 100)  # a vector has 2 to 16 numbers
ROWS = (0, 1, 3, 4, 7, 8, 15, 16, 17, 33)
WHOLE = {"ragged": False, "weighted": False}


@pytest.fixture(autouse=True)
def strategy(cpu_settings):
    """The engine that leaves rows in place."""
    cpu_settings.set_strategy("lanes")


def compare(problem, tolerance=1e-11, dtype=torch.float64, **changes):
    """Asserts that the fused meta_grad equals the float64 reference."""
    expected = problem.call(il.meta_grad, backend="torch", **changes)
    actual = problem.to(dtype).call(il.meta_grad, backend="fused", **changes)
    for name in MEMBERS:
        want, got = getattr(expected, name), getattr(actual, name)
        if want is None:
            assert got is None
        else:
            floor = 1e-4 if name != "inner_lr_grad" else 1.0
            assert_close(got, want, tolerance, name, floor=floor)


@pytest.mark.parametrize("seed", sweep(range(300), range(30)))
def test_meta_grad(seed):
    draw = torch.Generator().manual_seed(seed)
    inputs, rows, query = (
        values[int(torch.randint(len(values), (), generator=draw))]
        for values in (INPUTS, ROWS, ROWS)
    )
    hidden = [1] if seed % 3 == 0 else []  # a chain that goes on from one number
    shapes = {"widths": [inputs, *hidden, 1], "rows": rows, "query_rows": query}
    compare(random_problem(seed, **shapes, norms=False, loss=LOSSES[seed % 4]))


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("rows", [3, 16, 17])
@pytest.mark.parametrize("tasks", [1, 16, 37])
def test_sizes(inputs, rows, tasks):
    shapes = {"widths": [inputs, 1], "rows": rows, "query_rows": rows + 2, "tasks": tasks}
    compare(random_problem(7, **shapes, **WHOLE, steps=1, loss="half_mse", rates="number"))


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("per_task", [0.0, 1.0])
@pytest.mark.parametrize("order", [1, 2])
def test_rates_and_leaves(rates, per_task, order):
    shapes = {"widths": [20, 1], "rows": 9, "query_rows": 18, "tasks": 21}
    options = {"steps": 1, "loss": "huber", "rates": rates, "order": order, "bias": True}
    compare(random_problem(8, **shapes, **WHOLE, **options, per_task=per_task))


@pytest.mark.parametrize("options", [{"momentum": 0.7}, {"weight_decay": 0.1}])
def test_steps_that_are_built(options):
    shapes = {"widths": [33, 1], "rows": 12, "query_rows": 5, "tasks": 18}
    compare(random_problem(9, **shapes, **WHOLE, steps=1, rates="leaf", loss="mse"), **options)


@pytest.mark.parametrize("names", [["0.weight"], ["0.bias"], ["2.weight"], []])
def test_some_leaves_adapt(names):
    problem = random_problem(
        10,
        widths=[17, 1, 1],
        norms=False,
        rows=8,
        query_rows=9,
        tasks=20,
        steps=1,
        rates="number",
        loss="mse",
        activation="tanh",
        bias=True,
        **WHOLE,
    )
    present = [name for name in names if name in problem.params]
    compare(problem, adapt_params=present)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32(loss):
    shapes = {"widths": [100, 1], "rows": 20, "query_rows": 24, "tasks": 40}
    problem = random_problem(11, **shapes, **WHOLE, steps=1, loss=loss, rates="number")
    compare(problem, 2e-6, torch.float32)


@pytest.mark.parametrize("seed", range(12))
def test_operations_without_an_inner_loop(seed):
    shapes = {"widths": [INPUTS[seed % 10], 1], "rows": ROWS[1:][seed % 9], "tasks": 16 + seed}
    problem = random_problem(seed, **shapes, **WHOLE, loss=LOSSES[seed % 4])
    vector = randn_like(problem.params, seed)
    results = []
    for backend in ("torch", "fused"):
        options = {"model": problem.model, "backend": backend}
        outputs = il.predict(problem.params, problem.support.x, **options)
        options["loss"] = problem.options["loss"]
        loss, grad = il.loss_and_grad(problem.params, problem.support, **options)
        product = il.hvp(problem.params, problem.support, vector, **options)
        results.append({"outputs": outputs, "loss": loss, "grad": grad, "hvp": product})
    for name, want in results[0].items():
        assert_close(results[1][name], want, 1e-11, name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_out_of_use_are_not_read(bad):
    """Counts and weights of 0 exclude a row whatever it holds: such sides are copied."""
    generator = torch.Generator().manual_seed(12)
    model = il.MLP([24, 1], bias=False)
    params = {k: v.double() for k, v in model.init(generator).items()}
    x = torch.randn(20, 6, 24, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 6, 1, generator=generator, dtype=torch.float64)
    count = torch.full((20,), 4)
    spoilt = x.clone()
    spoilt[:, 4:] = bad
    options = {"model": model, "inner_lr": 0.1, "steps": 1, "loss": "half_mse", "backend": "fused"}
    got = il.meta_grad(params, (spoilt, y, count), (x, y), **options)
    want = il.meta_grad(params, (x[:, :4], y[:, :4]), (x, y), **options)
    assert_close(got.grad, want.grad, 1e-12)


def test_every_task_has_its_own_rows_and_neighbours_their_bits():
    """A task's numbers do not depend on who shares its vector, nor on the number of threads."""
    generator = torch.Generator().manual_seed(13)
    model = il.MLP([40, 1])
    params = {k: v.expand(50, *v.shape).contiguous() for k, v in model.init(generator).items()}
    x, y = torch.randn(50, 9, 40, generator=generator), torch.randn(50, 9, 1, generator=generator)
    options = {"model": model, "loss": "mse", "backend": "fused"}
    loss, grad = il.loss_and_grad(params, (x, y), **options)
    order = torch.randperm(50, generator=generator)
    moved = {name: value[order] for name, value in params.items()}
    loss_moved, grad_moved = il.loss_and_grad(moved, (x[order], y[order]), **options)
    assert torch.equal(loss_moved, loss[order])
    for name, value in grad.items():
        assert torch.equal(grad_moved[name], value[order])


@pytest.mark.parametrize("rows", [2, 3, 4])
@pytest.mark.parametrize("inputs", [16, 17, 40])
def test_opposite_rows_cancel_exactly(rows, inputs):
    """Few terms are rounded before they are summed: a row and its opposite leave nothing."""
    generator = torch.Generator().manual_seed(14)
    model = il.MLP([inputs, 1], bias=False)
    params = {"0.weight": torch.zeros(1, inputs)}
    x = torch.randn(20, 1, inputs, generator=generator).expand(20, rows, inputs).contiguous()
    y = torch.zeros(20, rows, 1)
    y[:, 0], y[:, -1] = 0.3, -0.3
    options = {"model": model, "loss": "half_mse", "backend": "fused"}
    _, grad = il.loss_and_grad(params, (x, y), **options)
    assert not grad["0.weight"].any()
    query = torch.randn(20, 5, inputs, generator=generator), torch.ones(20, 5, 1)
    moved = il.adapt(params, (x, y), model=model, inner_lr=0.1, steps=1, loss="half_mse")
    assert not moved["0.weight"].any()
    flipped = il.meta_grad(params, query, (x, y), inner_lr=0.0, steps=1, order=1, **options)
    assert not flipped.grad["0.weight"].any()


def test_sums_over_thousands_of_rows_keep_their_digits():
    """Terms of one sign, where a chain of roundings shows: float32 against float64."""
    generator = torch.Generator().manual_seed(15)
    model = il.MLP([16, 1], bias=False)
    params = {"0.weight": torch.zeros(1, 16, dtype=torch.float64)}
    x = torch.rand(16, 4096, 16, generator=generator).double() + 0.5
    sides = (x, -torch.ones(16, 4096, 1).double()), (x + 0.25, torch.ones(16, 4096, 1).double())
    options = {"model": model, "inner_lr": 0.05, "steps": 1, "loss": "half_mse"}
    want = il.meta_grad(params, *sides, backend="torch", **options).grad
    single = [tuple(part.float() for part in side) for side in sides]
    got = il.meta_grad({"0.weight": torch.zeros(1, 16)}, *single, backend="fused", **options).grad
    assert_close(got, want, 1e-5)
