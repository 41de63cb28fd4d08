"""Every fused operation on a GPU against the float64 reference on the CPU, in several schedules.

Tolerances as for the CPU kernels (tests/ops/test_meta_grad.py): float64 1e-11, float32 1e-5 of
each leaf's norm.
"""

import pytest
import torch
from moving import on_gpu

import innerloop as il
from helpers import assert_close, leaves_of, randn_like
from innerloop import _native
from problems import (
    LOSSES,
    RATES,
    implicit_problem,
    random_problem,
    random_problem_away_from_kinks,
)


def to_cpu(value):
    """Returns a result with its tensors on the CPU."""
    if isinstance(value, dict):
        return {k: to_cpu(v) for k, v in value.items()}
    return value.cpu()


def fused(operation, *arguments, **options):
    """Returns a fused result; skips where a demanded schedule does not fit the GPU."""
    try:
        return operation(*arguments, backend="fused", **options)
    except (NotImplementedError, RuntimeError) as error:
        if "do not fit" in str(error):
            pytest.skip(str(error))
        raise


def compare(problem, dtype=torch.float64, tolerance=1e-11, **changes):
    """Asserts that meta_grad on the GPU equals the float64 reference on the CPU."""
    expected = problem.call(il.meta_grad, backend="torch", **changes)
    moved = on_gpu(problem, dtype)
    options = {**moved.options, **changes}
    actual = fused(
        il.meta_grad, moved.params, moved.support, moved.query, model=moved.model, **options
    )
    for name in ("loss", "grad", "inner_lr_grad", "support_loss", "query_loss"):
        want, got = getattr(expected, name), getattr(actual, name)
        if want is None:
            assert got is None
            continue
        assert all(v.is_cuda for v in leaves_of(got).values())
        single = name == "inner_lr_grad" and dtype is torch.float32
        assert_close(
            to_cpu(got),
            want,
            tolerance * (20 if single else 1),
            name,
            floor=1.0 if single else 1e-4,
        )


@pytest.mark.parametrize("seed", range(60))
def test_meta_grad_sweep(schedule, seed):
    compare(random_problem(seed, norms=False), stepwise=seed % 4 == 0)


@pytest.mark.parametrize("seed", range(100, 130))
def test_meta_grad_in_float32(schedule, seed):
    compare(random_problem_away_from_kinks(seed), torch.float32, 1e-5)


@pytest.mark.parametrize("activation", il.models.ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_activation_with_each_loss(schedule, activation, loss):
    compare(
        random_problem(
            7, activation=activation, loss=loss, depth=3, order=2, steps=2, tasks=5, rates="mixed"
        )
    )


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("order", [1, 2])
def test_each_form_of_inner_rates(schedule, rates, order):
    compare(random_problem(11, rates=rates, steps=4, order=order, activation="tanh", depth=2))


@pytest.mark.parametrize("tasks", [0, 1, 2, 15, 33, 70, 1000])
def test_task_counts(schedule, tasks):
    compare(random_problem(13, tasks=tasks, activation="tanh", widths=[3, 6, 2], loss="mse"))


@pytest.mark.parametrize(("rows", "query_rows"), [(0, 3), (3, 0), (0, 0), (1, 1), (70, 33)])
def test_row_counts(schedule, rows, query_rows):
    compare(
        random_problem(
            17, rows=rows, query_rows=query_rows, activation="silu", steps=2, norms=False
        )
    )


@pytest.mark.parametrize("widths", [[1, 1], [33, 1, 65, 2], [70, 64, 5]])
def test_widths(schedule, widths):
    compare(random_problem(19, widths=widths, tasks=4, activation="gelu", steps=2, loss="mse"))


@pytest.mark.parametrize("seed", range(30))
def test_first_layer_that_stays_implicit(schedule, seed):
    compare(implicit_problem(seed), stepwise=seed % 4 == 0)


def test_descriptions_longer_than_kernel_parameters(schedule):
    compare(random_problem(23, widths=[3, 2] * 10, tasks=3, steps=1, activation="tanh"))


@pytest.mark.parametrize("seed", range(200, 220))
def test_other_operations(schedule, seed):
    problem = random_problem(seed, norms=False)
    inner = ("inner_lr", "steps", "adapt_params")
    vector = randn_like(problem.params, seed)

    def results(problem, vector, run):
        p, loss = problem.params, problem.options["loss"]
        common = {"model": problem.model, "loss": loss}
        options = {k: problem.options[k] for k in inner}
        value, grad = run(il.loss_and_grad, p, problem.query, **common)
        return {
            "adapt": run(il.adapt, p, problem.support, **options, **common),
            "loss": value,
            "grad": grad,
            "hvp": run(il.hvp, p, problem.query, vector, **common),
            "predict": run(il.predict, p, torch.nan_to_num(problem.query.x), model=problem.model),
        }

    expected = results(problem, vector, lambda f, *a, **k: f(*a, backend="torch", **k))
    moved = {k: v.cuda() for k, v in vector.items()}
    actual = results(on_gpu(problem, torch.float64), moved, fused)
    for name, want in expected.items():
        assert_close(to_cpu(actual[name]), want, 1e-11, name)


def test_equal_bits_at_each_run(schedule):
    problem = on_gpu(random_problem(37, tasks=501, widths=[3, 20, 2], steps=3), torch.float32)
    first, *others = (problem.call(il.meta_grad, backend="fused") for _ in range(5))
    for other in others:
        torch.testing.assert_close(other.grad, first.grad, rtol=0, atol=0, equal_nan=True)


def test_device_of_plans():
    facts = il.schedule.DeviceFacts(*_native.cuda().device_facts(0))
    assert facts.shared_per_block >= 48 << 10
    model = il.MLP([1, 40, 40, 1])
    assert il.plan(model, tasks=25, support_rows=10, query_rows=10).blocks == 25


def test_what_does_not_fit_a_block_is_refused():
    problem = on_gpu(random_problem(1, widths=[64, 900, 900, 10], tasks=3), torch.float32)
    with pytest.raises(NotImplementedError, match=r'do not fit .* use backend="torch"'):
        problem.call(il.meta_grad, backend="fused")
