"""Samples that both methods need for one accuracy, and their ratio (Result 26)."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from innerloop.bounds._arguments import counts
from innerloop.bounds._quantities import tracked
from innerloop.bounds._results import Quantity, Record
from innerloop.bounds._standing import CERTAIN
from innerloop.bounds.nonconvex.constants import Constants, Numbers, bound, conditions, require
from innerloop.bounds.nonconvex.sgd import updates_needed
from innerloop.bounds.nonconvex.smoothness import maml_smoothness
from innerloop.bounds.nonconvex.values import maml_gap
from innerloop.bounds.nonconvex.variance import drs_variance, maml_variance


class Route(NamedTuple):
    """What SGD on one objective amounts to: quantities (samples apart), single or arrays.

    Members:
        smoothness: Lambda of the objective.
        gap: its initial gap.
        variance: V^2 of one task's stochastic gradient.
        task_samples: samples that one task costs per update.
    """

    smoothness: Any
    gap: Any
    variance: Any
    task_samples: Any


@dataclasses.dataclass(frozen=True)
class Complexity(Record):
    """Cost of reaching E|gradient|^2 <= epsilon^2, each method on its own objective (Result 26).

    Members:
        updates_drs, updates_maml: SGD updates.
        samples_drs, samples_maml: samples, all updates together.
        ratio: samples_maml / samples_drs.
        limit: the ratio as epsilon goes to 0: the product of the next four.
        curvature, gap, variance, data: factors Lambda / L, Delta_m / Delta_d, V^2 / V_d^2, and
            (N + N_o) / n.
        work_ratio: the ratio in gradient evaluations, a Hessian-vector product counted as two.
    """

    updates_drs: Any
    updates_maml: Any
    samples_drs: Any
    samples_maml: Any
    ratio: Any
    limit: Any
    curvature: Any
    gap: Any
    variance: Any
    data: Any
    work_ratio: Any

    def explain(self) -> str:
        """What MAML costs more than joint training, and why, in plain words."""
        if not isinstance(self.ratio, Quantity):
            shown = np.array2string(np.asarray(self.ratio), precision=4)
            return f"MAML needs {shown} times the samples  (Result 26)"
        return "\n".join(
            [
                f"joint training is certified after {self.samples_drs:.6g} samples, MAML after "
                f"{self.samples_maml:.6g}: {self.ratio:.4g} times as many  (Result 26)",
                f"  for small epsilon the factor is {self.limit:.4g} = curvature "
                f"{self.curvature:.4g} x initial gap {self.gap:.4g} x variance "
                f"{self.variance:.4g} x data per update {self.data:.4g}",
                f"  in gradient evaluations the factor is {self.work_ratio:.4g}",
                *(f"  {item.standing}: {item.text}" for item in self.ratio.assumptions),
            ]
        )


def routes(
    constants: Constants,
    *,
    inner_lr: Any,
    samples: Any,
    queries: Any,
    drs_samples: Any = None,
    steps: Any = 1,
    population: bool = False,
    sharp: bool = False,
    function: str = "routes",
) -> tuple[Route, Route]:
    """SGD on the joint objective and on the MAML objective, as two `Route`s.

    Args:
        constants: needs all that Results 21, 22 and 24 need.
        inner_lr, samples, queries, steps, sharp: as in `maml_variance`.
        drs_samples: samples n per task for joint training; samples + queries by default.
        population: the MAML objective with population inner steps; else with N-sample ones.
        function: the caller, for messages.

    Raises:
        ValueError: a constant that is needed is missing, or an argument is out of range; also
            gap_maml for several steps, and powers of kappa beyond floating point.
    """
    numbers = Numbers(constants)
    require(numbers, "gap_drs", function=function, result="Result 25")
    if np.any(counts(steps, function=function, name="steps") != 1.0):
        # Result 22, which bounds MAML's gap by joint training's, is about one step.
        require(numbers, "gap_maml", function=function, result="Result 25 for several steps")
    size = counts(samples, function=function, name="samples")
    asked = counts(queries, function=function, name="queries")
    pooled = size + asked
    if drs_samples is not None:
        pooled = counts(drs_samples, function=function, name="drs_samples")
    steps_on = None if population else size
    drs = Route(
        constants.L,
        constants.gap_drs,
        drs_variance(constants, samples=pooled),
        pooled,
    )
    maml = Route(
        maml_smoothness(constants, inner_lr=inner_lr, steps=steps, samples=steps_on, sharp=sharp),
        maml_gap(constants, inner_lr=inner_lr, samples=steps_on),
        maml_variance(
            constants, inner_lr=inner_lr, samples=size, queries=asked, steps=steps, sharp=sharp
        ),
        size + asked,
    )
    if not np.all(np.isfinite(maml.smoothness) & np.isfinite(maml.variance)):
        raise ValueError(
            f"{function}: inner_lr and steps must keep kappa^(2 steps) within floating point; "
            "Results 21 and 24 say nothing there"
        )
    return drs, maml


def sample_complexity(
    constants: Constants,
    *,
    epsilon: Any,
    inner_lr: Any,
    samples: Any,
    queries: Any,
    batch: Any = 1,
    drs_samples: Any = None,
    steps: Any = 1,
    sharp: bool = False,
) -> Complexity:
    """What it costs each method to reach an accuracy on its own objective, and the ratio.

    An update uses B n samples in joint training and B (N + N_o) in MAML, whose objective here is
    the one with N-sample inner steps.

    Args:
        constants: needs the curvature constants B2, B3, B7, G2 (or G), sigma_gamma, sigma_g and
            gap_drs, for several steps also gap_maml; the others tighten the variance.
        epsilon: target for the root mean square gradient norm.
        inner_lr, samples, queries, steps, sharp: as in `maml_variance`.
        batch: B, tasks per update.
        drs_samples: samples n per task for joint training; samples + queries by default.

    Returns:
        Complexity of Quantities or float64 arrays.

    Raises:
        ValueError: a constant that is needed is missing, or an argument is out of range.

    Assumes:
        Those of `maml_smoothness`, `maml_variance` and `sgd_bound`, for both methods. Checked: the
        constants needed are given and in range. Not checked: that they hold.

    Source:
        Result 26 (own).

    >>> b0 = Constants(L_plus=1.0, ell=0.5, rho=2.0, G=1.0, sigma_g=0.5, sigma_H=0.8,
    ...                sigma_gamma=0.6, sigma_Hgamma=0.3, L_plus_s=1.0, ell_s=0.5, rho_s=2.0,
    ...                gap_drs=2.0, gap_maml=2.0)
    >>> cost = sample_complexity(b0, epsilon=0.1, inner_lr=0.1, samples=4, queries=4, batch=8)
    >>> round(cost.ratio, 12)
    2.242683621684
    """
    function, result = "sample_complexity", "Result 26"
    drs, maml = routes(
        constants,
        inner_lr=inner_lr,
        samples=samples,
        queries=queries,
        drs_samples=drs_samples,
        steps=steps,
        sharp=sharp,
        function=function,
    )
    if not drs.gap > 0.0:
        raise ValueError(f"{function}: gap_drs must be positive; {result} needs it")
    tasks = counts(batch, function=function, name="batch")
    updates, used = [], []
    for route in (drs, maml):
        count = updates_needed(
            epsilon=epsilon,
            smoothness=route.smoothness,
            gap=route.gap,
            variance=route.variance,
            batch=tasks,
        )
        updates.append(tracked(count, CERTAIN))
        used.append(tasks * route.task_samples * tracked(count, CERTAIN))
    ratio = used[1] / used[0]
    work = ratio * (1.0 + 2.0 * counts(samples, function=function, name="samples") / maml[3])
    factors = [tracked(maml[k], CERTAIN) / tracked(drs[k], CERTAIN) for k in (0, 1, 3)]
    noise, noise_drs = (tracked(route.variance, CERTAIN) for route in (maml, drs))
    with np.errstate(divide="ignore", invalid="ignore"):
        factors.insert(2, np.where((noise == 0.0) & (noise_drs == 0.0), 1.0, noise / noise_drs))
    limit = factors[0] * factors[1] * factors[2] * factors[3]

    def named(value: Any, name: str) -> Any:
        met = conditions(constants, value, "B1", "B2", "B3", "B4", "B5g", "B6g", "B7")
        return bound(value, name=name, source=result, assumptions=met)

    return Complexity(
        updates_drs=named(updates[0], "updates of joint training"),
        updates_maml=named(updates[1], "updates of MAML"),
        samples_drs=named(used[0], "samples of joint training"),
        samples_maml=named(used[1], "samples of MAML"),
        ratio=named(ratio, "samples of MAML over samples of joint training"),
        limit=named(limit, "the same for a vanishing epsilon"),
        curvature=named(factors[0], "ratio of smoothness"),
        gap=named(factors[1], "ratio of initial gaps"),
        variance=named(factors[2], "ratio of gradient variances"),
        data=named(factors[3], "ratio of samples per task and update"),
        work_ratio=named(work, "gradient evaluations of MAML over those of joint training"),
    )
