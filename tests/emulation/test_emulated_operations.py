"""Every CUDA kernel on emulated blocks against the float64 reference, with every option, every
strategy and block sizes that divide nothing.

Tolerances, relative to each leaf's norm: float64 1e-11 and float32 1e-5, as for the CPU kernels
(tests/ops/test_meta_grad.py).
"""

import pytest
import torch
from comparing import compare, compare_without_query_gradient

import innerloop as il
from helpers import assert_close, randn_like
from innerloop import _native
from problems import LOSSES, RATES, random_problem, random_problem_away_from_kinks

SCHEDULES = (
    ("auto", 0, 0),
    ("resident", 1, 32),
    ("resident", 3, 7),
    ("streamed", 2, 33),
    ("streamed", 1, 1),
    ("auto", 32, 256),
)


def schedule(emulated, number):
    """Fixes one of the schedules."""
    emulated.fix_schedule(*SCHEDULES[number % len(SCHEDULES)])


def compare_where_it_fits(emulated, number, problem, **changes):
    """Compares under one of the schedules; streamed, with the same blocks, if shared memory is too
    small for what the schedule demands."""
    schedule(emulated, number)
    try:
        compare(problem, **changes)
    except RuntimeError as refusal:
        if "do not fit this call or the device's memory" not in str(refusal):
            raise
        _, tasks_per_block, threads = SCHEDULES[number % len(SCHEDULES)]
        emulated.fix_schedule("streamed", tasks_per_block, threads)
        compare(problem, **changes)


@pytest.mark.parametrize("seed", range(36))
def test_meta_grad_sweep(emulated, seed):
    schedule(emulated, seed)
    compare(random_problem(seed), stepwise=seed % 4 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2000, 2600))
def test_meta_grad_long_sweep(emulated, seed):
    compare_where_it_fits(emulated, seed, random_problem(seed), stepwise=seed % 4 == 0)


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
    compare(random_problem(17, rows=rows, query_rows=query_rows, activation="silu", steps=2))


@pytest.mark.parametrize("strategy", ["resident", "streamed"])
@pytest.mark.parametrize("widths", [[1, 1], [1, 1, 1], [33, 1, 35, 2], [70, 20, 5], [2, 50, 3]])
def test_widths(emulated, widths, strategy):
    emulated.fix_schedule(strategy, 2, 40)
    problem = random_problem(19, widths=widths, tasks=3, activation="gelu", steps=2, loss="mse")
    compare(problem)


def test_first_layer_that_stays_implicit(emulated):
    """Few rows and many inputs: the products with X_s X_s^T take the place of the weights'."""
    problem = random_problem(
        19,
        widths=[60, 5, 3],
        tasks=5,
        rows=4,
        query_rows=3,
        rates="leaf_steps",
        per_task=0.0,
        adapt_params=None,
        steps=3,
        order=2,
        activation="tanh",
    )
    compare(problem)


LOW_RANK = ((0, 0), (1, 32), (3, 7), (2, 33), (1, 1), (32, 256))


def low_rank_problem(seed, **fixed):
    """Returns a random problem that the low-rank strategy takes."""
    rates = ("number", "scalar", "steps", "leaf", "leaf_steps")[seed % 5]
    # 4 is the size of no leaf, so that rates of 4 steps are not taken for rates per element
    steps = 4 if rates == "leaf_steps" else (1, 2, 3, 5)[seed % 4]
    fixed = {"per_task": 0.0, "rates": rates, "steps": steps, **fixed}
    problem = random_problem(seed, **fixed)
    adapted = problem.options["adapt_params"]
    if adapted is not None and not any("weight" in name for name in adapted):
        return low_rank_problem(seed, **fixed, adapt_params=None)
    return problem


@pytest.mark.parametrize("seed", range(300, 348))
def test_low_rank_sweep(emulated, seed):
    emulated.fix_schedule("low_rank", *LOW_RANK[seed % len(LOW_RANK)])
    compare(low_rank_problem(seed), stepwise=seed % 4 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3000, 3300))
def test_low_rank_long_sweep(emulated, seed):
    emulated.fix_schedule("low_rank", *LOW_RANK[seed % len(LOW_RANK)])
    compare(low_rank_problem(seed), stepwise=seed % 4 == 0)


@pytest.mark.parametrize("seed", range(350, 356))
def test_low_rank_in_float32(emulated, seed):
    emulated.fix_schedule("low_rank", *LOW_RANK[seed % len(LOW_RANK)])
    problem = random_problem_away_from_kinks(seed, rates="leaf", per_task=0.0, adapt_params=None)
    if problem.options["steps"]:
        compare(problem, torch.float32, 1e-5)


@pytest.mark.parametrize("demanded", [False, True])
@pytest.mark.parametrize("shared_bytes", [49152, 200000])
def test_low_rank_in_shared_and_in_global_memory(emulated, monkeypatch, shared_bytes, demanded):
    """Of four layers the first is implicit and the last is built, unless factors are demanded."""
    monkeypatch.setattr(_native, "cuda", lambda: emulated)
    emulated.set_device(3, shared_bytes, shared_bytes)
    emulated.fix_schedule("low_rank" if demanded else "auto", 1, 0)
    problem = low_rank_problem(
        53, widths=[90, 80, 70, 60, 3], tasks=7, rows=4, query_rows=5, steps=2, rates="leaf",
        adapt_params=None, order=2, activation="tanh", loss="mse",
    )  # fmt: skip
    found = il.plan(
        problem.model, tasks=7, support_rows=4, query_rows=5, steps=2, dtype=torch.float64,
        facts=il.schedule.DeviceFacts(3, shared_bytes, shared_bytes),
    )  # fmt: skip
    assert (found.strategy, found.in_shared) == ("low_rank", shared_bytes == 200000)
    compare(problem)


@pytest.mark.parametrize(("rows", "query_rows"), [(0, 3), (3, 0), (0, 0), (1, 1), (13, 9)])
def test_low_rank_row_counts(emulated, rows, query_rows):
    emulated.fix_schedule("low_rank", 2, 33)
    compare(low_rank_problem(57, rows=rows, query_rows=query_rows, activation="silu"))


@pytest.mark.parametrize("options", [{"rates": "element"}, {"per_task": 1.0}, {"steps": 0}])
def test_low_rank_is_refused_where_updates_are_not(emulated, options):
    emulated.fix_schedule("low_rank", 0, 0)
    problem = random_problem(7, **{"rates": "leaf", "per_task": 0.0, "steps": 2, **options})
    with pytest.raises(RuntimeError, match="do not fit this call"):
        problem.call(il.meta_grad, backend="fused")


@pytest.mark.parametrize("strategy", ["streamed", "low_rank"])
@pytest.mark.parametrize(("rows", "threads"), [(9, 32), (20, 64), (35, 61), (70, 128), (17, 256)])
def test_products_through_staging_memory(emulated, strategy, rows, threads):
    """Wide layers: slabs of both operands come through shared memory, tiles end anywhere."""
    emulated.fix_schedule(strategy, 1, threads)
    problem = low_rank_problem(
        67, widths=[37, 67, 45, 2], tasks=2, rows=rows, query_rows=rows + 3, steps=2,
        rates="leaf", adapt_params=None, order=2, activation="tanh",
    )  # fmt: skip
    before = emulated.counters()[3]
    compare(problem)
    if strategy == "streamed" or threads < 256:
        assert emulated.counters()[3] > before


def test_low_rank_losses_alone(emulated):
    """Without a gradient the factors are kept all the same."""
    emulated.fix_schedule("low_rank", 2, 40)
    problem = low_rank_problem(61, tasks=5, steps=3, rates="scalar", activation="gelu")
    options = {k: v for k, v in problem.options.items() if k not in ("task_weight", "stepwise")}
    options.pop("order")
    sides = (problem.params, problem.support, problem.query)

    def loss(backend):
        return il.meta_loss(*sides, model=problem.model, backend=backend, **options)

    assert_close(loss("fused"), loss("torch"), 1e-11, "loss")


def test_descriptions_longer_than_kernel_parameters(emulated):
    """Deep networks: the table of layers and leaves goes to the device in pieces."""
    problem = random_problem(23, widths=[3, 2] * 10, tasks=3, steps=1, activation="tanh")
    before = emulated.counters()[1]
    compare(problem)
    assert emulated.counters()[1] > before + 1


@pytest.mark.parametrize("seed", range(200, 212))
def test_other_operations(emulated, seed):
    schedule(emulated, seed)
    problem = random_problem(seed)
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
    emulated.fix_schedule("auto", 1, 128)
    compare(random_problem(41, tasks=33, activation="tanh", widths=[3, 5, 2]))


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_out_of_use_do_not_matter(emulated, loss):
    problem = random_problem(
        29, ragged=True, weighted=True, tasks=5, steps=2, activation="tanh", loss=loss
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
        43, loss="cross_entropy", tasks=4, query_rows=3, ragged=False, weighted=False
    )
    problem.query = problem.query._replace(count=torch.full((4,), 3))
    problem.query.y[1, 2] = problem.model.outputs
    problem.query.count[2] = 4
    loss = problem.call(il.meta_grad, backend="fused").loss
    assert torch.isnan(loss).tolist() == [False, True, True, False]
