"""`run.py meta-rl`: a study's folder becomes result file, figures and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)


def comparison(control: str, maml: str, difference: float) -> dict[str, Any]:
    """A comparison at three checkpoints, whose standard errors are 2."""
    return {
        "environment": "HopperRandParams",
        "pair": "ppo",
        "control": control,
        "sides": {"drs": "DRS+PPO", "maml": maml},
        "seeds": 5,
        "steps": [0.0, 500_000.0, 1_000_000.0],
        "difference": [[0.0, 0.0], [9.0, difference], [9.0, -difference]],
        "stderr": [[0.0, 0.0], [1.0, 2.0], [1.0, 2.0]],
        "gain": {"drs": [0.1, 0.2], "maml": [5.0, 1.0]},
    }


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study's folder."""
    document = {
        "format": "innerloop.study.meta-rl/1",
        "complete": False,
        "settings": {
            "preset": "small",
            "environments": ["HopperRandParams"],
            "test_tasks": 40,
            "updates": 2,
        },
        "tradeoff": [
            comparison("", "ProMP", 4.5),
            comparison("step-size", "ProMP, step size 0.01", 4.0),
        ],
    }
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(document))
    for name in ("tradeoff", "returns"):
        (folder / f"{name}.svg").write_text(name)
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the folders that are written to."""
    for name in ("benchmarks/results", "docs/images"):
        (tmp_path / "checkout" / name).mkdir(parents=True)
    return tmp_path / "checkout"


def test_results_and_figures_are_taken_over(study: Path, checkout: Path) -> None:
    from tables import pages
    from untimed import meta_rl

    meta_rl.take(study, checkout)
    for name in ("tradeoff", "returns"):
        assert (checkout / f"docs/images/meta_rl_{name}.svg").read_text() == name
    (run,) = pages.newest_runs(checkout / "benchmarks/results")
    verdict = pages.TABLES["meta-rl-verdict"]([run])
    assert "(**unfinished**)" in verdict
    assert "| published settings | 1 | 1 | 0 | 2 |" in verdict
    assert "| control: equal outer step size | 0 | 0 | 2 | 2 |" in verdict
    differences = pages.TABLES["meta-rl-differences"]([run])
    assert "| seeds | 500 k | 1 M |" in differences
    assert "| DRS+PPO − ProMP | 5 | **+4.5 ± 2.0** | **-4.5 ± 2.0** |" in differences
    assert "| DRS+PPO − ProMP, step size 0.01 | 5 | +4.0 ± 2.0 | -4.0 ± 2.0 |" in differences
    gains = pages.TABLES["meta-rl-gains"]([run]).splitlines()
    assert len(gains) == 2 + 3  # DRS+PPO once
    assert "| HopperRandParams | DRS+PPO | 2 | +0.1 ± 0.2 |" in gains
    assert "| HopperRandParams | ProMP | 2 | **+5.0 ± 1.0** |" in gains


def test_other_folders_are_refused(study: Path, checkout: Path) -> None:
    from untimed import meta_rl

    (study / "results.json").write_text('{"format": "innerloop.study.sinusoid/1"}')
    with pytest.raises(SystemExit, match=r"in the format innerloop\.study\.meta-rl/1"):
        meta_rl.take(study, checkout)
    (study / "returns.svg").unlink()
    with pytest.raises(SystemExit, match=r"study lacks returns\.svg"):
        meta_rl.take(study, checkout)
    assert not list((checkout / "docs/images").iterdir())
