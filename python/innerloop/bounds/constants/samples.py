"""Constants that hold for single samples, by maxima over sampled rows (Results 32, 33 and 35)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from innerloop.bounds._results import Record
from innerloop.bounds.constants._estimate import Estimate
from innerloop.bounds.constants._oracle import Model, check_count, oracle, source_of
from innerloop.bounds.constants.hessian import curvature
from innerloop.bounds.constants.hessian_change import third_order
from innerloop.objectives import Loss


@dataclasses.dataclass(frozen=True)
class SampleConstants(Record):
    """Curvature interval and Hessian change of single-sample losses (B7), over sampled rows.

    Args:
        L_plus, ell, L, rho: as for tasks; plug-in, since unseen samples may be worse.
        rows: number of rows that were examined.
    """

    L_plus: Estimate
    ell: Estimate
    L: Estimate
    rho: Estimate
    rows: int

    def explain(self) -> str:
        """Every constant and how it was obtained."""
        return "\n".join(c.explain() for c in (self.L_plus, self.ell, self.L, self.rho))


def sample_constants(
    model: Model,
    params: Any,
    batch: Any,
    *,
    loss: Loss = "mse",
    rows: int = 256,
    starts: int = 2,
    iterations: int = 10,
    inflation: float = 2.0,
    eps: float = 0.05,
    delta: float = 0.01,
    dtype: torch.dtype = torch.float64,
    backend: str = "auto",
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> SampleConstants:
    """Returns L_plus_s, ell_s, L_s and rho_s: the constants of one-row losses.

    Args:
        model, params, loss, eps, delta, dtype, backend: as `curvature`.
        batch: (x [T, n, D], y), without count or weight.
        rows: rows to examine, drawn without replacement from all T n (all if there are fewer).
        starts, iterations, inflation: as `third_order`.
        generator, seed: where the choice of rows and the starts come from.

    Returns:
        SampleConstants. Each is a maximum over the rows examined, hence below the supremum over
        all samples that B7 asks for: plug-in.

    Raises:
        ValueError: an argument is out of range, or the batch is ragged or weighted.

    Cost: (k + 2 + 2 starts iterations) one-sample Hessian-vector products per row, k as in
        `curvature`.

    Assumes:
        Losses of one row are smooth. Not checked: B7 for other rows and parameters.

    Source: Result 35, with Results 32 and 33.

    Example:
        >>> import innerloop as il
        >>> x = torch.tensor([[[3.0], [1.0]]])
        >>> found = sample_constants(il.MLP([1, 1], bias=False), {"0.weight": torch.ones(1, 1)},
        ...                          (x, x), loss="half_mse")
        >>> round(found.L_plus.origin.measured, 6)
        9.0
    """
    name = "sample_constants"
    check_count(name, "rows", rows, 1)
    whole = oracle(name, model, params, batch, loss=loss, dtype=dtype, backend=backend)
    source = source_of(generator, seed)
    order = torch.randperm(whole.tasks * whole.rows, generator=source, device=source.device)
    single = whole.rows_as_tasks(order[:rows])
    args = (single.model, {**single.params, **single.fixed}, (single.x, single.y))
    curved = curvature(
        *args, loss=loss, eps=eps, delta=delta, dtype=dtype, backend=backend, generator=source
    )
    third = third_order(
        *args,
        loss=loss,
        starts=starts,
        iterations=iterations,
        inflation=inflation,
        dtype=dtype,
        backend=backend,
        generator=source,
    )
    scope = f"all samples (largest over {single.tasks} rows at these parameters)"
    return SampleConstants(
        L_plus=curved.L_plus.as_plug_in(scope),
        ell=curved.ell.as_plug_in(scope),
        L=curved.L.as_plug_in(scope),
        rho=third.rho.as_plug_in(scope),
        rows=single.tasks,
    )
