"""Rows that pass in tiles: against the float64 reference, as in test_emulated_operations.py."""

import pytest
import torch
from comparing import compare, compare_runs, compare_without_query_gradient

import innerloop as il
from innerloop import _native
from innerloop.schedule import H100
from problems import LOSSES, RATES_OF_LEAVES, random_problem, random_problem_away_from_kinks

CUTS = ((1, 1, 0), (2, 2, 33), (3, 1, 7), (1, 3, 64), (8, 4, 40), (4, 1, 1))


def demand(emulated, number):
    """Fixes one of the ways to cut."""
    cluster, tasks_per_block, threads = CUTS[number % len(CUTS)]
    emulated.fix_schedule("tiled", tasks_per_block, threads, cluster)


def tiled_problem(seed, **fixed):
    """Returns a random problem with rates that tiles can take."""
    rates = fixed.setdefault("rates", RATES_OF_LEAVES[seed % len(RATES_OF_LEAVES)])
    # 4 is the size of no leaf, so that rates of 4 steps are not taken for rates per element
    fixed.setdefault("steps", 4 if rates == "leaf_steps" else (0, 1, 2, 3, 5)[seed % 5])
    return random_problem(seed, **fixed)


SMALL = (132, 32_000, 32_000, 8)  # shared memory in which few rows fit


@pytest.mark.parametrize("seed", range(6000, 6036))
def test_tiled_sweep(emulated, seed):
    demand(emulated, seed)
    compare(tiled_problem(seed), stepwise=seed % 4 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(7000, 7300))
def test_tiled_long_sweep(emulated, seed):
    demand(emulated, seed)
    rows, query_rows = (seed % 37, seed % 53) if seed % 2 else (seed % 5, seed % 7)
    compare(tiled_problem(seed, rows=rows, query_rows=query_rows), stepwise=seed % 4 == 0)


@pytest.mark.parametrize("seed", range(6100, 6118))
def test_many_tiles(emulated, seed):
    """The blocks of a cluster have several tiles each, or one, or none."""
    emulated.set_device(*SMALL)
    demand(emulated, (0, 1, 2, 5)[seed % 4])
    rows, query_rows = ((40, 65), (17, 8), (9, 130))[seed % 3]
    widths = ((3, 7, 2), (2, 5, 4, 3), (4, 2))[seed % 3]
    problem = tiled_problem(seed, rows=rows, query_rows=query_rows, widths=widths, tasks=4)
    compare(problem, stepwise=seed % 4 == 0)


@pytest.mark.parametrize("number", range(len(CUTS)))
@pytest.mark.parametrize(("rows", "query_rows"), [(0, 3), (3, 0), (0, 0), (1, 1), (13, 9)])
def test_row_counts_in_tiles(emulated, rows, query_rows, number):
    demand(emulated, number)
    compare(tiled_problem(18, rows=rows, query_rows=query_rows, activation="silu", steps=2))


@pytest.mark.parametrize("adapt_params", [[], ["0.weight"], ["1.weight", "2.bias"]])
@pytest.mark.parametrize("order", [1, 2])
def test_leaves_that_do_not_adapt_in_tiles(emulated, order, adapt_params):
    emulated.set_device(*SMALL)
    demand(emulated, 1)
    compare(
        tiled_problem(
            5, widths=[3, 5, 4, 2], adapt_params=adapt_params, order=order, steps=2, tasks=3,
            rates="steps", rows=20, query_rows=9, activation="tanh", bias=True, per_task=0.0,
        )
    )  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_in_tiles(emulated, loss):
    emulated.set_device(*SMALL)
    demand(emulated, len(loss) % 3)
    compare(
        tiled_problem(
            7, activation="tanh", loss=loss, order=2, steps=2, tasks=3, rows=20, query_rows=30,
            widths=[3, 6, 4], ragged=True, weighted=True,
        )
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6200, 6206))
def test_tiles_in_float32(emulated, seed):
    demand(emulated, seed)
    fixed = {"widths": [3, 16, 8, 2], "rates": "leaf", "steps": 2, "rows": 20}
    compare(random_problem_away_from_kinks(seed, **fixed), torch.float32, 1e-5)


@pytest.mark.parametrize("seed", range(6300, 6306))
def test_adapt_and_losses_alone_in_tiles(emulated, seed):
    emulated.set_device(*SMALL)
    demand(emulated, seed)
    problem = tiled_problem(seed, widths=[3, 5, 2], rows=30, query_rows=19)
    compare_without_query_gradient(problem, stepwise=seed % 2 == 0)


def test_equal_bits_at_each_run_of_tiles(emulated):
    demand(emulated, 2)
    compare_runs(tiled_problem(31, tasks=9, steps=2, rows=50, activation="tanh"))


def test_bad_labels_and_counts_in_tiles_give_nan_in_their_task_alone(emulated):
    demand(emulated, 1)
    problem = tiled_problem(
        43, loss="cross_entropy", tasks=4, query_rows=30, ragged=False, weighted=False
    )
    problem.query = problem.query._replace(count=torch.full((4,), 30))
    problem.query.y[1, 21] = problem.model.outputs
    problem.query.count[2] = 31
    loss = problem.call(il.meta_grad, backend="fused").loss
    assert torch.isnan(loss).tolist() == [False, True, True, False]


@pytest.mark.parametrize("rates", ["element", "element_steps"])
def test_rates_for_each_element_are_refused(emulated, rates):
    demand(emulated, 0)
    with pytest.raises(RuntimeError, match="do not fit this call"):
        tiled_problem(7, rates=rates, steps=2).call(il.meta_grad, backend="fused")


def test_many_rows_of_a_small_network_pass_in_tiles(module, monkeypatch):
    monkeypatch.setattr(_native, "cuda", lambda: module)
    module.fix_schedule("auto", 0, 0)
    sizes = {"tasks": 40, "support_rows": 4000, "query_rows": 4000}
    policy = il.MLP([17, 64, 64, 6], "tanh")
    found = il.plan(policy, **sizes, facts=H100)
    assert found.strategy == "tiled"
    assert found.tile_rows in (32, 64, 128)
    assert found.cluster > 1
    assert 100 < found.blocks == 40 * found.cluster
    assert found.workspace_bytes <= H100.shared_per_block
    alone = il.plan(policy, **sizes, facts=H100._replace(most_in_cluster=1))
    assert (alone.strategy, alone.cluster, alone.blocks) == ("tiled", 1, 40)
    more = {**sizes, "support_rows": 40_000}
    assert il.plan(policy, **more, facts=H100).workspace_bytes == found.workspace_bytes
    assert il.plan(policy, **sizes, operation="hvp", facts=H100).strategy == "streamed"
