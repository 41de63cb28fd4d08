"""Tests that need an NVIDIA GPU and the CUDA kernels; skipped, with the reason, without them."""

import pytest
import torch

from innerloop import _native


def pytest_collection_modifyitems(items):
    """Marks every test of this folder."""
    for item in items:
        if "tests/cuda/" in item.path.as_posix():
            item.add_marker(pytest.mark.cuda)


@pytest.fixture(autouse=True)
def gpu():
    """Skips without a usable GPU. New tensors hold NaN, so that outputs not written show."""
    reason = _native.cuda_reason()
    if reason:
        pytest.skip(reason)
    torch.use_deterministic_algorithms(True)
    yield torch.device("cuda", torch.cuda.current_device())
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["auto", "resident", "streamed", "low_rank", "cluster"])
def strategy(request):
    """Each strategy in turn; a call that does not fit one is skipped."""
    import innerloop as il

    with il.fixed_plan(request.param):
        yield request.param
