"""All constants of one problem at once: what `innerloop.bounds.nonconvex.Constants` holds, from a
model, its parameters and a task sampler (Results 32-35)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from innerloop._params import Params
from innerloop.bounds._results import Record
from innerloop.bounds.constants._estimate import Estimate, Origin
from innerloop.bounds.constants._oracle import (
    Model,
    Trajectory,
    check_count,
    kinked,
    source_of,
    stacked,
)
from innerloop.bounds.constants.gaps import initial_gaps, smoothness_along
from innerloop.bounds.constants.hessian_change import secant_rho
from innerloop.bounds.constants.points import (
    BENT_TASKS,
    Effort,
    constants_at,
    measured_at,
    point_at,
)
from innerloop.bounds.constants.sampling import Sampler, draw_tasks
from innerloop.bounds.nonconvex import Constants
from innerloop.objectives import Loss, resolve


@dataclasses.dataclass(frozen=True)
class ProblemConstants(Record):
    """Estimates of every constant of assumptions B1-B7 for one problem.

    Args:
        constants: the numbers that the bounds take, each with its standing.
        estimates: {name: Estimate} of the same numbers.
        measured: quantities that the bounds over-estimate, measured directly: squared gradient
            norms at the start, gradient variances (largest over the points) and, along a
            trajectory, smoothness.
        caveats: what is known to be violated or missing.
        setting: sizes that the estimates rest on.
    """

    constants: Constants
    estimates: dict[str, Estimate]
    measured: dict[str, float]
    caveats: tuple[str, ...]
    setting: dict[str, Any]

    def explain(self) -> str:
        """Every constant with its standing, and the caveats."""
        lines = [estimate.explain() for estimate in self.estimates.values()]
        return "\n".join([*lines, *(f"caveat: {text}" for text in self.caveats)])


def problem_constants(
    model: Model,
    params: Params,
    sampler: Sampler,
    *,
    inner_lr: float,
    samples: int,
    queries: int | None = None,
    steps: int = 1,
    loss: Loss = "mse",
    tasks: int = 128,
    trajectory: Trajectory | Mapping[str, Tensor] | None = None,
    points: int = 5,
    known: Mapping[str, float] | None = None,
    inflation: float = 2.0,
    probes: int = 8,
    eps: float = 0.05,
    delta: float = 0.01,
    dtype: torch.dtype = torch.float64,
    backend: str = "auto",
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> ProblemConstants:
    """Returns every constant that the bounds for MAML and joint training need.

    Args:
        model: an MLP or any nn.Module.
        params: {name: tensor}, where training starts.
        sampler: draws tasks, see `draw_tasks`; at least samples + 2 rows each. The first `samples`
            rows are the support, the next `queries` the query; rows beyond sharpen the estimates.
        inner_lr, steps, loss: the inner loop, as `innerloop.meta_loss` takes it; one number.
        samples: N, support rows.
        queries: N_o, query rows; None takes `samples`, or what the sampler gives beyond them.
        tasks: M >= 4 tasks to draw.
        trajectory: parameters visited in training, in order (dicts, or one dict of leaves
            [J, ...]); the estimates are then maxima over the start and up to `points` of them.
        points: see `trajectory`.
        known: constants known by analysis, under the names of `nonconvex.Constants`; they replace
            the estimates and stand as certified.
        inflation: factor on measured rho and rho_s, which are lower bounds.
        probes: sign vectors for the variance of Hessians.
        eps, delta: relative error and failure probability of each Lanczos run.
        dtype, backend: as `curvature`.
        generator, seed: where tasks, starts and probes come from.

    Returns:
        ProblemConstants. Everything measured is plug-in: the bounds ask for suprema over the
        region between the points, and over all tasks, of what was seen at some.

    Raises:
        ValueError: too few rows or tasks, a loss that is not finite, an argument out of range.
        TypeError: the sampler does not fit.

    Cost: per point about 2 (k + 2) products for each of 32 tasks, 80 for each of 16 tasks, the same
        for 128 single rows, and M (2 + 2 probes) gradients, all with the sampler's rows; about a
        second a point for a network of 1,761 parameters and 20 rows.

    Assumes:
        Those of `curvature`, `third_order`, `sample_constants` and `variance_components`; tasks
        are i.i.d. Checked: enough tasks and rows.

    Source: Results 32-35.

    Example:
        >>> import innerloop as il
        >>> def sampler(count, generator):
        ...     x = torch.randn(count, 8, 1, generator=generator)
        ...     return x, torch.randn(count, 1, 1, generator=generator) * x
        >>> net = il.MLP([1, 4, 1], activation="tanh")
        >>> start = net.init(torch.Generator().manual_seed(0))
        >>> found = problem_constants(net, start, sampler, inner_lr=0.1, samples=4)
        >>> found.constants.L > 0, found.estimates["rho"].trust
        (True, 'plug-in')
    """
    name = "report"
    check_count(name, "samples", samples, 1)
    check_count(name, "steps", steps, 1)
    check_count(name, "tasks", tasks, 4)
    check_count(name, "points", points, 1)
    if isinstance(inner_lr, bool) or not math.isfinite(float(inner_lr)):
        raise ValueError(f"{name}: inner_lr must be one finite number (got {inner_lr!r})")
    given = _known(name, known)
    source = source_of(generator, seed)
    x, y = draw_tasks(sampler, tasks, source, function=name)
    queries = _queries(name, x.shape[1], samples, queries)
    options: dict[str, Any] = {"loss": loss, "dtype": dtype, "backend": backend}
    loop: dict[str, Any] = {"inner_lr": float(inner_lr), "steps": steps}
    visited = [params, *_chosen(stacked(name, trajectory or []), params, points)]
    run = [point_at(model, p, (x, y), samples, queries, options, loop) for p in visited]
    effort = Effort(probes, inflation, eps, delta)
    found: dict[str, list[Estimate]] = {}
    for point in run:
        for key, estimate in constants_at(point, effort, source):
            found.setdefault(key, []).append(estimate)
    if len(run) > 1:
        few = (x[:BENT_TASKS], y[:BENT_TASKS])
        secant = secant_rho(model, visited, few, inflation=inflation, generator=source, **options)
        found["rho"].append(secant.rho)
    where = f"{len(run)} points" if len(run) > 1 else "the start"
    scope = f"the region visited and all tasks, from {tasks} tasks at {where} and adapted points"
    estimates = {key: _largest(values, scope) for key, values in found.items()}
    start = run[0]
    gaps = initial_gaps(model, params, start.query, support=start.support, **loop, **options)
    assert gaps.maml is not None
    estimates["gap_drs"], estimates["gap_maml"] = gaps.drs, gaps.maml
    estimates.update(given)
    constants = Constants(
        **{key: float(value) for key, value in estimates.items()},
        standing={key: "certified" if key in given else "plug-in" for key in estimates},
    )
    seen = [measured_at(point, loop) for point in run]
    measured = {
        key: value if key.endswith("_start") else max(local[key] for local in seen)
        for key, value in seen[0].items()
    }
    if len(run) > 1:
        for method, support in (("drs", None), ("maml", start.support)):
            bent = smoothness_along(model, visited, start.query, support=support, **loop, **options)
            measured[f"smoothness_{method}"] = float(bent.largest)
    setting = {
        "parameters": start.base.size,
        "tasks": tasks,
        "rows": start.base.rows,
        "points": len(run),
        "samples": samples,
        "queries": queries,
        "loss": resolve(name, loss).name,
        **loop,
    }
    return ProblemConstants(
        constants, estimates, measured, _caveats(model, estimates, given, len(run)), setting
    )


def _known(function: str, known: Mapping[str, float] | None) -> dict[str, Estimate]:
    """Returns the caller's constants as certified estimates."""
    made = {}
    allowed = [field.name for field in dataclasses.fields(Constants) if field.name != "standing"]
    for key, value in (known or {}).items():
        if key not in allowed:
            raise ValueError(
                f"{function}: known must name constants among {', '.join(allowed)} (got {key!r})"
            )
        if isinstance(value, Estimate):
            made[key] = value
            continue
        origin = Origin("certified", "upper bound", "as its giver says", "given by the caller")
        made[key] = Estimate(float(value), name=key, source="given", origin=origin)
    return made


def _queries(function: str, rows: int, samples: int, queries: int | None) -> int:
    """Returns N_o, checked against the rows that the sampler gives."""
    if rows < samples + 2:
        raise ValueError(
            f"{function}: sampler must give at least samples + 2 = {samples + 2} rows a task, to "
            f"measure noise after the inner loop (got {rows})"
        )
    if queries is None:
        return min(samples, rows - samples)
    check_count(function, "queries", queries, 1)
    if samples + queries > rows:
        raise ValueError(
            f"{function}: sampler must give samples + queries = {samples + queries} rows a task "
            f"(got {rows})"
        )
    return queries


def _chosen(trajectory: list[Params], params: Params, points: int) -> list[Params]:
    """Returns at most `points` evenly spaced points of a run, its last always, its start never."""
    if trajectory and all(torch.equal(trajectory[0][k], v) for k, v in params.items()):
        trajectory = trajectory[1:]
    if len(trajectory) <= points:
        return trajectory
    picked = np.linspace(0, len(trajectory) - 1, points + 1).round().astype(int)[1:]
    return [trajectory[j] for j in picked]


def _largest(values: list[Estimate], scope: str) -> Estimate:
    """Returns the largest of the values met, as what it is used for: a plug-in supremum."""
    top = max(values)
    if len(values) == 1:
        return top.as_plug_in(scope)
    how = f"largest of {len(values)} values (at the start {values[0]:.4g}): {top.origin.how}"
    return top.as_plug_in(scope, how)


def _caveats(
    model: Model, estimates: dict[str, Estimate], given: dict[str, Estimate], points: int
) -> tuple[str, ...]:
    """Returns what is known to be violated or missing, in plain words."""
    made = []
    kink = kinked(model)
    if kink is not None and not {"L_plus", "ell", "rho"} <= given.keys():
        made.append(
            f"the model has {kink} activations: B2 and B3 fail where a unit switches, and "
            "Hessian-vector products do not see the jumps of the gradient; rho is what the inner "
            "steps met. Every certificate below is a heuristic for this model; tanh, softplus, "
            "silu or gelu would not have this gap"
        )
    if points == 1:
        made.append(
            "no trajectory was given: constants were measured at the start and at its adapted "
            "points only, and training may visit worse places"
        )
    for key in ("sigma_gamma", "sigma_Hgamma", "mean_gradient", "G2"):
        if key not in given and key in estimates and estimates[key] == 0.0:
            made.append(
                f"{key} was estimated as 0: the true value drowns in its standard error; draw more "
                "tasks"
            )
    return tuple(made)
