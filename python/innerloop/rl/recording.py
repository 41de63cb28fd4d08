"""`record`: a video of an episode."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from innerloop.policies import GaussianMLP
from innerloop.rl import _checks
from innerloop.rl._policy_checks import check_policy
from innerloop.rl.environment import Environment
from innerloop.rl.sampling import Actor, one_torch_thread


def record(
    env: Environment,
    params: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    model: GaussianMLP | None = None,
    seed: int = 0,
    lane: int = 0,
    fps: int | None = None,
) -> int:
    """Writes a video of one lane's first episode and returns how many frames it has.

    The policy acts by its means, without noise.

    Args:
        env: with tasks set. Its lanes are reset.
        params: of the policy, shared or per task.
        path: of the video; the ending says which kind, such as .mp4 or .gif.
        model: the policy; by default the tanh policy of the sizes that the parameters have.
        seed: of the episode's start.
        lane: which lane is shown.
        fps: frames a second of the video; the pace of the simulation by default where it is known,
            else 30.

    Raises:
        RuntimeError: nothing here can render (the text says what to try), or no tasks are set.
        ValueError, TypeError: the policy does not fit, or an argument is out of range.
        ModuleNotFoundError: imageio is missing; the text says what to install.
        OSError: the video cannot be written.

    Cost: the steps of all lanes; a rendered image a step.

    Example:
        >>> rl.record(env, training.params, "cheetah.mp4")  # doctest: +SKIP
        200
    """
    op = "rl.record"
    imageio = _checks.package(op, "imageio", "video")
    if model is None:
        model = _model_of(op, params)
    check_policy(op, env, params, model)
    _checks.integer(op, "lane", lane, 0, env.lanes - 1)
    rate = fps if fps is not None else env.frames_per_second or 30
    _checks.integer(op, "fps", rate, 1, 1000)
    frames = []
    with one_torch_thread():
        actor = Actor(params, model, env.tasks, env.rollouts)
        observation = env.reset(_checks.seed(op, seed))
        for _ in range(env.horizon):
            frames.append(env.render(lane))
            mean = actor.means(observation.astype(actor.dtype))
            observation, _, terminated, truncated = env.step(mean)
            if terminated[lane] or truncated[lane]:
                break
    options: dict[str, Any] = {"fps": rate}
    if os.fspath(path).endswith(".gif"):
        options = {"duration": 1000 / rate, "loop": 0}
    imageio.mimsave(os.fspath(path), np.stack(frames), **options)
    return len(frames)


def _model_of(op: str, params: Mapping[str, Tensor]) -> GaussianMLP:
    """The tanh policy whose parameters these are."""
    if not isinstance(params, Mapping):
        _checks.refuse_type(op, "params", "be a dict of tensors", type(params).__name__)
    weights = [leaf for name, leaf in params.items() if name.endswith(".weight")]
    if not weights:
        _checks.refuse(op, "params", "hold the layers' weights", ", ".join(params))
    return GaussianMLP([weights[0].shape[-1], *(leaf.shape[-2] for leaf in weights)])
