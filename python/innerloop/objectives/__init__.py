"""Objective: the losses that `loss=` may be. `resolve` turns what was passed into an `Objective`;
everything else asks that. Depends on torch alone."""

from innerloop.objectives.named import CODES, NAMES, POLICY_NAMES, policy_objective
from innerloop.objectives.objective import (
    FusedObjective,
    Objective,
    check_shapes,
    stands_for,
    task_value,
)
from innerloop.objectives.recognition import suited
from innerloop.objectives.resolving import Loss, resolve

__all__ = [
    "CODES",
    "NAMES",
    "POLICY_NAMES",
    "FusedObjective",
    "Loss",
    "Objective",
    "check_shapes",
    "policy_objective",
    "resolve",
    "stands_for",
    "suited",
    "task_value",
]
