"""`evaluate`: what a policy returns on test tasks before and after policy-gradient updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from innerloop.functional import loss_and_grad
from innerloop.policies import GaussianMLP
from innerloop.rl import _checks
from innerloop.rl._policy_checks import check_policy
from innerloop.rl.advantage import advantages
from innerloop.rl.environment import Environment
from innerloop.rl.ranks import check_group, sum_array
from innerloop.rl.rollouts import TESTERS, episode_returns, policy_batch
from innerloop.rl.sampling import SAMPLING, collect
from innerloop.rl.seeds import derived

OPTIMIZERS = ("sgd", "adam")


def evaluate(
    env: Environment,
    params: Mapping[str, Tensor],
    *,
    model: GaussianMLP,
    tasks: int | Sequence[Any],
    updates: int = 1,
    inner_lr: float | None = None,
    seed: int,
    optimizer: str = "sgd",
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    sampling: str = "lanes",
    tester: str = "lanes",
) -> NDArray[np.float64]:
    """Returns the mean undiscounted return of each test task before each of 0..updates updates.

    Every round samples E rollouts of H steps with the task's present parameters, records their
    return and takes one policy-gradient step. Since the rows are fresh, the gradients of the
    log-likelihood and of the likelihood ratio are the same. Equal arguments give equal tasks,
    starts and noise, whatever the parameters: results of two policies are paired.

    Args:
        env: its tasks are replaced; their number only says how many are run at a time.
        params: {name: tensor}, shared.
        model: the policy.
        tasks: a list of tasks, or how many test tasks to draw with `seed`.
        updates: K.
        inner_lr: size of an update; needed unless updates is 0.
        seed: of episodes and actions.
        optimizer: "sgd", or "adam" with moments of its own for every task, all zero at first. (The
            public code's Adam never resets them between tasks.)
        discount, gae_lambda: of the advantages.
        sampling: see `collect`.
        tester: see `episode_returns`.

    Returns:
        [tasks, K + 1] float64.

    Raises:
        ValueError: the policy does not fit, a number is out of range, or a name is unknown.
        TypeError: a value is of another kind.

    Cost: (K + 1) T E H control steps for each T tasks; tasks that do not fill the last T lanes'
        worth are simulated with repetitions.

    Example:
        >>> from innerloop import GaussianMLP, rl
        >>> env = rl.make("HalfCheetahRandVel", tasks=2, rollouts=2, horizon=10, threads=1)
        >>> model = GaussianMLP([env.observation_size, 8, env.action_size])
        >>> rl.evaluate(env, model.init(), model=model, tasks=3, inner_lr=0.01, seed=0).shape
        (3, 2)
    """
    op = "rl.evaluate"
    updates = _checks.integer(op, "updates", updates, 0)
    if inner_lr is None and updates:
        _checks.refuse_type(op, "inner_lr", "be given where updates is not 0", "None")
    rate = 0.0 if inner_lr is None else _checks.number(op, "inner_lr", inner_lr, -np.inf)
    _checks.choice(op, "optimizer", optimizer, OPTIMIZERS)
    _checks.choice(op, "sampling", sampling, SAMPLING)
    _checks.choice(op, "tester", tester, TESTERS)
    start = _checks.seed(op, seed)
    check_policy(op, env, params, model)
    if isinstance(tasks, Sequence) and not isinstance(tasks, (str, bytes)):
        found = list(tasks)
        _checks.integer(op, "the number of tasks", len(found))
    else:
        count = _checks.integer(op, "tasks", tasks)
        found = env.sample_tasks(count, derived(start, 0), split="test")

    check_group(op, env.rank, env.world)
    together = env.world * env.tasks  # of all processes; this one has those in `own`
    own = slice(env.rank * env.tasks, (env.rank + 1) * env.tasks)
    result = np.zeros((len(found), updates + 1))
    for chunk, first in enumerate(range(0, len(found), together)):
        held = found[first : first + together]
        env.set_tasks([held[i % len(held)] for i in range(together)][own])
        adapting = _Adapting(params, model, env.tasks, rate, optimizer)
        for update in range(updates + 1):
            data = collect(
                env,
                adapting.params,
                model=model,
                seed=derived(start, 1, chunk, update),
                sampling=sampling,
            )
            returns = episode_returns(data, tester=tester).mean(1)
            places = range(len(held))[own]
            result[first + own.start : first + own.start + len(places), update] = returns[
                : len(places)
            ]
            if update < updates:
                advantage = advantages(data, discount=discount, gae_lambda=gae_lambda)
                like = next(iter(adapting.params.values()))
                batch = policy_batch(data, advantage, like=like)
                _, grad = loss_and_grad(adapting.params, batch, model=model, loss="pg_loglik")
                adapting.step(grad)
    return sum_array(result, env.world)


class _Adapting:
    """Parameters of T tasks [T, ...] and their optimiser; its moments are elementwise, so one
    optimiser keeps every task's apart."""

    def __init__(
        self,
        params: Mapping[str, Tensor],
        model: GaussianMLP,
        tasks: int,
        rate: float,
        optimizer: str,
    ) -> None:
        leaves = {
            name: torch.nn.Parameter(params[name].detach().expand(tasks, *shape).clone())
            for name, shape in model.shapes.items()
        }
        kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
        # the sign goes to the gradient: torch's optimisers take rates of at least 0
        self._sign = -1.0 if rate < 0 else 1.0
        self._optimizer = kind(list(leaves.values()), lr=abs(rate))
        self._leaves = leaves
        self.params = {name: leaf.data for name, leaf in leaves.items()}

    def step(self, grad: Mapping[str, Tensor]) -> None:
        """One update of every task."""
        for name, leaf in self._leaves.items():
            leaf.grad = self._sign * grad[name]
        self._optimizer.step()
