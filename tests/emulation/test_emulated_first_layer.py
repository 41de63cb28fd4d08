"""One product of the first weight for all tasks: launches before and after the tasks' kernel, on
emulated blocks against the float64 reference.

Tolerances as for the other operations (test_emulated_operations.py).
"""

import pytest
import torch
from comparing import compare

import innerloop as il
from helpers import assert_close
from innerloop import _native
from innerloop.schedule import H100, DeviceFacts
from problems import LOSSES, implicit_problem

SCHEDULES = (
    ("auto", 0, 0),
    ("resident", 1, 32),
    ("resident", 3, 7),
    ("streamed", 2, 33),
    ("low_rank", 1, 64),
    ("low_rank", 32, 256),
    ("streamed", 1, 1),
)
OMNIGLOT = il.MLP([784, 256, 128, 64, 64, 5], "relu")


def fix(emulated, number, problem=None, one_product=True):
    """Fixes one of the schedules; a free one where the low-rank strategy cannot run the problem."""
    fixed = SCHEDULES[number % len(SCHEDULES)]
    names = problem.options["adapt_params"] if problem else None
    if names is not None and not any("weight" in name for name in names):
        fixed = SCHEDULES[0]
    emulated.fix_schedule(*fixed, one_product=one_product)


def launches(emulated, call):
    """Returns how many kernels a call launches."""
    before = emulated.counters()[0]
    call()
    return emulated.counters()[0] - before


@pytest.mark.parametrize("seed", range(60))
def test_sweep(emulated, seed):
    problem = implicit_problem(seed)
    fix(emulated, seed, problem)
    stepwise = seed % 4 == 0
    assert launches(emulated, lambda: compare(problem, stepwise=stepwise)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4000, 4400))
def test_long_sweep(emulated, seed):
    problem = implicit_problem(seed)
    fix(emulated, seed, problem)
    compare(problem, stepwise=seed % 4 == 0)


@pytest.mark.parametrize("seed", range(70, 78))
def test_float32(emulated, seed):
    problem = implicit_problem(seed, activation="tanh", loss="mse")
    fix(emulated, seed, problem)
    compare(problem, torch.float32, 1e-5)


def wide_problem(seed, **fixed):
    """Returns a problem whose products have several tiles in each direction, and parts."""
    options = {
        "widths": [150, 70, 3], "tasks": 11, "rows": 6, "query_rows": 20, "steps": 2,
        "rates": "leaf", "order": 2, "activation": "tanh", "loss": "mse", "adapt_params": None,
    }  # fmt: skip
    return implicit_problem(seed, **{**options, **fixed})


@pytest.mark.parametrize("strategy", ["streamed", "low_rank"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_several_tiles_and_parts(emulated, strategy, dtype, multiprocessors):
    """Many multiprocessors cut the rows of the gradient into parts, which the sum adds; for one
    the product goes straight to the gradient."""
    emulated.set_device(multiprocessors, 232448, 233472)
    emulated.fix_schedule(strategy, 2, 64, one_product=True)
    problem = wide_problem(80, ragged=True, weighted=True)
    compare(problem, dtype, 1e-5 if dtype is torch.float32 else 1e-11)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_out_of_use_do_not_matter(emulated, loss):
    """Whatever they hold, all launches take them for zero: the same bits come out."""
    emulated.fix_schedule("auto", 0, 0, one_product=True)
    problem = implicit_problem(
        29, ragged=True, weighted=True, tasks=7, steps=2, activation="tanh", loss=loss,
        adapt_params=None, rows=5, query_rows=4, order=2,
    )  # fmt: skip
    compare(problem)
    before = problem.call(il.meta_grad, backend="fused")
    for batch in (problem.support, problem.query):
        unused = torch.arange(batch.x.shape[1]) >= batch.count[:, None]
        batch.x[unused] = float("inf")
        batch.x[batch.weight == 0] = float("nan")
        batch.weight[unused] = float("nan")
    after = problem.call(il.meta_grad, backend="fused")
    torch.testing.assert_close(after.grad, before.grad, rtol=0, atol=0)


@pytest.mark.parametrize(("rows", "query_rows"), [(0, 3), (3, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("adapts", [True, False])
def test_row_counts(emulated, rows, query_rows, adapts):
    emulated.fix_schedule("streamed", 2, 33, one_product=True)
    names = None if adapts else ["1.weight", "1.bias"]
    problem = implicit_problem(
        17, widths=[30, 9, 2], bias=True, rates="scalar", rows=rows, query_rows=query_rows,
        adapt_params=names, steps=2,
    )  # fmt: skip
    compare(problem)


@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 33])
@pytest.mark.parametrize("number", range(len(SCHEDULES)))
def test_task_counts(emulated, tasks, number):
    fix(emulated, number)
    compare(
        implicit_problem(31, tasks=tasks, steps=2, activation="tanh", adapt_params=None, order=2)
    )


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("adapted", [None, [], ["0.bias"], ["1.weight"], ["0.weight"]])
def test_what_the_support_adds_to_the_gradient(emulated, adapted, order, steps):
    """All of it, the part of a frozen body, or nothing: then its cotangents are left unread."""
    fix(emulated, 0)
    problem = implicit_problem(
        37, widths=[40, 10, 3], bias=True, adapt_params=adapted, order=order, steps=steps,
        rates="scalar", activation="softplus", rows=4, query_rows=3,
    )  # fmt: skip
    compare(problem)


def test_only_rows_that_matter_are_multiplied(emulated):
    """Without steps the support has no forward pass; of a frozen network no cotangents either."""
    emulated.fix_schedule("resident", 1, 64, one_product=True)
    copied = {}
    for steps in (0, 1):
        problem = implicit_problem(
            53, widths=[40, 10, 3], tasks=2, rows=5, query_rows=4, adapt_params=[], steps=steps,
            rates="scalar", ragged=False, weighted=False,
        )  # fmt: skip
        before = emulated.counters()[3]
        problem.call(il.meta_grad, backend="fused")
        copied[steps] = emulated.counters()[3] - before
    assert copied[1] - copied[0] == 2 * 5 * 40  # one tile either way


@pytest.mark.parametrize("number", range(len(SCHEDULES)))
def test_losses_alone(emulated, number):
    """Without a gradient one product is left, and there are no sums."""
    fix(emulated, number)
    problem = implicit_problem(41, tasks=5, steps=3, rates="scalar", adapt_params=None)
    left_out = ("task_weight", "order", "stepwise")
    options = {k: v for k, v in problem.options.items() if k not in left_out}
    sides = (problem.params, problem.support, problem.query)

    def loss(backend):
        return il.meta_loss(*sides, model=problem.model, backend=backend, **options)

    assert launches(emulated, lambda: loss("fused")) == 2
    assert_close(loss("fused"), loss("torch"), 1e-11, "loss")


@pytest.mark.parametrize("number", range(len(SCHEDULES)))
def test_equal_bits_at_each_run(emulated, number):
    fix(emulated, number)
    problem = wide_problem(43, tasks=7).to(torch.float32)
    first, second = (problem.call(il.meta_grad, backend="fused") for _ in "ab")
    torch.testing.assert_close(second.grad, first.grad, rtol=0, atol=0)
    torch.testing.assert_close(second.inner_lr_grad, first.inner_lr_grad, rtol=0, atol=0)


def test_bad_labels_and_counts_give_nan_in_their_task_alone(emulated):
    emulated.fix_schedule("auto", 0, 0, one_product=True)
    problem = implicit_problem(
        43, loss="cross_entropy", tasks=4, query_rows=3, ragged=False, weighted=False
    )
    problem.query = problem.query._replace(count=torch.full((4,), 3))
    problem.query.y[1, 2] = problem.model.outputs
    problem.query.count[2] = 4
    loss = problem.call(il.meta_grad, backend="fused").loss
    assert torch.isnan(loss).tolist() == [False, True, True, False]


def test_tensor_cores_multiply_exactly_what_tf32_holds(emulated):
    """Whatever lane holds which element: small integers and means over powers of two leave nothing
    to rounding. The block's own 33 threads have no tensor cores."""
    generator = torch.Generator().manual_seed(0)

    def whole(*shape):
        return torch.randint(-2, 3, shape, generator=generator).float()

    model = il.MLP([70, 64], bias=False)
    params = {"0.weight": whole(64, 70)}
    support, query = ((whole(16, rows, 70), whole(16, rows, 64)) for rows in (1, 8))
    emulated.fix_schedule("streamed", 1, 33, one_product=True)

    def gradient(dtype, **options):
        leaves = {k: v.to(dtype) for k, v in params.items()}
        sides = (tuple(v.to(dtype) for v in side) for side in (support, query))
        rates = {"model": model, "inner_lr": 0.5, "steps": 1, "adapt_params": []}
        return il.meta_grad(leaves, *sides, **rates, **options).grad["0.weight"]

    before = emulated.tensor_instructions()
    found = gradient(torch.float32, backend="fused", allow_tf32=True)
    assert emulated.tensor_instructions() > before
    assert torch.equal(found.double(), gradient(torch.float64, backend="torch"))


@pytest.mark.parametrize("outputs", [8, 33, 70])
def test_meta_gradients_on_tensor_cores_stay_near(emulated, outputs):
    """Tiles of each shape. The bound is that of test_emulated_tf32.py."""
    emulated.fix_schedule("streamed", 1, 33, one_product=True)
    problem = wide_problem(47, widths=[150, outputs, 3], ragged=True, weighted=True)
    before = emulated.tensor_instructions()
    expected = problem.call(il.meta_grad, backend="torch")
    narrow = problem.to(torch.float32)
    actual = narrow.call(il.meta_grad, backend="fused", allow_tf32=True)
    assert emulated.tensor_instructions() > before
    assert_close(actual.loss, expected.loss, 5e-3, "loss")
    assert_close(actual.grad, expected.grad, 5e-3, "grad")
    plain = narrow.call(il.meta_grad, backend="fused")
    assert not torch.equal(plain.grad["0.weight"], actual.grad["0.weight"])


# ---- when ----------------------------------------------------------------------------------------


@pytest.fixture
def planning(module, monkeypatch):
    """The emulation plans in the place of the CUDA module."""
    monkeypatch.setattr(_native, "cuda", lambda: module)
    module.fix_schedule("auto", 0, 0)
    yield
    module.fix_schedule("auto", 0, 0)


def planned(model, **options):
    """Returns the schedule of meta_grad on an H100 without clusters."""
    facts = H100._replace(most_in_cluster=1)
    sizes = {"tasks": 32, "support_rows": 5, "query_rows": 75, "facts": facts}
    return il.plan(model, **{**sizes, **options})


def test_it_is_taken_where_a_launch_costs_less_than_it_saves(planning):
    """A block needs 4000 cycles for 32 * 4000 multiply-adds, of 10 rows here."""
    rows = {"support_rows": 4, "query_rows": 6}
    assert planned(OMNIGLOT).one_product
    assert planned(il.MLP([128, 100, 2]), **rows).one_product
    assert not planned(il.MLP([128, 99, 2]), **rows).one_product
    assert not planned(il.MLP([1, 1000, 1])).one_product  # not implicit
    assert not planned(OMNIGLOT, per_task=True).one_product
    assert not planned(OMNIGLOT, operation="adapt").one_product


def test_it_is_not_taken_where_its_rows_would_fill_the_memory(planning):
    """2 GiB hold 80 * 256 numbers for 26 214 tasks."""
    assert planned(OMNIGLOT, tasks=26_214).one_product
    assert not planned(OMNIGLOT, tasks=26_215).one_product


@pytest.mark.parametrize("strategy", ["streamed", "low_rank"])
def test_it_saves_memory(planning, strategy):
    """Blocks keep neither the inputs nor a sum of the first weight's gradients."""
    with il.fixed_plan(strategy, tasks_per_block=1, threads=128, one_product=False):
        without = planned(OMNIGLOT)
    with il.fixed_plan(strategy, tasks_per_block=1, threads=128):
        found = planned(OMNIGLOT)
    assert (found.one_product, without.one_product) == (True, False)
    inputs, first = 4 * 80 * (785 - 65), 4 * 256 * 785
    sink = 0 if strategy != "streamed" else first
    assert found.workspace_bytes == without.workspace_bytes - inputs - sink
    assert found.scratch_bytes < without.scratch_bytes - 32 * 4 * 256 * 784


def test_the_caller_may_decide(planning):
    small = il.MLP([20, 9, 2])
    rows = {"support_rows": 3, "query_rows": 3}
    assert not planned(small, **rows).one_product
    with il.fixed_plan(one_product=True):
        assert planned(small, **rows).one_product
        assert not planned(il.MLP([1, 9, 2]), **rows).one_product  # its weights are built
        with il.fixed_plan(one_product=False):
            assert not planned(OMNIGLOT).one_product
    assert not planned(small, **rows).one_product


def test_a_network_may_fit_shared_memory_because_of_it(planning):
    model, facts = il.MLP([400, 64, 5]), DeviceFacts(84, 101376, 102400)
    options = {"support_rows": 5, "query_rows": 10, "facts": facts}
    with il.fixed_plan(one_product=False):
        assert planned(model, **options).strategy != "resident"
    assert planned(model, **options).strategy == "resident"
