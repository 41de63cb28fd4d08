"""ProMP: a clipped objective after one inner step, differentiated through the step.

python examples/rl_promp.py [--iterations 15]     needs innerloop[rl]
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import innerloop as il
from innerloop import rl


def main(given: list[str] | None = None) -> dict[str, Tensor]:
    """Trains a policy and returns its parameters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="HalfCheetahRandVel", choices=rl.NAMES)
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--rollouts", type=int, default=5)
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(given)

    env = rl.make(
        chosen.family, tasks=chosen.tasks, rollouts=chosen.rollouts, horizon=chosen.horizon
    )
    model = il.GaussianMLP([env.observation_size, 64, 64, env.action_size])
    params = model.init(torch.Generator().manual_seed(rl.derived(chosen.seed, 0)))
    adam = torch.optim.Adam([leaf.requires_grad_() for leaf in params.values()], lr=1e-2)
    inner = {"model": model, "inner_lr": 1e-2, "steps": 1, "loss": "pg_ratio"}

    for iteration in range(chosen.iterations):
        seed = rl.derived(chosen.seed, 1, iteration)
        env.set_tasks(env.sample_tasks(env.tasks, rl.derived(seed, 0)))

        before = rl.collect(env, params, model=model, seed=rl.derived(seed, 1))
        support = rl.policy_batch(before, rl.advantages(before))
        adapted = il.adapt(params, support, **inner)
        after = rl.collect(env, adapted, model=model, seed=rl.derived(seed, 2))
        query = rl.policy_batch(after, rl.advantages(after))

        for _ in range(5):
            step = il.meta_grad(
                params, support, query, query_loss="pg_clipped", kl_coefficient=5e-4, **inner
            )
            for name, leaf in params.items():
                leaf.grad = step.grad[name]
            adam.step()
        returns = [float(rl.episode_returns(data).mean()) for data in (before, after)]
        print(f"iteration {iteration}: return {returns[0]:.1f}, adapted {returns[1]:.1f}")
    return params


if __name__ == "__main__":
    main()
