"""Advantages over a linear baseline, for all tasks at once. Derivation of the scans: an episode's
end multiplies what comes after it by zero, so ragged episodes need no lists."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from innerloop.rl import _checks
from innerloop.rl.rollouts import Rollouts

Array = NDArray[np.float64]

RIDGE = 1e-5
TRIES = 5
CLIP = 10.0  # of observations in the features
TINY = 1e-8  # added to the standard deviation


def advantages(
    rollouts: Rollouts,
    *,
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    normalize: bool = True,
) -> Array:
    """Returns the advantage of every step, normalised within its task.

    For each task a linear baseline is fitted by least squares (ridge 1e-5) to the discounted
    returns of the steps of finished episodes. Its features are
    [o, o^2, u, u^2, u^3, 1] with o the observation clipped to [-10, 10] and u = (steps since the
    episode began) / 100. After an episode's end the value is 0, also at a time limit. An episode
    that was cut off goes on with the baseline's value of the next observation.

    Args:
        rollouts: see `Rollouts`. Steps of weight 0 are neither fitted nor normalised with.
        discount: in [0, 1].
        gae_lambda: in [0, 1]; at 1 the advantage is discounted return minus baseline.
        normalize: (A - mean) / (std + 1e-8), by the task's weights, std not corrected for the
            sample; False leaves the advantages as they are.

    Returns:
        [H, T, E] float64, computed in float64; 0 for steps of weight 0. A task without a finished
        episode has baseline 0.

    Raises:
        ValueError: a number is out of its range, or observations or rewards in use are not finite.

    Cost: time O(H T E F^2), memory O(H T E F) with F = 2d + 4 features.

    Source: Duan et al. 2016, appendix (baseline); Schulman et al. 2016, equation 16.

    Example:
        >>> reward = np.ones((4, 1, 2))
        >>> end = np.zeros((4, 1, 2), dtype=bool)
        >>> end[-1] = True
        >>> data = Rollouts(np.zeros((4, 1, 2, 3)), reward, end, np.zeros((1, 2, 3)))
        >>> advantages(data).shape
        (4, 1, 2)
    """
    op = "advantages"
    discount = _checks.number(op, "discount", discount, 0.0, 1.0)
    gae_lambda = _checks.number(op, "gae_lambda", gae_lambda, 0.0, 1.0)
    used = np.ones(rollouts.end.shape, np.bool_) if rollouts.weight is None else rollouts.weight > 0
    end = rollouts.end
    reward = np.where(used, rollouts.reward, 0.0).astype(np.float64)
    observation = np.where(used[..., None], rollouts.observation, 0.0).astype(np.float64)
    after = rollouts.next_observation.astype(np.float64)
    for name, value in (("reward", reward), ("observation", observation)):
        if not np.isfinite(value).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0][:3])
            _checks.refuse(op, name, "be finite", f"not so at (time, task, lane) = {place}")

    elapsed, after_elapsed = _elapsed(end)
    values = features(observation, elapsed)  # [H, T, E, F]
    finished = np.flip(np.logical_or.accumulate(np.flip(end, 0), axis=0), 0)
    fitted = _fit(values, _discounted(reward, end, discount), finished & used)  # [T, F]
    baseline = np.einsum("htef,tf->hte", values, fitted)
    # what lies behind the last row, for lanes that are cut there; others do not look at it
    cut = ~end[-1] & used[-1]
    after = np.where(cut[..., None], after, 0.0)
    if not np.isfinite(after).all():
        _checks.refuse(op, "next_observation", "be finite where an episode was cut off", "others")
    bootstrap = np.where(cut, np.einsum("tef,tf->te", features(after, after_elapsed), fitted), 0.0)

    following = np.concatenate([baseline[1:], bootstrap[None]])
    going_on = np.where(end, 0.0, discount)
    residual = reward + going_on * following - baseline
    advantage = _scan(residual, gae_lambda * going_on, np.zeros_like(bootstrap))
    advantage = np.where(used, advantage, 0.0)
    return _normalized(advantage, used, rollouts.weight) if normalize else advantage


def features(observation: Array, elapsed: NDArray[Any]) -> Array:
    """Returns the baseline's features [..., 2d + 4] of observations [..., d] and steps since the
    episode began [...]."""
    clipped = np.clip(observation, -CLIP, CLIP)
    time = (elapsed / 100.0)[..., None]
    return np.concatenate(
        [clipped, np.square(clipped), time, time**2, time**3, np.ones_like(time)], axis=-1
    )


def _elapsed(end: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the steps since the episode began: in every row [H, T, E], and behind the last."""
    elapsed = np.zeros(end.shape, dtype=np.int64)
    for row in range(1, len(end)):
        elapsed[row] = np.where(end[row - 1], 0, elapsed[row - 1] + 1)
    return elapsed, np.where(end[-1], 0, elapsed[-1] + 1)


def _scan(value: Array, keep: Array, last: Array) -> Array:
    """Returns s with s[t] = value[t] + keep[t] s[t + 1], s[H] = last."""
    result = np.empty_like(value)
    for row in range(len(value) - 1, -1, -1):
        last = value[row] + keep[row] * last
        result[row] = last
    return result


def _discounted(reward: Array, end: NDArray[np.bool_], discount: float) -> Array:
    """Returns the discounted return from every step to its episode's end."""
    return _scan(reward, np.where(end, 0.0, discount), np.zeros(reward.shape[1:]))


def _fit(values: Array, target: Array, rows: NDArray[np.bool_]) -> Array:
    """Returns the ridge regression [T, F] of target [H, T, E] on features [H, T, E, F] for each
    task, over some rows."""
    tasks, size = values.shape[1], values.shape[-1]
    flat = np.where(rows[..., None], values, 0.0).swapaxes(0, 1).reshape(tasks, -1, size)
    wanted = np.where(rows, target, 0.0).swapaxes(0, 1).reshape(tasks, -1, 1)
    gram = flat.swapaxes(1, 2) @ flat  # [T, F, F]
    moment = flat.swapaxes(1, 2) @ wanted  # [T, F, 1]
    fitted = np.zeros((tasks, size))
    left = np.arange(tasks)
    ridge = RIDGE
    for _ in range(TRIES):
        for task in left.tolist():
            try:
                fitted[task] = np.linalg.solve(gram[task] + ridge * np.eye(size), moment[task])[
                    :, 0
                ]
            except np.linalg.LinAlgError:
                fitted[task] = np.nan
        left = left[~np.isfinite(fitted[left]).all(1)]
        if not left.size:
            return fitted
        ridge *= 10.0
    raise ValueError(
        f"advantages: the baseline of task {int(left[0])} has no solution; its observations or "
        "rewards are too large"
    )


def _normalized(advantage: Array, used: NDArray[np.bool_], weight: NDArray[Any] | None) -> Array:
    """Returns advantages with mean 0 and standard deviation 1 by the weights of each task."""
    share = used / used.sum((0, 2), keepdims=True) if weight is None else weight.astype(np.float64)
    mean = (share * advantage).sum((0, 2), keepdims=True)
    deviation = np.sqrt((share * np.square(advantage - mean)).sum((0, 2), keepdims=True))
    return np.where(used, (advantage - mean) / (deviation + TINY), 0.0)
