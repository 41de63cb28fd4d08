"""Every public function of the bounds says what it rests on and where it comes from."""

import inspect
import re

import pytest

from innerloop import bounds
from innerloop.bounds import constants, linear, nonconvex

FUNCTIONS = [
    function
    for module in (bounds, linear, nonconvex, constants)
    for function in (getattr(module, name) for name in module.__all__)
    if inspect.isfunction(function)
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__qualname__)
def test_assumptions_checks_and_source_are_named(function):
    text = inspect.getdoc(function)
    assert re.search(r"^Assumes:", text, re.MULTILINE)
    assert re.search(r"hecked", text.partition("Assumes:")[2])
    if function not in (constants.draw_tasks, nonconvex.elasticities):  # tools, no results
        assert re.search(r"(Results? \d|[Dd]efinitions? D)", text)
