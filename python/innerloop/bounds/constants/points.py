"""What is measured at one point of a run: every local constant, there and at the parameters that
the inner loops reach from there (Results 32-34)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop import functional
from innerloop._params import Params
from innerloop.bounds.constants._estimate import Estimate, Origin, distinguishable
from innerloop.bounds.constants._oracle import Model, Oracle, oracle
from innerloop.bounds.constants.hessian import curvature
from innerloop.bounds.constants.hessian_change import secant_rho, third_order
from innerloop.bounds.constants.kinks import Kink, kink_of
from innerloop.bounds.constants.samples import sample_constants
from innerloop.bounds.constants.variance import VarianceComponents, variance_components

# how much is examined at a point: tasks for curvature, tasks for rho, rows for sample constants
CURVED_TASKS, BENT_TASKS, ROWS = 32, 16, 128
# constants that are roots of variance components
COMPONENTS = ("G2", "mean_gradient", "sigma_gamma", "sigma_g", "sigma_H", "sigma_Hgamma")


class Effort(NamedTuple):
    """Settings of the estimators: sign probes, inflation of rho, eps and delta of Lanczos."""

    probes: int
    inflation: float
    eps: float
    delta: float


@dataclasses.dataclass(frozen=True)
class Point:
    """The losses of M tasks at shared parameters, and after each task's inner loop from there.

    Args:
        base: R rows a task, shared parameters. adapted: the same rows, parameters of each task.
        support, query: (x, y) of the rows that the inner loop uses and of those that judge it.
        kink: what is known to break the smoothness of these losses.
    """

    base: Oracle
    adapted: Oracle
    support: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]
    kink: Kink | None


def point_at(
    model: Model,
    params: Params,
    batch: tuple[Tensor, Tensor],
    samples: int,
    queries: int,
    options: dict[str, Any],
    loop: dict[str, Any],
) -> Point:
    """Returns the point with these shared parameters.

    Raises:
        ValueError: the inner loop leaves the finite numbers.
    """
    base = oracle("report", model, params, batch, **options)
    end = samples + queries
    support = (base.x[:, :samples], base.y[:, :samples])
    leaves = functional.adapt(
        {**base.params, **base.fixed},
        support,
        model=base.model,
        loss=base.loss,
        backend=base.backend,
        **loop,
    )
    adapted = dataclasses.replace(base, params={k: leaves[k].detach() for k in base.shapes})
    if not bool(adapted.flat().isfinite().all()):
        raise ValueError(
            f"report: the inner loop must stay finite (it diverged at inner_lr = "
            f"{loop['inner_lr']:g}); lower inner_lr"
        )
    query = (base.x[:, samples:end], base.y[:, samples:end])
    return Point(base, adapted, support, query, kink_of(base.model, base.x, base.loss))


def constants_at(
    point: Point, effort: Effort, source: torch.Generator
) -> Iterator[tuple[str, Estimate]]:
    """Yields (name, Estimate) of every constant but the gaps; some names come twice, at the point
    and at its adapted points."""
    for part in (point.base, point.adapted):
        yield from _curved(part, effort, point.kink is None, source)
    yield from _bent(point, effort, source)
    spread = _spread(point.base, effort.probes, source)
    squares = (
        spread.G2,
        spread.gradient2,
        spread.sigma_gamma2,
        spread.sigma_g2,
        spread.sigma_H2,
        spread.sigma_Hgamma2,
    )
    for name, square in zip(COMPONENTS, squares, strict=True):
        if square is not None:
            yield name, _root(name, square)
    yield "G", _largest_gradient(spread)
    # the rows after the support are fresh for parameters adapted to it
    unseen = slice(point.support[0].shape[1], None)
    fresh = dataclasses.replace(
        point.adapted, x=point.adapted.x[:, unseen], y=point.adapted.y[:, unseen]
    )
    yield "sigma_g", _root("sigma_g", _spread(fresh, 0, source).sigma_g2)


def _curved(
    part: Oracle, effort: Effort, smooth: bool, source: torch.Generator
) -> Iterator[tuple[str, Estimate]]:
    """Yields curvature and, where the loss has three derivatives, how it changes, of tasks and of
    single rows."""
    lanczos: dict[str, Any] = {"eps": effort.eps, "delta": effort.delta}
    search: dict[str, Any] = {"starts": 2, "iterations": 10, "inflation": effort.inflation}
    few, fewer = part.select(slice(CURVED_TASKS)), part.select(slice(BENT_TASKS))
    curved = curvature(**_call(few, source), **lanczos)
    yield "L_plus", curved.L_plus
    yield "ell", curved.ell
    single = sample_constants(**_call(part, source), rows=ROWS, **lanczos, **search)
    yield "L_plus_s", single.L_plus
    yield "ell_s", single.ell
    if smooth:
        yield "rho", third_order(**_call(fewer, source), **search).rho
        yield "rho_s", single.rho


def _bent(point: Point, effort: Effort, source: torch.Generator) -> Iterator[tuple[str, Estimate]]:
    """Yields the change of the Hessian along the inner steps, of tasks and of single rows: the
    length over which the bounds use rho, and the only one that makes sense where kinks jump."""
    parts = [part.select(slice(BENT_TASKS)) for part in (point.base, point.adapted)]
    total = point.base.tasks * point.base.rows
    spaced = torch.arange(0, total, max(1, total // ROWS))[:ROWS]  # over all tasks
    rows = [part.rows_as_tasks(spaced) for part in (point.base, point.adapted)]
    for name, (start, end) in (("rho", parts), ("rho_s", rows)):
        call = _call(start, source)
        del call["params"]
        run = [{**part.params, **part.fixed} for part in (start, end)]
        yield name, secant_rho(trajectory=run, inflation=effort.inflation, **call).rho


def _spread(part: Oracle, probes: int, source: torch.Generator) -> VarianceComponents:
    """Returns the variance components of an oracle."""
    return variance_components(**_call(part, source), probes=probes)


def _call(part: Oracle, source: torch.Generator) -> dict[str, Any]:
    """Returns the arguments that every estimator takes."""
    return {
        "model": part.model,
        "params": {**part.params, **part.fixed},
        "batch": (part.x, part.y),
        "loss": part.loss,
        "dtype": part.dtype,
        "backend": part.backend,
        "generator": source,
    }


def _root(name: str, square: Estimate) -> Estimate:
    """Returns the root of an unbiased square, 0 for a negative one, with its standard error.

    The error of the root is that of the square over twice the root, to first order: where the
    square lies within two of its errors of 0 this says nothing, and the root has none.
    """
    value = math.sqrt(max(0.0, float(square)))
    spread = square.origin.standard_error
    assert spread is not None
    clear = distinguishable(square)
    origin = dataclasses.replace(
        square.origin,
        how=f"root of an unbiased square with standard error {spread:.3g}: {square.origin.how}",
        standard_error=spread / (2.0 * value) if clear else None,
        measured=float(square),
    )
    unclear = f"its square, {float(square):.3g} with standard error {spread:.3g}, is not clear of 0"
    return Estimate(
        value,
        name=name,
        source=square.source,
        origin=origin,
        assumptions=square.assumptions,
        reason=None if clear else unclear,
    )


def _largest_gradient(spread: VarianceComponents) -> Estimate:
    """Returns the largest gradient norm of the tasks drawn."""
    origin = Origin(
        "plug-in",
        "maximum",
        f"{spread.tasks} tasks at these parameters",
        f"largest norm of a task's gradient on {spread.samples} rows",
    )
    return Estimate(float(spread.gradient_norm.max()), name="G", source="Result 34", origin=origin)
