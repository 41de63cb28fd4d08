"""The number of samples from which on MAML has the smaller certificate (Result 29)."""

from __future__ import annotations

import dataclasses
import math

from innerloop.bounds._quantities import tracked
from innerloop.bounds._results import Assumption, Quantity, Record
from innerloop.bounds._standing import CERTAIN
from innerloop.bounds.nonconvex.constants import Constants, bound, conditions
from innerloop.bounds.nonconvex.race import Objective, Race, race
from innerloop.bounds.nonconvex.sgd import updates_needed


@dataclasses.dataclass(frozen=True)
class Crossover(Record):
    """Where the certificates of the two methods for E|MAML gradient|^2 cross (Result 29).

    Numbers are quantities: each has the standing of everything behind both certificates.

    Members:
        budget: S, the least number of samples beyond which MAML's certificate is always the
            smaller one; 0 if it is for every budget that pays for an update of each method,
            infinite if it never stays so.
        crossings: every budget at which the certificates are equal and that pays for an update of
            each method, increasing (three at most).
        level: the common certificate at `budget`; NaN without one.
        guaranteed: an upper bound for `budget` in closed form.
        factor, offset: certificate of joint training = (factor sqrt(own certificate) + offset)^2.
        floor: bias that MAML's certificate keeps, 0 for the N-sample objective.
    """

    budget: Quantity
    crossings: tuple[Quantity, ...]
    level: Quantity
    guaranteed: Quantity
    factor: Quantity
    offset: Quantity
    floor: Quantity

    def explain(self) -> str:
        """The predicted crossover in plain words."""
        head, *conditions_met = self.budget.explain().splitlines()
        lines = [head]
        if 0.0 < self.budget < math.inf:
            lines += [
                f"  both certify E|MAML gradient|^2 <= {self.level:.4g} there",
                f"  guaranteed to be at most {self.guaranteed:.6g}",
            ]
        if len(self.crossings) > 1:
            shown = ", ".join(f"{value:.6g}" for value in self.crossings)
            lines.append(f"  the certificates cross {len(self.crossings)} times: at {shown}")
        lines.append("  it compares upper bounds, so it predicts their order, not performance")
        lines += conditions_met
        return "\n".join(lines)


def crossover_budget(
    constants: Constants,
    *,
    inner_lr: float,
    samples: int,
    queries: int,
    batch: int = 1,
    drs_samples: int | None = None,
    steps: int = 1,
    objective: Objective = "samples",
    sharp: bool = False,
) -> Crossover:
    """The number of samples S beyond which MAML's certificate for its own gradient is the smaller.

    Joint training is certified for the MAML gradient by its own certificate and Result 27: (kappa^2
    sqrt(own) + e)^2. MAML is certified directly. The first tends to e^2, the second to 0 (to the
    squared bias for the population objective). All crossings are found: equality is a polynomial
    equation, bracketed between its turning points and bisected in the logarithm.

    Args:
        constants: needs gap_drs, the curvature constants of B2, B3, B7, G2 (or G), sigma_gamma,
            sigma_g and, for the refined link at one step, sigma_Hgamma and sigma_H. Without
            sigma_Hgamma, and for several steps, the crude link is used.
        inner_lr: inner rate, any sign.
        samples, queries: N and N_o, per task and update.
        batch: B, tasks per update.
        drs_samples: samples n per task for joint training; samples + queries by default.
        steps: inner steps K.
        objective: "samples" for the MAML objective with N-sample inner steps (unbiased gradients),
            "population" for the one with population steps (biased gradients, one step only).
        sharp: use the sharper forms of Results 21 and 24.

    Returns:
        Crossover.

    Raises:
        ValueError: a constant that is needed is missing, an initial gap is 0, or an argument is
            out of range.

    Cost:
        A few milliseconds.

    Assumes:
        B1-B7 along the iterates of both methods, fresh samples at every update. Checked: the
        constants needed are given and in range. Not checked: that they hold.

    Source:
        Result 29 (own). It orders certificates, which are upper bounds; it does not order the
        methods' true performance.

    >>> b0 = Constants(L_plus=1.0, ell=0.5, rho=2.0, G=1.0, sigma_g=0.5, sigma_H=0.8,
    ...                sigma_gamma=0.6, sigma_Hgamma=0.3, L_plus_s=1.0, ell_s=0.5, rho_s=2.0,
    ...                gap_drs=2.0, gap_maml=2.0)
    >>> found = crossover_budget(b0, inner_lr=0.1, samples=4, queries=4, batch=8)
    >>> print(f"{found.budget:.6f} (at most {found.guaranteed:.0f})")
    520.384476 (at most 7107196)
    """
    made = race(
        constants,
        inner_lr=inner_lr,
        samples=samples,
        queries=queries,
        batch=batch,
        drs_samples=drs_samples,
        steps=steps,
        objective=objective,
        sharp=sharp,
    )
    return crossover_of(made, constants)


def crossover_of(made: Race, constants: Constants) -> Crossover:
    """The crossover of a race; the constants are named in its assumptions."""
    roots, maml_wins = made.crossings()
    found = sorted((math.exp(made.samples_drs(math.exp(root))), root) for root in roots)
    budgets = [(value, root) for value, root in found if value >= made.least]
    level, reason = math.nan, None
    if not maml_wins:
        value = math.inf
        reason = (
            "joint training keeps the smaller certificate for large budgets: the bias floor of "
            "MAML's gradients is at least the modelling term"
            if made.floor
            else "joint training keeps the smaller certificate for large budgets: there is no "
            "modelling term to hold it back"
        )
    elif not budgets:
        value, reason = 0.0, "MAML has the smaller certificate for every budget"
        if found:
            reason += f" that pays for an update of each method ({made.least:.6g} samples)"
    else:
        value, root = budgets[-1]
        level = float(made.factor * (made.start + math.exp(root)) + made.offset) ** 2
    met = (
        *conditions(
            constants, made.result(0.0), "B1", "B2", "B3", "B4", "B5g", "B5H", "B6g", "B6H", "B7"
        ),
        Assumption("the constants hold along both methods' iterates"),
    )
    return Crossover(
        budget=bound(
            tracked(made.result(value), CERTAIN),
            name="samples beyond which MAML has the smaller certificate",
            source="Result 29",
            assumptions=met,
            reason=reason,
        ),
        crossings=tuple(made.result(crossing) for crossing, _ in budgets),
        level=made.result(level),
        guaranteed=_guaranteed(made, met),
        factor=made.result(float(made.factor)),
        offset=made.result(float(made.offset)),
        floor=made.result(float(made.floor or 0.0)),
    )


def _guaranteed(made: Race, met: tuple[Assumption, ...]) -> Quantity:
    """Samples after which MAML's certificate is below what joint training's tends to."""
    value, reason = math.inf, "there is no modelling term, so no such budget is guaranteed"
    if made.offset > 0.0:
        needed = updates_needed(
            epsilon=made.offset,
            smoothness=made.maml.smoothness,
            gap=made.maml.gap,
            variance=made.maml.variance,
            batch=made.batch,
            bias=made.floor,
        )
        value = float(needed * made.batch * made.maml.task_samples)
        reason = needed.reason
    guaranteed: Quantity = bound(
        tracked(made.result(value), CERTAIN),
        name="guaranteed upper bound of the crossover",
        source="Result 29",
        assumptions=met,
        reason=reason,
    )
    return guaranteed
