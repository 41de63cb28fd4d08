"""meta_grad: the fused operation against the reference over a sweep of every option.

Tolerances, relative to each leaf's norm: float64 1e-11 (rounding 1e-16 times the condition of up to
five steps), float32 1e-5 against the float64 reference of the same float32 numbers.
"""

import dataclasses

import pytest
import torch

import innerloop as il
from helpers import assert_close
from innerloop import reference
from problems import (
    LOSSES,
    RATES,
    SMOOTH,
    linear_meta_answer,
    linear_tasks,
    random_problem,
    random_problem_away_from_kinks,
)


def parts(result):
    """Returns the numbers of a result, with groups compared on their own scale."""
    return {
        "loss": result.loss,
        "grad": result.grad,
        "inner_lr_grad": result.inner_lr_grad,
        "support_loss": result.support_loss,
        "query_loss": result.query_loss,
    }


def full_rates(problem):
    """Returns the inner rates as {name: [S, *shape]}, one for every adapted element and step."""
    rates, steps = problem.options["inner_lr"], problem.options["steps"]
    full = {}
    for name in problem.options["adapt_params"] or problem.model.shapes:
        if problem.options["adapt_params"] == []:
            break
        shape = problem.model.shapes[name]
        value = torch.as_tensor(rates[name] if isinstance(rates, dict) else rates).double()
        if tuple(value.shape) == (steps,) != shape:
            value = value.reshape(steps, *[1] * len(shape))
        full[name] = value.expand(steps, *shape)
    return full


def rate_scales(problem):
    """Returns, in the structure of inner_lr, the sum of the sizes of the terms that make up each
    rate's gradient: one for each task and element. They may cancel; their rounding does not."""
    options = {**problem.options, "inner_lr": full_rates(problem), "task_weight": None}
    tracked = {k: v.ndim > len(problem.model.shapes[k]) for k, v in problem.params.items()}

    def one_task(params, support, query):
        sides = [tuple(None if v is None else v[None] for v in side) for side in (support, query)]
        return reference.meta_grad(params, *sides, model=problem.model, **options).inner_lr_grad

    axes = (
        {k: 0 if own else None for k, own in tracked.items()},
        *(
            il.Batch(*(None if v is None else 0 for v in b))
            for b in (problem.support, problem.query)
        ),
    )
    terms = torch.vmap(one_task, in_dims=axes)(problem.params, problem.support, problem.query)
    weight = problem.options["task_weight"]
    if weight is None:
        weight = torch.full((problem.tasks,), 1 / problem.tasks, dtype=torch.float64)
    sizes = {k: torch.einsum("t,t...->...", weight, v.abs()) for k, v in terms.items()}
    rates, steps = problem.options["inner_lr"], problem.options["steps"]

    def reduced(size, value):
        shape, own = tuple(size.shape[1:]), tuple(getattr(value, "shape", ()))
        stepped = own != shape and own[:1] == (steps,)
        size = size if stepped else size.sum(0)
        return size if tuple(size.shape) == own else size.flatten(int(stepped)).sum(int(stepped))

    if isinstance(rates, dict):
        return {k: reduced(sizes[k], v) for k, v in rates.items()}
    return sum((reduced(v, rates) for v in sizes.values()), torch.zeros(()))


def compare(problem, dtype, tolerance, **changes):
    """Asserts that the fused result in `dtype` equals the float64 reference."""
    expected = problem.call(il.meta_grad, backend="torch", **changes)
    actual = problem.to(dtype).call(il.meta_grad, backend="fused", **changes)
    assert actual.backend == "fused"
    assert expected.backend == "torch"
    for name, want in parts(expected).items():
        got = parts(actual)[name]
        if want is None:
            assert got is None
        elif name == "inner_lr_grad" and dtype is torch.float32 and problem.tasks:
            assert_close(got, want, tolerance, name, scales=rate_scales(problem))
        else:
            assert_close(got, want, tolerance, name)


@pytest.mark.parametrize("seed", range(60))
def test_float64_sweep(seed):
    compare(random_problem(seed), torch.float64, 1e-11)


@pytest.mark.parametrize("seed", range(100, 150))
def test_float32_sweep(seed):
    compare(random_problem_away_from_kinks(seed), torch.float32, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 2500))
def test_float64_long_sweep(seed):
    compare(random_problem(seed), torch.float64, 1e-11)


def moved_by_rounding(problem):
    """Returns how far the reference moves, in the worst leaf, when the parameters alone are rounded
    as float32 rounds them: what no float32 kernel can avoid."""
    generator = torch.Generator().manual_seed(0)
    expected = problem.call(il.meta_grad, backend="torch").grad
    worst = 0.0
    for _ in range(3):
        rounded = {
            k: v * (1 + 2**-24 * (2 * torch.rand(v.shape, generator=generator).double() - 1))
            for k, v in problem.params.items()
        }
        moved = dataclasses.replace(problem, params=rounded).call(il.meta_grad, backend="torch")
        for name, want in expected.items():
            worst = max(worst, float((moved.grad[name] - want).norm() / want.norm()))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3000, 4500))
def test_float32_long_sweep(seed):
    problem = random_problem_away_from_kinks(seed)
    try:
        compare(problem, torch.float32, 1e-5)
    except AssertionError:
        # a loop that diverges (to 1e118, say) or a gradient that cancels: about one in a thousand
        if moved_by_rounding(problem) < 2.5e-6:
            raise
        pytest.skip("rounding the parameters to float32 moves this answer by over 2.5e-6")


@pytest.mark.parametrize("activation", il.models.ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_activation_with_each_loss(activation, loss):
    problem = random_problem(
        7, activation=activation, loss=loss, depth=3, order=2, steps=2, tasks=5, rates="mixed"
    )
    compare(problem, torch.float64, 1e-11)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("order", [1, 2])
def test_each_form_of_inner_rates(rates, steps, order):
    problem = random_problem(
        11, rates=rates, steps=steps, order=order, activation="tanh", depth=2, tasks=6
    )
    compare(problem, torch.float64, 1e-11)


@pytest.mark.parametrize("strategy", ["lanes", "rows"])
@pytest.mark.parametrize("tasks", [0, 1, 2, 15, 16, 17, 31, 33, 70])
def test_task_counts(tasks, strategy, cpu_settings):
    """Also those that leave a group of lanes or a stack of rows incomplete."""
    cpu_settings.set_strategy(strategy)
    problem = random_problem(13, tasks=tasks, activation="tanh", widths=[3, 6, 2], loss="mse")
    compare(problem, torch.float64, 1e-11)
    compare(problem, torch.float32, 1e-5)


@pytest.mark.parametrize(("rows", "query_rows"), [(0, 3), (3, 0), (0, 0), (1, 1), (40, 33)])
def test_row_counts(rows, query_rows):
    problem = random_problem(17, rows=rows, query_rows=query_rows, activation="silu", steps=2)
    compare(problem, torch.float64, 1e-11)


@pytest.mark.parametrize("widths", [[1, 1], [1, 1, 1], [33, 1, 65, 2], [130, 64, 5], [2, 100, 3]])
@pytest.mark.parametrize("tasks", [2, 20])
def test_odd_widths(widths, tasks):
    problem = random_problem(19, widths=widths, tasks=tasks, activation="gelu", steps=2, loss="mse")
    compare(problem, torch.float64, 1e-11)
    compare(problem, torch.float32, 1e-5)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("widths", [[1, 40, 40, 1], [20, 32, 16, 5]])
def test_kinked_networks_in_both_dtypes(activation, widths):
    problem = random_problem_away_from_kinks(
        23, margin=1e-5, activation=activation, widths=widths, steps=1, tasks=3, rows=5
    )
    compare(problem, torch.float64, 1e-11)
    compare(problem, torch.float32, 1e-5)


def test_rows_out_of_use_do_not_matter():
    problem = random_problem(29, ragged=True, weighted=True, tasks=9, steps=2, activation="tanh")
    before = problem.call(il.meta_grad, backend="fused")
    for batch in (problem.support, problem.query):
        unused = torch.arange(batch.x.shape[1]) >= batch.count[:, None]
        batch.x[unused] = float("inf")
        batch.x[batch.weight == 0] = float("nan")
        batch.weight[unused] = float("nan")
    after = problem.call(il.meta_grad, backend="fused")
    torch.testing.assert_close(after.grad, before.grad, rtol=0, atol=0)
    torch.testing.assert_close(after.loss, before.loss, rtol=0, atol=0)


def test_ragged_tasks_equal_one_task_at_a_time():
    problem = random_problem(
        31,
        ragged=True,
        weighted=False,
        tasks=7,
        steps=2,
        per_task=0.0,
        activation="tanh",
        rates="number",
        task_weight=None,
    )
    together = problem.call(il.meta_grad, backend="fused")
    losses = []
    for t in range(problem.tasks):
        sides = [
            il.Batch(b.x[t : t + 1, : b.count[t]], b.y[t : t + 1, : b.count[t]])
            for b in (problem.support, problem.query)
        ]
        losses.append(
            il.meta_grad(
                problem.params, *sides, model=problem.model, backend="fused", **problem.options
            ).loss
        )
    assert_close(together.loss, torch.cat(losses), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_bits_for_every_thread_count_and_run(dtype):
    problem = random_problem(37, tasks=53, widths=[3, 20, 2], steps=3, activation="tanh").to(dtype)
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        results.append(problem.call(il.meta_grad, backend="fused"))
    for other in results[1:]:
        torch.testing.assert_close(parts(other), parts(results[0]), rtol=0, atol=0)


@pytest.mark.parametrize("strategy", ["lanes", "rows"])
@pytest.mark.parametrize("seed", range(300, 325))
def test_each_strategy(strategy, seed, cpu_settings):
    cpu_settings.set_strategy(strategy)
    compare(random_problem(seed), torch.float64, 1e-11)


@pytest.mark.parametrize("seed", range(400, 410))
def test_each_simd_level(seed, cpu_settings):
    problem = random_problem_away_from_kinks(seed)
    for level in cpu_settings.simd_levels():
        cpu_settings.set_simd_level(level)
        compare(problem, torch.float64, 1e-11)
        compare(problem, torch.float32, 1e-5)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("rate", [0.3, -0.2])
def test_linear_closed_form(steps, rate):
    problem = linear_tasks(41, tasks=11, rows=5, features=3)
    theta = torch.tensor([0.25, 0.5, -1.0], dtype=torch.float64)
    loss, grad, rate_grad = linear_meta_answer(problem, theta, rate, steps)
    result = il.meta_grad(
        {"0.weight": theta[None]},
        problem.support,
        problem.query,
        model=problem.model,
        inner_lr=rate,
        steps=steps,
        loss="half_mse",
        backend="fused",
    )
    assert_close(result.loss, loss, 1e-12)
    assert_close(result.grad["0.weight"][0], grad, 1e-12)
    assert_close(result.inner_lr_grad, rate_grad, 1e-12)


@pytest.mark.parametrize("activation", SMOOTH)
def test_orders_differ_where_there_is_curvature(activation):
    problem = random_problem(
        43,
        activation=activation,
        depth=2,
        steps=2,
        loss="mse",
        rates="number",
        adapt_params=None,
        ragged=False,
        weighted=False,
    )
    first = problem.call(il.meta_grad, backend="fused", order=1)
    exact = problem.call(il.meta_grad, backend="fused", order=2)
    torch.testing.assert_close(first.loss, exact.loss, rtol=0, atol=0)
    name = next(iter(problem.params))
    difference = (first.grad[name] - exact.grad[name]).norm() / exact.grad[name].norm()
    assert difference > 1e-3
