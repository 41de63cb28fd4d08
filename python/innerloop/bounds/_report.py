"""`innerloop.bounds.report`: certificates for joint training and MAML on a user's own problem.

The module's name starts with an underscore so that `innerloop.bounds.report` is the function alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from innerloop._params import Params
from innerloop.bounds._carrying import trust_of
from innerloop.bounds._quantities import computed
from innerloop.bounds._report_text import describe
from innerloop.bounds._results import Quantity, Record, quantity
from innerloop.bounds._standing import Standing, Trust, joined
from innerloop.bounds.constants._estimate import distinguishable
from innerloop.bounds.constants._oracle import Model, Trajectory, check_count
from innerloop.bounds.constants.points import COMPONENTS
from innerloop.bounds.constants.problem import ProblemConstants, problem_constants
from innerloop.bounds.constants.sampling import Sampler
from innerloop.bounds.nonconvex import Comparison, compare, sgd_bound, updates_needed
from innerloop.objectives import Loss

# budgets of the printed table, as multiples of the budget asked for
_MULTIPLES = (0.1, 1.0, 10.0, 100.0)
_FURTHEST = 1000.0  # factor of the crossover beyond which a first-order effect is no number


@dataclasses.dataclass(frozen=True)
class BudgetRow(Record):
    """Certificates for E|MAML gradient|^2 at one budget of samples, whole updates it pays for."""

    budget: float
    updates: int
    drs: Quantity
    maml: Quantity


@dataclasses.dataclass(frozen=True)
class Report(Record):
    """What theory says about one problem, and how far it can be trusted; print it.

    Every number but those of the setting is a quantity: computing with it, or giving it back to
    any function of `innerloop.bounds`, never makes it more than it is here.

    Args:
        problem: every constant with its standing, and the measured counterparts of the bounds.
        comparison: certificates of both methods for `budget` samples, the crossover, and how much
            each constant drives them.
        budgets: certificates over a range of budgets.
        informative: {"drs", "maml"}: samples (of whole updates) after which each method's
            certificate is below the squared MAML gradient at the start; before, it says less than
            standing still would give. Infinite, with the reason, if it never is, or if the gradient
            at the start is not distinguishable from 0.
        looseness: what a certificate uses over the same measured (`problem.measured` says how).
        sampling_factor: factor within which the crossover moves for two standard errors of the
            estimated variance components (worst signs), to first order; NaN without a crossover,
            infinite where a component is not distinguishable from 0 or the factor exceeds 1000.
    """

    problem: ProblemConstants
    comparison: Comparison
    budgets: tuple[BudgetRow, ...]
    informative: dict[str, Quantity]
    looseness: dict[str, Quantity]
    sampling_factor: Quantity

    @property
    def trust(self) -> Trust:
        """The standing of both certificates together, with the constants that they rest on."""
        found = self.comparison
        return joined(filter(None, map(trust_of, (found.drs.maml, found.maml.maml))))

    @property
    def standing(self) -> Standing:
        """The weaker standing of both certificates: "assumed" if all constants come from `known`,
        "plug-in" with estimates among them, "heuristic" where smoothness is known to fail."""
        return self.trust.standing

    @property
    def certified(self) -> bool:
        """Whether the certificates are proved for this problem: never for one that is known by a
        sampler alone."""
        return self.standing == "certified"

    @property
    def crossover(self) -> Quantity:
        """Samples beyond which MAML has the smaller certificate."""
        return self.comparison.crossover.budget

    @property
    def vacuous(self) -> bool:
        """Whether both certificates at the budget say less than standing still would give."""
        return not any(self.says_something(method) for method in self.informative)

    def says_something(self, method: str) -> bool:
        """Whether the certificate of "drs" or "maml" at the budget beats standing still."""
        return float(self.comparison.setting["budget"]) >= float(self.informative[method])

    def explain(self) -> str:
        """The whole report in plain words."""
        return describe(self)

    def __str__(self) -> str:
        """The same as `explain`."""
        return self.explain()

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON, with the text under "text"."""
        return {
            **super().to_dict(),
            "crossover": self.comparison.crossover.budget.to_dict(),
            "standing": self.standing,
            "rests_on": self.trust.rests_on,
            "vacuous": self.vacuous,
            "text": self.explain(),
        }


def report(
    model: Model,
    params: Params,
    sampler: Sampler,
    *,
    inner_lr: float,
    samples: int,
    steps: int = 1,
    queries: int | None = None,
    loss: Loss = "mse",
    tasks: int = 128,
    batch: int = 8,
    budget: float | None = None,
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
) -> Report:
    """Returns certificates for joint training and MAML on a problem, their predicted crossover,
    what dominates them, and how far each number can be trusted.

    All constants of assumptions B1-B7 are estimated from gradients and Hessian-vector products on
    tasks drawn from the sampler (`constants.problem_constants`), then inserted into the bounds
    (`nonconvex.compare`). The objective is MAML's with N-sample inner steps.

    Args:
        model: an MLP or any nn.Module.
        params: {name: tensor}, where training starts.
        sampler: sampler(count, generator) -> (x [count, R, D], y), R >= samples + 2; its second
            argument is the torch generator, an int if the parameter is named "seed", or a NumPy
            Generator if it is named "rng".
        inner_lr: the inner rate, one number of any sign.
        samples: N, support rows.
        steps: K, inner steps.
        queries: N_o, query rows; None takes `samples`, or what the sampler gives beyond them.
        loss: as `innerloop.meta_loss` takes it.
        tasks: M >= 4, tasks drawn for the estimates.
        batch: B, tasks per update of the training that is certified.
        budget: samples S that training may use; None takes 10,000 updates of MAML. What does not
            pay for a whole update is left over.
        trajectory: parameters visited in training, in order; the constants are then maxima over
            the start and up to `points` of them.
        points: see `trajectory`.
        known: constants that you vouch for, {name in nonconvex.Constants: number}; they replace
            estimates and count as "assumed", or as what they are where that is weaker: an estimate
            that comes back stays an estimate.
        inflation: factor on measured rho and rho_s, which are lower bounds.
        probes: sign vectors for the variance of Hessians.
        eps, delta: relative error and failure probability of each Lanczos run.
        dtype, backend: float64 or float32; "auto", "fused" or "torch".
        generator, seed: where tasks, starts and probes come from.

    Returns:
        Report: print it, or read `.comparison`, `.problem`, `.crossover`, `.to_dict()`.

    Raises:
        ValueError: too few rows or tasks, a loss or inner loop that is not finite, an argument
            outside its range, a budget below one update.
        TypeError: the sampler does not fit.

    Cost: that of `constants.problem_constants` and about 0.1 s; a few seconds for a network of
        1,761 parameters on two cores.

    Assumes: B1-B7 along the iterates of both methods with the constants found, SGD with fresh tasks
        at a constant rate. Checked: the standing of every constant, which the report states; kinks,
        which break B2 and B3: the certificates are then heuristics.

    Source: Results 21-29 with constants from Results 32-35 (docs/theory/trust.md says which number
        to trust).

    Example:
        >>> import innerloop as il
        >>> def sampler(count, generator):
        ...     x = torch.randn(count, 8, 1, generator=generator)
        ...     return x, torch.randn(count, 1, 1, generator=generator) * x
        >>> net = il.MLP([1, 4, 1], activation="tanh")
        >>> start = net.init(torch.Generator().manual_seed(0))
        >>> found = report(net, start, sampler, inner_lr=0.1, samples=4)
        >>> found.standing, found.crossover > 0
        ('plug-in', True)
    """
    check_count("report", "batch", batch, 1)
    problem = problem_constants(
        model,
        params,
        sampler,
        inner_lr=inner_lr,
        samples=samples,
        queries=queries,
        steps=steps,
        loss=loss,
        tasks=tasks,
        trajectory=trajectory,
        points=points,
        known=known,
        inflation=inflation,
        probes=probes,
        eps=eps,
        delta=delta,
        dtype=dtype,
        backend=backend,
        generator=generator,
        seed=seed,
    )
    queries = int(problem.setting["queries"])
    per_update = batch * (samples + queries)
    total = 10_000.0 * per_update if budget is None else float(budget)
    if not (math.isfinite(total) and total >= per_update):
        raise ValueError(
            f"report: budget must be finite and pay for one update of {per_update} samples "
            f"(got {budget!r})"
        )
    setting: dict[str, Any] = {
        "inner_lr": inner_lr,
        "samples": samples,
        "queries": queries,
        "batch": batch,
        "steps": steps,
    }
    found = compare(problem.constants, budget=total, **setting)
    rows = [
        _row(found, total * factor, per_update)
        for factor in _MULTIPLES
        if total * factor >= per_update
    ]
    return Report(
        problem=problem,
        comparison=found,
        budgets=tuple(rows),
        informative=_informative(problem, found, batch, samples + queries),
        looseness=_looseness(problem, found),
        sampling_factor=_sampling_factor(problem, found),
    )


def _row(found: Comparison, budget: float, per_update: int) -> BudgetRow:
    """Returns both certificates at another budget: Result 25 (b), joint training's by Result 27."""
    updates = math.floor(budget / per_update * (1.0 + 1e-12))
    own = [
        sgd_bound(
            smoothness=certificate.smoothness,
            gap=certificate.gap,
            variance=certificate.variance,
            updates=updates,
            batch=found.setting["batch"],
        )
        for certificate in (found.drs, found.maml)
    ]
    linked = (found.crossover.factor * np.sqrt(own[0]) + found.crossover.offset) ** 2
    return BudgetRow(budget, updates, linked, computed(own[1]))


def _informative(
    problem: ProblemConstants, found: Comparison, batch: int, per_task: int
) -> dict[str, Quantity]:
    """Samples after which a certificate is below the squared MAML gradient at the start."""
    seen = problem.measured["gradient2_maml_start"]
    link = found.crossover
    made = {}
    for certificate in (found.drs, found.maml):
        samples, reason = math.inf, None
        start = math.sqrt(seen) if distinguishable(seen) else 0.0
        own = start
        if certificate.method == "drs":
            own = (start - float(link.offset)) / float(link.factor)
        if start == 0.0:
            reason = "the squared gradient at the start is not distinguishable from 0"
        elif own <= 0.0:
            reason = "the term that no budget removes exceeds the gradient at the start"
        else:
            updates = updates_needed(
                epsilon=own,
                smoothness=certificate.smoothness,
                gap=certificate.gap,
                variance=certificate.variance,
                batch=batch,
            )
            samples = math.ceil(updates) * batch * per_task
        made[certificate.method] = quantity(
            computed(float(samples), certificate.maml, seen),
            name=f"samples from which the certificate of {certificate.method} says something",
            source="Results 25 and 27",
            reason=reason,
        )
    return made


def _looseness(problem: ProblemConstants, found: Comparison) -> dict[str, Quantity]:
    """What the certificates use over what was measured, for smoothness and variance."""
    made = {}
    for certificate in (found.drs, found.maml):
        for name in ("variance", "smoothness"):
            seen = problem.measured[f"{name}_{certificate.method}"]
            if seen > 0.0:
                made[f"{name}_{certificate.method}"] = getattr(certificate, name) / seen
    return made


def _sampling_factor(problem: ProblemConstants, found: Comparison) -> Quantity:
    """exp of two standard errors of the logarithm of the crossover, to first order, with all
    errors of variance components pulling the same way; infinite where that says nothing."""
    crossing = found.crossover.budget
    if not 0.0 < crossing < math.inf:
        return _factor(math.nan, found, "there is no crossover")
    total, unclear = 0.0, []
    for name in COMPONENTS:
        estimate = problem.estimates.get(name)
        if estimate is None or name not in crossing.rests_on or estimate.origin.side != "unbiased":
            continue
        error = estimate.origin.standard_error
        if error is None:
            unclear.append(name)
        else:
            total += abs(float(found.elasticities.get(name, 0.0))) * error / float(estimate)
    if unclear:
        return _factor(math.inf, found, f"not distinguishable from 0: {', '.join(unclear)}")
    if 2.0 * total > math.log(_FURTHEST):
        return _factor(math.inf, found, f"more than {_FURTHEST:g}, where first order ends")
    return _factor(math.exp(2.0 * total), found, None)


def _factor(value: float, found: Comparison, reason: str | None) -> Quantity:
    """The sampling factor as a quantity."""
    made: Quantity = quantity(
        computed(value, found.crossover.budget),
        name="factor by which two standard errors move the crossover",
        source="Result 34",
        reason=reason,
    )
    return made
