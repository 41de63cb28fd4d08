"""Settings of every test: one torch thread unless a test says otherwise, repeatable hypothesis
runs."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("innerloop", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("innerloop")


@pytest.fixture(autouse=True)
def one_thread():
    """Small problems only: more threads cost more than they give. Restored for whoever runs
    next."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cpu_settings():
    """The native extension, whose instruction level and strategy are put back after the test."""
    from innerloop import _native

    cpu = _native.native()
    level = cpu.simd_level()
    yield cpu
    cpu.set_simd_level(level)
    cpu.set_strategy("auto")
