"""Bounds for smooth non-convex risks (Results 21-31 of docs/theory.md), from explicit constants.

`Constants` holds what is known of a family of tasks; each function evaluates one result; `compare`
puts them together. `families` has tasks whose constants are certified by analysis; `enumeration`,
`attack` and `simulation` check every inequality on them.
"""

from innerloop.bounds.nonconvex.bias import difference_error, gradient_bias
from innerloop.bounds.nonconvex.comparison import Certificate, Comparison, compare, elasticities
from innerloop.bounds.nonconvex.complexity import Complexity, sample_complexity
from innerloop.bounds.nonconvex.constants import Constants
from innerloop.bounds.nonconvex.crossover import Crossover, crossover_budget
from innerloop.bounds.nonconvex.families import Family, LogisticLoss, TanhRegression
from innerloop.bounds.nonconvex.linear_tasks import linear_constants, quadratic_smoothness
from innerloop.bounds.nonconvex.links import gradient_gap, maml_gradient_bound, modelling_gradient
from innerloop.bounds.nonconvex.modelling import (
    modelling_error_bound,
    modelling_error_from_gradient,
)
from innerloop.bounds.nonconvex.sgd import best_rate, sgd_bound, updates_needed
from innerloop.bounds.nonconvex.smoothness import kappa, maml_smoothness
from innerloop.bounds.nonconvex.unbounded import (
    InverseLink,
    RelativeConstants,
    adaptive_sgd_bound,
    inverse_link,
    relative_constants,
)
from innerloop.bounds.nonconvex.values import ValueInterval, maml_gap, sampling_gap, value_interval
from innerloop.bounds.nonconvex.variance import (
    VarianceTerms,
    drs_variance,
    maml_variance,
    variance_terms,
)

__all__ = [
    "Certificate",
    "Comparison",
    "Complexity",
    "Constants",
    "Crossover",
    "Family",
    "InverseLink",
    "LogisticLoss",
    "RelativeConstants",
    "TanhRegression",
    "ValueInterval",
    "VarianceTerms",
    "adaptive_sgd_bound",
    "best_rate",
    "compare",
    "crossover_budget",
    "difference_error",
    "drs_variance",
    "elasticities",
    "gradient_bias",
    "gradient_gap",
    "inverse_link",
    "kappa",
    "linear_constants",
    "maml_gap",
    "maml_gradient_bound",
    "maml_smoothness",
    "maml_variance",
    "modelling_error_bound",
    "modelling_error_from_gradient",
    "modelling_gradient",
    "quadratic_smoothness",
    "relative_constants",
    "sample_complexity",
    "sampling_gap",
    "sgd_bound",
    "updates_needed",
    "value_interval",
    "variance_terms",
]
