"""Objective: the losses that have names, with their codes in the kernels (csrc/core/objectives) and
their twins in plain PyTorch."""

from __future__ import annotations

import functools

from torch import Tensor
from torch.nn import functional as F

from innerloop.objectives import policy
from innerloop.objectives.objective import Function, Objective


def check_classes(z: Tensor, y: Tensor) -> None:
    """Checks the outputs [N, K] and classes [N] of one task."""
    if z.ndim != 2 or y.ndim != 1:
        raise ValueError(
            "reference: model outputs must have shape [T, N, K] for y [T, N] with cross entropy "
            f"(got rows of shape {list(z.shape[1:])} for targets of shape {list(y.shape[1:])})"
        )


def mean_over_outputs(values: Function) -> Function:
    """Returns the rows whose values are the means of `values` over their outputs."""

    def rows(z: Tensor, y: Tensor) -> Tensor:
        if z.ndim == 0 and len(y) == 1:  # of a module that squeezes its outputs, given one row
            z = z[None]
        if z.reshape(len(z), -1).shape != y.reshape(len(y), -1).shape:
            raise ValueError(
                "reference: y must have one value per output of the model "
                f"(got {y[0].numel()} targets for {z[0].numel()} outputs)"
            )
        return values(z, y.reshape(z.shape)).reshape(len(z), -1).mean(1)

    return rows


def _cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Returns minus the log-probability of each row's class [N]."""
    check_classes(z, y)
    return -F.log_softmax(z, dim=1).gather(1, y[:, None])[:, 0]


# the place of a loss is its code in the kernels (csrc/core/objectives/objective.h)
_ROWS: dict[str, Function] = {
    "mse": mean_over_outputs(lambda z, y: (z - y).square()),
    "half_mse": mean_over_outputs(lambda z, y: 0.5 * (z - y).square()),
    "cross_entropy": _cross_entropy,
    "bce_with_logits": mean_over_outputs(
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none")
    ),
    "huber": mean_over_outputs(lambda z, y: F.huber_loss(z, y, reduction="none")),
}
NAMES = tuple(_ROWS)
POLICY_NAMES = tuple(policy.ROWS)
OPTION_NAMES = ("soft_cross_entropy", "weighted_bce")  # of torch's losses with options alone
CODES = {name: code for code, name in enumerate((*NAMES, *POLICY_NAMES, *OPTION_NAMES))}
_CONSTANTS = {"huber": (1.0, 1.0)}
NAMED = {
    name: Objective(name, rows, classes=name == "cross_entropy", constants=_CONSTANTS.get(name, ()))
    for name, rows in _ROWS.items()
} | {name: Objective(name, is_policy=True) for name in POLICY_NAMES}


@functools.lru_cache(maxsize=256)
def policy_objective(name: str, clip: float, floor: float) -> Objective:
    """Returns a policy objective with its constants: the range of the ratio, the floor of
    log_std."""
    rows = policy.rows_of(name, clip, floor)
    return Objective(name, rows, constants=(clip, floor), is_policy=True)
