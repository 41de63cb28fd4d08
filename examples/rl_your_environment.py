"""Meta-RL on an environment of someone else's: gymnasium's pendulum with unknown gravity and mass.

python examples/rl_your_environment.py [--iterations 20]     needs innerloop[rl]

Replace the three functions below by your own: how to build the environment, how to draw tasks, and
how a task reaches the environment.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium
import numpy as np

from innerloop import rl


def make_env() -> gymnasium.Env:
    """One environment; every lane gets its own."""
    return gymnasium.make("Pendulum-v1")


def sample_tasks(n: int, seed: int) -> list[dict[str, float]]:
    """Tasks may be anything; equal seeds should give equal tasks."""
    random = np.random.default_rng(seed)
    return [
        {"g": float(gravity), "m": float(mass)}
        for gravity, mass in zip(random.uniform(5, 15, n), random.uniform(0.5, 1.5, n), strict=True)
    ]


def set_task(env: Any, task: dict[str, float]) -> None:
    """Called before a lane's episodes begin."""
    env.unwrapped.g, env.unwrapped.m = task["g"], task["m"]


def main(arguments: list[str] | None = None) -> np.ndarray:
    """Trains jointly and with ProMP on as many steps, and adapts both to 20 new pendulums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=20, help="of ProMP; twice that for DRS")
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1, help="worker processes")
    chosen = parser.parse_args(arguments)

    found = []
    with rl.from_gymnasium(
        make_env,
        sample_tasks=sample_tasks,
        set_task=set_task,
        tasks=10,
        rollouts=5,
        horizon=chosen.horizon,
        threads=chosen.threads,
    ) as env:
        test = env.sample_tasks(20, seed=1, split="test")
        for algorithm, times in (("drs-ppo", 2), ("promp", 1)):
            training = rl.train(
                env, algorithm, iterations=times * chosen.iterations, seed=0, learning_rate=1e-2
            )
            returns = rl.evaluate(
                env, training.params, model=training.model, tasks=test, inner_lr=1e-2, seed=2
            )
            before, after = returns.mean(0)
            print(f"{algorithm}: return {before:.1f}, after one update {after:.1f}")
            found.append(returns)
    return np.stack(found)


if __name__ == "__main__":
    main()
