"""Tests that need an NVIDIA GPU and the CUDA kernels; skipped, with the reason, without them."""

import os

import pytest
import torch

from innerloop import _native


def pytest_collection_modifyitems(items):
    """Marks every test of this folder. Warnings of torch and its compilers, of which there are more
    on a GPU, are no errors here; ours are."""
    for item in items:
        if "tests/cuda/" in item.path.as_posix():
            item.add_marker(pytest.mark.cuda)
            filters = ("default", "error::innerloop.FallbackWarning")
            item.add_marker(pytest.mark.filterwarnings(*filters))


@pytest.fixture(autouse=True)
def company(request):
    """Keeps a test that is marked `alone` from running beside others."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1 and request.node.get_closest_marker("alone"):
        pytest.skip("fills the GPU's memory: run it without others (-m alone)")


@pytest.fixture(autouse=True)
def gpu():
    """Skips without a usable GPU. New tensors hold NaN, so that outputs not written show."""
    reason = _native.cuda_reason()
    if reason:
        pytest.skip(reason)
    torch.use_deterministic_algorithms(True)
    yield torch.device("cuda", torch.cuda.current_device())
    torch.use_deterministic_algorithms(False)
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:  # no later test of this process could pass
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)  # xdist says which test it was and starts another worker
        pytest.exit(f"the GPU takes no more work from this process: {error}")


SCHEDULES = {"free": {}, "3 x 40": {"tasks_per_block": 3, "threads": 40}, "32": {"threads": 32}}


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def schedule(request):
    """Ways to cut calls into blocks; a call that does not fit one is skipped."""
    import innerloop as il

    with il.fixed_plan(**request.param):
        yield request.param
