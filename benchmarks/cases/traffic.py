"""How many bytes a case must move through memory, counted from its sizes alone.

`least_bytes` is the floor of any implementation: every input read once, every output written once.
`schedule_bytes` adds what a schedule of innerloop's CUDA kernels cannot avoid on top: the blocks'
sums, written once and read once.
"""

from __future__ import annotations

from typing import Any

from cases.nine import Case

TARGET_BYTES = 8  # of a class label, int64


def least_bytes(case: Case, element: int = 4) -> int:
    """Bytes of all inputs and outputs of a call.

    Args:
        case: the case.
        element: bytes of a number of the dtype.
    """
    rows = case.tasks * (case.support + case.query)
    targets = TARGET_BYTES if case.loss == "cross_entropy" else element * case.classes
    data = rows * (element * case.widths[0] + targets)
    parameters = element * case.parameters()
    if case.quantity == "hvp":
        return data + 3 * case.tasks * parameters  # parameters, vectors and products of each task
    losses = element * case.tasks * (1 + case.steps)
    return data + 2 * parameters + losses  # shared parameters and their gradient


def schedule_bytes(case: Case, schedule: dict[str, Any], element: int = 4) -> int:
    """Bytes that a call must move when it is cut as `innerloop.plan` says.

    Args:
        case: the case.
        schedule: of `baselines.innerloop_baseline.schedule`.
        element: bytes of a number of the dtype.
    """
    sums = 0 if case.quantity == "hvp" else schedule["blocks"] * case.parameters() * element
    return least_bytes(case, element) + 2 * sums
