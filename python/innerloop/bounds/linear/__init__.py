"""Meta linear regression: exact moments, risks, error expansions and guarantees (Results 1-20, 36).

Tasks are drawn from a `TaskLaw`; a task has Gaussian inputs and a linear target (D4). `inner_lr` is
the inner rate of one gradient step on `samples` support points (None: the population step), `tasks`
the number of training tasks; the joint estimator (DRS) pools 2 `samples` points per task.
"""

from innerloop.bounds.linear.allocation import Allocation, allocate_labels
from innerloop.bounds.linear.analysis import Analysis, analyse
from innerloop.bounds.linear.conditional import ExactProbability, exact_probability_drs_worse
from innerloop.bounds.linear.easy_hard import EasyHard, easy_hard
from innerloop.bounds.linear.efficiency import (
    CentroidEstimate,
    EfficiencyBound,
    bayes_maml,
    centroid_law,
    efficiency_bound,
    gls,
    information,
)
from innerloop.bounds.linear.empirical import Estimate, estimate
from innerloop.bounds.linear.estimators import drs_estimate, maml_estimate
from innerloop.bounds.linear.existence import Existence, mean_excess_exists
from innerloop.bounds.linear.expansion import Expansion, crossover, expansion
from innerloop.bounds.linear.fourth import score_fourth_moment
from innerloop.bounds.linear.guarantee import (
    GuaranteeConstants,
    expected_excess_bound,
    guarantee,
    guarantee_constants,
)
from innerloop.bounds.linear.laws import (
    Mixture,
    Nodes,
    PublishedLaw,
    TaskLaw,
    from_sampler,
    published_law,
)
from innerloop.bounds.linear.matrix_rate import (
    MatrixRateMoments,
    matrix_rate_moments,
    matrix_rate_risk,
    optimal_matrix_rate,
    optimal_matrix_rate_common,
)
from innerloop.bounds.linear.moments import (
    cube_moment,
    design_noise,
    sandwich_moment,
    scalar_moments,
    square_moment,
)
from innerloop.bounds.linear.optimal_rate import (
    TrainingRate,
    optimal_test_rate,
    optimal_training_rate,
    training_rate_slope,
)
from innerloop.bounds.linear.probability import probability_drs_worse
from innerloop.bounds.linear.rates import (
    CoarseRates,
    coarse_rates,
    joint_score_bound,
    maml_score_bound,
)
from innerloop.bounds.linear.ridge import IsotropicRidge, isotropic_ridge_limit, ridge_risk
from innerloop.bounds.linear.risk import (
    Minimisers,
    minimisers,
    modelling_error,
    modelling_error_bound,
    risk,
    small_rate_coefficient,
)
from innerloop.bounds.linear.rule_expansion import RuleExpansion, rule_expansion
from innerloop.bounds.linear.rules import GradientSteps, MatrixRate, Ridge
from innerloop.bounds.linear.scores import Scores, score_covariances
from innerloop.bounds.linear.steps import risk_k_steps
from innerloop.bounds.linear.train_train import train_train
from innerloop.bounds.linear.validity import TasksNeeded, tasks_needed
from innerloop.bounds.linear.wick import wick

__all__ = [
    "Allocation",
    "Analysis",
    "CentroidEstimate",
    "CoarseRates",
    "EasyHard",
    "EfficiencyBound",
    "Estimate",
    "ExactProbability",
    "Existence",
    "Expansion",
    "GradientSteps",
    "GuaranteeConstants",
    "IsotropicRidge",
    "MatrixRate",
    "MatrixRateMoments",
    "Minimisers",
    "Mixture",
    "Nodes",
    "PublishedLaw",
    "Ridge",
    "RuleExpansion",
    "Scores",
    "TaskLaw",
    "TasksNeeded",
    "TrainingRate",
    "allocate_labels",
    "analyse",
    "bayes_maml",
    "centroid_law",
    "coarse_rates",
    "crossover",
    "cube_moment",
    "design_noise",
    "drs_estimate",
    "easy_hard",
    "efficiency_bound",
    "estimate",
    "exact_probability_drs_worse",
    "expansion",
    "expected_excess_bound",
    "from_sampler",
    "gls",
    "guarantee",
    "guarantee_constants",
    "information",
    "isotropic_ridge_limit",
    "joint_score_bound",
    "maml_estimate",
    "maml_score_bound",
    "matrix_rate_moments",
    "matrix_rate_risk",
    "mean_excess_exists",
    "minimisers",
    "modelling_error",
    "modelling_error_bound",
    "optimal_matrix_rate",
    "optimal_matrix_rate_common",
    "optimal_test_rate",
    "optimal_training_rate",
    "probability_drs_worse",
    "published_law",
    "ridge_risk",
    "risk",
    "risk_k_steps",
    "rule_expansion",
    "sandwich_moment",
    "scalar_moments",
    "score_covariances",
    "score_fourth_moment",
    "small_rate_coefficient",
    "square_moment",
    "tasks_needed",
    "train_train",
    "training_rate_slope",
    "wick",
]
