"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import innerloop

SKIPPED = ("innerloop.compare", "innerloop.cli", "innerloop.__main__", "innerloop._cpu")
MODULES = [
    "innerloop",
    *(
        info.name
        for info in pkgutil.walk_packages(innerloop.__path__, "innerloop.")
        if not info.name.startswith(SKIPPED)
    ),
]


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    if name.startswith("innerloop.rl"):
        pytest.importorskip("mujoco", reason="needs innerloop[rl]")
    given = {"torch": torch, "nn": torch.nn}
    result = doctest.testmod(importlib.import_module(name), extraglobs=given)
    assert result.failed == 0
