"""Meta-World's ML1, ML10 and ML45 as batches of lanes, built from its classes: the registered id
`Meta-World/ML1-train` of version 3.1.1 gives test tasks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from innerloop.rl import _checks
from innerloop.rl.environment import Array, check_split
from innerloop.rl.lanes import LaneEnvironment
from innerloop.rl.seeds import stream
from innerloop.rl.simulated import ACTION_RANGE

# name -> (benchmark class, its arguments). push-v1 and reach-v1 of the paper are now the v3 ones
BENCHMARKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ML1-Push": ("ML1", ("push-v3",)),
    "ML1-Reach": ("ML1", ("reach-v3",)),
    "ML10": ("ML10", ()),
    "ML45": ("ML45", ()),
}
REWARDS = ("v1", "v2")
OBSERVATIONS = 39  # two frames of 18, and a goal that meta-learners see as zeros
LONGEST = 500  # steps after which Meta-World's objects refuse to go on
BENCHMARK_SEED = 0  # the same 50 goals a class for everybody


class MetaWorldEnvironment(LaneEnvironment):
    """A Meta-World benchmark; see `Environment` for its use. `success` is Meta-World's own flag of
    the last step; tasks are `metaworld.Task` tuples.

    Members:
        reward_version: "v1" (the published one, up to thousands a rollout) or "v2" (at most 10 a
            step). Returns under the two are not comparable: state it beside every result.
    """

    def __init__(
        self,
        name: str,
        *,
        tasks: int,
        rollouts: int,
        horizon: int,
        threads: int,
        reward_version: str,
    ) -> None:
        _checks.package("rl.make", "metaworld", "metaworld")
        if horizon > LONGEST:
            _checks.refuse("rl.make", "horizon", f"be at most {LONGEST} for Meta-World", horizon)
        self.reward_version = _checks.choice("rl.make", "reward_version", reward_version, REWARDS)
        self._benchmark: Any = None
        super().__init__(
            name,
            MetaWorldAdapter(reward_version),
            tasks=tasks,
            rollouts=rollouts,
            horizon=horizon,
            threads=threads,
            observation_size=OBSERVATIONS,
            low=np.full(4, -1.0),
            high=np.full(4, 1.0),
            action_range=ACTION_RANGE,
        )

    def sample_tasks(self, n: int, seed: int, *, split: str = "train") -> list[Any]:
        """Returns tasks of Meta-World's own train or test set, without repetition while there are
        enough (50 for each class). The set is built on the first call: seconds, ML45 half a
        minute."""
        self._check_open("sample_tasks")
        count = _checks.integer("sample_tasks", "n", n)
        number = check_split(split)
        random = stream(_checks.seed("sample_tasks", seed), number)
        if self._benchmark is None:
            metaworld = _checks.package("sample_tasks", "metaworld", "metaworld")
            kind, arguments = BENCHMARKS[self.name]
            self._benchmark = getattr(metaworld, kind)(*arguments, seed=BENCHMARK_SEED)
        found = self._benchmark.test_tasks if number else self._benchmark.train_tasks
        rounds = -(-count // len(found))
        order = np.concatenate([random.permutation(len(found)) for _ in range(rounds)])
        return [found[i] for i in order[:count].tolist()]

    def _assign(self, tasks: list[Any]) -> None:
        for task in tasks:
            if not (hasattr(task, "env_name") and hasattr(task, "data")):
                _checks.refuse_type(
                    "set_tasks", "a task", "be a metaworld.Task", type(task).__name__
                )
        super()._assign(tasks)


class MetaWorldAdapter:
    """Objects of Meta-World's classes; a kind is the name of a class."""

    def __init__(self, reward_version: str) -> None:
        self.reward_version = reward_version

    def kind(self, task: Any) -> Hashable:
        """The name of the task's class."""
        name: str = task.env_name
        return name

    def build(self, kind: Hashable) -> Any:
        """An object of a class, without a renderer."""
        metaworld = _checks.package("rl.make", "metaworld", "metaworld")
        classes = metaworld.ALL_V3_ENVIRONMENTS
        name = _checks.choice("set_tasks", "a task's env_name", kind, classes)
        return classes[name](reward_function_version=self.reward_version)

    def set_task(self, env: Any, task: Any) -> None:
        """Object and goal positions of the task, fixed over its episodes."""
        env.set_task(task)

    def reset(self, env: Any, seed: int) -> Array:
        """A task has one start, so the seed has nothing to decide."""
        observation: Array = env.reset()[0]
        return observation

    def step(self, env: Any, action: Array) -> tuple[Array, float, bool, bool, bool]:
        """One step of five physics steps."""
        observation, reward, terminated, truncated, info = env.step(action)
        return observation, float(reward), terminated, truncated, bool(info["success"])

    def close(self, env: Any) -> None:
        """Frees the object."""
        env.close()
