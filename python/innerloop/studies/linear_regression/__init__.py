"""Pooled least squares (DRS) against MAML on random linear-regression tasks, over M, N and alpha.

M tasks with N support and N query samples each; both estimators see the same samples, and their
risks before and after one gradient step on a new task are known in closed form. `sweep` runs the
trials with a fused kernel that draws the sufficient statistics instead of the samples, so that a
trial's cost does not depend on N; `reference` is the same experiment row by row in NumPy.
"""

from innerloop.studies.linear_regression.result import Prediction, Sweep, load
from innerloop.studies.linear_regression.settings import INNER_LRS, SAMPLES, TASKS, Settings
from innerloop.studies.linear_regression.simulation import sweep

__all__ = ["INNER_LRS", "SAMPLES", "TASKS", "Prediction", "Settings", "Sweep", "load", "sweep"]
