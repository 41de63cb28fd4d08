"""Batched gradient-based meta-learning with fused operations. Start at `meta_grad`, `meta_loss` and
`MLP`."""

from innerloop import _requirements as _requirements  # isort: split

from innerloop import functional, learners, nn, reference
from innerloop._batching import batch
from innerloop._params import Batch
from innerloop._tasks import FallbackWarning
from innerloop.functional import (
    MetaGrad,
    adapt,
    backend_for,
    hvp,
    loss_and_grad,
    meta_grad,
    meta_loss,
    predict,
)
from innerloop.learners import ANIL, FOMAML, MAML, JointTraining, MetaSGD
from innerloop.models import MLP
from innerloop.policies import GaussianMLP, PolicyBatch
from innerloop.policy_products import fisher_product, kl, meta_fisher, meta_fisher_product
from innerloop.schedule import fixed_plan, plan
from innerloop.workspace import release_workspace, workspace_bytes

__all__ = [
    "ANIL",
    "FOMAML",
    "MAML",
    "MLP",
    "Batch",
    "FallbackWarning",
    "GaussianMLP",
    "JointTraining",
    "MetaGrad",
    "MetaSGD",
    "PolicyBatch",
    "adapt",
    "backend_for",
    "batch",
    "fisher_product",
    "fixed_plan",
    "functional",
    "hvp",
    "kl",
    "learners",
    "loss_and_grad",
    "meta_fisher",
    "meta_fisher_product",
    "meta_grad",
    "meta_loss",
    "nn",
    "plan",
    "predict",
    "reference",
    "release_workspace",
    "workspace_bytes",
]

__version__ = "0.1.0"
