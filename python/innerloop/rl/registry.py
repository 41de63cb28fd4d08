"""`rl.make`: an environment by its name."""

from __future__ import annotations

import os

from innerloop.rl import _checks
from innerloop.rl.environment import Environment
from innerloop.rl.families import FAMILIES
from innerloop.rl.meta_world import BENCHMARKS, MetaWorldEnvironment
from innerloop.rl.simulated import SimulatedEnvironment

NAMES = (*FAMILIES, *BENCHMARKS)
MUJOCO_SIZES = {"tasks": 40, "rollouts": 20, "horizon": 200}  # the published ones
META_WORLD_SIZES = {"tasks": 20, "rollouts": 10, "horizon": 150}


def make(
    name: str,
    *,
    tasks: int | None = None,
    rollouts: int | None = None,
    horizon: int | None = None,
    threads: int | None = None,
    reward_version: str | None = None,
) -> Environment:
    """Returns a batch of environments of one task family.

    | name | a task | an episode ends |
    |---|---|---|
    | Walker2DRandParams, HopperRandParams | dict of model parameters | when it falls |
    | Walker2DRandVel | goal velocity in m/s, a float | when it falls |
    | HalfCheetahRandVel | goal velocity in m/s, a float | never |
    | ML1-Push, ML1-Reach, ML10, ML45 | a metaworld.Task | at the horizon |

    The parameters are body_mass, body_inertia, dof_damping and geom_friction, in MjModel's shapes.
    Policies act in [-10, 10], which is mapped onto the actuators' bounds and clipped there.

    Args:
        name: one of the table.
        tasks: T, tasks held at a time; the published 40 (Meta-World 20) by default.
        rollouts: E, lanes of each task; 20 (10) by default.
        horizon: H, steps after which an episode is truncated; 200 (150) by default.
        threads: threads of the simulator (worker processes for Meta-World); one for each processor
            that this process may use by default. Results do not depend on it, bit for bit.
        reward_version: Meta-World's "v2" (default) or "v1", the published one; None elsewhere.

    Returns:
        An `Environment`: sample_tasks, set_tasks, reset, step, qpos, qvel, set_state, close.

    Raises:
        ValueError: the name is unknown (the nearest one is named) or a size is impossible.
        TypeError: a size is not a whole number.
        ModuleNotFoundError: MuJoCo, gymnasium or Meta-World is missing; the text says what to
            install.

    Cost: a model a task, 14 MB a thread; Meta-World an object a lane, 0.1 s each.

    Source: Gao and Sener 2020, section 5; Rothfuss et al. 2019 for the families.

    Example:
        >>> env = make("HalfCheetahRandVel", tasks=2, rollouts=3, horizon=10, threads=1)
        >>> env.set_tasks(env.sample_tasks(2, seed=0))
        >>> env.reset(seed=0).shape
        (6, 17)
    """
    op = "rl.make"
    _checks.choice(op, "name", name, NAMES)
    sizes = dict(MUJOCO_SIZES if name in FAMILIES else META_WORLD_SIZES)
    for size, value in (("tasks", tasks), ("rollouts", rollouts), ("horizon", horizon)):
        if value is not None:
            sizes[size] = _checks.integer(op, size, value, most=10**6)
    if threads is None:
        threads = processors()
    threads = min(
        _checks.integer(op, "threads", threads, most=4096), sizes["tasks"] * sizes["rollouts"]
    )
    if name in BENCHMARKS:
        version = "v2" if reward_version is None else reward_version
        return MetaWorldEnvironment(name, **sizes, threads=threads, reward_version=version)
    if reward_version is not None:
        _checks.refuse(op, "reward_version", f"be None for {name}", repr(reward_version))
    return SimulatedEnvironment(FAMILIES[name], **sizes, threads=threads)


def processors() -> int:
    """Returns the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
