"""TRPO-MAML: the trust region holds the policies after one inner step.

python examples/rl_trpo_maml.py [--iterations 15]     needs innerloop[rl]
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
    inner = {"model": model, "inner_lr": 1e-2, "loss": "pg_loglik"}
    once = {**inner, "steps": 1}

    for iteration in range(chosen.iterations):
        seed = rl.derived(chosen.seed, 1, iteration)
        env.set_tasks(env.sample_tasks(env.tasks, rl.derived(seed, 0)))

        before = rl.collect(env, params, model=model, seed=rl.derived(seed, 1))
        support = rl.policy_batch(before, rl.advantages(before))
        adapted = il.adapt(params, support, **once)
        after = rl.collect(env, adapted, model=model, seed=rl.derived(seed, 2))
        query = rl.policy_batch(after, rl.advantages(after))

        meta = il.meta_grad(params, support, query, query_loss="pg_ratio", **once)

        product = il.meta_fisher(params, support, query, **inner)

        def evaluate(candidate, rows=(support, query)):
            loss = il.meta_loss(candidate, *rows, query_loss="pg_ratio", **once)
            kl = il.meta_loss(candidate, *rows, query_loss="kl", **once)
            return float(loss.mean()), float(kl.mean())

        step = rl.trust_region_step(params, meta.grad, product, evaluate, max_kl=0.001)
        params = step.params
        returns = [float(rl.episode_returns(data).mean()) for data in (before, after)]
        print(f"iteration {iteration}: return {returns[0]:.1f}, adapted {returns[1]:.1f}")
    return params


if __name__ == "__main__":
    main()
