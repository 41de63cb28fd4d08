"""Risk after several gradient steps on the same support rows (Result 14(a))."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._quantities import hands_on
from innerloop.bounds._results import Assumption, quantity
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.risk import law_assumptions
from innerloop.bounds.linear.rules import (
    MOST_STEPS,
    GradientSteps,
    InnerRule,
    checked_theta,
    rule_moments,
    spread,
)


@hands_on
def risk_k_steps(
    law: TaskLaw, theta: Any, *, inner_lr: Any, steps: Any = 1, samples: Any = None, seed: int = 0
) -> Any:
    """Returns the expected risk of a new task after K gradient steps on N fresh rows.

    Args:
        law: distribution of tasks.
        theta: [p], initial parameters.
        inner_lr: alpha, any sign.
        steps: K, from 0 to 10000, all on the same rows.
        samples: N, or None for steps along the exact gradient. inner_lr, steps and samples
            broadcast.
        seed: of the random points, where such are used (see Cost).

    Returns:
        Quantity, or float64 array of the broadcast shape. R = E (y - x.theta')^2 / 2.

    Raises:
        TypeError: not real numbers, or not a law.
        ValueError: theta without p entries, N below 1, K below 0, NaN.

    Cost:
        Exact by the Wick rule for K <= 3 (O(G p^3) per value; words of 2 K factors, 0.5 s once for
        K = 3). For larger K exact by a product rule where its points and the law's G nodes allow
        (p <= 2, some p = 3), else randomised Sobol points; the result says which.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Checked: whether
        averages over the law are exact, which the result states.

    Source:
        Result 14(a).

    >>> from innerloop.bounds.linear import published_law
    >>> risk_k_steps(published_law(), [1.0], inner_lr=0.3, steps=[0, 1, 2], samples=5).round(4)
    array([0.6667, 0.5775, 0.5641])
    """
    function = "risk_k_steps"
    checked_theta(law, theta, function)
    rate = sizes.array(inner_lr, function=function, name="inner_lr")
    count = _arguments.counts(
        steps, function=function, name="steps", at_least=0, at_most=MOST_STEPS
    )
    rows = _arguments.counts(samples, function=function, name="samples", none=np.inf)
    rate, count, rows = np.broadcast_arrays(rate, count, rows)
    rules = [
        GradientSteps(float(a), int(k)) for a, k in zip(rate.ravel(), count.ravel(), strict=True)
    ]
    return risks(law, theta, rules, rows, function, "Result 14(a)", seed)


def risks(
    law: TaskLaw,
    theta: Any,
    rules: list[InnerRule] | list[GradientSteps],
    samples: Array,
    function: str,
    source: str,
    seed: int,
) -> Any:
    """The expected risks after the rules, one for each entry of `samples`, in its shape."""
    nodes, point = checked_theta(law, theta, function)
    gap = point - nodes.theta
    values = np.empty(samples.shape)
    error, used = 0.0, set()
    for index, rule in zip(np.ndindex(samples.shape), rules, strict=True):
        moments = rule_moments(law, rule, float(samples[index]), seed=seed)
        distance = np.einsum("gi,bgij,gj->bg", gap, moments.hessian, gap)
        each = 0.5 * (distance + nodes.sigma2 * (1.0 + moments.noise)) @ nodes.weights
        values[index], standard_error = spread(each)
        error = max(error, float(standard_error))
        used.add(moments.averaged_by)
    averaged = Assumption(
        f"averages over support rows: {', '.join(sorted(used))}, standard error {error:.2g}",
        "estimated" if error > 0.0 else "checked",
    )
    return quantity(
        values,
        name="expected risk after the inner solver",
        source=source,
        assumptions=law_assumptions(law, averaged),
    )
