"""Learners: nn.Modules that wrap a network and return its meta-loss, for any torch optimiser."""

from innerloop.learners.adapted import Adapted
from innerloop.learners.evaluation import Evaluation
from innerloop.learners.joint import JointTraining
from innerloop.learners.learner import Learner
from innerloop.learners.maml import ANIL, FOMAML, MAML, MetaSGD

__all__ = [
    "ANIL",
    "FOMAML",
    "MAML",
    "Adapted",
    "Evaluation",
    "JointTraining",
    "Learner",
    "MetaSGD",
]
