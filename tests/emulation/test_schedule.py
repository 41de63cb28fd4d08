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
WITHOUT_CLUSTERS = H100._replace(most_in_cluster=1)
WIDE = il.MLP([64, 256, 256, 10])


@pytest.fixture(autouse=True)
def planning(module, monkeypatch):
    """The emulation plans in the place of the CUDA module: the code is the same."""
    monkeypatch.setattr(_native, "cuda", lambda: module)
    module.fix_schedule("auto", 0, 0)
    yield
    module.fix_schedule("auto", 0, 0)


def planned(model, tasks, rows, facts=H100, **options):
    """Returns the schedule of meta_grad, with as many query rows as support rows."""
    return il.plan(model, tasks=tasks, support_rows=rows, query_rows=rows, facts=facts, **options)


@pytest.mark.parametrize("tasks", [25, 1000, 16384])
def test_small_networks_are_resident(tasks):
    found = planned(SINUSOID, tasks, 10)
    assert found.strategy == "resident"
    assert found.workspace_bytes <= H100.shared_per_block
    assert found.blocks <= -(-tasks // found.tasks_per_block)


def test_few_tasks_have_a_block_each():
    assert planned(SINUSOID, 25, 10).tasks_per_block == 1
    assert planned(SINUSOID, 25, 10).blocks == 25


def test_tiny_tasks_share_a_block():
    found = planned(LINEAR, 100_000, 16)
    assert found.strategy == "resident"
    assert found.tasks_per_block > 1


def test_what_does_not_fit_shared_memory_is_streamed():
    found = planned(OMNIGLOT, 32, 900)
    assert (found.strategy, found.in_shared) == ("streamed", False)
    assert found.scratch_bytes >= found.blocks * found.workspace_bytes
    assert planned(OMNIGLOT, 32, 900, steps=5).workspace_bytes > found.workspace_bytes


def test_few_rows_of_wide_layers_are_kept_as_factors():
    found = planned(OMNIGLOT, 32, 5, WITHOUT_CLUSTERS)
    assert (found.strategy, found.in_shared) == ("low_rank", True)
    assert found.workspace_bytes <= H100.shared_per_block
    more = planned(OMNIGLOT, 32, 25, WITHOUT_CLUSTERS)
    assert (more.strategy, more.in_shared) == ("low_rank", False)
    with il.fixed_plan("streamed", tasks_per_block=1, threads=more.threads):
        assert planned(OMNIGLOT, 32, 25).workspace_bytes > 1.5 * more.workspace_bytes


@pytest.mark.parametrize("options", [{"operation": "adapt"}, {"operation": "hvp"}])
def test_adapted_weights_that_are_a_result_are_built(options):
    assert planned(OMNIGLOT, 32, 5, WITHOUT_CLUSTERS, **options).strategy == "streamed"
    assert planned(OMNIGLOT, 32, 5, WITHOUT_CLUSTERS, per_task=True).strategy == "streamed"


def test_parameters_that_exceed_one_block_are_spread_over_a_cluster():
    found = planned(WIDE, 64, 10)
    assert found.strategy == "cluster"
    assert found.in_shared
    assert found.workspace_bytes <= H100.shared_per_block < found.cluster * found.workspace_bytes
    assert found.blocks % found.cluster == 0
    assert planned(WIDE, 64, 10, WITHOUT_CLUSTERS).strategy == "low_rank"
    assert planned(WIDE, 64, 10, operation="adapt").strategy == "cluster"
    assert planned(il.MLP([64, 257, 257, 10]), 64, 10).strategy == "low_rank"


@pytest.mark.parametrize("cluster", [2, 4, 8])
def test_a_block_of_a_cluster_keeps_its_share_of_the_weights(cluster):
    with il.fixed_plan("streamed", tasks_per_block=1, threads=256):
        alone = planned(WIDE, 64, 5).workspace_bytes
    with il.fixed_plan("cluster", cluster=cluster):
        found = planned(WIDE, 64, 5)
        assert found.cluster == cluster
        assert found.workspace_bytes < alone / cluster
        assert found.far_steps == 0
        assert planned(WIDE, 64, 5, steps=cluster).far_steps > 0
        with pytest.raises(RuntimeError, match="do not fit"):
            planned(WIDE, 64, 400)


@pytest.mark.parametrize(("model", "cluster"), [(il.MLP([3, 12, 2]), 8), (WIDE, 3), (LINEAR, 7)])
def test_a_cluster_must_divide_the_widths(model, cluster):
    with il.fixed_plan("cluster", cluster=cluster), pytest.raises(RuntimeError, match="not fit"):
        planned(model, 8, 5)


def test_a_cluster_larger_than_the_gpu_allows_is_refused():
    with il.fixed_plan("cluster", cluster=4):
        assert planned(WIDE, 8, 5).cluster == 4
        with pytest.raises(RuntimeError, match="do not fit"):
            planned(WIDE, 8, 5, H100._replace(most_in_cluster=2))


@pytest.mark.parametrize("operation", ["adapt", "hvp", "loss_and_grad", "predict"])
def test_a_strategy_that_cannot_run_a_call_raises(operation):
    with il.fixed_plan("low_rank"), pytest.raises(RuntimeError, match="do not fit this call"):
        planned(OMNIGLOT, 32, 5, operation=operation)


def test_the_same_call_may_fit_one_gpu_and_not_another():
    wide = il.MLP([8, 90, 90, 4])
    assert planned(wide, 64, 10).strategy == "resident"
    assert planned(wide, 64, 10, SMALL).strategy == "low_rank"
    assert planned(wide, 64, 60, SMALL).strategy == "streamed"


def test_float64_takes_twice_the_memory():
    with il.fixed_plan("resident", tasks_per_block=1, threads=64):
        single, double = (
            planned(SINUSOID, 5, 10, dtype=dtype) for dtype in (torch.float32, torch.float64)
        )
    assert double.workspace_bytes == 2 * single.workspace_bytes


def test_memory_grows_by_a_constant_for_each_step():
    with il.fixed_plan("streamed", tasks_per_block=1, threads=64):
        sizes = [planned(SINUSOID, 5, 10, steps=s).workspace_bytes for s in (1, 2, 3, 4)]
    assert sizes[3] - sizes[2] == sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0


@pytest.mark.parametrize("operation", ["meta_loss", "adapt", "hvp", "loss_and_grad", "predict"])
def test_every_operation_can_be_planned(operation):
    found = planned(SINUSOID, 100, 10, operation=operation)
    assert found.strategy == "resident"
    assert found.workspace_bytes < planned(SINUSOID, 100, 10, steps=5).workspace_bytes


def test_fixed_parts_are_kept_and_given_back():
    with il.fixed_plan("streamed", tasks_per_block=5, threads=96):
        with il.fixed_plan("resident"):
            assert planned(SINUSOID, 100, 10).strategy == "resident"
        found = planned(SINUSOID, 100, 10)
    assert (found.strategy, found.tasks_per_block, found.threads) == ("streamed", 5, 96)
    assert planned(SINUSOID, 100, 10).strategy == "resident"


def test_a_fixed_plan_that_does_not_fit_raises():
    with il.fixed_plan("resident"), pytest.raises(RuntimeError, match="do not fit"):
        planned(OMNIGLOT, 32, 25)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"strategy": "cached"},
            "strategy must be auto, resident, streamed, low_rank, cluster or t",
        ),
        ({"tasks_per_block": 33}, "tasks_per_block must lie in"),
        ({"threads": 257}, "threads must lie in"),
        ({"cluster": 9}, "cluster must lie in"),
    ],
)
def test_bad_fixed_parts_raise(arguments, text):
    with pytest.raises(ValueError, match=text), il.fixed_plan(**arguments):
        pass


@pytest.mark.parametrize("model", [SINUSOID, OMNIGLOT, WIDE, LINEAR], ids="sowl")
def test_a_schedule_that_is_remembered_is_the_calls_own(model):
    """Were a part of the call not told apart, the order of calls would show."""
    changes = (
        {}, {"steps": 2}, {"order": 1}, {"rows": 7}, {"tasks": 33}, {"facts": SMALL},
        {"facts": WITHOUT_CLUSTERS}, {"loss": "cross_entropy"}, {"dtype": torch.float64},
        {"per_task": True}, {"operation": "meta_loss"}, {"operation": "adapt"},
    )  # fmt: skip
    calls = [{"tasks": 32, "rows": 5, **change} for change in changes]
    found = [planned(model, **call) for call in calls]
    assert len(set(found)) > 6
    for steps in range(300):  # more calls than are remembered
        planned(SINUSOID, 1, 10, steps=steps)
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

    with pytest.MonkeyPatch.context() as patch, il.fixed_plan("streamed"):
        patch.setattr(torch, "full", counted)
        il.meta_grad(
            params, side, side, model=problem_model, inner_lr=0.1, steps=2, backend="fused"
        )
        expected = planned(problem_model, 6, 4, steps=2, dtype=torch.float64)
    assert (expected.scratch_bytes,) in sizes
