"""Joint training (DRS) with PPO: all tasks in one batch, no adaptation while training.

python examples/rl_drs_ppo.py [--iterations 30]     needs innerloop[rl]
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
    parser.add_argument("--iterations", type=int, default=30)
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
    leaves = [leaf.requires_grad_() for leaf in params.values()]
    adam = torch.optim.Adam(leaves, lr=1e-2)

    for iteration in range(chosen.iterations):
        seed = rl.derived(chosen.seed, 1, iteration)
        env.set_tasks(env.sample_tasks(env.tasks, rl.derived(seed, 0)))

        data = rl.collect(env, params, model=model, seed=rl.derived(seed, 1))
        batch = rl.policy_batch(data, rl.advantages(data), pooled=True)

        for _ in range(5):
            _, grad = il.loss_and_grad(params, batch, model=model, loss="pg_clipped", clip=0.3)
            for name, leaf in params.items():
                leaf.grad = grad[name][0].detach()  # the pooled rows are one task
            adam.step()
        print(f"iteration {iteration}: return {rl.episode_returns(data).mean():.1f}")
    return params


if __name__ == "__main__":
    main()
