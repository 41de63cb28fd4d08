"""Anybody's gymnasium environment as a family of tasks."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from innerloop.rl import _checks
from innerloop.rl.environment import Array, check_split
from innerloop.rl.lanes import LaneEnvironment
from innerloop.rl.seeds import derived

_REMEDIES = {
    "observation_space": "wrap it (gymnasium.wrappers.FlattenObservation makes one of a Dict)",
    "action_space": "the policies are Gaussian: actions are vectors of real numbers",
}


def from_gymnasium(
    make_env: Callable[[], Any],
    *,
    sample_tasks: Callable[[int, int], list[Any]],
    set_task: Callable[[Any, Any], None],
    tasks: int = 20,
    rollouts: int = 10,
    horizon: int = 200,
    threads: int = 1,
    action_range: float | None = None,
    name: str | None = None,
) -> GymnasiumEnvironment:
    """Returns a task family made of any gymnasium environment with real observations and actions.

    Every lane has an environment of its own from `make_env`. A task reaches it through `set_task`,
    before its episodes begin.

    Args:
        make_env: () -> gymnasium.Env with Box spaces. Observations are flattened to [d].
        sample_tasks: (n, seed) -> list of n tasks of any kind; picklable if threads > 1.
        set_task: (env, task) -> None, changes what `make_env` returned (often `env.unwrapped`).
        tasks: T, tasks held at a time.
        rollouts: E, lanes of each task.
        horizon: H, steps after which an episode is truncated, if the environment has not done it.
        threads: 1 steps the lanes in this process; more split them over as many worker processes.
            Results do not depend on it.
        action_range: None hands actions on as they are, clipped to the bounds of the action space.
            A number r maps [-r, r] onto the bounds first, as the families of `rl.make` do with
            r = 10: a policy whose noise has size 1 then explores a tenth of the range.
        name: what errors and results call it; the environment's id or class by default.

    Returns:
        An `Environment`; see there. `success` is info["success"] or info["is_success"], if given.

    Raises:
        TypeError: a space is not a Box.
        ValueError: a size is impossible, `make_env` cannot be pickled for worker processes, or
            the action space has no bounds where `action_range` needs them.
        ModuleNotFoundError: gymnasium is missing; the text says what to install.

    Cost: one Python call a lane and step.

    Example:
        >>> import gymnasium
        >>> def set_task(env, gravity):
        ...     env.unwrapped.g = gravity
        >>> env = from_gymnasium(
        ...     lambda: gymnasium.make("Pendulum-v1"),
        ...     sample_tasks=lambda n, seed: [8.0 + 0.1 * i for i in range(n)],
        ...     set_task=set_task, tasks=2, rollouts=3,
        ... )
        >>> env.set_tasks(env.sample_tasks(2, seed=0))
        >>> env.reset(seed=0).shape
        (6, 3)
    """
    op = "rl.from_gymnasium"
    gymnasium = _checks.package(op, "gymnasium", "rl")
    for argument, function in (
        ("make_env", make_env),
        ("sample_tasks", sample_tasks),
        ("set_task", set_task),
    ):
        if not callable(function):
            _checks.refuse_type(op, argument, "be a function", repr(function))
    sizes = {
        "tasks": _checks.integer(op, "tasks", tasks),
        "rollouts": _checks.integer(op, "rollouts", rollouts),
        "horizon": _checks.integer(op, "horizon", horizon),
        "threads": _checks.integer(op, "threads", threads, most=1024),
    }
    probe = make_env()
    if isinstance(probe, gymnasium.vector.VectorEnv):
        _checks.refuse_type(
            op, "make_env", "make one environment", type(probe).__name__,
            "lanes are made here: tasks times rollouts of them",
        )  # fmt: skip
    if not all(callable(getattr(probe, method, None)) for method in ("reset", "step", "close")):
        _checks.refuse_type(op, "make_env", "make a gymnasium environment", type(probe).__name__)
    try:
        for argument in ("observation_space", "action_space"):
            space = getattr(probe, argument, None)
            if not isinstance(space, gymnasium.spaces.Box):
                _checks.refuse_type(
                    op,
                    f"the environment's {argument}",
                    "be a gymnasium.spaces.Box",
                    space,
                    _REMEDIES[argument],
                )
        shape = probe.action_space.shape
        low = probe.action_space.low.astype(np.float64).reshape(-1)
        high = probe.action_space.high.astype(np.float64).reshape(-1)
        observation_size = int(np.prod(probe.observation_space.shape))
        if name is None:
            spec = getattr(probe, "spec", None)
            name = str(spec.id) if spec is not None else type(probe).__name__
    finally:
        probe.close()
    if action_range is not None:
        action_range = _checks.number(op, "action_range", action_range, 1e-12)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            _checks.refuse(op, "action_range", "be None for actions without bounds", action_range)
    return GymnasiumEnvironment(
        name,
        GymnasiumAdapter(make_env, set_task, shape),
        **sizes,
        observation_size=observation_size,
        low=low,
        high=high,
        action_range=action_range,
        sample_tasks=sample_tasks,
    )


class GymnasiumEnvironment(LaneEnvironment):
    """A task family made by `from_gymnasium`."""

    def __init__(
        self,
        name: str,
        adapter: GymnasiumAdapter,
        *,
        sample_tasks: Callable[[int, int], list[Any]],
        **rest: Any,
    ) -> None:
        super().__init__(name, adapter, **rest)
        self._sample_tasks = sample_tasks

    def sample_tasks(self, n: int, seed: int, *, split: str = "train") -> list[Any]:
        """Returns what the user's own function gives: for "train" with this seed, for "test" with
        one derived from it."""
        count = _checks.integer("sample_tasks", "n", n)
        start = _checks.seed("sample_tasks", seed)
        number = check_split(split)
        found = list(self._sample_tasks(count, derived(start, number) if number else start))
        if len(found) != count:
            _checks.refuse(
                "sample_tasks", "the given function", f"return {count} tasks", len(found)
            )
        return found


class GymnasiumAdapter:
    """Objects of one environment; all are of one kind."""

    def __init__(
        self,
        make_env: Callable[[], Any],
        set_task: Callable[[Any, Any], None],
        action_shape: tuple[int, ...],
    ) -> None:
        self._make_env = make_env
        self._set_task = set_task
        self._action_shape = action_shape
        self._built: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without the environments, which stay in their process."""
        return {**self.__dict__, "_built": []}

    def kind(self, task: Any) -> Hashable:
        """There is one."""
        return None

    def build(self, kind: Hashable) -> Any:
        """A new environment.

        Raises:
            ValueError: `make_env` returned one that is in use.
        """
        made = self._make_env()
        inner = getattr(made, "unwrapped", made)
        if any(inner is other for other in self._built):
            raise ValueError(
                "from_gymnasium: make_env must make a new environment at each call (got one that "
                "another lane has)"
            )
        self._built.append(inner)
        return made

    def set_task(self, env: Any, task: Any) -> None:
        """As the user says."""
        self._set_task(env, task)

    def reset(self, env: Any, seed: int) -> Array:
        """The first observation of an episode that the seed decides."""
        observation: Array = env.reset(seed=seed)[0]
        return observation

    def step(self, env: Any, action: Array) -> tuple[Array, float, bool, bool, bool]:
        """One step."""
        found = env.step(action.reshape(self._action_shape))
        if not isinstance(found, tuple) or len(found) != 5:
            got = f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
            raise TypeError(
                "from_gymnasium: step must return observation, reward, terminated, truncated and "
                f"info, as gymnasium has it (got {got})"
            )
        observation, reward, terminated, truncated, info = found
        success = bool(info.get("success", info.get("is_success", False)))
        return observation, float(reward), bool(terminated), bool(truncated), success

    def close(self, env: Any) -> None:
        """Frees the environment."""
        inner = getattr(env, "unwrapped", env)
        self._built = [other for other in self._built if other is not inner]
        env.close()
