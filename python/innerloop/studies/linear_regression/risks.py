"""The two risks of the experiment as functions of a parameter vector, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Risk(NamedTuple):
    """least + curvature / 2 |theta - optimum (1, ..., 1)|^2.

    The law of the tasks does not prefer a direction other than that of their mean, so that every
    averaged curvature is a multiple of the identity.
    """

    least: float
    curvature: float
    optimum: float


def risk(p: int, beta: float, inner_lr: float, samples: int) -> Risk:
    """The risk on a new task after one gradient step of size `inner_lr` on `samples` samples.

    Args:
        p: dimension.
        beta: scale of the law.
        inner_lr: step size; 0 gives the risk before any update.
        samples: samples that the gradient is averaged over.

    Source:
        Results 2, 3 and 5 of docs/theory.md.

    >>> round(risk(p=1, beta=2.0, inner_lr=0.3, samples=5).optimum, 12)
    1.187020648968
    """
    # Imported here so that the command's --help does not wait for all bounds.
    from innerloop.bounds.linear.laws import published_law

    averages = published_law(p, beta).low_order()
    step = inner_lr * inner_lr
    spread = step / samples
    factors = np.array([1.0, -2.0 * inner_lr, step + spread, spread])  # of Q, Q^2, Q^3, tr(Q^2) Q
    curvature = float(factors @ averages.matrices[:, 0, 0])
    pull = float(factors @ averages.vectors[:, 0])
    constant = float(factors @ averages.scalars) + averages.noise
    constant += spread * averages.noise_trace
    least = (constant - p * pull * pull / curvature) / 2.0
    return Risk(float(least), curvature, pull / curvature)
