"""Meta linear regression: exact moments, risks, error expansions and guarantees (Results 1-20, 36).

Tasks are drawn from a `TaskLaw`; a task has Gaussian inputs and a linear target (D4). `inner_lr` is
the inner rate of one gradient step on `samples` support points (None: the population step), `tasks`
the number of training tasks; the joint estimator (DRS) pools 2 `samples` points per task.
"""

from innerloop.bounds.linear.empirical import Estimate, estimate
from innerloop.bounds.linear.laws import (
    Mixture,
    Nodes,
    PublishedLaw,
    TaskLaw,
    from_sampler,
    published_law,
)
from innerloop.bounds.linear.moments import (
    cube_moment,
    design_noise,
    sandwich_moment,
    scalar_moments,
    square_moment,
)

__all__ = [
    "Estimate",
    "Mixture",
    "Nodes",
    "PublishedLaw",
    "TaskLaw",
    "cube_moment",
    "design_noise",
    "estimate",
    "from_sampler",
    "published_law",
    "sandwich_moment",
    "scalar_moments",
    "square_moment",
]
