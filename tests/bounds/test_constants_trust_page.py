"""docs/theory/trust.md names the standing of every public number of `innerloop.bounds`."""

import re
from pathlib import Path

import pytest

from innerloop.bounds import constants, linear, nonconvex

PAGE = Path(__file__).parents[2] / "docs" / "theory" / "trust.md"
NAMED = set(re.findall(r"`([A-Za-z_0-9]+)`", PAGE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", [linear, nonconvex, constants], ids=lambda m: m.__name__)
def test_every_public_function_has_a_standing(module):
    functions = {name for name in module.__all__ if name[0].islower()}
    assert sorted(functions - NAMED) == []
