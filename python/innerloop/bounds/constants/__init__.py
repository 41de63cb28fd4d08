"""Constants of a real problem from gradients and Hessian-vector products (Results 32-35 of
docs/theory.md), each labelled certified or plug-in, with its confidence and how it arose.
"""

from innerloop.bounds.constants._estimate import Estimate, Origin
from innerloop.bounds.constants.families import (
    FamilyConstants,
    logistic_constants,
    tanh_constants,
)
from innerloop.bounds.constants.gaps import (
    DirectionalSmoothness,
    InitialGaps,
    directional_smoothness,
    initial_gaps,
    smoothness_along,
)
from innerloop.bounds.constants.hessian import Curvature, curvature
from innerloop.bounds.constants.hessian_change import ThirdOrder, secant_rho, third_order
from innerloop.bounds.constants.krylov import (
    Krylov,
    Ritz,
    lanczos,
    lanczos_failure,
    largest_eigenvalue,
    power_failure,
    power_iteration,
    products_needed,
    ritz,
)
from innerloop.bounds.constants.problem import ProblemConstants, problem_constants
from innerloop.bounds.constants.samples import SampleConstants, sample_constants
from innerloop.bounds.constants.sampling import draw_tasks
from innerloop.bounds.constants.variance import VarianceComponents, variance_components

__all__ = [
    "Curvature",
    "DirectionalSmoothness",
    "Estimate",
    "FamilyConstants",
    "InitialGaps",
    "Krylov",
    "Origin",
    "ProblemConstants",
    "Ritz",
    "SampleConstants",
    "ThirdOrder",
    "VarianceComponents",
    "curvature",
    "directional_smoothness",
    "draw_tasks",
    "initial_gaps",
    "lanczos",
    "lanczos_failure",
    "largest_eigenvalue",
    "logistic_constants",
    "power_failure",
    "power_iteration",
    "problem_constants",
    "products_needed",
    "ritz",
    "sample_constants",
    "secant_rho",
    "smoothness_along",
    "tanh_constants",
    "third_order",
    "variance_components",
]
