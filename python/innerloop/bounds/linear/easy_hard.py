"""Two kinds of tasks, easy and hard: when joint training listens to the wrong one (Result 19)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._results import Record, quantity
from innerloop.bounds.linear import sizes


@dataclasses.dataclass(frozen=True)
class EasyHard(Record):
    """Weights of the hard centre in both targets, and what joint training loses by its own.

    Members:
        joint_weight: w_d, weight of the hard centre in the DRS minimiser.
        maml_weight: w_m, its weight in the MAML minimiser.
        easy_curvature: a_E, curvature of the post-update risk of easy tasks.
        hard_curvature: a_H, the same of hard tasks.
        modelling_error: Delta_mod, excess post-update risk of the DRS minimiser.
    """

    joint_weight: Any
    maml_weight: Any
    easy_curvature: Any
    hard_curvature: Any
    modelling_error: Any

    def explain(self) -> str:
        """The weights and the loss in words."""
        return (
            f"The hard centre has weight {np.asarray(self.joint_weight)} in the joint minimiser "
            f"and {np.asarray(self.maml_weight)} in MAML's; joint training loses "
            f"{np.asarray(self.modelling_error)} of post-update risk by that (Result 19)."
        )


def easy_hard(
    p: Any,
    *,
    easy: Any,
    hard: Any,
    inner_lr: Any,
    samples: Any = None,
    distance2: Any = 1.0,
    hard_share: Any = 0.5,
) -> EasyHard:
    """Returns the modelling error of DRS for isotropic tasks of two curvatures.

    A task is easy (Q = easy I, solutions scattered around one centre) or hard (Q = hard I, around
    another). Scatter around the centres that is independent of the kind leaves all numbers here
    unchanged.

    Args:
        p: dimension.
        easy, hard: positive curvatures r_E and r_H (no order is required of them).
        inner_lr: alpha of one inner step, any sign.
        samples: N, or None for the population step.
        distance2: squared distance of the two centres, non-negative.
        hard_share: probability of a hard task, between 0 and 1. All arguments may be arrays that
            broadcast.

    Returns:
        EasyHard: Quantities for scalar arguments, float64 arrays otherwise.

    Raises:
        TypeError: not real numbers.
        ValueError: an argument out of its range; a risk that does not depend on theta (both
            curvatures after the update are zero, which takes alpha r = 1 for both kinds and
            samples=None).

    Cost:
        O(1) per combination of arguments.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        isotropic with one of two curvatures, and scatter does not depend on the kind. Checked:
        ranges.

    Source:
        Result 19. Collins, Mokhtari and Shakkottai 2020 state such a phenomenon; the formula is
        derived in docs/theory/variants.md.

    >>> found = easy_hard(2, easy=2.0, hard=0.25, inner_lr=0.5, samples=10, distance2=5.0)
    >>> round(found.maml_weight, 6), round(found.modelling_error, 6)
    (0.242977, 0.017227)
    """
    size = _arguments.counts(p, function="easy_hard", name="p")
    n = _arguments.counts(samples, function="easy_hard", name="samples", none=np.inf)
    rates = [
        sizes.array(value, function="easy_hard", name=name)
        for name, value in (
            ("easy", easy),
            ("hard", hard),
            ("inner_lr", inner_lr),
            ("distance2", distance2),
        )
    ]
    share = _arguments.probability(hard_share, function="easy_hard", name="hard_share")
    r_easy, r_hard, alpha, far = rates
    for name, value in (("easy", r_easy), ("hard", r_hard)):
        if (value <= 0.0).any():
            raise ValueError(
                f"easy_hard: {name} must be positive (got {value.min():g}); Result 19 needs it"
            )
    if (far < 0.0).any():
        raise ValueError(f"easy_hard: distance2 must be non-negative (got {far.min():g})")
    a_easy, a_hard = (
        r * (1.0 - alpha * r) ** 2 + alpha**2 * (1.0 + size) * r**3 / n for r in (r_easy, r_hard)
    )
    mean = (1.0 - share) * a_easy + share * a_hard
    if (mean <= 0.0).any():
        raise ValueError(
            "easy_hard: the mean curvature after the update must be positive (it is 0); Result 3 "
            "needs it"
        )
    joint = share * r_hard / ((1.0 - share) * r_easy + share * r_hard)
    maml = share * a_hard / mean
    # maml - joint = share (1 - share) (a_hard r_easy - a_easy r_hard) / (both denominators), with
    # the difference factored: it is exact for equal curvatures and for small rates.
    excess = 1.0 + (1.0 + size) / n
    turn = r_easy * r_hard * (r_hard - r_easy) * alpha * (alpha * (r_easy + r_hard) * excess - 2.0)
    apart = share * (1.0 - share) * turn / ((1.0 - share) * r_easy + share * r_hard)
    error = 0.5 * apart / mean * apart * far
    named = {
        "joint_weight": (joint, "weight of the hard centre in the DRS minimiser"),
        "maml_weight": (maml, "weight of the hard centre in the MAML minimiser"),
        "easy_curvature": (a_easy, "post-update curvature of easy tasks"),
        "hard_curvature": (a_hard, "post-update curvature of hard tasks"),
        "modelling_error": (error, "modelling error of DRS"),
    }
    return EasyHard(
        **{
            field: quantity(value, name=text, source="Result 19")
            for field, (value, text) in named.items()
        }
    )
