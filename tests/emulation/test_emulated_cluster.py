"""Several blocks share a task, each with a part of every layer: against the float64 reference, as
in test_emulated_operations.py."""

import pytest
import torch
from comparing import compare, compare_runs, compare_without_query_gradient

import innerloop as il
from innerloop import _native
from innerloop.schedule import H100
from problems import LOSSES, cluster_problem, random_problem_away_from_kinks

CLUSTERS = ((2, 1, 0), (4, 2, 33), (8, 1, 7), (2, 3, 64), (8, 4, 40), (4, 1, 1))


def demand(emulated, number):
    """Fixes one of the clusters."""
    cluster, tasks_per_block, threads = CLUSTERS[number % len(CLUSTERS)]
    emulated.fix_schedule("cluster", tasks_per_block, threads, cluster)


@pytest.mark.parametrize("seed", range(4000, 4036))
def test_cluster_sweep(emulated, seed):
    demand(emulated, seed)
    compare(cluster_problem(seed), stepwise=seed % 4 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5000, 5300))
def test_cluster_long_sweep(emulated, seed):
    demand(emulated, seed)
    compare(cluster_problem(seed), stepwise=seed % 4 == 0)


@pytest.mark.parametrize("seed", range(4100, 4106))
def test_cluster_in_float32(emulated, seed):
    demand(emulated, seed)
    fixed = {"widths": [3, 16, 8, 2], "rates": "leaf", "steps": 2}
    compare(random_problem_away_from_kinks(seed, **fixed), torch.float32, 1e-5)


@pytest.mark.parametrize("adapt_params", [[], ["0.weight"], ["1.weight", "2.bias"]])
@pytest.mark.parametrize("order", [1, 2])
def test_leaves_that_do_not_adapt_in_a_cluster(emulated, order, adapt_params):
    demand(emulated, 1)
    compare(
        cluster_problem(
            5, widths=[3, 8, 4, 2], adapt_params=adapt_params, order=order, steps=2, tasks=3,
            rates="steps", activation="tanh", bias=True, per_task=0.0,
        )
    )  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_in_a_cluster(emulated, loss):
    demand(emulated, len(loss))
    compare(cluster_problem(7, activation="tanh", loss=loss, order=2, steps=2, tasks=3))


@pytest.mark.parametrize("number", range(len(CLUSTERS)))
@pytest.mark.parametrize(
    ("rows", "query_rows"), [(0, 3), (3, 0), (0, 0), (1, 1), (13, 9), (65, 40)]
)
def test_row_counts_in_each_cluster(emulated, rows, query_rows, number):
    demand(emulated, number)
    emulated.set_device(132, 500_000, 500_000, 8)
    compare(cluster_problem(18, rows=rows, query_rows=query_rows, activation="silu", steps=2))


@pytest.mark.parametrize("number", range(len(CLUSTERS)))
def test_implicit_first_layer_in_a_cluster(emulated, number):
    demand(emulated, number)
    problem = cluster_problem(
        19, widths=[60, 24, 3], tasks=5, rows=4, query_rows=3, rates="leaf", per_task=0.0,
        adapt_params=None, steps=3, order=2, activation="tanh",
    )  # fmt: skip
    compare(problem)


@pytest.mark.parametrize("one_product", [False, True])
@pytest.mark.parametrize("seed", range(4300, 4312))
def test_first_layer_for_all_tasks_at_once_in_a_cluster(emulated, seed, one_product):
    cluster, tasks_per_block, threads = CLUSTERS[seed % len(CLUSTERS)]
    emulated.fix_schedule("cluster", tasks_per_block, threads, cluster, one_product)
    problem = cluster_problem(
        seed, widths=[[40, 8, 2], [80, 16, 24, 3], [32, 2]][seed % 3], rows=3, query_rows=4,
        rates="leaf", steps=3, per_task=0.0, activation="tanh",
    )  # fmt: skip
    compare(problem, stepwise=seed % 4 == 0)


@pytest.mark.parametrize("far_steps", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(4400, 4404))
def test_parameters_of_the_first_steps_in_global_memory(emulated, monkeypatch, seed, far_steps):
    """The less shared memory a block has, the more steps are spared."""
    room = (32_000, 30_000, 26_000, 24_000)[far_steps]
    monkeypatch.setattr(_native, "cuda", lambda: emulated)
    emulated.set_device(132, room, room, 8)
    emulated.fix_schedule("cluster", 1, 32, 2)
    problem = cluster_problem(
        seed, widths=[3, 24, 24, 2], rows=3, query_rows=4, rates="leaf_steps", activation="tanh",
        order=2 - seed % 2,
    )  # fmt: skip
    compare(problem, stepwise=seed % 2 == 0)
    found = il.plan(
        problem.model, tasks=3, support_rows=3, query_rows=4, steps=4, dtype=torch.float64,
        facts=H100._replace(shared_per_block=room),
    )  # fmt: skip
    assert found.far_steps == far_steps
    assert found.workspace_bytes <= room


@pytest.mark.parametrize("widths", [[8, 1], [3, 8, 1], [40, 8, 40, 2], [1, 16, 8, 8, 8, 5]])
def test_widths_in_a_cluster(emulated, widths):
    demand(emulated, 2)
    compare(cluster_problem(23, widths=widths, tasks=2, activation="gelu", steps=2, loss="mse"))


@pytest.mark.parametrize("seed", range(4200, 4206))
def test_adapt_and_losses_alone_in_a_cluster(emulated, seed):
    demand(emulated, seed)
    problem = cluster_problem(seed)
    compare_without_query_gradient(problem, stepwise=seed % 2 == 0)


@pytest.mark.parametrize("multiprocessors", [1, 8, 32])
def test_any_number_of_clusters(emulated, multiprocessors):
    """Few multiprocessors: a cluster works on many groups and keeps their sum."""
    emulated.set_device(multiprocessors, 232448, 233472, 8)
    emulated.fix_schedule("cluster", 1, 32, 4)
    compare(cluster_problem(27, tasks=13, activation="tanh", widths=[3, 8, 2]))


def test_equal_bits_at_each_run_and_in_each_block(emulated):
    demand(emulated, 1)
    compare_runs(cluster_problem(31, tasks=9, steps=2, activation="tanh"))


@pytest.mark.parametrize("rates", ["element", "element_steps"])
def test_rates_for_each_element_are_refused(emulated, rates):
    demand(emulated, 0)
    with pytest.raises(RuntimeError, match="do not fit this call"):
        cluster_problem(7, rates=rates, steps=2).call(il.meta_grad, backend="fused")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("none", None),
        ("cluster barrier between write and read", "reads what another block writes"),
        ("cluster barrier between read and write", "writes what another block reads"),
        ("peers are read only", "writes to another block"),
        ("all blocks meet", "a block waits for one that has ended"),
    ],
)
def test_rules_of_clusters(module, rule, text):
    if text is None:
        module.misuse_cluster(rule)
        return
    with pytest.raises(RuntimeError, match=text):
        module.misuse_cluster(rule)
