"""How calls are cut into blocks: what the model of cost chooses, and what the caller may fix."""

import pytest
import torch

import innerloop as il
from innerloop import _native
from innerloop.schedule import H100, DeviceFacts

SINUSOID = il.MLP([1, 40, 40, 1], "relu")
OMNIGLOT = il.MLP([784, 256, 128, 64, 64, 5], "relu")
LINEAR = il.MLP([16, 1], bias=False)
SMALL = DeviceFacts(46, 65536, 65536)
WIDE = il.MLP([64, 256, 256, 10])


@pytest.fixture(autouse=True)
def planning(module, monkeypatch):
    """The emulation plans in the place of the CUDA module: the code is the same."""
    monkeypatch.setattr(_native, "cuda", lambda: module)
    module.fix_schedule(0, 0)
    yield
    module.fix_schedule(0, 0)


def planned(model, tasks, rows, facts=H100, **options):
    """Returns the schedule of meta_grad, with as many query rows as support rows."""
    return il.plan(model, tasks=tasks, support_rows=rows, query_rows=rows, facts=facts, **options)


@pytest.mark.parametrize("tasks", [25, 1000, 16384])
def test_small_networks_fit_a_block(tasks):
    found = planned(SINUSOID, tasks, 10)
    assert found.workspace_bytes <= H100.shared_per_block
    assert found.blocks <= -(-tasks // found.tasks_per_block)


def test_few_tasks_have_a_block_each():
    assert planned(SINUSOID, 25, 10).tasks_per_block == 1
    assert planned(SINUSOID, 25, 10).blocks == 25


def test_tiny_tasks_share_a_block():
    assert planned(LINEAR, 100_000, 16).tasks_per_block > 1


@pytest.mark.parametrize(
    "operation", ["meta_grad", "meta_loss", "adapt", "hvp", "loss_and_grad", "predict"]
)
def test_what_does_not_fit_a_block_is_refused(operation):
    with pytest.raises(NotImplementedError, match=r'do not fit .* use backend="torch"'):
        planned(OMNIGLOT, 32, 900, operation=operation)


def test_a_fused_call_that_does_not_fit_a_block_is_refused(emulated):
    params = WIDE.init(dtype=torch.float64)
    side = torch.zeros(2, 5, 64).double(), torch.zeros(2, 5, 10).double()
    options = {"model": WIDE, "inner_lr": 0.1, "steps": 1}
    with pytest.raises(NotImplementedError, match=r'do not fit .* use backend="torch"'):
        il.meta_grad(params, side, side, backend="fused", **options)
    assert il.meta_grad(params, side, side, backend="torch", **options).backend == "torch"


def test_the_same_call_may_fit_one_gpu_and_not_another():
    model = il.MLP([8, 90, 90, 4])
    assert planned(model, 64, 10).workspace_bytes > SMALL.shared_per_block
    with pytest.raises(NotImplementedError, match="do not fit"):
        planned(model, 64, 10, SMALL)


def test_sizes_that_32_bits_do_not_hold_are_refused():
    with pytest.raises(NotImplementedError, match=r'exceed 2\^25.*use backend="torch"'):
        planned(LINEAR, 1, 2**26)


def test_float64_takes_twice_the_memory():
    with il.fixed_plan(tasks_per_block=1, threads=64):
        single, double = (
            planned(SINUSOID, 5, 10, dtype=dtype) for dtype in (torch.float32, torch.float64)
        )
    assert double.workspace_bytes == 2 * single.workspace_bytes


def test_memory_grows_by_a_constant_for_each_step():
    with il.fixed_plan(tasks_per_block=1, threads=64):
        sizes = [planned(SINUSOID, 5, 10, steps=s).workspace_bytes for s in (1, 2, 3, 4)]
    assert sizes[3] - sizes[2] == sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0


@pytest.mark.parametrize("operation", ["meta_loss", "adapt", "hvp", "loss_and_grad", "predict"])
def test_every_operation_can_be_planned(operation):
    found = planned(SINUSOID, 100, 10, operation=operation)
    assert found.workspace_bytes < planned(SINUSOID, 100, 10, steps=5).workspace_bytes


def test_fixed_parts_are_kept_and_given_back():
    free = planned(LINEAR, 100, 10)
    with il.fixed_plan(tasks_per_block=5, threads=96):
        with il.fixed_plan(threads=33):
            assert planned(LINEAR, 100, 10).threads == 33
        found = planned(LINEAR, 100, 10)
    assert (found.tasks_per_block, found.threads) == (5, 96)
    assert planned(LINEAR, 100, 10) == free


def test_a_fixed_plan_that_does_not_fit_raises():
    model = il.MLP([8, 90, 90, 4])
    with il.fixed_plan(tasks_per_block=32), pytest.raises(RuntimeError, match="do not fit"):
        planned(model, 64, 10)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"tasks_per_block": 33}, "tasks_per_block must lie in"),
        ({"threads": 257}, "threads must lie in"),
    ],
)
def test_bad_fixed_parts_raise(arguments, text):
    with pytest.raises(ValueError, match=text), il.fixed_plan(**arguments):
        pass


@pytest.mark.parametrize("model", [SINUSOID, LINEAR], ids=["sinusoid", "linear"])
def test_a_schedule_that_is_remembered_is_the_calls_own(model):
    """Were a part of the call not told apart, the order of calls would show."""
    changes = (
        {}, {"steps": 2}, {"order": 1}, {"rows": 7}, {"tasks": 33}, {"facts": SMALL},
        {"loss": "cross_entropy"}, {"dtype": torch.float64},
        {"per_task": True}, {"operation": "meta_loss"}, {"operation": "adapt"},
    )  # fmt: skip
    calls = [{"tasks": 32, "rows": 5, **change} for change in changes]
    found = [planned(model, **call) for call in calls]
    assert len(set(found)) > 6
    for tasks in range(300):  # more calls than are remembered
        planned(SINUSOID, tasks, 9)
    again = [planned(model, **call) for call in reversed(calls)]
    assert again == found[::-1]


def test_unknown_names_raise():
    with pytest.raises(ValueError, match="plan: operation must be one of"):
        planned(SINUSOID, 1, 1, operation="descend")
    with pytest.raises(ValueError, match="plan: loss must be one of"):
        planned(SINUSOID, 1, 1, loss="mae")


def test_scheduling_is_the_calls_own(emulated):
    """What plan says is what a call allocates."""
    sizes = []
    problem_model = il.MLP([3, 7, 2], "tanh")
    params = problem_model.init(dtype=torch.float64)
    side = torch.ones(6, 4, 3).double(), torch.ones(6, 4, 2).double()
    original = torch.full

    def counted(size, *args, **kwargs):
        sizes.append(size)
        return original(size, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "full", counted)
        il.meta_grad(
            params, side, side, model=problem_model, inner_lr=0.1, steps=2, backend="fused"
        )
        expected = planned(problem_model, 6, 4, steps=2, dtype=torch.float64)
    assert (expected.scratch_bytes,) in sizes
