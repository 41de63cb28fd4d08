"""What `run.py rl` times: gymnasium's environments have our models and move as ours do, physics is
counted without the calls around it, and both tables are made of what is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from innerloop import rl

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)
pytest.importorskip("mujoco", reason="needs innerloop[rl]")


@pytest.mark.parametrize("name", rl.NAMES[:4])
def test_gymnasium_moves_as_we_do(name: str) -> None:
    from routines import rl as routine

    family = routine.FAMILIES[name]
    with rl.make(name, tasks=2, rollouts=1, horizon=5, threads=1) as env:
        tasks = env.sample_tasks(2, seed=3)
        env.set_tasks(tasks)
        action = 10 * np.random.default_rng(0).uniform(-1, 1, (2, env.action_size))
        assert routine.difference(env, family, tasks[0], action, 0) < routine.ALIKE
        if family.goal is None:  # the parameters of a task matter
            assert routine.difference(env, family, tasks[1], action, 0) > routine.ALIKE


def test_physics_leaves_out_the_calls_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from routines import rl as routine

    now, stepped = 0.0, []

    def step(model: object, data: object, count: int) -> None:
        nonlocal now
        stepped.append(count)
        now += 1.0 + 10.0 * count  # a call costs 1, a step 10

    monkeypatch.setattr(routine.time, "perf_counter", lambda: now)
    monkeypatch.setattr(routine.mujoco, "mj_step", step)
    model = routine.load_model(routine.FAMILIES["HopperRandParams"])
    states = (np.tile(model.qpos0, (3, 2, 1)), np.zeros((3, 2, model.nv)))
    physics = routine.Physics([model] * 2, 4, states, np.zeros((3, 2, model.nu)))
    assert physics.block(1, 0.0) == 3 * 2 * 4 * 10.0
    assert stepped == [0, 4] * 6


def test_tables() -> None:
    from tables import pages

    def spread(seconds: float) -> dict[str, float]:
        return {"median_s": seconds}

    run = {
        "kind": "rl",
        "environment": {"threads": 1, "dtype": "float32"},
        "versions": {"mujoco": "3.3.7", "gymnasium": "1.4.0"},
        "sizes": {"tasks": 20, "rollouts": 10, "horizon": 100},
        "sampling": [
            {
                "family": "HopperRandParams",
                "seconds_per_step": {
                    "step": spread(5e-5),
                    "collect": spread(8e-5),
                    "AsyncVectorEnv, 1": spread(2e-4),
                    "AsyncVectorEnv, 20": spread(3e-4),
                    "SyncVectorEnv, 20": spread(1e-4),
                },
                "best": "SyncVectorEnv, 20",
                "times": {
                    "step": {
                        "AsyncVectorEnv, 1": 4.0,
                        "AsyncVectorEnv, 20": 6.0,
                        "SyncVectorEnv, 20": 2.0,
                    }
                },
                "physics_share": {"step": 0.96, "collect": 0.9},
            }
        ],
        "iterations": [
            {
                "family": "HalfCheetahRandVel",
                "algorithm": "promp",
                "seconds": spread(1.5),
                "sampling_seconds": spread(1.2),
                "learning_seconds": spread(0.3),
            }
        ],
    }
    text = pages.TABLES["rl"]([run])
    assert (
        "| HopperRandParams, 1 thread(s) | 20 | 12.5 | 5 (1) | 10 (20) | 4× | 2× | 96%, 90% |"
        in (text)
    )
    assert "| promp, HalfCheetahRandVel, 1 thread(s) | 1.5 s | 1.2 s | 300 ms |" in text
    assert "MuJoCo 3.3.7, gymnasium 1.4.0" in text
