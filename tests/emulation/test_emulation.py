"""The emulation refuses what would be a race, a stray access or a use of uninitialised memory."""

import pytest


def test_lawful_phases_pass(module):
    module.misuse("none")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("barrier between write and read", "reads what another writes"),
        ("barrier between read and write", "writes what another reads"),
        ("one writer", "writes what another writes"),
        ("initialised", "reads what nothing wrote"),
        ("in bounds", "writes between two arrays"),
        ("writes in phases", "writes outside of a phase"),
        ("barrier after a common read", "writes what another reads"),
    ],
)
def test_broken_rules_are_refused(module, rule, text):
    with pytest.raises(RuntimeError, match=text):
        module.misuse(rule)
