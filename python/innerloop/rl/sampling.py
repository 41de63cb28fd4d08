"""`collect`: act in every lane at once and record what happened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from innerloop.functional import predict
from innerloop.policies import LOG_STD, GaussianMLP
from innerloop.rl import _checks
from innerloop.rl._policy_checks import check_policy
from innerloop.rl.environment import Environment
from innerloop.rl.rollouts import Array, Rollouts
from innerloop.rl.seeds import stream

SAMPLING = ("lanes", "published")


def collect(
    env: Environment,
    params: Mapping[str, Tensor],
    *,
    model: GaussianMLP,
    seed: int,
    sampling: str = "lanes",
) -> Rollouts:
    """Returns what a policy does in every lane of an environment, from new episodes on.

    Args:
        env: with tasks set.
        params: of the policy, float32 or float64; each leaf shared [...] or per task [T, ...].
            What is recorded has their dtype; the simulation runs in float64.
        model: the policy; its widths must fit the environment.
        seed: of the episodes' starts and of the actions' noise.
        sampling: "lanes" records H steps of every lane: an exact budget, and the episode that it
            cuts goes on with the baseline (see `advantages`). "published", the rule of the public
            code, runs all lanes until their finished episodes hold T E H steps together, and gives
            weight 0 to the unfinished ones; tasks then have unequal numbers of steps.

    Returns:
        Rollouts with action, mean, log_std (and weight for "published"); `steps` counts all steps
        taken, used or not.

    Raises:
        ValueError: the policy does not fit the environment, or an option is unknown.
        RuntimeError: the environment has no tasks.

    Cost: H calls of `env.step`; acting takes 2 P operations a lane, on one torch thread (the
        number of threads is put back): pieces of work this short are not worth sharing.

    Source: Gao and Sener 2020; Rothfuss et al. 2019 (sampler).

    Example:
        >>> from innerloop import GaussianMLP, rl
        >>> env = rl.make("HalfCheetahRandVel", tasks=2, rollouts=3, horizon=10, threads=1)
        >>> env.set_tasks(env.sample_tasks(2, seed=0))
        >>> model = GaussianMLP([env.observation_size, 8, env.action_size])
        >>> rl.collect(env, model.init(), model=model, seed=0).action.shape
        (10, 2, 3, 6)
    """
    op = "collect"
    _checks.choice(op, "sampling", sampling, SAMPLING)
    check_policy(op, env, params, model)
    start = _checks.seed(op, seed)
    if sampling == "published" and env.world > 1:
        _checks.refuse(
            op, "sampling", "be 'lanes' where tasks are split over processes", repr(sampling)
        )
    budget = env.lanes * env.horizon
    with torch.no_grad(), one_torch_thread():
        actor = Actor(params, model, env.tasks, env.rollouts)
        noise = stream(start, 0)
        record: dict[str, list[Array]] = {
            name: [] for name in ("observation", "action", "mean", "reward", "end", "success")
        }
        observation = env.reset(start)
        finished = 0
        clock = np.zeros(env.lanes, dtype=np.int64)
        while len(record["reward"]) < env.horizon or (
            sampling == "published" and finished < budget
        ):
            seen = observation.astype(actor.dtype)
            mean = actor.means(seen)
            drawn = noise.standard_normal((env.world * env.lanes, mean.shape[1]), actor.dtype)
            drawn = drawn[env.first_lane : env.first_lane + env.lanes]
            with np.errstate(over="ignore", invalid="ignore"):  # refused by `step`
                action = mean + actor.std * drawn  # [B, k]
            observation, reward, terminated, truncated = env.step(action)
            end = terminated | truncated
            clock += 1
            finished += int(clock[end].sum())
            clock[end] = 0
            row = (seen, action, mean, reward.astype(actor.dtype), end, env.success)
            for name, value in zip(record, row, strict=True):
                if value is not None:
                    record[name].append(value.reshape(env.tasks, env.rollouts, *value.shape[1:]))
    stacked = {name: np.stack(rows) for name, rows in record.items() if rows}
    last = observation.astype(actor.dtype).reshape(env.tasks, env.rollouts, -1)
    weight = None
    if sampling == "published":
        weight = _weights(stacked["end"]).astype(actor.dtype)
    return Rollouts(next_observation=last, log_std=actor.log_std, weight=weight, **stacked)


class Actor:
    """A policy that acts in all lanes at once, each task with its own parameters."""

    def __init__(
        self, params: Mapping[str, Tensor], model: GaussianMLP, tasks: int, rollouts: int
    ) -> None:
        self._params = {name: params[name].detach().cpu() for name in model.names}
        self._model, self._tasks = model, tasks
        log_std = self._params[LOG_STD].clamp(min=model.min_log_std).expand(tasks, -1)
        self.log_std: Array = log_std.numpy().copy()  # [T, k]
        self.dtype = self.log_std.dtype
        with np.errstate(over="ignore"):  # `step` refuses actions that are not finite
            std = np.exp(self.log_std)
        self.std: Array = np.repeat(std, rollouts, axis=0)  # [B, k]

    def means(self, observation: Array) -> Array:
        """Means [B, k] for observations [B, d]."""
        x = torch.from_numpy(observation).reshape(self._tasks, -1, self._model.inputs)
        found: Array = predict(self._params, x, model=self._model).flatten(0, 1).numpy()
        return found


def _weights(end: NDArray[np.bool_]) -> Array:
    """Returns the weights [H, T, E] of the steps of finished episodes: equal within a task."""
    used = np.flip(np.logical_or.accumulate(np.flip(end, 0), axis=0), 0)
    share: Array = used / used.sum((0, 2), keepdims=True)
    return share


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One torch thread inside, as many as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
