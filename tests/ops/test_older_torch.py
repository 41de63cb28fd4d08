"""Torch before 2.10 has no table that says at once what a tensor is: the same tests without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WITHOUT_TABLE = """
import sys, pytest, torch
if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    del torch.Tensor.__dlpack_c_exchange_api__
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    "chosen",
    [("test_tensor_key.py",), ("test_tensor_kinds.py", "-k", "meta_grad")],
    ids=lambda chosen: chosen[0],
)
def test_attributes_say_the_same(chosen):
    file, *rest = chosen
    command = [sys.executable, "-c", WITHOUT_TABLE, "-q", "-p", "no:cacheprovider", HERE / file]
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([*command, *rest], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
