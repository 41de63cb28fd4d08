"""Whether a policy and its parameters fit each other and an environment."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from innerloop._checks import engine, network
from innerloop.policies import GaussianMLP
from innerloop.rl import _checks
from innerloop.rl.environment import Environment


def check_policy(
    op: str, env: Environment, params: Mapping[str, Tensor], model: GaussianMLP
) -> None:
    """Raises if a policy does not fit an environment or its parameters do not fit it."""
    if not isinstance(model, GaussianMLP):
        _checks.refuse_type(op, "model", "be an innerloop.GaussianMLP", type(model).__name__)
    for side, width, wanted in (
        ("inputs", model.inputs, env.observation_size),
        ("outputs", model.outputs, env.action_size),
    ):
        if width != wanted:
            _checks.refuse(op, "model", f"have {wanted} {side} for {env.name}", width)
    check_params(op, params, model, env.tasks)


def check_params(op: str, params: Mapping[str, Tensor], model: GaussianMLP, tasks: int) -> None:
    """Raises if parameters are not those of a policy, shared or for so many tasks."""
    _, like = network.check_params(op, "params", params, model.leaves, tasks)
    engine.check_kernel_dtype(op, "params", like)
