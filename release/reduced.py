"""A pytest plugin (`-p reduced`): of each test, the first case and every tenth after it."""

from __future__ import annotations

import collections

import pytest

EVERY = 10


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the other cases; the order of a test's cases is that of its parameters."""
    seen: collections.Counter[str] = collections.Counter()
    kept, left_out = [], []
    for item in items:
        name = item.nodeid.partition("[")[0]
        (left_out if seen[name] % EVERY else kept).append(item)
        seen[name] += 1
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept
