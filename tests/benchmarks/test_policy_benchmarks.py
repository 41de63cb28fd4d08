"""What `run.py policies` times: that innerloop and autograd as one writes it agree in float64, and
the table."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)


@pytest.fixture(name="problem")
def small_problem():
    """Three tasks of 40 rows in float64."""
    from cases.policies import make_problem

    return make_problem(3, 40, 0)


def test_operations_agree_with_autograd(problem) -> None:
    from routines import policies

    ours = policies.operations(policies.innerloop_rival(problem))
    theirs = policies.operations(policies.autograd_rival(problem))
    assert list(ours) == list(theirs)
    for name, call in ours.items():
        expected = policies.flat(theirs[name]())
        assert policies.relative(policies.flat(call()), expected) < 1e-10, name
        assert policies.relative(policies.flat(call()), expected) < 1e-10, f"{name}, again"


def test_outer_steps_agree_with_autograd(problem) -> None:
    from routines import policies

    ours, theirs = (
        policies.outer_step(problem, rival(problem))()
        for rival in (policies.innerloop_rival, policies.autograd_rival)
    )
    assert ours.accepted
    assert ours.tried == theirs.tried
    assert ours.kl == pytest.approx(theirs.kl, rel=1e-6)
    assert policies.relative(policies.flat(ours.params), policies.flat(theirs.params)) < 1e-8


def test_table_shows_every_rival_or_why_not() -> None:
    from tables import routines

    seconds = {"median_s": 0.002, "times": {"median": 3.0, "q1": 2.5, "q3": 3.5}}
    row = {"operation": "gradient", "tasks": 2, "rows": 5}
    run = {
        "kind": "policies",
        "environment": {"threads": 2},
        "rows": [{**row, "rivals": {"innerloop": seconds, "autograd": seconds}}],
    }
    run["rows"].append({**row, "rivals": {"innerloop": seconds, "autograd": {"failed": "why"}}})
    text = routines.policies([run])
    assert "| gradient, T=2, N=5, 2 thread(s) | 2 ms | 2 ms | 3× | - | - |" in text
    assert "| why | - | - | - |" in text
