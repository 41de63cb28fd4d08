"""What a phase of sampling leaves behind: arrays over time, tasks and lanes. Episodes are flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from innerloop.policies import PolicyBatch
from innerloop.rl import _checks

Array = NDArray[Any]
TESTERS = ("lanes", "published")


@dataclass(frozen=True)
class Rollouts:
    """Steps of T tasks with E lanes each over H rows of time. Every lane begins with the first step
    of an episode.

    Args:
        observation: [H, T, E, d] float32 or float64, before each step.
        reward: [H, T, E] float32 or float64.
        end: [H, T, E] bool, whether the episode ended with the step, by itself or by its time
            limit. False in the last row of an episode that was merely cut off there.
        next_observation: [T, E, d], after the last row.
        action: [H, T, E, k], as the policy put it out.
        mean: [H, T, E, k], of the policy that acted.
        log_std: [T, k], of the policy that acted, its floor applied.
        weight: [H, T, E], of each row in its task, summing to 1; None means 1 / (H E). A row of
            weight 0 is not used.
        success: [H, T, E] bool, whether the step reported success.

    Raises:
        ValueError: a shape does not fit the observations.
        TypeError: an array has another dtype.

    Example:
        >>> zeros = np.zeros((5, 2, 3))
        >>> Rollouts(np.zeros((5, 2, 3, 4)), zeros, zeros > 0, np.zeros((2, 3, 4))).steps
        30
    """

    observation: Array
    reward: Array
    end: NDArray[np.bool_]
    next_observation: Array
    action: Array | None = None
    mean: Array | None = None
    log_std: Array | None = None
    weight: Array | None = None
    success: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.observation)
        if len(shape) != 4 or 0 in shape:
            _checks.refuse(
                "Rollouts", "observation", "have shape [H, T, E, d], none of them 0", list(shape)
            )
        rows, tasks, lanes, size = shape
        k = np.shape(self.action)[-1:] if self.action is not None else ()
        expected: dict[str, tuple[int, ...]] = {
            "observation": shape,
            "reward": (rows, tasks, lanes),
            "end": (rows, tasks, lanes),
            "next_observation": (tasks, lanes, size),
            "action": (rows, tasks, lanes, *k),
            "mean": (rows, tasks, lanes, *k),
            "log_std": (tasks, *k),
            "weight": (rows, tasks, lanes),
            "success": (rows, tasks, lanes),
        }
        for name, wanted in expected.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, np.ndarray):
                _checks.refuse_type("Rollouts", name, "be a NumPy array", type(value).__name__)
            flags = name in ("end", "success")
            if value.dtype not in ((np.bool_,) if flags else (np.float32, np.float64)):
                kind = "bool" if flags else "float32 or float64"
                _checks.refuse_type("Rollouts", name, f"be {kind}", value.dtype)
            if value.shape != wanted:
                _checks.refuse(
                    "Rollouts", name, f"have shape {list(wanted)} to fit observation", value.shape
                )

    @property
    def steps(self) -> int:
        """Control steps that the environments took: H T E."""
        return int(self.reward.size)


def episode_returns(rollouts: Rollouts, *, tester: str = "lanes") -> NDArray[np.float64]:
    """Returns the undiscounted return of E episodes of each task, [T, E].

    Args:
        rollouts: every task needs E finished episodes, as `collect` makes sure.
        tester: "lanes" takes the first episode of every lane, which is an unbiased sample. The
            public code's "published" takes the first E episodes to finish, which favours short
            ones.

    Raises:
        ValueError: the tester is unknown, or a task has too few finished episodes.

    Cost: O(H T E).

    Example:
        >>> reward = np.ones((4, 1, 1))
        >>> end = np.array([False, True, False, True]).reshape(4, 1, 1)
        >>> episode_returns(Rollouts(reward[..., None], reward, end, reward[0, ..., None]))
        array([[2.]])
    """
    op = "episode_returns"
    _checks.choice(op, "tester", tester, TESTERS)
    end = rollouts.end
    reward = rollouts.reward.astype(np.float64)
    _, tasks, lanes = end.shape
    if tester == "lanes":
        unfinished = ~end.any(0)
        if unfinished.any():
            lane = [int(i) for i in np.argwhere(unfinished)[0]]
            _checks.refuse(
                op, "every lane", "finish an episode", f"none in task {lane[0]}, lane {lane[1]}"
            )
        found: NDArray[np.float64] = np.where(first_episodes(end), reward, 0.0).sum(0)
        return found
    total = np.cumsum(reward, axis=0)
    result = np.empty((tasks, lanes))
    for task in range(tasks):
        rows, columns = np.nonzero(end[:, task])  # in order of time, then lane
        if len(rows) < lanes:
            _checks.refuse(op, f"task {task}", f"finish {lanes} episodes", len(rows))
        before = np.zeros(lanes)
        for place, (row, lane) in enumerate(zip(rows[:lanes], columns[:lanes], strict=True)):
            result[task, place] = total[row, task, lane] - before[lane]
            before[lane] = total[row, task, lane]
    return result


def first_episodes(end: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns which steps [H, T, E] belong to the first episode of their lane."""
    before = np.cumsum(end, axis=0, dtype=np.int64) - end  # episodes over before the row
    first: NDArray[np.bool_] = before == 0
    return first


def policy_batch(
    rollouts: Rollouts,
    advantage: NDArray[np.float64],
    *,
    pooled: bool = False,
    like: Tensor | None = None,
) -> PolicyBatch:
    """Returns the rows of each task for the policy objectives.

    Args:
        rollouts: from `collect`.
        advantage: [H, T, E], from `advantages`.
        pooled: all tasks' rows as one task, every used row with the same weight, as joint training
            (DRS) sees them. All tasks must have been sampled with the same policy.
        like: a tensor whose dtype and device the batch takes; the rollouts' dtype, on the CPU, if
            None.

    Returns:
        PolicyBatch with N = H E rows a task (time-major), or one task of N = T H E rows.

    Raises:
        ValueError: a shape does not fit, the rollouts hold no actions, or pooled tasks were
            sampled with different policies.

    Cost: one copy.

    Example:
        >>> zeros, wide = np.zeros((5, 2, 3)), np.zeros((5, 2, 3, 4))
        >>> data = Rollouts(wide, zeros, zeros > 0, wide[0], wide, wide, np.zeros((2, 4)))
        >>> policy_batch(data, zeros).x.shape, policy_batch(data, zeros, pooled=True).x.shape
        (torch.Size([2, 15, 4]), torch.Size([1, 30, 4]))
    """
    op = "policy_batch"
    action, mean, log_std = rollouts.action, rollouts.mean, rollouts.log_std
    if action is None or mean is None or log_std is None:
        _checks.refuse(op, "rollouts", "hold action, mean and log_std", "None among them")
    if np.shape(advantage) != rollouts.reward.shape:
        shape = list(rollouts.reward.shape)
        _checks.refuse(op, "advantage", f"have shape [H, T, E] = {shape}", np.shape(advantage))
    weight = rollouts.weight
    if pooled:
        if not (log_std == log_std[:1]).all():
            _checks.refuse(op, "pooled tasks", "have been sampled with one policy", "several")
        log_std = log_std[:1]
        if weight is not None:
            used = weight > 0
            weight = used / used.sum()

    def tensor(value: Array, rows: bool = True) -> Tensor:
        if rows:  # [H, T, E, ...] -> [T, H E, ...]
            value = np.moveaxis(value, 1, 0)
            groups = 1 if pooled else value.shape[0]
            value = value.reshape(groups, -1, *value.shape[3:])
        found = torch.as_tensor(np.ascontiguousarray(value))
        if like is None:
            return found.to(torch.from_numpy(rollouts.observation[:0]).dtype)
        return found.to(like)

    return PolicyBatch(
        x=tensor(rollouts.observation),
        action=tensor(action),
        advantage=tensor(np.asarray(advantage)),
        mean=tensor(mean),
        log_std=tensor(log_std, rows=False),
        weight=None if weight is None else tensor(weight),
    )
