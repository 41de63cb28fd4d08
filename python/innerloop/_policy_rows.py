"""From a PolicyBatch to the rows that every operation takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop._checks.objective import check_policy, check_policy_batch
from innerloop._checks.options import check_number
from innerloop.objectives import Objective, policy_objective


class PolicyRows(NamedTuple):
    """The rows of a PolicyBatch as operations take them: y [T, N, 3 K + 1] holds the columns of
    the policy objectives."""

    x: Tensor
    y: Tensor
    count: Tensor | None  # type: ignore[assignment]
    weight: Tensor | None


def policy_rows(
    op: str, argument: str, batch: Any, model: Any, objective: Objective, clip: float
) -> tuple[Any, Objective]:
    """Returns a batch and an objective as every operation takes them: of a policy, its rows and
    the objective with its constants; of anything else what was given."""
    clip = check_number(op, "clip", clip, 0.0)
    if not check_policy(op, argument, batch, model, objective):
        return batch, objective
    if not isinstance(batch, PolicyRows):
        check_policy_batch(op, argument, batch, model.outputs)
        old = batch.log_std if batch.log_std.ndim == 1 else batch.log_std[:, None]
        parts = (batch.action, batch.mean, old.expand(batch.mean.shape), batch.advantage[..., None])
        batch = PolicyRows(batch.x, torch.cat(parts, dim=-1), batch.count, batch.weight)
    return batch, policy_objective(objective.name, clip, model.min_log_std)
