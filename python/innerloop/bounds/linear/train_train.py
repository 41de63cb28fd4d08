"""MAML without a split: all rows of a task serve both the inner step and the loss (Result 15)."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds._quantities import hands_on
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.risk import rate_and_samples
from innerloop.bounds.linear.rule_expansion import RuleExpansion, rule_expansion, stacked
from innerloop.bounds.linear.rules import GradientSteps


@hands_on
def train_train(
    law: TaskLaw,
    *,
    inner_lr: Any,
    samples: Any,
    test_inner_lr: Any = None,
    test_samples: Any = None,
) -> RuleExpansion:
    """Returns the expansion of MAML that takes its inner step and its loss on the same 2 N rows.

    Args:
        law: distribution of tasks.
        inner_lr: alpha of the training step, any sign.
        samples: N; a task has n = 2 N rows, all of them used inside and outside.
        test_inner_lr: alpha of the test step; `inner_lr` by default.
        test_samples: fresh rows of the test step; `samples` by default. All four broadcast.

    Returns:
        RuleExpansion: `maml_target`, `maml_limit` and `maml` are those of the estimator
        without split, in the risk after the test step. Its numbers are arrays if an argument is.

    Raises:
        TypeError: not a law or not numbers.
        ValueError: N below 1; a mean curvature that is not positive definite (Result 3).

    Cost:
        Exact by the Wick rule in any dimension: O(G p^3) for G nodes of the law; words of six
        factors (0.5 s for the first call, then milliseconds).

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Tasks are
        independent and M is large: no remainder bound. Checked: the mean curvatures are positive
        definite.

    Source:
        Result 15; the comparison of both designs goes back to Bai et al. 2021.

    >>> from innerloop.bounds.linear import Mixture
    >>> law = Mixture([0.5, 0.5], [[[2.0]], [[0.5]]], [[1.0], [-1.0]], [0.5, 1.0])
    >>> train_train(law, inner_lr=0.3, samples=5).maml_target.round(4)
    array([-0.0139])
    """
    rate, rows = rate_and_samples(inner_lr, samples, "train_train")
    test_rate, test_rows = rate_and_samples(
        rate if test_inner_lr is None else test_inner_lr,
        rows if test_samples is None else test_samples,
        "train_train",
    )
    sides = np.broadcast_arrays(rate, rows, test_rate, test_rows)
    found = [
        rule_expansion(
            law,
            GradientSteps(float(a)),
            samples=float(n),
            split=False,
            test_rule=GradientSteps(float(test_a)),
            test_samples=float(test_n),
        )
        for a, n, test_a, test_n in zip(*(side.ravel() for side in sides), strict=True)
    ]
    return stacked(found, sides[0].shape) if sides[0].ndim else found[0]
