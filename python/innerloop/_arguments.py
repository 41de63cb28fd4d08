"""The tensors of one fused call under their names, and the flat row of them that torch's ops and
autograd.Functions take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from innerloop._params import Side

NO_SIDE = Side(None, None)  # type: ignore[arg-type]


class Arguments(NamedTuple):
    """The tensors of a fused call, None for what the operation does not take. What belongs to them
    one by one (gradients, tangents, mapped axes, wishes) has the same form.

    Members:
        params: the leaves, each [...] or [T, ...].
        rates: flat, laid out as the plan says.
        support: of the inner loop, or the only batch (`predict` has x alone).
        query: of the outer objective.
        task_weight: [T].
        vector: of `hvp`, one for each leaf.
    """

    params: Sequence[Any]
    rates: Any = None
    support: Side = NO_SIDE
    query: Side = NO_SIDE
    task_weight: Any = None
    vector: Sequence[Any] = ()

    def flat(self) -> tuple[Any, ...]:
        """Returns the tensors in a row: those that every operation has at most once, then the
        leaves."""
        once = (self.rates, *self.support, *self.query, self.task_weight)
        return (*once, *self.params, *self.vector)

    def data(self) -> tuple[Tensor | None, ...]:
        """Returns what the fused operations have no derivative in."""
        return (*self.support, *self.query)


def arguments_of(flat: Sequence[Any], leaves: int) -> Arguments:
    """Returns what a flat row stands for, with the number of leaves."""
    rates, x, y, count, weight, query_x, query_y, query_count, query_weight, tasks, *rest = flat
    return Arguments(
        rest[:leaves],
        rates,
        Side(x, y, count, weight),
        Side(query_x, query_y, query_count, query_weight),
        tasks,
        rest[leaves:],
    )
