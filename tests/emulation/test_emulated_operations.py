"""Every CUDA kernel on emulated blocks against the float64 reference, with every option and block
sizes that divide nothing.

Tolerances, relative to each leaf's norm: float64 1e-11 and float32 1e-5, as for the CPU kernels
(tests/ops/test_meta_grad.py).
"""

import pytest
import torch
from comparing import compare, compare_without_query_gradient

import innerloop as il
from helpers import assert_close, randn_like
from loss_cases import OPTIONS, optioned
from problems import (
    LOSSES,
    RATES,
    SOLVERS,
    implicit_problem,
    random_problem,
    random_problem_away_from_kinks,
)

SCHEDULES = ((0, 0), (1, 32), (3, 7), (2, 33), (1, 1), (0, 256))


def schedule(emulated, number):
    """Fixes one of the schedules."""
    emulated.fix_schedule(*SCHEDULES[number % len(SCHEDULES)])


@pytest.mark.parametrize("seed", range(36))
def test_meta_grad_sweep(emulated, seed):
    schedule(emulated, seed)
    compare(random_problem(seed, norms=False), stepwise=seed % 4 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2000, 2600))
def test_meta_grad_long_sweep(emulated, seed):
    schedule(emulated, seed)
    compare(random_problem(seed, norms=False), stepwise=seed % 4 == 0)


@pytest.mark.parametrize("seed", range(100, 112))
def test_meta_grad_in_float32(emulated, seed):
    schedule(emulated, seed)
    compare(random_problem_away_from_kinks(seed), torch.float32, 1e-5)


@pytest.mark.parametrize("activation", il.models.ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_activation_with_each_loss(emulated, activation, loss):
    schedule(emulated, len(activation) + len(loss))
    problem = random_problem(
        7, activation=activation, loss=loss, depth=2, order=2, steps=2, tasks=3, rates="mixed"
    )
    compare(problem)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("order", [1, 2])
def test_each_form_of_inner_rates(emulated, rates, order):
    schedule(emulated, RATES.index(rates))
    problem = random_problem(
        11, rates=rates, steps=3, order=order, activation="tanh", depth=2, tasks=4
    )
    compare(problem)


@pytest.mark.parametrize("number", range(len(SCHEDULES)))
@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 33])
def test_task_counts_in_each_schedule(emulated, tasks, number):
    schedule(emulated, number)
    compare(random_problem(13, tasks=tasks, activation="tanh", widths=[3, 5, 2], loss="mse"))


@pytest.mark.parametrize("number", range(len(SCHEDULES)))
@pytest.mark.parametrize(("rows", "query_rows"), [(0, 3), (3, 0), (0, 0), (1, 1), (13, 9)])
def test_row_counts_in_each_schedule(emulated, rows, query_rows, number):
    schedule(emulated, number)
    compare(
        random_problem(
            17, rows=rows, query_rows=query_rows, activation="silu", steps=2, norms=False
        )
    )


@pytest.mark.parametrize(
    "widths", [[1, 1], [1, 1, 1], [33, 1, 35, 2], [70, 20, 5], [2, 50, 3]], ids=str
)
def test_widths(emulated, widths):
    emulated.fix_schedule(2, 40)
    problem = random_problem(19, widths=widths, tasks=3, activation="gelu", steps=2, loss="mse")
    compare(problem)


@pytest.mark.parametrize("seed", range(30))
def test_first_layer_that_stays_implicit(emulated, seed):
    """Few rows and many inputs: the products with X_s X_s^T take the place of the weights'."""
    schedule(emulated, seed)
    compare(implicit_problem(seed), stepwise=seed % 4 == 0)


def test_descriptions_longer_than_kernel_parameters(emulated):
    """Deep networks: the table of layers and leaves goes to the device in pieces."""
    problem = random_problem(23, widths=[3, 2] * 10, tasks=3, steps=1, activation="tanh")
    before = emulated.counters()[1]
    compare(problem)
    assert emulated.counters()[1] > before + 1


@pytest.mark.parametrize("seed", range(200, 212))
def test_other_operations(emulated, seed):
    schedule(emulated, seed)
    problem = random_problem(seed, norms=False)
    inner = {k: problem.options[k] for k in ("inner_lr", "steps", "adapt_params")}
    common = {"model": problem.model, "loss": problem.options["loss"]}
    options = {k: v for k, v in problem.options.items() if k not in ("task_weight", "stepwise")}
    sides = (problem.params, problem.support, problem.query)
    vector = randn_like(problem.params, seed)
    if seed % 2:  # leaves of a direction may be per task where the parameter's are not
        shapes = {
            k: torch.empty(problem.tasks, *v, dtype=torch.float64)
            for k, v in problem.model.shapes.items()
        }
        vector = randn_like(shapes, seed)
    x = torch.nan_to_num(problem.query.x)

    def results(backend):
        loss, grad = il.loss_and_grad(problem.params, problem.query, backend=backend, **common)
        return {
            "meta_loss": il.meta_loss(*sides, model=problem.model, backend=backend, **options),
            "adapt": il.adapt(
                problem.params,
                problem.support,
                stepwise=seed % 3 == 0,
                backend=backend,
                **inner,
                **common,
            ),
            "loss": loss,
            "grad": grad,
            "hvp": il.hvp(problem.params, problem.query, vector, backend=backend, **common),
            "predict": il.predict(problem.params, x, model=problem.model, backend=backend),
        }

    actual, expected = results("fused"), results("torch")
    for name, want in expected.items():
        assert_close(actual[name], want, 1e-11, name)


@pytest.mark.parametrize("seed", range(400, 406))
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers(emulated, solver, seed):
    schedule(emulated, seed)
    compare(random_problem(seed, norms=False), **SOLVERS[solver])


@pytest.mark.parametrize("query_loss", [name for name in LOSSES if name != "cross_entropy"])
def test_query_rows_with_a_loss_of_their_own(emulated, query_loss):
    schedule(emulated, len(query_loss))
    compare(random_problem(77, loss="mse", tasks=5, steps=2, norms=False), query_loss=query_loss)


def policy_rows(generator, model, params, tasks, rows):
    """Returns a PolicyBatch near a policy."""
    x = torch.randn(tasks, rows, model.inputs, generator=generator).double()
    mean = il.predict(params, x, model=model, backend="torch")
    noise = [torch.randn(mean.shape, generator=generator).double() for _ in "ab"]
    advantage = torch.randn(tasks, rows, generator=generator).double()
    log_std = 0.2 * torch.randn(tasks, model.outputs, generator=generator).double()
    return il.PolicyBatch(x, mean + 0.5 * noise[0], advantage, mean + 0.1 * noise[1], log_std)


@pytest.mark.parametrize("name", OPTIONS)
def test_losses_with_options(emulated, name):
    schedule(emulated, len(name))
    fixed = {"activation": "tanh", "steps": 2, "tasks": 5, "ragged": True, "weighted": False}
    compare(optioned(name, 31, norms=False, **fixed))


@pytest.mark.parametrize("number", range(len(SCHEDULES)))
@pytest.mark.parametrize("loss", ["pg_loglik", "pg_ratio", "pg_clipped", "kl"])
def test_policies(emulated, loss, number):
    schedule(emulated, number)
    generator = torch.Generator().manual_seed(number)
    model = il.GaussianMLP([3, 5, 2])
    params = {k: v.double() for k, v in model.init(generator).items()}
    sides = [policy_rows(generator, model, params, 7, 6) for _ in "ab"]
    vector = randn_like(params, 1)
    options = {"model": model, "inner_lr": 0.1, "steps": 2, "loss": loss, "query_loss": "pg_ratio"}

    def results(backend):
        found = il.meta_grad(params, *sides, backend=backend, momentum=0.4, **options)
        single = {"model": model, "backend": backend}
        return {
            "loss": found.loss,
            "grad": found.grad,
            "inner_lr_grad": found.inner_lr_grad,
            "hvp": il.hvp(params, sides[0], vector, loss=loss, **single),
            "fisher_product": il.fisher_product(params, sides[0], vector, **single),
        }

    expected = results("torch")
    for name, got in results("fused").items():
        assert_close(got, expected[name], 1e-11, name)


@pytest.mark.parametrize("forms", [("scalar", "element"), ("element", "scalar")])
def test_schedules_that_are_remembered_tell_rates_apart(emulated, forms):
    """Rates per element need more memory, although no other part of the call differs."""
    for rates in forms:
        problem = random_problem(
            71, widths=[3, len(forms[0]), 2], rates=rates, tasks=3, steps=2, adapt_params=None,
            activation="tanh", per_task=0.0,
        )  # fmt: skip
        compare_without_query_gradient(problem)


@pytest.mark.parametrize("number", range(len(SCHEDULES)))
def test_equal_bits_at_each_run(emulated, number):
    schedule(emulated, number)
    problem = random_problem(37, tasks=19, widths=[3, 9, 2], steps=2, activation="tanh")
    first, second = (problem.to(torch.float32).call(il.meta_grad, backend="fused") for _ in "ab")
    torch.testing.assert_close(second.grad, first.grad, rtol=0, atol=0)
    torch.testing.assert_close(second.inner_lr_grad, first.inner_lr_grad, rtol=0, atol=0)


@pytest.mark.parametrize("multiprocessors", [1, 2, 7])
def test_any_number_of_blocks(emulated, multiprocessors):
    """Few multiprocessors: a block works on many groups and keeps their sum."""
    emulated.set_device(multiprocessors, 49152, 65536)
    emulated.fix_schedule(1, 128)
    compare(random_problem(41, tasks=33, activation="tanh", widths=[3, 5, 2]))


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_out_of_use_do_not_matter(emulated, loss):
    problem = random_problem(
        29, ragged=True, weighted=True, tasks=5, steps=2, activation="tanh", loss=loss, norms=False
    )
    before = problem.call(il.meta_grad, backend="fused")
    for batch in (problem.support, problem.query):
        unused = torch.arange(batch.x.shape[1]) >= batch.count[:, None]
        batch.x[unused] = float("inf")
        batch.x[batch.weight == 0] = float("nan")
        batch.weight[unused] = float("nan")
    after = problem.call(il.meta_grad, backend="fused")
    torch.testing.assert_close(after.grad, before.grad, rtol=0, atol=0)


def test_bad_labels_and_counts_give_nan_in_their_task_alone(emulated):
    """A device cannot raise without a wait: what the CPU refuses must show in the result."""
    problem = random_problem(
        43, loss="cross_entropy", tasks=4, query_rows=3, ragged=False, weighted=False, norms=False
    )
    problem.query = problem.query._replace(count=torch.full((4,), 3))
    problem.query.y[1, 2] = problem.model.outputs
    problem.query.count[2] = 4
    loss = problem.call(il.meta_grad, backend="fused").loss
    assert torch.isnan(loss).tolist() == [False, True, True, False]


def test_layer_norm_is_refused_with_the_alternative(emulated):
    problem = random_problem(3, norms=True)
    with pytest.raises(NotImplementedError, match="linear layers and activations alone"):
        problem.call(il.meta_grad, backend="fused")
