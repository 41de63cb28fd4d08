"""Joint training (DRS) with TRPO: conjugate gradients on exact Fisher products.

python examples/rl_drs_trpo.py [--iterations 30]     needs innerloop[rl]
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

    for iteration in range(chosen.iterations):
        seed = rl.derived(chosen.seed, 1, iteration)
        env.set_tasks(env.sample_tasks(env.tasks, rl.derived(seed, 0)))

        data = rl.collect(env, params, model=model, seed=rl.derived(seed, 1))
        batch = rl.policy_batch(data, rl.advantages(data), pooled=True)
        _, grad = il.loss_and_grad(params, batch, model=model, loss="pg_ratio")

        def product(vector, params=params, batch=batch):
            found = il.fisher_product(params, batch, vector, model=model)
            return {name: leaf[0] for name, leaf in found.items()}

        def evaluate(candidate, batch=batch):
            no_step = {"model": model, "inner_lr": 0.0, "steps": 0}
            loss = il.meta_loss(candidate, batch, batch, loss="pg_ratio", **no_step)
            return float(loss.mean()), float(il.kl(candidate, batch, model=model).mean())

        gradient = {name: leaf[0] for name, leaf in grad.items()}
        step = rl.trust_region_step(params, gradient, product, evaluate, max_kl=0.01)
        params = step.params
        print(
            f"iteration {iteration}: return {rl.episode_returns(data).mean():.1f}, "
            f"KL {step.kl:.4f}, step {step.tried if step.accepted else None}"
        )
    return params


if __name__ == "__main__":
    main()
