"""All constants of one problem at once: what `innerloop.bounds.nonconvex.Constants` holds, from a
model, its parameters and a task sampler (Results 32-35)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from innerloop._params import Params
from innerloop.bounds._quantities import given
from innerloop.bounds._results import Record
from innerloop.bounds._standing import Trust, joined
from innerloop.bounds.constants._estimate import Estimate, Origin
from innerloop.bounds.constants._oracle import (
    Model,
    Trajectory,
    check_count,
    source_of,
    stacked,
)
from innerloop.bounds.constants.gaps import initial_gaps
from innerloop.bounds.constants.hessian_change import secant_rho
from innerloop.bounds.constants.kinks import Kink
from innerloop.bounds.constants.measuring import measured_counterparts
from innerloop.bounds.constants.points import BENT_TASKS, Effort, constants_at, point_at
from innerloop.bounds.constants.sampling import Sampler, draw_tasks
from innerloop.bounds.nonconvex import Constants
from innerloop.models import MLP
from innerloop.objectives import Loss, resolve


@dataclasses.dataclass(frozen=True)
class ProblemConstants(Record):
    """Estimates of every constant of assumptions B1-B7 for one problem.

    Args:
        constants: the numbers that the bounds take, each with its standing.
        estimates: {name: Estimate} of the same numbers.
        measured: quantities that the bounds over-estimate, measured directly: squared gradient
            norms at the start (unbiased: negative ones are kept), gradient variances (largest over
            the points) and smoothness (largest found near the points and between them).
        caveats: what is known to be violated or missing.
        setting: sizes that the estimates rest on.
    """

    constants: Constants
    estimates: dict[str, Estimate]
    measured: dict[str, Estimate]
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
        known: constants that you vouch for, under the names of `nonconvex.Constants`; they replace
            the estimates and stand as "assumed", since nobody checks them, or as what they are
            where that is weaker: an estimate that comes back stays an estimate.
        inflation: factor on measured rho and rho_s, which are lower bounds.
        probes: sign vectors for the variance of Hessians.
        eps, delta: relative error and failure probability of each Lanczos run.
        dtype, backend: as `curvature`.
        generator, seed: where tasks, starts and probes come from.

    Returns:
        ProblemConstants. Everything measured is plug-in: the bounds ask for suprema over the
        region between the points, and over all tasks, of what was seen at some. Where a kink is
        found (a relu, say, or the huber loss), the constants of the assumptions that it breaks are
        heuristics, also those that come through `known`.

    Raises:
        ValueError: too few rows or tasks, a loss that is not finite, an argument out of range.
        TypeError: the sampler does not fit.

    Cost: per point about 2 (k + 2) products for each of 32 tasks, 80 for each of 16 tasks, the same
        for 128 single rows, and M (23 + 2 probes) gradients and 21 M meta-gradients; about a
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
        >>> found.constants.L > 0, found.constants.standing_of("rho")
        (True, 'plug-in')
    """
    name = "report"
    check_count(name, "samples", samples, 1)
    check_count(name, "steps", steps, 1)
    check_count(name, "tasks", tasks, 4)
    check_count(name, "points", points, 1)
    if isinstance(inner_lr, bool) or not math.isfinite(float(inner_lr)):
        raise ValueError(f"{name}: inner_lr must be one finite number (got {inner_lr!r})")
    vouched = _known(name, known)
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
    refuted = _refuted(vouched, estimates)
    estimates.update(vouched)
    for key, met in refuted.items():
        estimates[key] = estimates[key].broken(f"a sample that was drawn has {met:.4g}")
    if start.kink is not None:
        for key in _BROKEN[start.kink.first]:
            estimates[key] = estimates[key].broken(start.kink.why)
    constants = Constants(**estimates)
    measured = measured_counterparts(model, visited, run, options, loop, source)
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
    caveats = [
        f"{key} was given as {estimates[key]:.4g}, but a sample that was drawn has {met:.4g}: B7 "
        "does not hold with it"
        for key, met in refuted.items()
    ]
    caveats += _caveats(model, start.kink, estimates, vouched, len(run))
    return ProblemConstants(constants, estimates, measured, tuple(caveats), setting)


# the constants of B3, and of B2 and B3, for tasks and (B7) for single samples
_BROKEN = {False: ("rho", "rho_s"), True: ("L_plus", "ell", "rho", "L_plus_s", "ell_s", "rho_s")}


def _known(function: str, known: Mapping[str, float] | None) -> dict[str, Estimate]:
    """Returns the caller's constants as estimates that stand no higher than "assumed"."""
    made = {}
    allowed = [field.name for field in dataclasses.fields(Constants) if field.name != "standing"]
    for key, value in (known or {}).items():
        if key not in allowed:
            raise ValueError(
                f"{function}: known must name constants among {', '.join(allowed)} (got {key!r})"
            )
        trust = joined([Trust("assumed", frozenset()), given(value, key)])
        origin = Origin(
            "assumed" if trust.standing == "assumed" else "plug-in",
            "upper bound",
            "this problem, as its giver says",
            "given by the caller",
        )
        if isinstance(value, Estimate):
            how = f"given by the caller; {value.origin.how}, for {value.origin.scope}"
            origin = dataclasses.replace(value.origin, trust=origin.trust, how=how)
            origin = dataclasses.replace(origin, scope="this problem, as its giver says")
        made[key] = Estimate(
            float(value), name=key, source="given", origin=origin, standing=trust.standing
        )
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
    model: Model,
    kink: Kink | None,
    estimates: dict[str, Estimate],
    known: dict[str, Estimate],
    points: int,
) -> list[str]:
    """Returns what is known to be violated or missing, in plain words."""
    made = []
    if kink is not None and kink.first:
        made.append(
            f"the problem has {kink.name}: B2 and B3 fail where their derivative jumps, and "
            "Hessian-vector products do not see the jumps of the gradient; rho is what the inner "
            "steps met. Every certificate below is a heuristic, whatever the constants are; tanh, "
            "softplus, silu or gelu would not have this gap"
        )
    elif kink is not None:
        made.append(
            f"the problem has {kink.name}: the second derivative jumps, so that B3 fails and no "
            "finite rho exists. Every certificate that uses rho is a heuristic, whatever the "
            "constants are"
        )
    elif isinstance(model, nn.Module) and not _described(model):
        made.append(
            f"{type(model).__name__} was looked through for kinks in one forward pass and none was "
            "found; that its losses are smooth (B2, B3) is an assumption"
        )
    if points == 1:
        made.append(
            "no trajectory was given: constants were measured at the start and at its adapted "
            "points only, and training may visit worse places"
        )
    for key in ("sigma_gamma", "sigma_Hgamma", "mean_gradient", "G2"):
        if key not in known and key in estimates and estimates[key] == 0.0:
            made.append(
                f"{key} was estimated as 0: the true value drowns in its standard error; draw more "
                "tasks"
            )
    return made


def _refuted(known: dict[str, Estimate], found: dict[str, Estimate]) -> dict[str, float]:
    """Returns what was met of the constants of single samples that a caller gave too small.

    Those are bounds for every sample, so one sample refutes them: Rayleigh quotients and changes of
    the Hessian are lower bounds (1 per cent is left for the error of differences). A task's own
    constants are about its whole law, which no number of rows shows for certain.
    """
    met = {
        key: found[key].origin.measured for key in ("L_plus_s", "ell_s", "rho_s") if key in known
    }
    return {
        key: value
        for key, value in met.items()
        if value is not None and value > 1.01 * float(known[key]) + 1e-9
    }


def _described(module: nn.Module) -> bool:
    """Whether a module is a chain of linear layers and known activations."""
    try:
        MLP.from_module(module)
    except NotImplementedError:
        return False
    return True
