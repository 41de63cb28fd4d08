"""Each algorithm learns: gain in return on 40 fixed test tasks of HalfCheetahRandVel, paired, at
10 tasks x 5 rollouts x 100 steps and 150 000 control steps. A policy that stands still gets -150.

Bounds are three standard errors below the mean of five seeds, for the mean of three: found 51.4
(standard deviation 3.5) for DRS+PPO, whose bound is a round 35; 25.8 (6.5) for ProMP and 24.5 (4.3)
for TRPO-MAML after one update.
"""

import pytest
import torch

from innerloop import rl

pytest.importorskip("mujoco", reason="needs innerloop[rl]")

# algorithm: iterations, settings, updates before the return is taken, least gain. ProMP's published
# rate (1e-4) and TRPO-MAML's bound (0.001) are made for runs 50 times as long
CASES = {
    "drs-ppo": (30, {}, 0, 35.0),
    "promp": (15, {"learning_rate": 1e-2}, 1, 14.0),
    "trpo-maml": (15, {"max_kl": 0.05}, 1, 17.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", CASES)
def test_gain(algorithm):
    iterations, settings, updates, least = CASES[algorithm]
    gains = []
    with rl.make("HalfCheetahRandVel", tasks=10, rollouts=5, horizon=100) as env:
        tasks = env.sample_tasks(40, 1, split="test")
        for seed in range(3):
            training = rl.Training(env, algorithm, seed=seed, **settings)
            returns = []
            for times in (0, iterations):
                for _ in range(times):
                    row = training.step()
                found = rl.evaluate(
                    env,
                    training.params,
                    model=training.model,
                    tasks=tasks,
                    updates=updates,
                    inner_lr=1e-2,
                    seed=99,
                )
                returns.append(found[:, updates])
            gains.append(torch.as_tensor(returns[1] - returns[0]).mean().item())
            assert row["steps"] == 150_000
    assert sum(gains) / 3 >= least, gains
